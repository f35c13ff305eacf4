"""A deterministic event loop: asyncio without a clock, threads or sockets.

Workflow code is plain asyncio. What makes it repeatable is this loop: it runs callbacks strictly in the order in which they were
scheduled, knows no time but the one that it is told, and refuses everything that would reach the outside world. ``run`` goes on
until nothing is ready; the next turn comes when the owner completes a future or moves the time.

asyncio keeps tasks and futures in sets: those of a TaskGroup that is aborted, those that ``asyncio.wait`` returns. Hashed by
address they would be cancelled, and looked at by user code, in another order in every process. So the tasks and futures of this
loop are hashed by a number: the order of a set of them follows from how it was filled. Two things asyncio does beside the loop, and
importing this module mends them in asyncio itself, for loops of this kind alone: the future of ``gather`` is of a class of its own,
and ``as_completed`` starts the coroutines that it is given in the order of a set of them.
"""

# pyright: reportPrivateUsage=false
# A loop that asyncio can run on has to touch what asyncio's own loops touch: the running-loop slot and Handle._run.
from __future__ import annotations

import asyncio
import contextvars
import heapq
import inspect
import logging
import sys
import weakref
from asyncio import events
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Coroutine, Generator, Iterable
from typing import Any, NoReturn, TypeVar, cast

_T = TypeVar("_T")
Logger = logging.Logger | logging.LoggerAdapter[logging.Logger]

_CLOSE_TRIES = 8
"""How often a coroutine that awaits something while it is being closed is closed again."""

_NEVER_S = 1e14
"""What is due then, in millions of years, is never due. Times below fit into a record as milliseconds."""

_FEW_TIMERS = 100
"""So many cancelled timers may lie around before it pays to sweep them out."""


class NumberingLoop(asyncio.AbstractEventLoop):
    """A loop that numbers its futures and tasks."""

    created: int

    def next_number(self) -> int:
        """The hash of the next future or task."""
        raise NotImplementedError


class LoopFuture(asyncio.Future[Any]):
    """A future whose place in a set is the same on every replay."""

    def __init__(self, loop: NumberingLoop) -> None:
        self._number = loop.next_number()
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self._number

    @property
    def is_waited_for(self) -> bool:
        """Whether anything will be told of its outcome."""
        return bool(self._callbacks)


class LoopTask(asyncio.Task[_T]):
    """A task whose place in a set, and whose name, is the same on every replay."""

    def __init__(
        self,
        coro: Coroutine[Any, Any, _T] | Generator[Any, None, _T],
        loop: NumberingLoop,
        name: object,
        context: contextvars.Context | None,
    ) -> None:
        self._number = loop.next_number()
        super().__init__(coro, loop=loop, name=f"Task-{loop.created}" if name is None else str(name), context=context)
        # A suspended instance is dropped with its tasks pending: that is no programming error to warn of.
        self._log_destroy_pending = False

    def __hash__(self) -> int:
        return self._number


