"""A deterministic event loop: asyncio without a clock, threads or sockets.

Workflow code is plain asyncio. What makes it repeatable is this loop: it runs callbacks strictly in the order in which they were
scheduled, knows no time but the one that it is told, and refuses everything that would reach the outside world. ``run`` goes on
until nothing is ready; the next turn comes when the owner completes a future or moves the time.
"""

# pyright: reportPrivateUsage=false
# A loop that asyncio can run on has to touch what asyncio's own loops touch: the running-loop slot and Handle._run.
from __future__ import annotations

import asyncio
import contextvars
import heapq
import logging
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from typing import Any, NoReturn, TypeVar

_T = TypeVar("_T")
_log = logging.getLogger("rayflow.workflow")


class DeterministicLoop(asyncio.AbstractEventLoop):
    """One loop per workflow instance. Not thread-safe: only its owner touches it."""

    def __init__(self, time_s: float = 0.0) -> None:
        self._time_s = time_s
        self._ready: deque[events.Handle] = deque()
        self._timers: list[tuple[float, int, events.TimerHandle]] = []
        self._timer_count = 0
        self._closed = False

    # -- driven by the owner -------------------------------------------------------------------------------------------------

    def run(self, time_s: float, stop: Callable[[], bool]) -> None:
        """Move the time to ``time_s`` (never back), run what is due, then all that becomes ready, until ``stop()``."""
        self._time_s = max(self._time_s, time_s)
        while self._timers and self._timers[0][0] <= self._time_s:
            handle = heapq.heappop(self._timers)[2]
            if not handle.cancelled():
                self._ready.append(handle)
        outer = events._get_running_loop()
        events._set_running_loop(self)
        try:
            ready = self._ready
            while ready and not stop():
                handle = ready.popleft()
                if not handle.cancelled():
                    handle._run()
        finally:
            events._set_running_loop(outer)

    def next_timer_s(self) -> float | None:
        """When asyncio code here next wants to be woken, or None."""
        while self._timers and self._timers[0][2].cancelled():
            heapq.heappop(self._timers)
        return self._timers[0][0] if self._timers else None

    def close(self) -> None:
        """Drop everything that is scheduled."""
        self._closed = True
        self._ready.clear()
        self._timers.clear()

    # -- what asyncio needs --------------------------------------------------------------------------------------------------

    def time(self) -> float:
        return self._time_s

    def call_soon(self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None) -> events.Handle:
        handle = events.Handle(callback, args, self, context)
        if not self._closed:
            self._ready.append(handle)
        return handle

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> events.TimerHandle:
        return self.call_at(self._time_s + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> events.TimerHandle:
        handle = events.TimerHandle(when, callback, args, self, context)
        if not self._closed:
            self._timer_count += 1
            heapq.heappush(self._timers, (when, self._timer_count, handle))
        return handle

    def _timer_handle_cancelled(self, handle: events.TimerHandle) -> None:
        """Called by asyncio; cancelled timers are skipped when they come up."""

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(
        self,
        coro: Coroutine[Any, Any, _T] | Generator[Any, None, _T],
        *,
        name: object = None,
        context: contextvars.Context | None = None,
    ) -> asyncio.Task[_T]:
        if self._closed:
            coro.close()
            raise RuntimeError("the workflow has ended; no task can be created")
        task = asyncio.Task(coro, loop=self, name=None if name is None else str(name), context=context)
        # A suspended instance is dropped with its tasks pending: that is no programming error to warn of.
        task._log_destroy_pending = False  # pyright: ignore[reportAttributeAccessIssue]  # C attribute, not in the type stubs
        return task

    def get_debug(self) -> bool:
        return False

    def set_debug(self, enabled: bool) -> None:
        """asyncio's debug mode reads clocks; it has no effect here."""

    def is_running(self) -> bool:
        return events._get_running_loop() is self

    def is_closed(self) -> bool:
        return self._closed

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if not self._closed:
            _log.warning("%s", context.get("message"), exc_info=context.get("exception"))

    async def shutdown_asyncgens(self) -> None:
        """Nothing to do: asynchronous generators are finalised with their task."""


def _refusing(name: str) -> Callable[..., NoReturn]:
    def refuse(self: DeterministicLoop, *args: object, **kwargs: object) -> NoReturn:
        raise RuntimeError(
            f"workflow code called loop.{name}(): threads, sockets, processes and signals cannot be replayed; "
            f"do this in a step (await ctx.step(...))"
        )

    return refuse


_REFUSED = """
    run_forever run_until_complete run_in_executor set_default_executor call_soon_threadsafe getaddrinfo getnameinfo
    create_connection create_server create_unix_connection create_unix_server create_datagram_endpoint start_tls sendfile
    connect_accepted_socket connect_read_pipe connect_write_pipe subprocess_shell subprocess_exec add_reader remove_reader
    add_writer remove_writer sock_recv sock_recv_into sock_recvfrom sock_recvfrom_into sock_sendall sock_sendto sock_connect
    sock_accept sock_sendfile add_signal_handler remove_signal_handler
"""
for _name in _REFUSED.split():
    setattr(DeterministicLoop, _name, _refusing(_name))
