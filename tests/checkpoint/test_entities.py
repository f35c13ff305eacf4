"""Entities as the store has them: snapshots keep all of them, and they are listed with no Ray running."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from rayflow.checkpoint import log
from rayflow.checkpoint.entities import entities_table, list_entities, read_events
from rayflow.checkpoint.identity import identify, shard_prefix
from rayflow.checkpoint.local import LocalStore
from rayflow.checkpoint.requests import run
from rayflow.checkpoint.tables import read_snapshot, write_snapshot
from rayflow.core.state import DurableState
from rayflow.errors import InvalidInput
from tests.core.driver import EPOCH_MS
from tests.core.entity_types import Account, Alarm, Ledger, Paid, Relay
from tests.core.shards import Shards


@pytest.fixture
def shards() -> Shards:
    """Three shards with entities of all kinds, and letters on their way."""
    shards = Shards(3)
    for number in range(4):
        shards.ask(shards.entity(Account, f"a{number}").options(message_id="m").add(number))
    shards.ask(shards.entity(Alarm, "x").set("often", every=60))
    shards.ask(shards.entity(Alarm, "x").options(at=timedelta(seconds=5)).signal.ring("later"))
    shards.ask(shards.entity(Account, "gone").add(1))
    shards.ask(shards.entity(Account, "gone").destroy())
    for relay in "abc":
        shards.entity(Relay, relay).pass_on("log", 1)
    for number in range(3):
        shards.commit(number)
    return shards


def contents(state: DurableState) -> Any:
    return list(state.entities.kept()), list(state.mail.kept())


def test_a_snapshot_holds_all_of_the_entities_and_letters(shards: Shards) -> None:
    assert any(any(letters.values()) for letters in (owner.state.mail.outgoing for owner in shards.owners))
    for owner in shards.owners:
        restored = read_snapshot(write_snapshot(owner.state), "snapshot")
        assert contents(restored) == contents(owner.state)


def test_what_is_frozen_for_a_snapshot_does_not_change_any_more(shards: Shards) -> None:
    frozen = [(owner.state.entities.frozen(), owner.state.mail.frozen()) for owner in shards.owners]
    before = [(list(entities.kept()), list(mail.kept())) for entities, mail in frozen]
    for number in range(4):
        shards.ask(shards.entity(Account, f"a{number}").options(message_id="n").add(1))
        shards.ask(shards.entity(Account, f"a{number}").destroy())
    shards.advance(100_000)
    assert [(list(entities.kept()), list(mail.kept())) for entities, mail in frozen] == before


@pytest.fixture
def store(tmp_path: Path, shards: Shards) -> LocalStore:
    """The same in a folder."""
    store = LocalStore(str(tmp_path / "store"))
    identify(store, shards.count)
    for number, segments in enumerate(shards.log):
        tail = run(log.recover(shard_prefix(number), "test"), store).tail
        for records in segments:
            tail = run(log.append(tail, records), store)
    return store


def test_entities_are_listed_with_their_states(store: LocalStore) -> None:
    listing = list_entities(store, entity_type="Account", prefix="a")
    assert [(one.key, one.state) for one in listing.entities] == [(f"a{n}", {"value": n, "changes": 1}) for n in range(4)]
    assert [one.key for one in list_entities(store).entities if one.entity_type == "Account"] == ["a0", "a1", "a2", "a3"]
    [alarm] = list_entities(store, entity_type="Alarm").entities
    assert (alarm.reminders, alarm.waiting, alarm.state, alarm.unreadable) == (1, 1, None, "")
    assert alarm.changed == datetime.fromtimestamp(EPOCH_MS / 1000, UTC)
    some = list_entities(store, limit=2)
    assert (len(some.entities), some.total) == (2, len(list_entities(store).entities))
    with pytest.raises(InvalidInput, match="limit=-1"):
        list_entities(store, limit=-1)


def test_the_states_of_a_type_are_an_arrow_table(store: LocalStore) -> None:
    table = entities_table(store, "Account")
    assert table.schema.field("value").type == pa.int64()
    assert table.select(["key", "value"]).to_pylist() == [{"key": f"a{n}", "value": n} for n in range(4)]
    assert entities_table(store, "Absent").num_rows == 0


def test_a_damaged_shard_hides_no_other(store: LocalStore, shards: Shards) -> None:
    victim = shards.shard_of("Account/a0")
    name = log.slot_key(shard_prefix(victim), 2)
    path = Path(store.local_path(name) or "")
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    listing = list_entities(store, entity_type="Account")
    assert [damage.shard for damage in listing.damages] == [victim]
    assert name in listing.damages[0].message
    assert {one.key for one in listing.entities} == {f"a{n}" for n in range(4) if shards.shard_of(f"Account/a{n}") != victim}


def test_the_events_of_an_entity_are_read_in_order(tmp_path: Path) -> None:
    shards = Shards(1)
    for amount in range(150):
        shards.ask(shards.entity(Ledger, "a").pay(amount))
    shards.snapshot(0)
    shards.crash(0)
    shards.ask(shards.entity(Ledger, "a").pay(7))
    restored = read_snapshot(write_snapshot(shards.owners[0].state), "snapshot")
    assert contents(restored) == contents(shards.owners[0].state)
    store = LocalStore(str(tmp_path / "store"))
    identify(store, 1)
    tail = run(log.recover(shard_prefix(0), "test"), store).tail
    run(log.write_snapshot(tail, shards.snapshots[0]), store)
    for records in shards.log[0]:
        tail = run(log.append(tail, records), store)
    assert read_events(store, "Ledger", "a") == [Paid(amount) for amount in (*range(150), 7)]
    assert read_events(store, "Ledger", "b") == []
