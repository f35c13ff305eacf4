"""Calls of a client to entities, and their answers."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any, Protocol, TypeVar, cast

from rayflow.core.entity import Call
from rayflow.core.failures import raised_as
from rayflow.core.messages import Answer, Answered
from rayflow.core.proxy import Outgoing
from rayflow.core.records import Stored
from rayflow.errors import OperationFailed
from rayflow.runtime.pending import Pending
from rayflow.runtime.refusal import raise_refusal

R = TypeVar("R")


def raise_failure(address: str, operation: str, answered: Answered) -> None:
    """Raises OperationFailed, which is also of the type that the operation raised, if it did."""
    failure = answered.failure
    if failure is not None:
        raise raised_as(
            OperationFailed, f"{address}: {operation} raised {failure.type}: {failure.message}", failure, to_client=True
        )


class Values(Protocol):
    """Where large values are."""

    def decode(self, stored: Stored) -> Any: ...


class RemoteCall(Call[R]):
    """A message under way."""

    __slots__ = ("_answer", "_sent", "_values")

    def __init__(self, sent: Outgoing, values: Values, answer: Pending) -> None:
        self._sent = sent
        self._values = values
        self._answer = answer

    def result(self, timeout: float | None = None) -> R:
        wait_s = self._sent.options.timeout_s if timeout is None else timeout
        try:
            return self._read(self._answer.result(wait_s))
        except TimeoutError:
            raise self._late(wait_s) from None

    def __await__(self) -> Generator[Any, None, R]:
        wait_s = self._sent.options.timeout_s
        if wait_s is None:
            waiter = self._answer.waiter()
            if waiter is not None:
                try:
                    yield from waiter
                except BaseException:
                    self._answer.leave(waiter)
                    raise
        else:
            yield from self._wait(wait_s).__await__()
        return self._read(self._answer.result())

    async def _wait(self, wait_s: float) -> None:
        try:
            async with asyncio.timeout(wait_s):
                await self._answer.wait()
        except TimeoutError:
            raise self._late(wait_s) from None

    def _late(self, wait_s: float | None) -> TimeoutError:
        sent = self._sent
        again = "sent again under its message_id it counts once" if sent.options.message_id else "sent again it may count twice"
        return TimeoutError(
            f"{sent.address} has not answered {sent.operation} after {wait_s} s; it may still do what was asked: wait for the same "
            f"call once more ({again}); 'python -m rayflow diagnose' tells whether the store and the cluster answer"
        )

    def _read(self, answer: Answer) -> R:
        answered = cast("Answered", raise_refusal(answer))
        if self._sent.options.signal:
            return cast("R", None)
        raise_failure(self._sent.address, self._sent.operation, answered)
        return cast("R", None if answered.result is None else self._values.decode(answered.result))

    def __repr__(self) -> str:
        return f"<{self._sent.operation} of {self._sent.address}: {'answered' if self._answer.done() else 'under way'}>"
