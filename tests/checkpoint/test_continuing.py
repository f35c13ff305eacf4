"""Looking at a log again and again: everything durable, from the new slots alone, whatever was truncated meanwhile.

Invariants: I1, I7.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rayflow.checkpoint.continuing import ShardReader
from rayflow.checkpoint.local import LocalStore
from rayflow.checkpoint.log import slot_key
from rayflow.checkpoint.reading import Reader, list_executions, read_records
from rayflow.checkpoint.segment import Kind, Segment, decode, encode
from rayflow.checkpoint.store import ObjectInfo
from rayflow.errors import Damaged, ExecutionNotFound

from .executions import Owners


class Counted(LocalStore):
    """A folder that notes what was read."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.got: list[str] = []
        self.listed: list[str] = []

    def get(self, key: str) -> bytes:
        self.got.append(key)
        return super().get(key)

    def list(self, prefix: str, start_after: str = "") -> Iterator[ObjectInfo]:
        self.listed.append(prefix)
        return super().list(prefix, start_after)


@pytest.fixture
def store(tmp_path: Path) -> Counted:
    return Counted(tmp_path / "store")


def test_a_further_look_costs_one_listing_and_the_new_slots(store: Counted) -> None:
    owners = Owners(store, shards=1)
    for number in range(5):
        owners.all[0].start(f"job-{number}", "single", 1)
    reader = ShardReader(store, 0)
    state = reader.state()
    store.got.clear()
    store.listed.clear()
    assert reader.state() is state
    assert (store.got, store.listed) == ([], ["shards/000/log/"])
    owners.all[0].complete("job-3", "fetch#1", 1)
    assert reader.state() is state
    assert store.got == [slot_key("shards/000/", owners.all[0].tail.number)]
    assert set(state.ended) == {"job-3"}


def test_snapshots_truncations_and_new_owners_between_two_looks_lose_nothing(store: Counted) -> None:
    """I1: each look sees what a look from the start sees."""
    owners = Owners(store, shards=2)
    reader = Reader(store)
    for number in range(12):
        job = f"job-{number}"
        owners[job].start(job, "single", number)
        if number % 2:
            owners[job].complete(job, "fetch#1", number)
        if number % 3 == 0:
            owners.snapshot()
        if number % 4 == 0:
            owners.reopen()
        if number % 5 == 4:
            owners[job].start(f"{job}-again", "single", number) if owners[job] is owners[f"{job}-again"] else None
            owners[job].forget(job)
            with pytest.raises(ExecutionNotFound):
                reader.records(job)
        else:
            assert reader.records(job) == read_records(store, job)
        assert reader.listing() == list_executions(store)
        assert reader.listing(limit=3) == list_executions(store, limit=3)


def test_an_id_that_was_dropped_and_started_again_is_described_anew(store: Counted) -> None:
    owners = Owners(store, shards=1)
    owners["job"].start("job", "single", 1)
    reader = Reader(store)
    (before,) = reader.listing().executions
    owners["job"].forget("job")
    owners["job"].now_ms += 1000
    owners["job"].start("job", "single", 1)
    (after,) = reader.listing().executions
    assert (after.started - before.started).total_seconds() == 1


def test_a_claim_that_came_late_into_a_truncated_slot_is_not_taken_for_the_end(store: Counted) -> None:
    """I1: the slot that the reader waits for was written and truncated, then the claim of somebody who was stalled lands in it."""
    owners = Owners(store, shards=1)
    owner = owners.all[0]
    owner.start("job", "single", 1)
    reader = ShardReader(store, 0)
    reader.state()
    number, before = owner.tail.next_number, owner.tail.checksum
    owner.start("other", "single", 1)
    owner.start("third", "single", 1)
    owner.snapshot()
    late = Segment(Kind.CLAIM, number, owner.tail.epoch + 1, "late", before)
    store.create(slot_key("shards/000/", number), encode(late))
    assert decode(store.get(slot_key("shards/000/", number)), "late").kind is Kind.CLAIM
    assert set(reader.state().live) == {"job", "other", "third"}


def test_damage_is_named_and_what_is_mended_is_read_on(store: Counted) -> None:
    """I7: a slot that came since is damaged; once a copy is restored the next look goes on."""
    owners = Owners(store, shards=1)
    owners.all[0].start("job", "single", 1)
    reader = ShardReader(store, 0)
    reader.state()
    owners.all[0].complete("job", "fetch#1", 1)
    path = store.local_path(slot_key("shards/000/", owners.all[0].tail.number))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(Damaged, match=path.name):
        reader.state()
    path.write_bytes(whole)
    assert set(reader.state().ended) == {"job"}
