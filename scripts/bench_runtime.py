"""Benchmarks of the runtime: sequential steps, fan-out, many workflows, recovery, a cold start. Each runs in a Ray of its own."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import bench_first
import bench_flows as flows
from bench_machine import Spent, creates_per_s, percentile, running, scratch, spent
from bench_plain_ray import Task, results

import rayflow


@dataclass(frozen=True, slots=True)
class Limit:
    """Durable creates of 1 KB per second, with nothing of rayflow's."""

    creates_s: float


@dataclass(frozen=True, slots=True)
class Sequential:
    """One workflow of inline steps that do nothing.

    ``p50_ms`` and ``p99_ms``: from one step to the next. ``cpu_ms``: of the shards' process per step; ``tree_cpu_ms``: of
    everything, driver and Ray included. ``ratio_to_limit``: steps per durable create, which each of them needs one of.
    ``late_to_early``: the median cost of the last 100 steps against that of the second 100, of a workflow of ``late_steps``.
    """

    steps: int
    steps_s: float
    p50_ms: float
    p99_ms: float
    cpu_ms: float
    tree_cpu_ms: float
    limit_creates_s: float
    ratio_to_limit: float
    late_steps: int
    late_to_early_cpu: float
    late_to_early_wall: float


@dataclass(frozen=True, slots=True)
class FanOut:
    """A map over trivial items, in the shard's process and as Ray tasks; and plain Ray with the same tasks in the same minute."""

    items: int
    inline_items_s: float
    tasks_items_s: float
    plain_ray_items_s: float
    ratio_to_plain_ray: float
    inline_cpu_ms: float
    tasks_cpu_ms: float
    plain_ray_cpu_ms: float


@dataclass(frozen=True, slots=True)
class Short:
    """Workflows of five inline steps, started at once and awaited together. ``accepted_s``: until all starts were durable.

    ``one_by_one_s``: workflows per second where each result is asked for after the one before.
    """

    workflows: int
    workflows_s: float
    steps_s: float
    accepted_s: float
    cpu_ms_per_workflow: float
    one_by_one_s: float


@dataclass(frozen=True, slots=True)
class Recovery:
    """The shards' process killed in the middle of a workflow of inline steps."""

    steps: int
    killed_after: int
    first_new_step_s: float
    steps_run_twice: int


@dataclass(frozen=True, slots=True)
class FirstWorkflow:
    """From a command line to the first finished workflow, with nothing running before. ``total_s`` holds all the others."""

    total_s: float
    import_s: float
    ray_init_s: float
    connect_s: float
    workflow_s: float


def limit() -> Limit:
    """What the disk does."""
    with scratch() as folder:
        return Limit(creates_per_s(folder, 3.0))


