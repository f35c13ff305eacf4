"""The error kernel: a small actor that owns the Ray tasks of steps and runs no user code.

A shard's process may be crashed by the workflow code in it; the steps that it started must not die with it. So their tasks
belong to this actor. What it owes the shards, and which of their calls count, is in ``rayflow.runtime.assignments``; here is how
it is done with Ray.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import time
from collections import deque
from collections.abc import Coroutine, Iterable
from concurrent.futures import Future
from typing import Any, NamedTuple, cast

import msgspec
import ray

from rayflow.core.ledger import Connection
from rayflow.core.messages import RUNNING, Attempt, StepProgress, StepResult, attempt_of
from rayflow.core.records import Cause
from rayflow.runtime import placement
from rayflow.runtime.assignments import Assignments
from rayflow.runtime.bundles import HOLD_S, Bundles
from rayflow.runtime.dispatching import Submission
from rayflow.runtime.draining import until_drained
from rayflow.runtime.meter import DispatcherMeter, publish_for_ever
from rayflow.runtime.metrics import Publisher
from rayflow.runtime.output import Spoken, Who, encode_line
from rayflow.runtime.placing import Placing
from rayflow.runtime.queueing import Queueing
from rayflow.runtime.step_tasks import StepTask, Submitter, cpus, crashed, free_cpus, likeness, outcomes, runs, stop
from rayflow.runtime.stragglers import Stragglers

_SUBMIT_SLICE = 50
_SLOTS_S = 30.0
_WATCH_S = 2.0

_log = logging.getLogger("rayflow.dispatcher")


class _Done(NamedTuple):
    task: StepTask
    future: Future[bytes]


_encode = msgspec.msgpack.Encoder().encode
_decode_submissions = msgspec.msgpack.Decoder(list[Submission]).decode
_decode_attempts = msgspec.msgpack.Decoder(list[Attempt]).decode


class Dispatcher:
    """Created as a named, detached actor by ``rayflow.runtime.cluster``. All methods are idempotent.

    ``shards`` is how many the store has, ``home`` the name of the host that has them where no node is there for shards.
    """

    async def __init__(self, name: str, store_url: str, shards: int, home: str) -> None:
        self._store_url = store_url
        self._submitter = Submitter(store_url, name)
        self._assignments = Assignments(lambda one: attempt_of(one.start), self._begin, self._stop)
        self._tasks: dict[Attempt, StepTask] = {}
        self._avoided: dict[Attempt, set[str]] = {}
        """By step (attempt 0 of it): nodes on whose disk it found no space."""
        self._loop = asyncio.get_running_loop()
        self._bundles: Bundles[Submission] = Bundles()
        self._slots_known = 1
        self._slots_s = -math.inf
        self._done: deque[_Done] = deque()
        self._watching: asyncio.Task[None] | None = None
        self._background: set[asyncio.Task[None]] = set()
        self._stragglers = Stragglers()
        self._queueing = Queueing(store_url, self._all_tasks, self._tell, self._assignments.wait)
        self._placing = Placing(store_url, shards, home)
        self._spoken = Spoken()
        self._spawn(self._placing.keep())
        self._spawn(self._leave_when_drained())
        publisher = Publisher(store_url)
        self._meter = DispatcherMeter(publisher)
        self._publishing = asyncio.create_task(publish_for_ever(publisher, self._take_levels))

    def __repr__(self) -> str:
        """What is held now. Ray asks when the actor has started, and puts that before the names of its calls: then it is short."""
        epochs, assignments = self._assignments.epochs(), self._assignments
        if not epochs:
            return f"rayflow dispatcher of {self._store_url}"
        shards = ", ".join(f"shard {number} (epoch {epoch})" for number, epoch in epochs.items())
        steps = f"{assignments.running} steps running, {assignments.held} results not on record yet"
        return f"rayflow dispatcher of {self._store_url}: {shards}; {steps}"

    async def enter(self, entered: bytes) -> bytes:
        """A host begins, see ``placing``: an encoded Entered, an encoded Placement."""
        return placement.encode(await self._placing.enter(placement.decode_entered(entered)))

    async def host_code(self, code: str) -> None:
        """The host at home is about to be killed, since the next one is to have this code."""
        self._placing.host_code(code)

    async def attach(self, number: int, connection: tuple[int, int], expected: bytes) -> bytes:
        """``Assignments.attach``: encoded attempts, and those that are not known here. Raises Fenced, Disconnected."""
        lost = self._assignments.attach(number, Connection(*connection), _decode_attempts(expected))
        for task in self._tasks.values():  # a new owner knows nothing of it
            if task.number == number:
                self._tell(task)
        return _encode(lost)

    async def submit(self, number: int, connection: tuple[int, int], call: int, submissions: bytes, stops: bytes) -> None:
        """``Assignments.submit``, with encoded submissions and attempts. Raises Disconnected."""
        wanted, unwanted = _decode_submissions(submissions), _decode_attempts(stops)
        await self._assignments.submit(number, Connection(*connection), call, wanted, unwanted)

    async def collect(self, number: int, connection: tuple[int, int], recorded: int, seen: int) -> bytes:
        """``Assignments.collect``: an encoded Collected. Raises Disconnected."""
        return _encode(await self._assignments.collect(number, Connection(*connection), recorded, seen))

    async def progress(self, number: int, progress: bytes) -> None:
        """A running step says how far it is."""
        self._assignments.heard(number, msgspec.msgpack.decode(progress, type=StepProgress))

    async def said(self, lines: bytes) -> None:
        """A process of steps or shards passes on what they print and log, see ``output``."""
        self._spoken.add(lines)

    async def listen(self, incarnation: str, seen: int, wait: bool) -> bytes:
        """``Spoken.heard``."""
        return await self._spoken.heard(incarnation, seen, wait)

    async def runs_on(self, number: int, attempts: bytes, node: str, task_id: str) -> None:
        """A task says that it runs, and on which node.

        Where a machine vanishes without a word, or is cut off, Ray knows the node for dead in seconds or a minute, but leaves the
        owner of a task there waiting for as long as its connection seems to be there: seven minutes.
        """
        for attempt in _decode_attempts(attempts):
            first = self._tasks.get(attempt)
            for task in runs(first):
                if task.reference.task_id().hex() == task_id:
                    task.node, task.running_since_s = node, time.monotonic()
                    if task is first and task.state != RUNNING:
                        task.state = RUNNING
                        self._tell(task)
        if self._watching is None or self._watching.done():
            self._watching = asyncio.create_task(self._watch_nodes())

    async def avoid(self, number: int, attempts: bytes, node: str) -> None:
        """Attempts are about to fail because a node's disk is full: the next ones go elsewhere, as long as there is an elsewhere.

        The node is idle by then, so that Ray would choose it again, until no attempts are left.
        """
        for attempt in _decode_attempts(attempts):
            if self._assignments.is_running(number, attempt):
                self._avoided.setdefault(attempt._replace(attempt=0), set()).add(node)

    async def _watch_nodes(self) -> None:
        """As long as there are tasks whose node is known: take those for lost whose node is dead, and run the late ones again."""
        while located := {id(task): task for first in self._tasks.values() for task in runs(first) if task.node}:
            nodes = cast("list[dict[str, Any]]", await asyncio.to_thread(ray.nodes))
            dead = {str(node["NodeID"]) for node in nodes if not node["Alive"]}
            for task in located.values():
                if task.node in dead:
                    lost = RuntimeError(f"node {task.node} is dead")
                    self._ended(task, [crashed(attempt, Cause.LOST, lost) for attempt in task.attempts])
            late = [task for task in located.values() if self._is_late(task)]
            if late:
                free = await asyncio.to_thread(free_cpus)
                for task in late:
                    self._run_again(task, free)
            await asyncio.sleep(_WATCH_S)

    # -- late tasks ----------------------------------------------------------------------------------------------------------

    def _is_late(self, task: StepTask) -> bool:
        if task.again is None or task.second is not None or not task.wanted:
            return False
        late_after_s = self._stragglers.late_after_s(likeness(task.again))
        return late_after_s is not None and time.monotonic() - task.running_since_s > late_after_s

    def _run_again(self, task: StepTask, free: dict[str, float]) -> None:
        """Run it a second time on a node that has nothing better to do, if there is one; ``free`` is what is left of such nodes."""
        again, (attempt,) = task.again, task.attempts
        if again is None or not self._assignments.is_running(task.number, attempt):
            return
        needed = cpus(again)
        node = next((node for node, cpus in free.items() if node != task.node and cpus >= needed), None)
        if node is None:
            return
        free[node] -= needed
        now_ms = time.time_ns() // 1_000_000
        second = StepTask(task.number, None, task.attempts, set(task.attempts), now_ms, task.name, task.options)
        try:
            second.reference = self._submitter.submit([again], task.number, node=node)
        except Exception as error:  # it would have done good, and does no harm
            _log.warning("%s of %s cannot run a second time: %s", attempt.operation, attempt.execution, error)
            task.again = None
            return
        task.second = second
        self._await(second)
        ran_s = time.monotonic() - task.running_since_s
        _log.warning(
            "%s of %s has run for %.0f s on node %s, where others take half of that: it runs a second time, on node %s",
            attempt.operation, attempt.execution, ran_s, task.node, node,
        )  # fmt: skip

    async def _leave_when_drained(self) -> None:
        """Begin anew on another node, but not under the steps that run: those are this process's children, wherever they run."""
        await until_drained()
        # Not before the host at home, which leaves at once, is elsewhere: it makes the next dispatcher, and this one the next host.
        here = ray.get_runtime_context().get_node_id()
        while self._placing.is_home(here) or self._assignments.running or self._assignments.held:
            await asyncio.sleep(_WATCH_S)
        _log.warning("this node is being drained: the dispatcher begins anew on another one")
        os._exit(1)

    async def ping(self) -> int:
        """How many attempts are running."""
        return self._assignments.running

    # -- for display ---------------------------------------------------------------------------------------------------------

    def _all_tasks(self) -> Iterable[StepTask]:
        return {id(task): task for task in self._tasks.values()}.values()

    def _tell(self, task: StepTask) -> None:
        for attempt in task.wanted if task.state else ():
            self._assignments.told(task.number, attempt, task.state)

    def _take_levels(self) -> None:
        running = sum(bool(task.node) for task in self._tasks.values())
        self._meter.levels(self._assignments.running - running, running)

    # -- tasks ---------------------------------------------------------------------------------------------------------------

    async def _begin(self, number: int, wanted: list[Submission]) -> None:
        """Start these, those of one kind together."""
        kinds: dict[object, list[Submission]] = {}
        for one in wanted:
            kind = None if one.alone else (number, one.start.function.name, one.options, one.code)
            kinds.setdefault(kind, []).append(one)
        for kind, alike in kinds.items():
            if kind is None:
                await self._start_all(number, None, [[one] for one in alike])
                continue
            await self._start_all(number, kind, self._bundles.offer(kind, alike, self._slots()))
            if self._bundles.holds(kind):
                self._loop.call_later(HOLD_S, self._hurry, number, kind)

    async def _start_all(self, number: int, kind: object, bundles: list[list[Submission]]) -> None:
        for count, bundle in enumerate(bundles, 1):
            self._start(number, kind, bundle)
            if count % _SUBMIT_SLICE == 0:
                await asyncio.sleep(0)  # let results of others come in between

    def _hurry(self, number: int, kind: object) -> None:
        if self._bundles.holds(kind):
            self._spawn(self._start_all(number, kind, self._bundles.hurry(kind, self._slots())))

    def _start(self, number: int, kind: object, bundle: list[Submission]) -> None:
        is_running = self._assignments.is_running
        bundle = [one for one in bundle if is_running(number, attempt_of(one.start))]  # others were stopped meanwhile
        if not bundle:
            return
        attempts = [attempt_of(one.start) for one in bundle]
        again = bundle[0] if bundle[0].speculative else None
        name, options, now_ms = bundle[0].start.name, bundle[0].options, time.time_ns() // 1_000_000
        task = StepTask(number, kind, attempts, set(attempts), now_ms, name, options, again=again)
        try:
            avoided = self._avoided.get(attempts[0]._replace(attempt=0), ())
            task.reference = self._submitter.submit(bundle, number, avoided=avoided)
        except Exception as error:  # Ray refuses the task's options
            for attempt in attempts:
                self._record(number, crashed(attempt, Cause.ERROR, error))
            return
        self._tasks.update((attempt, task) for attempt in attempts)
        self._await(task)
        self._queueing.started()

    def _await(self, task: StepTask) -> None:
        # No asyncio task per attempt: Ray's thread notes who is done, and one wake-up takes in all that were noted.
        future: Future[bytes] = task.reference.future()
        future.add_done_callback(lambda future: self._note(_Done(task, future)))

    def _slots(self) -> int:
        now_s = time.monotonic()
        if now_s - self._slots_s > _SLOTS_S:
            self._slots_s = now_s
            self._slots_known = int(ray.cluster_resources().get("CPU", 1))
        return self._slots_known

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _note(self, done: _Done) -> None:
        """Called in a thread of Ray's."""
        self._done.append(done)
        if len(self._done) == 1:
            with contextlib.suppress(RuntimeError):  # the loop is closed: this process ends
                self._loop.call_soon_threadsafe(self._take_in)

    def _take_in(self) -> None:
        while self._done:
            task, future = self._done.popleft()
            results = outcomes(task, future)
            self._meter.waited(task.submitted_ms, results)
            self._ended(task, results)
            for result in results:
                if task.kind is not None and result.usage is not None:
                    duration_ms = result.usage.ended_ms - result.usage.started_ms
                    bundles = self._bundles.observed(task.kind, duration_ms, self._slots())
                    if bundles:
                        self._spawn(self._start_all(task.number, task.kind, bundles))

    def _ended(self, task: StepTask, results: list[StepResult]) -> None:
        """A run of attempts is over. Where another run of them goes on, this one counts only if it was successful."""
        for attempt, result in zip(task.attempts, results, strict=True):
            if not self._assignments.is_running(task.number, attempt):  # it was stopped, or another run was faster
                continue
            first = self._tasks.get(attempt)
            if first is not None and first.second is not None and task in (first, first.second):
                other = first if task is first.second else first.second
                first.second = None
                if result.failure is not None:
                    self._tasks[attempt] = other
                    continue
                self._spawn(stop(other.reference))
            if first is not None and first.again is not None and result.failure is None and result.usage is not None:
                self._stragglers.ended(likeness(first.again), (result.usage.ended_ms - result.usage.started_ms) / 1000)
            self._record(task.number, result)

    def _record(self, number: int, result: StepResult) -> None:
        attempt = attempt_of(result)
        self._tasks.pop(attempt, None)
        if result.cause == Cause.CRASH and result.failure is not None:
            why = f"attempt {result.attempt} ended with its process: {result.failure.type}: {result.failure.message}"
            self._spoken.add(encode_line(Who(result.execution, result.operation), why))
        if result.failure is None:
            self._avoided.pop(attempt._replace(attempt=0), None)
        self._assignments.finish(number, result)

    def _stop(self, attempt: Attempt) -> None:
        self._avoided.pop(attempt._replace(attempt=0), None)
        task = self._tasks.pop(attempt, None)
        if task is None:
            return
        for run in runs(task):
            run.wanted.discard(attempt)
            if not run.wanted:
                self._spawn(stop(run.reference))