class DeterministicLoop(NumberingLoop):
    """One loop per workflow instance. Not thread-safe: only its owner touches it."""

    def __init__(self, time_s: float = 0.0, seed: int = 0, logger: Logger | None = None) -> None:
        """``time_s``: the time to begin with. ``seed``: spreads the hashes of different loops. ``logger``: told of lost errors."""
        self.created = 0
        """How many futures and tasks there have been, those of ``asyncio.gather`` excepted."""
        self._gathered = 0
        self._time_s = time_s
        self._logger: Logger = logging.getLogger("rayflow.workflow") if logger is None else logger
        # Consecutive from a place of the loop's own: asyncio keeps one set of the tasks of all loops; equal hashes would clog it.
        self._first_number = seed * 0x9E3779B97F4A7C15 % 2**60
        self._tasks: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()
        self._ready: deque[events.Handle] = deque()
        self._timers: list[tuple[float, int, events.TimerHandle]] = []
        self._timer_count = 0
        self._timers_cancelled = 0
        self._closed = False

    # -- driven by the owner -------------------------------------------------------------------------------------------------

    def run(self, time_s: float, stop: Callable[[], bool]) -> None:
        """Move the time to ``time_s`` (never back), run what is due, then all that becomes ready, until ``stop()``."""
        self._time_s = max(self._time_s, time_s)
        while self._timers and self._timers[0][0] <= self._time_s:
            handle = self._pop_timer()
            if not handle.cancelled():
                self._ready.append(handle)
        with _Running(self):
            ready = self._ready
            while ready and not stop():
                handle = ready.popleft()
                if not handle.cancelled():
                    try:
                        handle._run()
                    except SystemExit:
                        # asyncio lets it through to end the process. Here it is an error of one workflow, kept in its task already.
                        continue

    def next_timer_s(self) -> float | None:
        """When asyncio code here next wants to be woken, or None."""
        while self._timers and self._timers[0][2].cancelled():
            self._pop_timer()
        return self._timers[0][0] if self._timers else None

    def next_number(self) -> int:
        """The hash of the next future or task."""
        self.created += 1
        return self._first_number + self.created

    def next_gathered_number(self) -> int:
        """The hash of the next future of ``asyncio.gather``.

        Counted apart: all others keep their numbers, and sets of them their order, in records from before there were these.
        """
        self._gathered += 1
        return self._first_number - self._gathered

    def close(self) -> None:
        """Drop everything that is scheduled and end every task. ``finally`` blocks run now, and not whenever they are collected.

        They can neither create tasks nor wait, and their errors have nowhere to go.
        """
        self._closed = True
        self._ready.clear()
        self._timers.clear()
        with _Running(self):
            for task in sorted(self._tasks, key=hash):
                if not task.done():
                    _close(task.get_coro())
        self._tasks.clear()

    def _pop_timer(self) -> events.TimerHandle:
        handle = heapq.heappop(self._timers)[2]
        handle._scheduled = False
        if handle.cancelled():
            self._timers_cancelled -= 1
        return handle

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
        if not self._closed and when < _NEVER_S:  # what is due at infinity, or at no number, is never due
            self._timer_count += 1
            handle._scheduled = True
            heapq.heappush(self._timers, (when, self._timer_count, handle))
        return handle

    def _timer_handle_cancelled(self, handle: events.TimerHandle) -> None:
        """Called by asyncio. A step in a time-out of an hour leaves a cancelled timer: they must not gather for an hour."""
        if not handle._scheduled or self._closed:
            return
        self._timers_cancelled += 1
        if self._timers_cancelled > max(_FEW_TIMERS, len(self._timers) // 2):
            self._timers = [entry for entry in self._timers if not entry[2].cancelled()]
            heapq.heapify(self._timers)
            self._timers_cancelled = 0

    def create_future(self) -> asyncio.Future[Any]:
        return LoopFuture(self)

    def create_task(
        self,
        coro: Coroutine[Any, Any, _T] | Generator[Any, None, _T] | Awaitable[_T],
        *,
        name: object = None,
        context: contextvars.Context | None = None,
    ) -> asyncio.Task[_T]:
        """A task of a coroutine, or of anything else that can be awaited: what a context returns is under way before it is."""
        if self._closed:
            _close(coro)
            raise RuntimeError("the workflow has ended; no task can be created")
        if asyncio.iscoroutine(coro) or not inspect.isawaitable(coro):
            task = LoopTask(cast("Coroutine[Any, Any, _T]", coro), self, name, context)
        else:
            task = LoopTask(_outcome(coro), self, name, context)
            cancel = getattr(coro, "cancel", None)
            if cancel is not None:  # a task that is cancelled before it has begun to wait would leave it under way
                task.add_done_callback(lambda _: cancel())
        self._tasks.add(task)
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
            self._logger.warning("%s", context.get("message"), exc_info=context.get("exception"))

    async def shutdown_asyncgens(self) -> None:
        """Nothing to do: asynchronous generators are finalised with their task."""

    def finish_generator(self, generator: AsyncGenerator[Any, Any]) -> None:
        """Run what is left of an asynchronous generator that the code has dropped; one dropped after its turn just goes."""
        if self.is_running() and not self._closed:
            self.create_task(generator.aclose())


class _Running:
    """Makes a loop the running one, and afterwards the one around it (a shard's own) again."""

    def __init__(self, loop: DeterministicLoop) -> None:
        self._loop = loop

    def __enter__(self) -> None:
        self._outer = events._get_running_loop()
        self._hooks = sys.get_asyncgen_hooks()
        events._set_running_loop(self._loop)
        # Without hooks of its own, the generators of workflow code would be finished by the loop around this one, in its time.
        sys.set_asyncgen_hooks(firstiter=None, finalizer=self._loop.finish_generator)

    def __exit__(self, *error: object) -> None:
        sys.set_asyncgen_hooks(*self._hooks)
        events._set_running_loop(self._outer)


async def _outcome(awaitable: Awaitable[_T]) -> _T:
    return await awaitable


def _close(coro: Any) -> None:
    for _ in range(_CLOSE_TRIES):
        try:
            coro.close()
        except BaseException:  # the code's own, or that it awaits in a finally block: then there may be another to run
            continue
        return


def _gathered_hash(future: asyncio.Future[Any]) -> int:
    """The hash of a future of ``asyncio.gather``: in a workflow a number, which it gets when it is hashed first."""
    loop = future.get_loop()
    if not isinstance(loop, DeterministicLoop):
        return object.__hash__(future)
    number: int | None = getattr(future, "_number", None)
    if number is None:
        number = loop.next_gathered_number()
        future._number = number  # pyright: ignore[reportAttributeAccessIssue]
    return number


def _each_once(*given: Iterable[Any]) -> Collection[Any]:
    """``set`` as asyncio's functions call it for what they are to wait for: in a workflow coroutines stay in the order given."""
    if not given or not isinstance(events._get_running_loop(), DeterministicLoop):
        return set(*given)
    (many,) = given
    if iter(many) is many:  # it can be gone through once only
        many = list(many)
    each = set(many)
    if not any(asyncio.iscoroutine(one) for one in each):
        return each
    if len(each) > 1 and isinstance(many, set | frozenset):
        raise RuntimeError(
            "workflow code gave asyncio a set of coroutines: they would be started in another order on every replay; give a list"
        )
    return dict.fromkeys(many)


vars(asyncio.tasks)["_GatheringFuture"].__hash__ = _gathered_hash
setattr(asyncio.tasks, "set", _each_once)  # noqa: B010  # what is no attribute yet cannot be assigned to, says the type checker


def _refusing(name: str) -> Callable[..., NoReturn]:
    def refuse(self: DeterministicLoop, *args: object, **kwargs: object) -> NoReturn:
        raise RuntimeError(
            f"workflow code called loop.{name}(): threads, sockets, processes, signals and handlers cannot be replayed; "
            f"do this in a step (await ctx.step(...))"
        )

    return refuse


_REFUSED = """
    run_forever run_until_complete stop run_in_executor set_default_executor shutdown_default_executor call_soon_threadsafe
    set_task_factory get_task_factory set_exception_handler get_exception_handler default_exception_handler getaddrinfo getnameinfo
    create_connection create_server create_unix_connection create_unix_server create_datagram_endpoint start_tls sendfile
    connect_accepted_socket connect_read_pipe connect_write_pipe subprocess_shell subprocess_exec add_reader remove_reader
    add_writer remove_writer sock_recv sock_recv_into sock_recvfrom sock_recvfrom_into sock_sendall sock_sendto sock_connect
    sock_accept sock_sendfile add_signal_handler remove_signal_handler
"""
for _name in _REFUSED.split():
    setattr(DeterministicLoop, _name, _refusing(_name))
