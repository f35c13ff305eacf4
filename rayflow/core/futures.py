"""What the code of a workflow waits for: futures whose results may go on to other operations without being looked at."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from functools import partial
from typing import Any, Protocol

from rayflow.core.loop import LoopFuture
from rayflow.core.passing import Source
from rayflow.core.records import Stored


class Receiver(Protocol):
    """Where the outcome of an operation goes: a future, or a map that counts its items."""

    @property
    def unread(self) -> bool:
        """Whether the result goes on to other operations, and nobody looks at it."""
        ...

    def succeed(self, value: Any, stored: Stored | None = None) -> None: ...

    def keep(self, stored: Stored) -> None:
        """It has succeeded, with a result that is unread."""
        ...

    def fail(self, error: Exception) -> None: ...


class Operation(LoopFuture):
    """What ``ctx.step`` and ``ctx.wait`` return: a future that tells the instance when nobody waits for it any more."""

    on_cancel: Callable[[], None] | None = None
    name = ""
    """The identity of the operation where its result can be passed on to others."""
    items: Callable[[], dict[str, Source]] | None = None
    """The results of the items of a map, by their keys."""
    read: Callable[[Stored], Any]
    """Decodes what the code looks at only later."""
    _source: Source | None = None
    _stored: Stored | None = None
    _later: Callable[[], Any] | None = None
    _value: Any = None

    def cancel(self, msg: Any = None) -> bool:
        cancelled = super().cancel(msg)
        if cancelled:
            if self.on_cancel is not None:
                self.on_cancel()
            self._settle(None, asyncio.CancelledError())
        return cancelled

    def close(self) -> None:
        """What a task group calls that does not take it: give it up."""
        self.cancel()

    def succeed(self, value: Any, stored: Stored | None = None) -> None:
        if not self.done():
            self.set_result(value)
            self._stored = stored
            if self._source is not None:
                self._source.settle(stored, None)

    def keep(self, stored: Stored) -> None:
        if not self.done():
            self.succeed_later(partial(self.read, stored))
            self._settle(stored, None)

    def succeed_later(self, later: Callable[[], Any]) -> None:
        """Succeed with a result that is made once the code looks at it."""
        self._later = later
        self.set_result(None)

    def fail(self, error: Exception) -> None:
        if not self.done():
            self.set_exception(error)
            if self._source is not None:
                self.exception()  # others get it: it is not lost
            self._settle(None, error)

    def fail_with(self, error: BaseException) -> None:
        """What it was to be made of has failed, or was given up."""
        if isinstance(error, Exception):
            self.fail(error)
        else:
            self.cancel()

    # -- passing its result on -----------------------------------------------------------------------------------------------

    def source(self) -> Source:
        """Its result as an argument of another operation."""
        if self._source is None:
            self._source = Source(self.name)
            if self.cancelled():
                self._settle(None, asyncio.CancelledError())
            elif self.done():
                self._settle(self._stored, self.exception())
        return self._source

    @property
    def unread(self) -> bool:
        return self._source is not None and not self.is_waited_for

    def result(self) -> Any:
        value = super().result()
        return value if self._later is None else self._read_now(self._later)

    def __await__(self) -> Generator[Any, None, Any]:
        return super().__await__() if self._later is None else self._result_at_hand()

    def _result_at_hand(self) -> Generator[Any, None, Any]:
        return self.result()
        yield

    def _read_now(self, later: Callable[[], Any]) -> Any:
        if self._value is None:
            self._value = (later(),)
        return self._value[0]

    def _settle(self, stored: Stored | None, error: BaseException | None) -> None:
        self._stored = stored
        if self._source is not None:
            self._source.settle(stored, error)