def w1(steps: int = 3_000, late_steps: int = 10_000, rounds: int = 3) -> Sequential:
    """One workflow of sequential inline steps, in rounds with the disk's limit measured before, between and after them."""
    gaps_ns: list[int] = []
    cpu_ns = tree_cpu_s = 0.0
    with scratch() as folder, running(folder) as client:
        client.start(flows.ticks, 200).result()
        limits = [creates_per_s(folder)]
        for _ in range(rounds):
            with spent() as used:
                marks = client.start(flows.ticks, steps // rounds + 1).result()
            limits.append(creates_per_s(folder))
            gaps_ns.extend(_gaps(marks, 0))
            cpu_ns += marks[-1][1] - marks[0][1]
            tree_cpu_s += used.cpu_s
        late = client.start(flows.ticks, late_steps).result()
    steps_s = len(gaps_ns) / sum(gaps_ns) * 1e9
    limit_s = statistics.mean(limits)
    return Sequential(
        steps=len(gaps_ns),
        steps_s=steps_s,
        p50_ms=statistics.median(gaps_ns) / 1e6,
        p99_ms=percentile(gaps_ns, 0.99) / 1e6,
        cpu_ms=cpu_ns / 1e6 / len(gaps_ns),
        tree_cpu_ms=tree_cpu_s * 1000 / len(gaps_ns),
        limit_creates_s=limit_s,
        ratio_to_limit=steps_s / limit_s,
        late_steps=late_steps,
        late_to_early_cpu=_late_to_early(_gaps(late, 1)),
        late_to_early_wall=_late_to_early(_gaps(late, 0)),
    )


def _gaps(marks: list[list[int]], clock: int) -> list[int]:
    """From one step to the next, by the clock (0) or the CPU time of the process (1), in nanoseconds."""
    return [after[clock] - before[clock] for before, after in itertools.pairwise(marks)]


def _late_to_early(gaps: list[int]) -> float:
    """The median of the last 100 against that of the second 100: the first are still warming up."""
    return statistics.median(gaps[-100:]) / statistics.median(gaps[100:200])


def w2(items: int = 2_000, rounds: int = 3) -> FanOut:
    """A map, inline and as Ray tasks, and plain Ray, in turns."""
    plain, tasks, inline = Spent(), Spent(), Spent()
    total = items * (items - 1)
    with scratch() as folder, running(folder) as client:
        task = Task(flows.double)
        results([task.start(number) for number in range(200)])  # the workers are up
        client.start(flows.doubles_as_tasks, 20).result()
        for _ in range(rounds):
            with spent() as used:
                assert sum(results([task.start(number) for number in range(items)])) == total
            plain.add(used)
            with spent() as used:
                assert client.start(flows.doubles_as_tasks, items).result() == total
            tasks.add(used)
            with spent() as used:
                assert client.start(flows.doubles_inline, items).result() == total
            inline.add(used)
    done = items * rounds
    return FanOut(
        items=items,
        inline_items_s=done / inline.wall_s,
        tasks_items_s=done / tasks.wall_s,
        plain_ray_items_s=done / plain.wall_s,
        ratio_to_plain_ray=plain.wall_s / tasks.wall_s,
        inline_cpu_ms=inline.cpu_s * 1000 / done,
        tasks_cpu_ms=tasks.cpu_s * 1000 / done,
        plain_ray_cpu_ms=plain.cpu_s * 1000 / done,
    )


def w3(workflows: int = 1_000) -> Short:
    """Many short workflows at once."""
    calls = [(number, f"short-{number}") for number in range(workflows)]
    expected = [number * 32 for number in range(workflows)]

    async def gather(runs: list[rayflow.Execution[int]]) -> list[int]:
        return await asyncio.gather(*runs)

    with scratch() as folder, running(folder) as client:
        client.start(flows.five_steps, 1).result()
        with spent() as together:
            started_s = time.perf_counter()
            runs = client.start_many(flows.five_steps, [(id, (number,), {}) for number, id in calls])
            accepted_s = time.perf_counter() - started_s
            assert asyncio.run(gather(runs)) == expected
        with spent() as one_by_one:
            runs = client.start_many(flows.five_steps, [(f"again-{id}", (number,), {}) for number, id in calls])
            assert [run.result() for run in runs] == expected
    return Short(
        workflows=workflows,
        workflows_s=workflows / together.wall_s,
        steps_s=5 * workflows / together.wall_s,
        accepted_s=accepted_s,
        cpu_ms_per_workflow=together.cpu_s * 1000 / workflows,
        one_by_one_s=workflows / one_by_one.wall_s,
    )


def w5(steps: int = 3_000) -> Recovery:
    """SIGKILL of the shards' process half-way."""
    with scratch() as folder, running(folder) as client:
        journal = folder / "journal"
        run = client.start(flows.noted_ticks, steps, journal)
        while len(lines := _lines(journal)) < steps // 2:
            time.sleep(0.01)
        victim = lines[-1][1]
        killed_ns = time.perf_counter_ns()
        os.kill(victim, signal.SIGKILL)
        assert run.result() == steps * (steps - 1) // 2
        lines = _lines(journal)
    first_ns = next(at_ns for _, process, at_ns in lines if process != victim)
    return Recovery(
        steps=steps,
        killed_after=sum(process == victim for _, process, _ in lines),
        first_new_step_s=(first_ns - killed_ns) / 1e9,
        steps_run_twice=len(lines) - steps,
    )


def _lines(journal: Path) -> list[tuple[int, int, int]]:
    """The journal's complete lines: number, process, clock."""
    if not journal.exists():
        return []
    return [(int(number), int(process), int(at)) for number, process, at in map(str.split, journal.read_text().splitlines())]


def w6() -> FirstWorkflow:
    """A cold start, in a process of its own."""
    with scratch() as folder:
        started_s = time.monotonic()
        command = [sys.executable, bench_first.__file__, str(folder / "store")]
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    moments = [started_s, *(float(word) for word in printed.splitlines()[-1].split())]
    imported, initialised, connected, finished = (after - before for before, after in itertools.pairwise(moments))
    return FirstWorkflow(moments[-1] - started_s, imported, initialised, connected, finished)
