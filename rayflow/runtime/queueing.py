"""Tasks that Ray has not begun: which wait for their turn, and which for what no node has. Ray says nothing of either.

One look every few seconds over all of them, by what they ask for, and only while there are some.
"""

from __future__ import annotations

import asyncio
import logging
import math
import pickle
import time
from collections.abc import Callable, Iterable
from typing import Any, cast

import ray

from rayflow.checkpoint.opening import open_store
from rayflow.checkpoint.queues import REWRITE_S, WaitingNote, WaitingSteps
from rayflow.core.messages import QUEUED
from rayflow.errors import RayflowError
from rayflow.runtime.demands import Node, lacking
from rayflow.runtime.step_tasks import StepTask

LOOK_S = 3.0
_WAITS_AFTER_S = 2.0
"""What began a moment ago is not worth a word."""
_COUNTS_S = 15.0
"""How often a note is written again where only the counts have changed."""
_MOST_OPERATIONS = 2000

_log = logging.getLogger("rayflow.dispatcher")


class Queueing:
    """Belongs to the loop of the dispatcher.

    Args:
        store_url: Where a note is kept of what waits.
        tasks: All tasks that have not ended.
        tell: Called with a task whose ``state`` has changed.
        warn: Called at each look with what waits for something that no node has, by shard.
    """

    def __init__(
        self,
        store_url: str,
        tasks: Callable[[], Iterable[StepTask]],
        tell: Callable[[StepTask], None],
        warn: Callable[[int, list[WaitingSteps]], None],
    ) -> None:
        self._store_url = store_url
        self._tasks = tasks
        self._tell = tell
        self._warn = warn
        self._watching: asyncio.Task[None] | None = None
        self._note: WaitingNote | None = None
        self._noted: list[WaitingSteps] = []
        self._noted_s = -math.inf

    def started(self) -> None:
        """There is a task that Ray has not begun."""
        if self._watching is None or self._watching.done():
            self._watching = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self._look()
            except Exception:  # of Ray's: it is for display only
                _log.exception("which steps wait is not known")
            if not self._noted and all(task.node for task in self._tasks()):
                return

    async def _look(self) -> None:
        before_ms = time.time_ns() // 1_000_000 - _WAITS_AFTER_S * 1000
        waiting = [task for task in self._tasks() if not task.node and task.submitted_ms < before_ms]
        nodes = await asyncio.to_thread(_nodes) if waiting else []
        whys = {options: _lacking(options, nodes) for options in {task.options for task in waiting}}
        found: dict[tuple[int, str, str, str], list[tuple[str, int]]] = {}
        for task in waiting:
            if task.node:  # it said so meanwhile
                continue
            why = whys[task.options]
            state = f"waiting for resources: {why}" if why else QUEUED
            if state != (task.state or QUEUED):  # which is what is shown of those of which nothing was told
                task.state = state
                self._tell(task)
            for attempt in task.wanted:
                group = found.setdefault((task.number, attempt.execution, task.name, why), [])
                group.append((attempt.operation, attempt.attempt))
        lacking_: dict[int, list[WaitingSteps]] = {}
        steps: list[WaitingSteps] = []
        room = _MOST_OPERATIONS
        for (number, execution, name, why), operations in found.items():
            steps.append(WaitingSteps(execution, name, why, len(operations), tuple(operations[:room])))
            room = max(room - len(operations), 0)
            if why:
                lacking_.setdefault(number, []).append(steps[-1])
        for number, some in lacking_.items():
            self._warn(number, some)
        await self._write(steps)

    async def _write(self, steps: list[WaitingSteps]) -> None:
        since_s = time.monotonic() - self._noted_s
        if steps == self._noted and (not steps or since_s < REWRITE_S):
            return
        if since_s < _COUNTS_S and _whys(steps) == _whys(self._noted):
            return
        try:
            await asyncio.to_thread(self._put, steps)
        except RayflowError as error:
            _log.warning("what waits could not be noted in %s (%s); the next look tries again", self._store_url, error)
        else:
            self._noted, self._noted_s = steps, time.monotonic()

    def _put(self, steps: list[WaitingSteps]) -> None:
        if self._note is None:
            self._note = WaitingNote(open_store(self._store_url))
        self._note.write(steps)


def _whys(steps: list[WaitingSteps]) -> set[tuple[str, str, str]]:
    return {(one.execution, one.name, one.why) for one in steps}


def _nodes() -> list[Node]:
    nodes = cast("list[dict[str, Any]]", ray.nodes())
    return [Node(str(node["NodeID"]), node["Resources"], node["Labels"]) for node in nodes if node["Alive"]]


def _lacking(options: bytes, nodes: list[Node]) -> str:
    try:
        return lacking(pickle.loads(options), nodes)
    except Exception as error:  # options that Ray takes and this does not know
        _log.warning("what a step asks for is not understood (%s: %s)", type(error).__name__, error)
        return ""
