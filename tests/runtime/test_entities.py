"""Entities on a real Ray: called by clients, workflows and each other, across shards and deaths of the host (I20, I21, I22)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

import rayflow
from tests.core.entity_types import Account, Alarm, Bomb, Listing, Relay, overdraw, report, transfer
from tests.runtime.conftest import actor_pid, eventually, kill
from tests.runtime.flows import depositing

pytestmark = pytest.mark.ray


@pytest.fixture
def many(client: rayflow.Client, tmp_path: Path) -> Iterator[rayflow.Client]:
    """A store with several shards, on the Ray of ``client``."""
    with rayflow.connect(tmp_path / "many", shards=4) as other:
        yield other


def test_calls_are_answered_and_can_be_awaited(client: rayflow.Client) -> None:
    account = client.entity(Account, "a")
    assert account.add(2).result() == 2

    async def both() -> list[int]:
        return await asyncio.gather(*(account.add(1) for _ in range(3)))

    assert asyncio.run(both()) == [3, 4, 5]
    assert account.get().result() == 5
    assert account.signal.add(10).result() is None
    assert account.get().result() == 15
    with pytest.raises(rayflow.OperationFailed, match="Account/a: take raised ValueError: 85 too little") as caught:
        account.take(100).result()
    assert caught.value.error_type == "ValueError" and isinstance(caught.value, ValueError)
    assert "in take" in caught.value.remote_traceback
    assert account.options(timeout=30).get().result() == 15
    with pytest.raises(rayflow.IdInUse):
        [account.options(message_id="m").add(by).result() for by in (1, 2)]


def test_letters_cross_shards(many: rayflow.Client) -> None:
    assert len({many.identity.shard_of(f"Relay/{key}") for key in "abcdef"}) > 1
    for number in range(10):
        for key in "abcdef":
            many.entity(Relay, key).signal.pass_on("log", number)
    many.start(report, "flow", 10).result(30)
    relays = [many.entity(Relay, key).pass_on("log", 10) for key in "abcdef"]
    [one.result() for one in relays]
    listing = many.entity(Listing, "log")
    eventually(lambda: sum(map(len, listing.get().result().values())) >= 76, "all letters are there")
    assert listing.get().result() == {key: list(range(11)) for key in "abcdef"} | {"flow": list(range(10))}


def test_reminders_come_without_anything_else_that_happens(client: rayflow.Client) -> None:
    """The store is asked, not the shard, which a question would wake."""
    client.entity(Alarm, "a").set("now", after=0).result()
    client.entity(Alarm, "b").set("often", every=0.1).result()

    def changes() -> list[int]:
        return [one.changes for one in client.entities(Alarm).entities]

    eventually(lambda: len(changes()) == 2 and changes()[0] == 1 and changes()[1] > 2, "they come")


def test_steps_call_and_signal_entities_through_the_current_client(many: rayflow.Client) -> None:
    assert many.start(depositing, "steps").result(30) == [11, 22]
    with pytest.raises(rayflow.InvalidInput, match="no step runs here"):
        rayflow.current_client()


def test_workflows_call_entities(many: rayflow.Client) -> None:
    many.entity(Account, "a").add(10).result()
    runs = [many.start(transfer, "a", f"b{number}", 1) for number in range(5)]
    assert sorted(run.result(30) for run in runs) == [(left, 1) for left in (5, 6, 7, 8, 9)]
    assert "999995 too little" in many.start(overdraw, "a").result(30)


@pytest.mark.crash
def test_nothing_is_lost_or_done_twice_when_the_host_dies(many: rayflow.Client) -> None:
    account = many.entity(Account, "a")
    calls = []
    for number in range(300):
        calls.append(account.add(1))
        if number == 150:
            calls[100].result()
            kill(actor_pid(many, "host"))
    assert [call.result(30) for call in calls] == list(range(1, 301))
    assert account.get().result() == 300


@pytest.mark.crash
def test_a_message_that_kills_its_process_becomes_a_dead_letter_and_the_entity_goes_on(client: rayflow.Client) -> None:
    bomb = client.entity(Bomb, "b")
    assert bomb.add().result(30) == 1
    with pytest.raises(rayflow.OperationFailed, match="killed the process that ran it 3 times") as caught:
        bomb.explode().result(60)
    assert caught.value.error_type == "ProcessCrashed"
    assert bomb.add().result(30) == 2
    [letter] = client.dead_letters(Bomb)
    assert (letter.key, letter.operation, letter.error_type) == ("b", "explode", "ProcessCrashed")
    client.discard(letter)
    assert client.dead_letters() == ()
    with pytest.raises(rayflow.NotFound):
        client.replay(letter)
