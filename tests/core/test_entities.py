"""Entities: one message at a time, each as one atomic turn, each handled once (I20, I21, I22)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rayflow
from rayflow.core.messages import Answered, Refused
from rayflow.core.records import Failure, Handled, decode_record
from rayflow.errors import InvalidInput
from tests.core.entity_types import Account, Listing, Relay, Sum, overdraw, report, transfer
from tests.core.shards import Shards


class Bare(rayflow.Entity):  # type: ignore[type-arg]
    @rayflow.query
    def get(self) -> int:
        return 1


class Mute(rayflow.Entity[Sum]): ...


@pytest.fixture
def shards() -> Shards:
    return Shards(3)


def test_a_class_can_be_tried_with_nothing_running() -> None:
    account = Account("a")
    assert account.add(2).result() == 2
    assert account.add().result() == 3
    assert account.state == Sum(3, 2)
    with pytest.raises(ValueError, match="1 too little"):
        account.take(4)


def test_operations_change_the_state_and_queries_see_it(shards: Shards) -> None:
    account = shards.entity(Account, "a")
    assert shards.ask(account.add(2)) == 2
    assert shards.ask(account.add()) == 3
    assert shards.ask(account.get()) == 3
    assert shards.ask(shards.entity(Account, "b").get()) == 0


def test_an_exception_undoes_the_turn_and_is_its_answer(shards: Shards) -> None:
    account = shards.entity(Account, "a")
    shards.ask(account.add(5))
    failure = shards.ask(account.take(7))
    assert (failure.type, failure.message) == ("ValueError", "2 too little")
    assert "in take" in failure.traceback
    assert shards.ask(account.get()) == 5
    failure = shards.ask(account.move("b", 7))
    assert failure.type == "ValueError"
    assert shards.ask(shards.entity(Account, "b").get()) == 0, "a signal of a turn that does not count is not sent"
    assert shards.ask(account.leave()).type == "SystemExit"
    assert shards.ask(account.spoil()).type == "CodecError"
    assert shards.ask(account.get()) == 5
    for number in range(3):
        shards.crash(number)
    assert shards.ask(account.get()) == 5


def test_a_query_that_changes_something_fails_and_changes_nothing(shards: Shards) -> None:
    account = shards.entity(Account, "a")
    assert "query peek changed the state" in shards.ask(account.peek()).message
    assert shards.ask(account.get()) == 0


def test_an_entity_cannot_call_another(shards: Shards) -> None:
    failure = shards.ask(shards.entity(Account, "a").call("b"))
    assert failure.type == "InvalidInput"
    assert "Account/a calls add of Account/b: entities send signals only, write .signal.add()" in failure.message
    with pytest.raises(InvalidInput, match="handles no message just now"):
        Account("a").move("b", 1)


def test_a_message_id_that_comes_again_gets_the_recorded_answer(shards: Shards) -> None:
    account = shards.entity(Account, "a")
    named = account.options(message_id="req-7")
    assert shards.ask(named.add(2)) == 2
    assert shards.ask(account.add(1)) == 3
    assert shards.ask(shards.entity(Account, "a", sender="another").options(message_id="req-7").add(2)) == 2
    for number in range(3):
        shards.crash(number)
    assert shards.ask(named.add(2)) == 2
    assert shards.ask(account.get()) == 3
    refused = shards.ask(named.add(3))
    assert isinstance(refused, Refused)
    assert refused.error == "IdInUse"
    assert "message id 'req-7' was used for another operation or other arguments" in refused.message
    failed = account.options(message_id="req-8")
    first = shards.ask(failed.take(100))
    shards.ask(account.add(1000))
    assert shards.ask(failed.take(100)) == first, "a recorded failure stays one, too"


def test_a_message_id_is_kept_for_its_window_and_not_for_ever(shards: Shards) -> None:
    account = shards.entity(Account, "a")
    window_ms = round(Account.message_window_s * 1000)
    assert shards.ask(account.options(message_id="m").add(1)) == 1
    shards.now_ms += window_ms - 1
    shards.ask(account.options(message_id="n").add(1))
    assert shards.ask(account.options(message_id="m").add(1)) == 1
    for _ in range(2):
        shards.now_ms += window_ms
        shards.ask(account.add(0))
    assert shards.ask(account.options(message_id="m").add(1)) == 3


def test_what_was_answered_and_heard_is_not_kept(shards: Shards) -> None:
    account = shards.entity(Account, "a")
    for _ in range(100):
        shards.ask(account.add(1))
    [sender] = shards.owners[shards.shard_of("Account/a")].state.entities.senders.values()
    assert len(sender.answers) == 1


def test_all_turns_of_one_batch_are_one_record(shards: Shards) -> None:
    account = shards.entity(Account, "a")
    for _ in range(50):
        account.add(1)
    shards.settle()
    home = shards.shard_of("Account/a")
    [record] = [decode_record(one) for segment in shards.log[home] for one in segment]
    assert isinstance(record, Handled)
    assert len(record.turns) == 50
    assert record.changes == 50


def test_unknown_operations_and_wrong_arguments_are_refused_before_anything_is_recorded(shards: Shards) -> None:
    account = shards.entity(Account, "a")
    with pytest.raises(AttributeError, match="Account has no operation 'destory'; it has add, call, get"):
        account.destory()
    with pytest.raises(InvalidInput, match=r"Account/a: add\(by: 'int' = 1\) does not take these arguments"):
        account.add(1, 2)
    with pytest.raises(rayflow.CodecError, match=r"arguments.*object"):
        account.add(object())
    with pytest.raises(InvalidInput, match="the query get changes nothing"):
        account.signal.get  # noqa: B018
    for wrong in ("", "x" * 201, "a\nb"):
        with pytest.raises(InvalidInput, match="key"):
            shards.entity(Account, wrong)
    assert not any(shards.log)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (int, "is no entity"),
        (Bare, "Bare: name the type of its state"),
        (Mute, "Mute has no operation"),
    ],
)
def test_a_class_that_cannot_serve_is_refused(shards: Shards, wrong: Any, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        shards.entity(wrong, "a")


def test_an_operation_that_waits_is_refused_where_it_is_defined() -> None:
    async def slow(self: Any) -> None: ...

    with pytest.raises(InvalidInput, match="slow: an operation of an entity is a plain function"):
        rayflow.operation(slow)


# -- workflows ---------------------------------------------------------------------------------------------------------------


def test_a_workflow_calls_entities_and_signals_them(shards: Shards) -> None:
    shards.ask(shards.entity(Account, "a").add(10))
    token = shards.run(transfer, "a", "b", 4)
    shards.settle()
    assert shards.outcome(token) == (6, 4)
    assert shards.ask(shards.entity(Account, "b").get()) == 4
    assert shards.ask(shards.entity(Account, "moves").get()) == 1, "a signal sent in the last turn is sent"


def test_a_call_that_raises_fails_in_the_workflow(shards: Shards) -> None:
    token = shards.run(overdraw, "a")
    shards.settle()
    assert shards.outcome(token) == "ValueError: Account.take#1 raised ValueError: 1000000 too little"


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_calls_of_workflows_happen_once_whatever_crashes(data: st.DataObject) -> None:
    shards = Shards(3)
    shards.ask(shards.entity(Account, "a").add(100))
    tokens = [shards.run(transfer, "a", "b", 1, id=f"t{number}") for number in range(4)]
    _disturb(shards, data)
    left, there = zip(*(shards.outcome(token) for token in tokens), strict=True)
    assert (sorted(left), sorted(there)) == ([96, 97, 98, 99], [1, 2, 3, 4])
    values = [shards.ask(shards.entity(Account, key).get()) for key in ("a", "b", "moves")]
    assert values == [96, 4, 4]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_letters_come_once_and_in_order_whatever_crashes(data: st.DataObject) -> None:
    """I22, for entities and workflows of several shards that all send to one."""
    shards = Shards(3)
    relays = ["a", "b", "c", "d"]
    for number in range(5):
        for relay in relays:
            shards.entity(Relay, relay).pass_on("log", number)
    shards.run(report, "flow", 5)
    _disturb(shards, data)
    assert shards.ask(shards.entity(Listing, "log").get()) == {sender: [0, 1, 2, 3, 4] for sender in (*relays, "flow")}


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_messages_of_clients_are_handled_once_and_in_order_whatever_crashes(data: st.DataObject) -> None:
    """I21, with message ids and without."""
    shards = Shards(2)
    for number in range(6):
        for sender in ("p", "q"):
            listing = shards.entity(Listing, "log", sender)
            chosen = listing.options(message_id=f"{sender}{number}") if number % 2 else listing
            chosen.add(sender, number)
    _disturb(shards, data)
    assert shards.ask(shards.entity(Listing, "log").get()) == {sender: [0, 1, 2, 3, 4, 5] for sender in ("p", "q")}
    assert all(isinstance(answer, Answered) and not isinstance(answer.failure, Failure) for answer in shards.answers.values())


def _disturb(shards: Shards, data: st.DataObject) -> None:
    """Some steps in any order, with crashes before and after writes and letters that come again; then undisturbed to the end."""
    step = st.tuples(st.sampled_from(("crash", "commit", "lost", "carry", "again")), st.integers(0, shards.count - 1))
    for what, number in data.draw(st.lists(step, max_size=30)):
        if what == "crash":
            shards.crash(number)
        elif what in ("commit", "lost"):
            shards.commit(number, lost=what == "lost")
        else:
            shards.carry(number, confirmed=what == "carry")
    shards.settle()
