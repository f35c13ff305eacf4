"""One thread that a loop hands blocking calls to, one at a time.

``loop.run_in_executor`` does the same with two futures and a work queue for many threads; a commit passes here once per segment,
and this takes three quarters of the CPU time.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class Thread:
    """Belongs to the loop that it was created on."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any]] | None] = queue.SimpleQueue()
        threading.Thread(target=self._work, name=name, daemon=True).start()

    def call(self, function: Callable[[], T]) -> asyncio.Future[T]:
        """Run ``function`` in the thread, after what was given to it before."""
        future: asyncio.Future[T] = self._loop.create_future()
        self._queue.put((function, future))
        return future

    def close(self) -> None:
        """End the thread once it has done what it was given."""
        self._queue.put(None)

    def _work(self) -> None:
        while (work := self._queue.get()) is not None:
            function, future = work
            try:
                result = function()
            except BaseException as error:
                settle, outcome = _fail, error
            else:
                settle, outcome = _succeed, result
            try:
                self._loop.call_soon_threadsafe(settle, future, outcome)
            except RuntimeError:  # the loop is closed: nobody waits any more
                return


def _succeed(future: asyncio.Future[Any], result: Any) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[Any], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
