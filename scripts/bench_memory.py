"""What sleeps: the memory and CPU time of idle entities and of sleeping workflows, and how soon one of many wakes up (w7)."""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from bench_entities import Host
from bench_flows import sleeper
from bench_machine import percentile, running, scratch
from ray.exceptions import RayActorError

import rayflow
from pipelines.counter import Counter, CounterState

_AT_ONCE = 2_000
_SAMPLES = 200
_IDLE_S = 5.0


@dataclass(frozen=True, slots=True)
class Asleep:
    """``count`` of one kind, as the shards' process has them after it was killed and has recovered.

    bytes_each: Resident memory beyond that of a process whose store is empty, divided by ``count``.
    idle_cpu_ms_per_s: Of the process, less that of the process with an empty store.
    recovery_s: From the kill to the first answer.
    wake_p50_ms, wake_p99_ms: Time for a message to one of them, drawn at random, and its answer; nothing else is going on.
    """

    count: int
    bytes_each: float
    idle_cpu_ms_per_s: float
    recovery_s: float
    wake_p50_ms: float = 0.0
    wake_p99_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Memory:
    """Both kinds; ``empty_rss_mb``: the shards' process with an empty store."""

    empty_rss_mb: float
    entities: Asleep
    workflows: Asleep


def w7(count: int) -> Memory:
    """``count`` idle counters with one increment each, and ``count`` workflows that sleep."""
    with scratch() as folder:
        with running(folder / "empty") as client:
            host = _restarted(client)[0]
            empty_bytes, empty_cpu = host.rss_bytes(), _idle_cpu(host)
        return Memory(
            empty_bytes / 2**20,
            _asleep(folder / "entities", count, _count_once, empty_bytes, empty_cpu),
            _asleep(folder / "workflows", count, _start_all, empty_bytes, empty_cpu),
        )


def _asleep(folder: Path, count: int, begin: Callable[[rayflow.Client, int], None], empty_bytes: int, empty_cpu: float) -> Asleep:
    folder.mkdir()
    with running(folder) as client:
        begin(client, count)
        host, recovery_s = _restarted(client)
        each, cpu = (host.rss_bytes() - empty_bytes) / count, _idle_cpu(host) - empty_cpu
        if begin is _start_all:
            return Asleep(count, each, cpu, recovery_s)
        waking_ns = [_wake(client, number) for number in Random(1).sample(range(count), min(_SAMPLES, count))]
        return Asleep(count, each, cpu, recovery_s, statistics.median(waking_ns) / 1e6, percentile(waking_ns, 0.99) / 1e6)


def _count_once(client: rayflow.Client, count: int) -> None:
    numbers = iter(range(count))

    async def some() -> None:
        for number in numbers:
            await client.entity(Counter, f"idle-{number}").options(message_id="first").increment()

    async def all_of_them() -> None:
        await asyncio.gather(*(some() for _ in range(_AT_ONCE)))

    asyncio.run(all_of_them())


def _start_all(client: rayflow.Client, count: int) -> None:
    for first in range(0, count, _AT_ONCE):
        client.start_many(
            sleeper, [(f"sleeper-{number}", (f"user-{number}",), {}) for number in range(first, min(first + _AT_ONCE, count))]
        )


def _wake(client: rayflow.Client, number: int) -> int:
    began_ns = time.perf_counter_ns()
    state = client.entity(Counter, f"idle-{number}").get().result()
    assert state == CounterState(1, 1)
    return time.perf_counter_ns() - began_ns


def _restarted(client: rayflow.Client) -> tuple[Host, float]:
    """Kill the shards' process; the next one, once it answers, and how long that took."""
    client.entity(Counter, "bell").get().result()
    began_s = time.perf_counter()
    os.kill(Host(client).pid, signal.SIGKILL)
    client.entity(Counter, "bell").get().result()
    recovery_s = time.perf_counter() - began_s
    while True:
        try:
            return Host(client), recovery_s
        except RayActorError:
            time.sleep(0.1)


def _idle_cpu(host: Host) -> float:
    before_s = host.cpu_s()
    time.sleep(_IDLE_S)
    return (host.cpu_s() - before_s) * 1e3 / _IDLE_S
