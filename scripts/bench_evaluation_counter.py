"""The published evaluation of durable functions, counter part: every case again, here, beside what was published."""

from __future__ import annotations

import inspect
import os
import signal
import statistics
import time
from collections import Counter as Tally
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import ray
from bench_machine import NUM_CPUS, running, scratch

import rayflow
from pipelines import counter, evaluation_counter
from pipelines.counter import Counter
from pipelines.evaluation_counter import LIMIT_S, LONG_S, RETRY, Fault, Order
from rayflow.checkpoint import log
from rayflow.checkpoint.identity import shard_prefix
from rayflow.checkpoint.requests import run
from rayflow.core.definitions import retry_pause_ms
from rayflow.core.records import Failed, Handled, Started, decode_record
from rayflow.runtime.cluster import actor_names
from rayflow.runtime.task import NAMESPACE
from rayflow.testing import read_records, replay_history

CALLS = 200
REPLAYED_STEPS = 1_000

_NOTHING = "–"

Change = rayflow.Workflow[[Order], int]


@dataclass(frozen=True, slots=True)
class Case:
    """One case: what was published of it, and what happened here."""

    name: str
    published: str
    here: str


@dataclass(frozen=True, slots=True)
class CounterEvaluation:
    """All of it. ``lines``: of the counter; ``workflow_lines``: of the workflows around it, with their faults and journal."""

    cpus: int
    lines: int
    workflow_lines: int
    cases: list[Case]


def evaluate() -> CounterEvaluation:
    """Run every case."""
    with scratch() as folder, running(folder) as client:
        runner = _Runner(client, folder)
        runner.warm_up()
        cases = [
            *runner.operations(),
            *runner.sizes(),
            runner.transient(),
            runner.permanent(),
            runner.repeat(),
            runner.at_once(),
            *runner.interrupted(),
            runner.replayed(),
        ]
    lines, workflow_lines = (len(inspect.getsource(one).splitlines()) for one in (counter, evaluation_counter))
    return CounterEvaluation(NUM_CPUS, lines, workflow_lines, cases)


