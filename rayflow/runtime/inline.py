"""Inline steps: run in the shard's process, one after the other in a thread of their own; async ones as tasks of its loop.

For functions of milliseconds: one that takes longer makes the inline steps behind it wait, though not the shard.
"""

from __future__ import annotations

import asyncio
import inspect
import queue
import threading
import time
from collections.abc import Callable

from rayflow.checkpoint.patient import PatientStore
from rayflow.checkpoint.store import Store
from rayflow.core.messages import StepResult, StepStart
from rayflow.core.outbox import StartStep
from rayflow.core.recent import Recent
from rayflow.core.records import Function
from rayflow.errors import RayflowError
from rayflow.runtime.code import StoredCode, plain_function
from rayflow.runtime.worker import run_attempt, run_attempt_async, type_names

_FLUSH_S = 0.002
_KEPT = 1000


def step_start(effect: StartStep) -> StepStart:
    """A start as it travels to where the step runs."""
    request = effect.request
    retry = request.settings.retry
    return StepStart(
        effect.execution,
        request.operation,
        effect.attempt,
        request.settings.name,
        request.function,
        effect.arguments,
        request.settings.timeout_s,
        type_names(retry.retry_on),
        type_names(retry.give_up_on),
        effect.run,
        effect.shared,
        effect.passed,
    )


class InlineRunner:
    """Runs attempts and hands their results, several at a time, to ``finished`` on the loop that it was created on."""

    def __init__(self, store: Store, finished: Callable[[list[StepResult]], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._finished = finished
        self._loop_code = StoredCode(store)
        self._thread_code = StoredCode(PatientStore(store))
        self._queue: queue.SimpleQueue[list[StepStart] | None] = queue.SimpleQueue()
        self._async: Recent[Function, bool] = Recent(_KEPT)
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._work, name="rayflow-inline", daemon=True)
        self._thread.start()

    def submit(self, starts: list[StartStep]) -> None:
        """Run these, in order."""
        blocking: list[StepStart] = []
        for start in map(step_start, starts):
            if self._is_async(start):
                task = asyncio.create_task(self._run_async(start))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            else:
                blocking.append(start)
        if blocking:
            self._queue.put(blocking)

    def close(self) -> None:
        """Start nothing more; results of what still runs are dropped."""
        self._queue.put(None)
        for task in self._tasks:
            task.cancel()

    def _is_async(self, start: StepStart) -> bool:
        known = self._async.get(start.function)
        if known is None:
            known = self._async.put(start.function, self._find_out(start))
        return known

    def _find_out(self, start: StepStart) -> bool:
        try:
            return inspect.iscoroutinefunction(plain_function(self._loop_code.function(start.function)))
        except RayflowError:
            return False  # the thread meets the same error and reports it

    async def _run_async(self, start: StepStart) -> None:
        self._finished([await run_attempt_async(start, self._loop_code)])

    def _work(self) -> None:
        while (starts := self._queue.get()) is not None:
            results: list[StepResult] = []
            flushed_s = time.monotonic()
            for start in starts:
                results.append(run_attempt(start, self._thread_code))
                if time.monotonic() - flushed_s > _FLUSH_S:
                    self._flush(results)
                    results, flushed_s = [], time.monotonic()
            if results:
                self._flush(results)

    def _flush(self, results: list[StepResult]) -> None:
        try:
            self._loop.call_soon_threadsafe(self._finished, results)
        except RuntimeError:  # the loop is closed: the process ends
            return
