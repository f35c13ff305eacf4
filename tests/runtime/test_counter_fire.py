"""Counters under fire: many clients, messages sent twice, and a host that is killed again and again, frozen and replaced.

Invariants: I1, I2, I8.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
from collections import defaultdict
from pathlib import Path

import pytest
import ray

import rayflow
from rayflow.checkpoint.identity import shard_prefix
from rayflow.checkpoint.reading import read_state
from rayflow.checkpoint.segment import Kind, decode
from rayflow.core import codec
from rayflow.runtime.task import NAMESPACE
from rayflow.testing.linearizability import Observed, violations
from tests.runtime.conftest import alive, eventually
from tests.runtime.counter_clients import Increment, Work, count, host_name, read_journal

pytestmark = [pytest.mark.ray, pytest.mark.crash, pytest.mark.slow]

INCREMENTS, COUNTERS, PROCESSES, THREADS = 10_000, 100, 2, 32


class Fire:
    """The clients at work, and what is done to the host meanwhile."""

    def __init__(self, client: rayflow.Client, folder: Path) -> None:
        self.client = client
        self.generation = folder / "generation"
        self.generation.write_text("0")
        self.journals = [folder / f"journal-{number}" for number in range(PROCESSES)]
        self.killed: list[int] = []
        task = ray.remote(num_cpus=0, max_retries=0)(count)
        self.running = [
            task.remote(Work(client.store.url, increments, THREADS, journal, self.generation))
            for increments, journal in zip(_shares(), self.journals, strict=True)
        ]

    def answers(self) -> int:
        """How many there are so far."""
        return sum(journal.read_bytes().count(b"\n") for journal in self.journals if journal.exists())

    def wait_for_more(self, answers: int) -> None:
        """Until the clients have got so many further ones."""
        enough = self.answers() + answers
        eventually(lambda: self.answers() >= enough or not self.busy(), f"{answers} more answers", 30)

    def busy(self) -> bool:
        return len(ray.wait(self.running, num_returns=PROCESSES, timeout=0)[1]) > 0

    def host(self) -> int:
        """The process of the host that new clients reach."""
        name = host_name(self.client.identity, int(self.generation.read_text()))
        return ray.get(ray.get_actor(name, namespace=NAMESPACE).__ray_call__.remote(lambda _: os.getpid()))

    def kill_host(self) -> None:
        self.killed.append(self.host())
        os.kill(self.killed[-1], signal.SIGKILL)

    def history(self) -> dict[str, list[Observed]]:
        """What all clients saw, by counter."""
        seen: dict[str, list[Observed]] = defaultdict(list)
        for journal in self.journals:
            for counter, one in read_journal(journal):
                seen[counter].append(one)
        return seen


def _shares() -> list[list[Increment]]:
    """All increments, spread over the processes; a tenth of them goes to two."""
    shares: list[list[Increment]] = [[] for _ in range(PROCESSES)]
    for number in range(INCREMENTS):
        one = Increment(f"c{number % COUNTERS}", f"m{number}", then_get=number % 20 == 7)
        shares[number % PROCESSES].append(one)
        if number % 10 == 0:
            shares[(number + 1) % PROCESSES].append(one)
    for number, share in enumerate(shares):
        random.Random(number).shuffle(share)
    return shares


@pytest.fixture
def fire(client: rayflow.Client, tmp_path: Path):
    fire = Fire(client, tmp_path)
    yield fire
    with contextlib.suppress(ValueError):
        ray.kill(ray.get_actor(host_name(client.identity, 1), namespace=NAMESPACE))


def claims(client: rayflow.Client, shard: int) -> int:
    """How often a shard was taken over."""
    keys = [found.key for found in client.store.list(f"{shard_prefix(shard)}log/")]
    return [decode(client.store.get(key), key).kind for key in keys].count(Kind.CLAIM)


def test_counters_under_fire_lose_nothing_double_nothing_and_seem_to_count_one_message_at_a_time(fire: Fire) -> None:
    for _ in range(3):
        fire.wait_for_more(1_300)
        fire.kill_host()
    fire.wait_for_more(1_300)
    frozen = fire.host()
    os.kill(frozen, signal.SIGSTOP)
    try:
        fire.generation.write_text("1")
        fire.wait_for_more(1_300)
        assert fire.host() != frozen and alive(frozen)
    finally:
        os.kill(frozen, signal.SIGCONT)
    fire.wait_for_more(1_300)
    fire.kill_host()
    ray.get(fire.running, timeout=60)
    assert len(set(fire.killed)) == 4

    history = fire.history()
    assert {counter: found for counter, calls in history.items() if (found := violations(calls))} == {}
    acknowledged = {one.message for calls in history.values() for one in calls} - {None}
    assert len(acknowledged) == INCREMENTS

    shards = range(fire.client.identity.shards)
    assert min(claims(fire.client, shard) for shard in shards) >= 6, "each death and the frost cost each shard its owner"
    rows = {name: row for shard in shards for name, row in read_state(fire.client.store, shard).entities.rows.items()}
    values = {name: codec.decode(row.state).value for name, row in rows.items() if row.state is not None}
    assert values == {f"Counter/c{number}": INCREMENTS // COUNTERS for number in range(COUNTERS)}
    assert {message for row in rows.values() for message in (*row.recent, *row.older)} == acknowledged
