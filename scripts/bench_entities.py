"""Benchmarks of entities: how many messages per second and at what cost, and what an idle one holds in memory."""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import msgspec
import ray
from bench_machine import creates_per_s, percentile, running, scratch

import rayflow
from pipelines.counter import Counter
from rayflow.runtime.cluster import find_host
from rayflow.runtime.shard import ShardStatistics

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Messages:
    """Increments with a message id each, sent by one client that keeps ``in_flight`` of them under way.

    Medians over rounds. ``host_cpu_us`` and ``client_cpu_us``: of the shards' process and of the client's, per operation.
    ``records`` and ``segments``: written in the median round.
    """

    entities: int
    in_flight: int
    operations: int
    operations_s: float
    p50_ms: float
    p99_ms: float
    host_cpu_us: float
    client_cpu_us: float
    records: float
    segments: float


@dataclass(frozen=True, slots=True)
class EntityMessages:
    """All settings, and what the disk allows in the same minute: durable creates per second."""

    shards: int
    rounds: int
    limit_creates_s: float
    settings: list[Messages]


class Host:
    """The shards' process of a client, as the benchmarks look at it."""

    def __init__(self, client: rayflow.Client) -> None:
        self._actor = find_host(client.identity, client.store.url)
        self.pid = cast("int", ray.get(self._actor.__ray_call__.remote(_pid)))

    def cpu_s(self) -> float:
        """CPU seconds so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S

    def rss_bytes(self) -> int:
        """Resident memory."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def written(self) -> tuple[int, int]:
        """Records and segments since the shards were opened."""
        shards = msgspec.msgpack.decode(cast("bytes", ray.get(self._actor.statistics.remote())), type=dict[int, ShardStatistics])
        return sum(one.records for one in shards.values()), sum(one.segments for one in shards.values())


def _pid(actor: object) -> int:
    return os.getpid()


@dataclass(slots=True)
class _Round:
    wall_s: float = 0.0
    host_cpu_s: float = 0.0
    client_cpu_s: float = 0.0
    records: int = 0
    segments: int = 0
    latencies_ns: list[int] = field(default_factory=list[int])


@contextmanager
def _measured(host: Host) -> Generator[_Round]:
    result = _Round()
    records, segments = host.written()
    host_cpu_s, client_cpu_s, began_s = host.cpu_s(), time.process_time(), time.perf_counter()
    yield result
    result.wall_s, result.client_cpu_s = time.perf_counter() - began_s, time.process_time() - client_cpu_s
    result.host_cpu_s = host.cpu_s() - host_cpu_s
    after = host.written()
    result.records, result.segments = after[0] - records, after[1] - segments


def w4(rounds: int = 3) -> EntityMessages:
    """One hundred counters with 64 and with 1,024 messages in flight, and one counter alone."""
    with scratch() as folder, running(folder) as client:
        host = Host(client)
        for name in ("warm", "spread", "alone"):
            asyncio.run(_increments(client, name, 100, 64, 2_000, _Round()))
        limits = [creates_per_s(folder)]
        settings: list[Messages] = []
        for name, entities, in_flight, operations in (
            ("spread", 100, 64, 10_000),
            ("spread", 100, 1_024, 50_000),
            ("alone", 1, 64, 10_000),
        ):
            done: list[_Round] = []
            for _ in range(rounds):
                with _measured(host) as one:
                    asyncio.run(_increments(client, name, entities, in_flight, operations, one))
                done.append(one)
            settings.append(_summary(entities, in_flight, operations, done))
            limits.append(creates_per_s(folder))
    return EntityMessages(client.identity.shards, rounds, statistics.mean(limits), settings)


async def _increments(client: rayflow.Client, name: str, entities: int, in_flight: int, operations: int, done: _Round) -> None:
    """As many tasks as there are to be messages in flight; each sends its next one when the last one is answered."""
    numbers = iter(range(operations))
    counters = [client.entity(Counter, f"{name}-{number}") for number in range(entities)]
    prefix = os.urandom(6).hex()

    async def sender() -> None:
        for number in numbers:
            counter = counters[number % entities].options(message_id=f"{prefix}-{number}")
            began_ns = time.perf_counter_ns()
            await counter.increment()
            done.latencies_ns.append(time.perf_counter_ns() - began_ns)

    await asyncio.gather(*(sender() for _ in range(in_flight)))


def _summary(entities: int, in_flight: int, operations: int, rounds: list[_Round]) -> Messages:
    latencies_ns = [one for done in rounds for one in done.latencies_ns]
    return Messages(
        entities=entities,
        in_flight=in_flight,
        operations=operations,
        operations_s=operations / statistics.median(one.wall_s for one in rounds),
        p50_ms=statistics.median(latencies_ns) / 1e6,
        p99_ms=percentile(latencies_ns, 0.99) / 1e6,
        host_cpu_us=statistics.median(one.host_cpu_s for one in rounds) * 1e6 / operations,
        client_cpu_us=statistics.median(one.client_cpu_s for one in rounds) * 1e6 / operations,
        records=statistics.median(one.records for one in rounds),
        segments=statistics.median(one.segments for one in rounds),
    )
