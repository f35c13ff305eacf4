"""Locks: a workflow has entities for itself, in whatever way it ends they are free again (I25)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayflow.core import limits
from rayflow.core.messages import CancelExecution, Ended, ForgetExecution, Refused, SettleDeadLetter
from tests.core.entity_types import Account, Alarm, Listing, break_rules, hold, hold_alarm, overdraw, report, swap
from tests.core.shards import Shards


@pytest.fixture
def shards() -> Shards:
    return Shards(3)


def test_nobody_comes_between(shards: Shards) -> None:
    shards.ask(shards.entity(Account, "a").add(1))
    shards.ask(shards.entity(Account, "b").add(2))
    tokens = [shards.run(swap, *pair, id=f"s{number}") for number, pair in enumerate(("ab", "ba", "ab"))]
    shards.settle()
    assert [token for token in tokens if token in shards.answers] == []
    waiting = shards.entity(Account, "a").add(100).result()
    shards.settle()
    assert waiting not in shards.answers, "a client's message waits, too"
    shards.advance(10_000)
    assert shards.outcome(tokens[0]) == (2, 1)
    assert all(token in shards.answers for token in (*tokens, waiting))
    values = [shards.ask(shards.entity(Account, key).get()) for key in ("a", "b")]
    assert sorted(values) in ([1, 102], [2, 101])


def test_what_waits_is_handled_in_order_when_the_lock_is_free(shards: Shards) -> None:
    shards.run(hold, "a", 5.0)
    shards.settle()
    tokens = [shards.entity(Account, "a").add(by).result() for by in (1, 2, 3)]
    shards.run(overdraw, "a", id="o")
    query = shards.entity(Account, "a").get().result()
    shards.advance(4_000)
    assert not any(token in shards.answers for token in (*tokens, query))
    shards.crash(shards.shard_of("Account/a"))
    shards.settle()
    assert not any(token in shards.answers for token in (*tokens, query))
    shards.advance(2_000)
    assert [shards.code.decode(shards.answers[token].result) for token in (*tokens, query)] == [101, 103, 106, 106]  # type: ignore[union-attr]


def test_other_entities_do_not_wait_and_a_sender_goes_on(shards: Shards) -> None:
    """A message that waits has a lower number than later ones of its sender that do not: neither is taken for a repetition."""
    shards = Shards(1)
    shards.run(hold, "a", 5.0)
    shards.settle()
    first = shards.entity(Account, "a").add(1).result()
    assert shards.ask(shards.entity(Account, "b").add(1)) == 1
    shards.crash(0)
    assert shards.ask(shards.entity(Account, "b").add(1)) == 2
    shards.advance(6_000)
    assert shards.code.decode(shards.answers[first].result) == 101  # type: ignore[union-attr]
    assert shards.ask(shards.entity(Account, "a").get()) == 101


def test_what_was_answered_long_ago_does_not_wait_for_a_lock(shards: Shards) -> None:
    """I21: a repetition that comes so late that its answer is dropped is not handled once more when the lock is free."""
    account = shards.entity(Account, "a")
    token = account.add(1).result()
    shards.settle()
    shards.ask(account.add(1))
    shards.ask(account.add(1))
    shards.run(hold, "a", 5.0)
    shards.settle()
    shards.owners[shards.shard_of("Account/a")].receive(token, shards.sent[token], shards.now_ms)
    shards.advance(6_000)
    assert shards.ask(account.get()) == 103


@pytest.mark.parametrize("end", ["it fails", "it is cancelled", "it is dropped", "its code is gone"])
def test_a_lock_is_free_however_its_workflow_ends(shards: Shards, end: str) -> None:
    shards.run(hold, "a", 5.0, end == "it fails")
    shards.settle()
    waiting = shards.entity(Account, "a").add(1).result()
    second = shards.run(hold, "a", 1.0, id="second")
    shards.settle()
    assert waiting not in shards.answers
    if end == "it is cancelled":
        shards.tell(CancelExecution("x", "enough"))
    elif end == "it is dropped":
        shards.tell(ForgetExecution("x"))
    elif end == "its code is gone":
        del shards.code.workflows["hold"]
        shards.crash(shards.shard_of("x"))
        shards.settle()
        assert waiting not in shards.answers, "suspended, it keeps the lock: it may go on"
        shards.code.workflows["hold"] = hold
        shards.tell(CancelExecution("x", "it will never be mended"))
    else:
        shards.advance(5_000)
    shards.settle()
    assert waiting in shards.answers
    shards.advance(10_000)
    assert isinstance(shards.answers[second], Ended)
    assert shards.owners[shards.shard_of("Account/a")].state.entities.rows["Account/a"].holder == ""


@limits.using(entity_mailbox=3)
def test_the_queue_for_a_lock_is_bounded_and_whoever_finds_it_full_is_told() -> None:
    shards = Shards(1)
    shards.ask(shards.entity(Account, "b").add(50))
    holder = shards.run(hold, "a", 5.0)
    shards.settle()
    waiting = [shards.entity(Account, "a").add(1).result() for _ in range(3)]
    turned_away = shards.entity(Account, "a").add(1).result()
    caller, locker = shards.run(overdraw, "a", id="caller"), shards.run(hold, "a", 1.0, id="locker")
    shards.ask(shards.entity(Account, "b").move("a", 7))
    shards.settle()
    full = "Account/a is locked, and 3 messages wait for it already"
    refused, failed = shards.answers[turned_away], shards.answers[locker]
    assert isinstance(refused, Refused) and (refused.error, full in refused.message) == ("Overloaded", True)
    assert shards.outcome(caller).startswith("Overloaded: ") and full in shards.outcome(caller)
    assert isinstance(failed, Ended) and failed.failure is not None and full in failed.failure.message
    [letter] = shards.owners[0].state.entities.dead.values()
    assert (letter.entity, letter.reason.type) == ("Account/a", "Overloaded")
    shards.advance(6_000)
    assert shards.outcome(holder) == 100
    assert all(token in shards.answers for token in waiting)
    shards.tell(SettleDeadLetter("Account/a", letter.number, letter.at_ms, discard=False))
    shards.settle()
    assert shards.ask(shards.entity(Account, "a").get()) == 100 + 3 + 7


def test_a_workflow_that_gives_up_waiting_for_a_lock_gets_it_never(shards: Shards) -> None:
    shards.run(hold, "a", 5.0)
    shards.settle()
    shards.run(hold, "a", 5.0, id="impatient")
    third = shards.run(hold, "a", 1.0, id="third")
    shards.settle()
    shards.tell(CancelExecution("impatient", "no time"))
    shards.advance(7_000)
    assert isinstance(shards.answers[third], Ended)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("twice", "Account/a is given twice"),
        ("nothing", "name the entities to lock"),
        ("stranger", "give what ctx.entity"),
        ("nested", "locks are not nested: Account/a is locked here already"),
        ("outside", "Account/b is called inside a lock of Account/a: lock it, too, or call it outside"),
    ],
)
def test_broken_rules_are_named_and_leave_nothing_locked(shards: Shards, how: str, said: str) -> None:
    token = shards.run(break_rules, how)
    shards.settle()
    assert said in shards.outcome(token)
    assert shards.ask(shards.entity(Account, "a").add(1)) == 1
    assert shards.ask(shards.entity(Account, "b").get()) == (1 if how in ("nested", "outside") else 0)


def test_reminders_wait_for_the_lock(shards: Shards) -> None:
    alarm = shards.entity(Alarm, "a")
    shards.ask(alarm.set("often", every=10))
    shards.run(hold_alarm, "a", 25.0)
    shards.settle()
    shards.advance(26_000)
    assert [(name, missed) for name, missed, _ in shards.ask(alarm.rung())] == [("often", 1)]


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_locks_hold_whatever_crashes(data: st.DataObject) -> None:
    shards = Shards(3)
    shards.ask(shards.entity(Account, "a").add(1))
    shards.ask(shards.entity(Account, "b").add(2))
    tokens = [shards.run(swap, *pair, id=f"s{number}") for number, pair in enumerate(("ab", "ba", "ab"))]
    tokens.append(shards.run(report, "flow", 3))
    late = [shards.entity(Account, "a", sender).add(100).result() for sender in ("p", "p", "q")]
    step = st.tuples(st.sampled_from(("crash", "commit", "lost", "carry", "again", "snapshot", "time")), st.integers(0, 2))
    for what, number in data.draw(st.lists(step, max_size=40)):
        if what == "crash":
            shards.crash(number)
        elif what in ("commit", "lost"):
            shards.commit(number, lost=what == "lost")
        elif what == "snapshot":
            shards.snapshot(number)
        elif what == "time":
            shards.now_ms += 700
            shards.owners[number].advance(shards.now_ms)
        else:
            shards.carry(number, confirmed=what == "carry")
    shards.settle()
    shards.advance(20_000)
    assert all(token in shards.answers for token in (*tokens, *late))
    for x, y in (shards.outcome(token) for token in tokens[:3]):
        assert {x % 100, y % 100} == {1, 2}, "nobody came between"
    values = [shards.ask(shards.entity(Account, key).get()) for key in ("a", "b")]
    assert sum(values) == 303
    assert shards.ask(shards.entity(Listing, "log").get()) == {"flow": [0, 1, 2]}
