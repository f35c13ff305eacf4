"""asyncio on a simulated world: what runs the shells that ship, unchanged, under a virtual clock.

Each process of a simulation has a loop of its own. Whatever asyncio code schedules becomes an event of the world, in the order in
which asyncio's own loop would run it; a process that crashes is never run again, one that is frozen goes on later with everything
that was waiting for it. The world may crash or freeze the process before each single callback.
"""

# pyright: reportPrivateUsage=false
# A loop that asyncio can run on has to touch what asyncio's own loops touch: the running-loop slot and Handle._run.
from __future__ import annotations

import asyncio
import contextvars
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVar

from rayflow.core.loop import LoopFuture, LoopTask, NumberingLoop
from rayflow.testing.simulation_world import Answer, Group, Process, World

T = TypeVar("T")

_CLOSE_TRIES = 8
"""How often a coroutine that awaits something while it is being closed is closed again."""


class ProcessLoop(NumberingLoop):
    """The event loop of one process, which is ``group``. ``failed`` is told what no task of it has dealt with."""

    def __init__(self, world: World, group: Group, failed: Callable[[str], None]) -> None:
        self.world = world
        self.group = group
        self.created = 0
        self._failed = failed
        self._ready: deque[events.Handle] = deque()
        self._ticking = False
        self._tasks: dict[asyncio.Task[Any], None] = {}

    def call(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function as code of this process."""
        outer = events._get_running_loop()
        events._set_running_loop(self)
        try:
            return function(*args)
        finally:
            events._set_running_loop(outer)

    def start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Begin a task from outside of the process."""
        return self.call(self.create_task, work)

    def future_of(self, answer: Answer[T]) -> asyncio.Future[T]:
        """What becomes of a call through the world, to be awaited here."""
        future: asyncio.Future[T] = self.create_future()

        def known() -> None:
            if future.done():
                return
            if answer.error is not None:
                future.set_exception(answer.error)
            else:
                future.set_result(answer.value)

        answer.on_done = known
        if answer.done:
            known()
        return future

    def process(self, work: Process[T]) -> asyncio.Future[T]:
        """Have a process of the world run beside the loop, as a thread would, and await its end. Cancelling does not stop it."""
        future: asyncio.Future[T] = self.create_future()

        def run() -> Process[None]:
            try:
                value = yield from work
            except Exception as error:
                if not future.done():
                    future.set_exception(error)
            else:
                if not future.done():
                    future.set_result(value)

        self.world.spawn(self.group, run())
        return future

    def end(self) -> None:
        """Drop every task, once the world runs no more: their ``finally`` blocks run now and not whenever they are collected."""
        self.group.alive = False
        self._ready.clear()
        for task in self._tasks:
            self.call(_close, task.get_coro())
        self._tasks.clear()
        self._ready.clear()

    # -- what asyncio needs --------------------------------------------------------------------------------------------------

    def time(self) -> float:
        return self.world.now_ms / 1000

    def call_soon(self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None) -> events.Handle:
        handle = events.Handle(callback, args, self, context)
        self._put(handle)
        return handle

    call_soon_threadsafe = call_soon

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> events.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> events.TimerHandle:
        handle = events.TimerHandle(when, callback, args, self, context)
        self.world.after(max(when * 1000 - self.world.now_ms, 0), self.group, lambda: self._put(handle))
        return handle

    def create_future(self) -> asyncio.Future[Any]:
        return LoopFuture(self)

    def next_number(self) -> int:
        """The hash of the next future or task: asyncio keeps them in sets, whose order must be the same in every run of a seed."""
        self.created += 1
        return self.created

    def create_task(
        self,
        coro: Coroutine[Any, Any, T] | Generator[Any, None, T],
        *,
        name: object = None,
        context: contextvars.Context | None = None,
    ) -> asyncio.Task[T]:
        task = LoopTask(coro, self, name, context)
        # What crashes is never run again, and must not be collected before the run is over either: that would run its code.
        self._tasks[task] = None
        task.add_done_callback(self._tasks.pop)
        return task

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if self.group.alive:
            self._failed(f"{context.get('message')}: {context.get('exception')!r}")

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def _timer_handle_cancelled(self, handle: events.TimerHandle) -> None:
        """Called by asyncio. A cancelled timer comes to nothing when it is due."""

    # -- events of the world -------------------------------------------------------------------------------------------------

    def _put(self, handle: events.Handle) -> None:
        if handle.cancelled() or not self.group.alive:
            return
        self._ready.append(handle)
        if not self._ticking:
            self._ticking = True
            self.world.after(0, self.group, self._tick)

    def _tick(self) -> None:
        """Run all that is ready now; what that makes ready comes next time, as on asyncio's own loop."""
        world, group, ready = self.world, self.group, self._ready
        outer = events._get_running_loop()
        events._set_running_loop(self)
        try:
            for _ in range(len(ready)):
                if world.strikes(group):
                    if group.frozen:
                        group.backlog.append(self._tick)
                    return
                handle = ready.popleft()
                if not handle.cancelled():
                    handle._run()
                    if not group.alive:
                        return
        finally:
            events._set_running_loop(outer)
        self._ticking = bool(ready)
        if ready:
            world.after(0, group, self._tick)


def _close(coro: Any) -> None:
    for _ in range(_CLOSE_TRIES):
        try:
            coro.close()
        except BaseException:  # it awaits in a finally block: then there may be another to run
            continue
        return
