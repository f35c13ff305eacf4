"""An answer to come, that any thread and any event loop can wait for.

``concurrent.futures.Future`` does the same with a condition variable each and a wake-up of the loop each, which together cost more
than all else that a client does for a short call. Here waiting without blocking takes no lock, and whoever is answered together is
woken together.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from asyncio import AbstractEventLoop
from collections import defaultdict
from collections.abc import Callable, Iterable

from rayflow.core.messages import Answer
from rayflow.errors import RayflowError


class Pending:
    """Settled once, by ``settle_all``; thread-safe."""

    # Without a lock: an append to a list and a pop from it are atomic. A waiter is put into the list before it is looked whether
    # the outcome is there, and the outcome is put there before the list is emptied: so one side or the other sees to it.
    __slots__ = ("_on_abandoned", "_outcome", "_waiters")

    def __init__(self, on_abandoned: Callable[[], None] | None = None) -> None:
        self._on_abandoned = on_abandoned
        self._outcome: Answer | RayflowError | None = None
        self._waiters: list[asyncio.Future[None] | threading.Event] = []

    def done(self) -> bool:
        """Whether ``result`` does not wait."""
        return self._outcome is not None

    def result(self, timeout: float | None = None) -> Answer:
        """Block until the answer is here. Raises TimeoutError after ``timeout`` seconds, and the error if there will be none."""
        if self._outcome is None:
            event = threading.Event()
            self._waiters.append(event)
            if self._outcome is None and not event.wait(timeout) and self._outcome is None:
                self.leave(event)
                raise TimeoutError
        outcome = self._outcome
        if isinstance(outcome, RayflowError):
            raise outcome
        assert outcome is not None
        return outcome

    def waiter(self) -> asyncio.Future[None] | None:
        """Done, on the running loop, once ``result`` does not wait; None: it does not now. Who gives it up must ``leave``."""
        if self._outcome is not None:
            return None
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        return None if self._outcome is not None else waiter

    async def wait(self) -> Answer:
        """``result`` without blocking the running loop."""
        waiter = self.waiter()
        if waiter is not None:
            try:
                await waiter
            except BaseException:
                self.leave(waiter)
                raise
        return self.result()

    def leave(self, waiter: asyncio.Future[None] | threading.Event) -> None:
        """It is not waited with this any more."""
        with contextlib.suppress(ValueError):  # it is being woken just now
            self._waiters.remove(waiter)

    def abandon(self) -> None:
        """Nobody will ask for the answer any more: whoever is to give it can be told. May be called while garbage is collected."""
        if self._outcome is None and self._on_abandoned is not None:
            self._on_abandoned()


def settle_all(outcomes: Iterable[tuple[Pending, Answer | RayflowError]]) -> None:
    """Give each its outcome, if it has none, and wake all who wait."""
    loops: defaultdict[AbstractEventLoop, list[asyncio.Future[None]]] = defaultdict(list)
    for pending, outcome in outcomes:
        if pending._outcome is None:  # pyright: ignore[reportPrivateUsage]  # of this module
            pending._outcome = outcome  # pyright: ignore[reportPrivateUsage]
        waiters = pending._waiters  # pyright: ignore[reportPrivateUsage]
        while waiters:
            waiter = waiters.pop()
            if isinstance(waiter, threading.Event):
                waiter.set()
            else:
                loops[waiter.get_loop()].append(waiter)
    for loop, group in loops.items():
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(_set, group)


def _set(waiters: list[asyncio.Future[None]]) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)
