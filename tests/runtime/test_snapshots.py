"""A store that is used for long: the owner of a shard writes snapshots and files what has ended, again and again."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace

import rayflow
from rayflow.checkpoint import reading, tables
from rayflow.checkpoint.identity import identify
from rayflow.checkpoint.memory import MemoryStore
from rayflow.core import codec, limits
from rayflow.core.messages import Accepted, Answer, StartExecution, Token
from rayflow.core.records import Function
from rayflow.errors import StoreUnavailable
from rayflow.runtime.code import StoredCode
from rayflow.testing.calm import CalmShard


@rayflow.workflow
async def echo(ctx: rayflow.Context, value: str) -> str:
    return value


class Life:
    """A shard on ``store`` that has small workflows started and ended, one a second."""

    def __init__(self, store: MemoryStore, first: int = 1) -> None:
        self.number = first
        self.now_ms = 1_790_000_000_000 + 1000 * first
        self.answers: dict[Hashable, Answer] = {}
        self.calm = CalmShard(store, StoredCode(store), self.now_ms, f"life{first}")
        self.calm.ports = replace(self.calm.ports, answer=self.answers.__setitem__)
        self.calm.open()

    def run(self, count: int) -> None:
        for number in range(self.number, self.number + count):
            self.now_ms += 1000
            data, fingerprint = codec.encode_with_fingerprint(((f"value {number}",), {}))
            token, function = Token("client", number, number - 1), Function(f"{__name__}:echo")
            self.calm.receive(token, StartExecution(f"job-{number}", function, "1", data, fingerprint, number))
            self.calm.go_on_until(self.now_ms)
            assert isinstance(self.answers.pop(token), Accepted)
        self.number += count


class NoSnapshots(MemoryStore):
    """A store that takes no snapshot as long as ``full``."""

    def __init__(self) -> None:
        super().__init__()
        self.full = True
        self.tries = 0

    def create(self, key: str, data: bytes) -> None:
        if "/snapshots/" in key:
            self.tries += 1
            if self.full:
                raise StoreUnavailable(f"{key}: no space")
        super().create(key, data)


def test_what_is_filed_is_filed_once_though_the_snapshot_fails_and_that_is_tried_less_and_less_often() -> None:
    store = NoSnapshots()
    identify(store, 1)
    with limits.using(snapshot_bytes=4096):
        life = Life(store)
        life.run(300)
        assert store.tries < 12, "after 1, 4 and 15 s, then each minute"
        filed = [len(tables.read_histories(store.get(one.key), one.key)) for one in store.list("history/")]
        assert sum(filed) <= 300 and len(filed) == store.tries, "a try files what has ended since the one before"
        store.full = False
        life.run(100)
        life.calm.close()
    assert len(list(store.list("shards/000/snapshots/"))) == 1
    assert len(list(store.list("shards/000/log/"))) < 100
    assert len(reading.list_executions(store).executions) == 400


def test_many_small_segments_are_rolled_up_long_before_their_bytes_alone_would_be_worth_it() -> None:
    """Reading each back is a request of its own: on a bucket 20,000 of 200 bytes would take minutes."""
    store = MemoryStore()
    identify(store, 1)
    with limits.using(snapshot_bytes=2**20):
        life = Life(store)
        life.run(700)
        life.calm.close()
    log = list(store.list("shards/000/log/"))
    assert len(list(store.list("shards/000/snapshots/"))) == 1
    assert len(log) < 500 and sum(one.size_bytes for one in log) < 2**20 // 4


def test_an_owner_snapshots_and_files_what_has_ended_again_and_again() -> None:
    store = MemoryStore()
    identify(store, 1)
    with limits.using(snapshot_bytes=4096):
        for number in range(3):
            life = Life(store, number * 200 + 1)
            life.run(200)
            life.calm.close()
    assert len(list(store.list("history/"))) > 2
    assert len(list(store.list("shards/000/snapshots/"))) == 1
    assert len(list(store.list("shards/000/log/"))) < 200
    assert len(reading.list_executions(store).executions) == 600