class _Runner:
    """Runs the cases, each on a counter of its own."""

    def __init__(self, client: rayflow.Client, folder: Path) -> None:
        self._client = client
        self._folder = folder
        self._count = 0

    def order(self, fault: Fault = Fault.NONE) -> Order:
        self._count += 1
        return Order(f"counter-{self._count}", 1, self._folder / f"journal-{self._count}", fault)

    def value(self, order: Order) -> int:
        return self._client.entity(Counter, order.counter).get().result().value

    def warm_up(self) -> None:
        """Workers are up, and every shard has a counter."""
        for number in range(8):
            self._client.entity(Counter, f"warm-{number}").increment().result()
        self._client.start(evaluation_counter.change, self.order()).result()

    # -- the counter itself --------------------------------------------------------------------------------------------------

    def operations(self) -> list[Case]:
        entity = self._client.entity(Counter, self.order().counter)
        calls: list[tuple[str, Callable[[], rayflow.Call[Any]], str]] = [
            ("increment", entity.increment, f"new value {CALLS}"),
            ("decrement", entity.decrement, "new value 0"),
            ("get", entity.get, f"value 0, version {2 * CALLS}"),
        ]
        cases: list[Case] = []
        for name, call, outcome in calls:
            taken_ms: list[float] = []
            answer: Any = None
            for _ in range(CALLS):
                began_s = time.perf_counter()
                answer = call().result()
                taken_ms.append((time.perf_counter() - began_s) * 1000)
            seen = f"value {answer.value}, version {answer.version}" if name == "get" else f"new value {answer}"
            assert seen == outcome, seen
            cases.append(Case(name, _NOTHING, f"correct; answered after {statistics.median(taken_ms):.1f} ms (median of {CALLS})"))
        return cases

    def sizes(self) -> list[Case]:
        order = self.order()
        for _ in range(101):
            self._client.entity(Counter, order.counter).increment().result()
        address = f"Counter/{order.counter}"
        view = run(log.read(shard_prefix(self._client.identity.shard_of(address))), self._client.store)
        records = [(decode_record(data), data) for segment in view.segments for data in segment.records]
        mine = [(record, data) for record, data in records if isinstance(record, Handled) and record.entity == address]
        cases: list[Case] = []
        for version, published in ((1, "0.025 KB"), (101, "0.029 KB")):
            record, data = mine[version - 1]
            assert record.changes == version and record.state is not None
            here = (
                f"{len(record.state) / 1024:.3f} KB; its record in the log, with answer and mark against repetition: "
                f"{len(data) / 1024:.3f} KB"
            )
            cases.append(Case(f"checkpoint at version {version}", published, here))
        return cases

    def at_once(self) -> Case:
        order = self.order()
        entity = self._client.entity(Counter, order.counter)
        answers = sorted(call.result() for call in [entity.increment() for _ in range(3)])
        ids = [f"{order.counter}-{number}" for number in range(3)]
        executions = [self._client.start(evaluation_counter.change, order, id=id) for id in ids]
        more = sorted(one.result() for one in executions)
        assert self.value(order) == 6
        return Case(
            "three messages at once",
            "isolated executions, which all end at 1",
            f"one after the other: {_listed(answers)}, value {max(answers)}; by three executions at once: {_listed(more)}",
        )

    # -- workflows around it -------------------------------------------------------------------------------------------------

    def transient(self) -> Case:
        order = self.order(Fault.ONCE)
        outcome = self.outcome(evaluation_counter.change, order)
        return Case("a step fails once", _NOTHING, self.report(order, outcome))

    def permanent(self) -> Case:
        order = self.order(Fault.ALWAYS)
        outcome = self.outcome(evaluation_counter.change, order)
        records = read_records(self._client.store, order.counter)
        started = records[0]
        assert isinstance(started, Started)
        failed = [one for one in records if isinstance(one, Failed)]
        pauses_ms = [one.retry_ms - one.at_ms for one in failed if one.retry_ms is not None]
        assert pauses_ms == [retry_pause_ms(RETRY, started.seed, "confirm#1", number + 1) for number in range(len(pauses_ms))]
        schedule = f"; pauses of {_listed(pauses_ms)} ms, as computed from the policy and the execution's seed before it ran"
        return Case(
            "a step fails for good", "the times of its retries are not deterministic", self.report(order, outcome) + schedule
        )

    def repeat(self) -> Case:
        order = self.order()
        outcomes = {self.outcome(evaluation_counter.change, order) for _ in range(3)}
        assert len(outcomes) == 1
        return Case(
            "the same execution id three times",
            "the id could not be set from outside",
            f"stored result, nothing runs again; the id is the caller's: {self.report(order, outcomes.pop())}",
        )

    def interrupted(self) -> list[Case]:
        order = self.order()
        outcome = self.outcome(evaluation_counter.change_and_exceed, order)
        scale = f"{LONG_S:g} s and {LIMIT_S:g} s here"
        first = Case(
            f"a step of 70 s with a limit of 60 s ({scale})",
            "nine invocations, the first step ran once",
            self.report(order, outcome),
        )
        order = self.order(Fault.ONCE)
        execution = self._client.start(evaluation_counter.change_and_take_long, order, id=order.counter)
        os.kill(self.running(order, "long"), signal.SIGKILL)
        outcome = f"completed with {execution.result()}"
        second = Case("the step's process is killed in its middle, no limit", _NOTHING, self.report(order, outcome))
        order = self.order()
        execution = self._client.start(evaluation_counter.change_and_take_long, order, id=order.counter)
        self.running(order, "long")
        host = cast("Any", ray).get_actor(actor_names(self._client.identity)[0], namespace=NAMESPACE)
        os.kill(cast("int", ray.get(host.__ray_call__.remote(_pid))), signal.SIGKILL)
        outcome = f"completed with {execution.result()}"
        third = Case("the shards' process is killed in the middle of a step", _NOTHING, self.report(order, outcome))
        return [first, second, third]

    def replayed(self) -> Case:
        order = self.order()
        self._client.start(evaluation_counter.many_steps, REPLAYED_STEPS, id=order.counter).result()
        read_ms, replay_ms = list[float](), list[float]()
        for _ in range(11):
            began_s = time.perf_counter()
            records = read_records(self._client.store, order.counter)
            read_s = time.perf_counter()
            replay_history(evaluation_counter.many_steps, records)
            read_ms.append((read_s - began_s) * 1000)
            replay_ms.append((time.perf_counter() - read_s) * 1000)
        per_step_ms = statistics.median(replay_ms) / REPLAYED_STEPS
        return Case(
            f"replay of {REPLAYED_STEPS:,} steps",
            "0.1 to 0.3 ms per step",
            f"{per_step_ms:.3f} ms per step, compared with the record; reading the shard's whole log before: "
            f"{statistics.median(read_ms) / REPLAYED_STEPS:.3f} ms per step",
        )

    def outcome(self, workflow: Change, order: Order) -> str:
        try:
            return f"completed with {self._client.start(workflow, order, id=order.counter).result()}"
        except rayflow.ExecutionFailed as error:
            return str(error).partition(" failed: ")[2].partition("\n")[0]

    def report(self, order: Order, outcome: str) -> str:
        runs = Tally(line.split()[0] for line in order.journal.read_text().splitlines())
        counts = ", ".join(f"{step} {times}x" for step, times in runs.items())
        return f"{outcome}; {counts}; counter at {self.value(order)}"

    def running(self, order: Order, step: str) -> int:
        """Wait until a step runs; its process."""
        while True:
            lines = order.journal.read_text().splitlines() if order.journal.exists() else []
            for line in lines:
                name, process = line.split()
                if name == step:
                    return int(process)
            time.sleep(0.01)


def _pid(actor: object) -> int:
    return os.getpid()


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
