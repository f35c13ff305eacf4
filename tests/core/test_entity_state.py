"""What is kept of entities does not grow with what has happened to them, only with what is left."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rayflow.checkpoint.tables import read_snapshot, write_snapshot
from rayflow.core.entities import Entities
from rayflow.core.limits import Limits
from rayflow.core.records import Function, Handled, Turn
from rayflow.core.state import DurableState
from tests.core.entity_types import Account, Alarm, hold, hold_alarm
from tests.core.shards import Shards

DAY_MS = 86_400_000
WINDOW_MS = Limits().sender_window_ms


@pytest.fixture
def shards() -> Iterator[Shards]:
    """One shard, whose state is at the end what a reader finds who begins with the last snapshot."""
    shards = Shards(1)
    yield shards
    there = read_snapshot(shards.snapshots[0], "snapshot") if shards.snapshots[0] else None
    if there is not None:
        there.extend(record for segment in shards.log[0] for record in segment)
        assert list(there.entities.kept()) == list(shards.owners[0].state.entities.kept())


def machine(shards: Shards) -> Entities:
    return shards.owners[0].entities


def clocks(shards: Shards) -> int:
    """How many entries there are in the heap that says what is due when."""
    return machine(shards)._timers.held


def test_an_entity_that_was_ended_leaves_no_row_once_its_answers_may_be_dropped(shards: Shards) -> None:
    rows = shards.owners[0].state.entities.rows
    for number in range(200):
        account = shards.entity(Account, f"k{number}")
        shards.ask(account.options(message_id=f"order-{number}").add(1))
        shards.ask(account.destroy())
        shards.now_ms += 1000
        if number == 100:
            shards.snapshot(0)
    assert shards.ask(shards.entity(Account, "k199").options(message_id="order-199").add(1)) == 1, "that comes again"
    assert shards.ask(shards.entity(Account, "k199").get()) == 0, "and is not carried out again"
    assert len(rows) == 200
    for _ in range(3):
        shards.now_ms += WINDOW_MS + 1
        shards.ask(shards.entity(Account, "last").add(1))
    assert list(rows) == ["Account/last"]
    size_bytes = len(write_snapshot(shards.owners[0].state))
    assert size_bytes < 8000


def test_an_entity_that_never_had_a_state_has_no_row(shards: Shards) -> None:
    for number in range(50):
        shards.ask(shards.entity(Account, f"poor{number}").take(1))  # it raises
        gone = shards.entity(Account, f"gone{number}")
        shards.ask(gone.add(1))
        shards.ask(gone.destroy())
    assert not shards.owners[0].state.entities.rows


def test_answers_are_dropped_though_their_entity_has_no_message_any_more(shards: Shards) -> None:
    for number in range(100):
        shards.ask(shards.entity(Account, f"k{number}").options(message_id="m").add(1))
    shards.snapshot(0)
    for _ in range(3):
        shards.now_ms += WINDOW_MS + 1
        shards.ask(shards.entity(Account, "busy").add(1))
    rows = shards.owners[0].state.entities.rows.values()
    assert len(rows) == 101
    assert not [row for row in rows if row.recent or row.older]


def test_a_snapshot_that_is_being_written_does_not_see_what_is_dropped_meanwhile(shards: Shards) -> None:
    state = shards.owners[0].state
    account, alarm = shards.entity(Account, "a"), shards.entity(Alarm, "b")
    shards.ask(account.options(message_id="m").add(1))
    shards.ask(account.destroy())
    shards.ask(alarm.set("one", after=10))
    frozen = state.entities.frozen()
    before = list(frozen.kept())
    shards.ask(alarm.set("two", after=10))
    shards.ask(alarm.stop("one"))
    for _ in range(3):
        shards.now_ms += WINDOW_MS + 1
        shards.ask(shards.entity(Account, "busy", sender="other").add(1))
    assert "Account/a" not in state.entities.rows
    assert list(frozen.kept()) == before


def test_reminders_that_are_set_again_stopped_or_ended_with_their_entity_leave_no_clock_behind(shards: Shards) -> None:
    alarm = shards.entity(Alarm, "a")
    for number in range(300):
        shards.ask(alarm.set("expire", after=30 * 86_400 + number))
        shards.ask(alarm.set(f"once {number}", after=1000 * 86_400))
        shards.ask(alarm.stop(f"once {number}"))
        other = shards.entity(Alarm, f"other {number}")
        other.set("never", after=1000 * 86_400)  # the same batch sees its end, before the reminder is on record
        shards.ask(other.destroy())
        shards.ask(other.set("never", after=1000 * 86_400))
        shards.ask(other.destroy())
        later = shards.entity(Alarm, f"later {number}")
        shards.ask(shards.entity(Alarm, f"from {number}").ring_later(f"later {number}", 1000 * 86_400))
        shards.ask(later.destroy())
    assert len(shards.owners[0].state.entities.rows["Alarm/a"].timers) == 1
    assert clocks(shards) < 100
    shards.advance(31 * DAY_MS)
    assert [name for name, _, _ in shards.ask(alarm.rung())] == ["expire"]


def test_a_reminder_in_flight_of_an_entity_that_is_ended_before_it_is_durable_leaves_no_clock(shards: Shards) -> None:
    owner = shards.owners[0]
    for number in range(300):
        alarm = shards.entity(Alarm, f"a{number}")
        alarm.set("never", after=1000 * 86_400)
        first = owner.next_commit()
        alarm.destroy()
        owner.written(first)
        shards.log[0].append(first.batch.encoded)
        shards.settle()
    assert clocks(shards) < 100


def test_a_lock_that_is_free_again_sets_no_clock_twice(shards: Shards) -> None:
    alarm = shards.entity(Alarm, "locked")
    shards.ask(alarm.set("expire", after=30 * 86_400))
    for number in range(200):
        shards.run(hold_alarm, "locked", 0.0, id=f"flow{number}")
        shards.settle()
    assert clocks(shards) < 100


def test_what_waits_for_a_lock_is_not_copied_with_every_record(shards: Shards) -> None:
    shards.run(hold, "a", 1000.0)
    shards.settle()
    row = shards.owners[0].state.entities.rows["Account/a"]
    for _ in range(3):
        shards.entity(Account, "a").add(1)
        shards.settle()
    queue = row.queue
    shards.entity(Account, "a").add(1)
    shards.settle()
    assert shards.owners[0].state.entities.rows["Account/a"].queue is queue
    assert len(queue) == 4


def test_a_sender_was_last_heard_of_when_its_last_message_was_handled_whatever_the_order_of_records() -> None:
    """I21: what one batch says of several entities may end with what was done first; the sender would be forgotten too soon."""

    def handled(entity: str, at_ms: int, number: int) -> Handled:
        turn = Turn("", "", b"", None, "client", number, 0)
        return Handled(entity, at_ms, Function("x:X"), b"", 1, 1, 60_000, turns=[turn])

    window_ms, state = Limits().sender_window_ms, DurableState().entities
    state.apply(handled("X/a", 1, 1))
    later_ms = 3 * window_ms
    state.apply(handled("X/b", later_ms, 3))
    state.apply(handled("X/a", later_ms - window_ms // 2, 2))
    state.apply(Handled("X/c", later_ms + window_ms - 1, Function("x:X"), b"", 1, 1, 60_000, turns=[]))
    state.apply(Handled("X/c", later_ms + window_ms + 1, Function("x:X"), b"", 1, 1, 60_000, turns=[]))
    assert "client" in state.senders
    assert state.senders["client"].at_ms == later_ms
