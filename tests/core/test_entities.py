"""Entities: one message at a time, each as one atomic turn, each handled once (I20, I21, I22)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rayflow
from rayflow.core import limits
from rayflow.core.entity import done
from rayflow.core.messages import Answered, CallEntity, Refused, SettleDeadLetter, Token
from rayflow.core.proxy import proxy_of
from rayflow.core.records import DeadLetter, Failure, Handled, decode_record
from rayflow.errors import InvalidInput
from tests.core.entity_types import Account, Alarm, Ledger, Listing, Relay, Sum, overdraw, report, sign_off, transfer, wake_later
from tests.core.shards import Died, Shards


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


def test_who_says_to_have_heard_an_answer_before_it_was_given_does_not_end_the_shard(shards: Shards) -> None:
    """A request that was refused, so that nothing of it is kept, may be under way once more when later ones were answered."""
    sent: list[CallEntity] = []
    account = proxy_of(Account, "a", lambda outgoing: (sent.append(shards.message(outgoing)), done(None))[1])
    account.add(5)
    home = shards.shard_of("Account/a")
    shards.owners[home].receive(Token("early", 1, 3), sent[0], shards.now_ms)
    shards.settle()
    shards.crash(home)
    assert shards.ask(shards.entity(Account, "a").get()) == 5
    assert not shards.owners[home].state.entities.senders["early"].answers


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
    with pytest.raises(AttributeError, match="Account has no operation 'destory'; it has add, call, destroy, get"):
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
        ({"message_id": 7}, "Account/a: message_id=7 must be a text of 1 to 200 characters"),
        ({"message_id": ""}, "message_id='' must be a text"),
        ({"timeout": 0}, "Account/a: timeout=0 must be a positive number of seconds"),
        ({"timeout": "3"}, "timeout='3' must be a positive number of seconds"),
        ({"at": 5}, "Account/a: at=5 must be a datetime with a time zone, or a timedelta"),
        ({"at": datetime(2026, 1, 1)}, "has no time zone"),  # the mistake under test
    ],
)
def test_options_of_a_call_that_cannot_work_are_refused(shards: Shards, wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        shards.entity(Account, "a").options(**wrong)


def changed(**attributes: Any) -> Any:
    return type("Account", (Account,), attributes)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (int, "is no entity"),
        (Bare, "Bare: name the type of its state"),
        (Mute, "Mute has no operation"),
        (changed(entity_type=5), "entity_type = 5 is not a name"),
        (changed(state_version="2"), "Account: state_version='2' must be a whole number from 1 on"),
        (changed(state_version=0), "state_version=0 must be a whole number from 1 on"),
        (changed(message_window_s=float("inf")), "Account: message_window_s=inf must be a number of seconds from 0 on"),
    ],
)
def test_a_class_that_cannot_serve_is_refused(shards: Shards, wrong: Any, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        shards.entity(wrong, "a")


def test_an_operation_that_waits_is_refused_where_it_is_defined() -> None:
    async def slow(self: Any) -> None: ...

    with pytest.raises(InvalidInput, match="slow: an operation of an entity is a plain function"):
        rayflow.operation(slow)
    with pytest.raises(InvalidInput, match=r"'name' is no method: write @rayflow\.operation or @rayflow\.query, without"):
        rayflow.operation("name")  # type: ignore[arg-type]  # the mistake under test
    with pytest.raises(InvalidInput, match=r"@rayflow.migrate: from_version='1' must be a whole number from 1 on"):
        rayflow.migrate(from_version="1")  # type: ignore[arg-type]


# -- time and end ------------------------------------------------------------------------------------------------------------


def start_s(shards: Shards) -> int:
    return round(shards.now_ms / 1000 - datetime(2026, 1, 1, tzinfo=UTC).timestamp())


def test_reminders_come_when_they_are_due(shards: Shards) -> None:
    alarm, zero = shards.entity(Alarm, "a"), start_s(shards)
    shards.ask(alarm.set("once", after=5))
    shards.ask(alarm.set("often", after=1, every=4))
    shards.ask(alarm.set("later", after=6))
    shards.ask(alarm.set("later", after=9))
    shards.ask(alarm.set_and_fail())
    shards.advance(10_000)
    assert shards.ask(alarm.rung()) == [
        (name, 0, zero + at) for name, at in (("often", 1), ("once", 5), ("often", 5), ("later", 9), ("often", 9))
    ]
    shards.ask(alarm.stop("often"))
    shards.advance(100_000)
    assert len(shards.ask(alarm.rung())) == 5


def test_after_a_time_without_anybody_a_reminder_comes_once_and_says_how_often_it_was_missed(shards: Shards) -> None:
    alarm, zero = shards.entity(Alarm, "a"), start_s(shards)
    shards.ask(alarm.set("often", every=10))
    shards.ask(alarm.set("once", after=15))
    shards.advance(10_000)
    shards.now_ms += 95_000
    for number in range(3):
        shards.crash(number)
    shards.advance(0)
    assert shards.ask(alarm.rung()) == [("often", 0, zero + 10), ("once", 0, zero + 105), ("often", 8, zero + 105)]
    shards.advance(5_000)
    assert shards.ask(alarm.rung())[-1] == ("often", 0, zero + 110), "the rhythm stays"


def test_a_reminder_whose_turn_raises_comes_again_all_the_same(shards: Shards, caplog: pytest.LogCaptureFixture) -> None:
    shards.ask(shards.entity(Alarm, "a").set("broken", every=1))
    shards.advance(2_500)
    assert [one.getMessage() for one in caplog.records] == ["Alarm/a: reminded('broken') failed: ValueError: "] * 2
    assert shards.ask(shards.entity(Alarm, "a").rung()) == []


def test_what_is_recorded_of_a_reminder_that_raises_bears_its_time(shards: Shards) -> None:
    shards.ask(shards.entity(Alarm, "a").set("broken", every=1))
    home = shards.shard_of("Alarm/a")
    shards.crash(home)
    shards.advance(1_000)
    assert shards.owners[home].state.entities.rows["Alarm/a"].at_ms == shards.now_ms


def test_signals_for_later_are_handled_then_and_once(shards: Shards) -> None:
    alarm, zero = shards.entity(Alarm, "a"), start_s(shards)
    shards.ask(alarm.options(at=timedelta(seconds=3)).signal.ring("client"))
    at = datetime.fromtimestamp(shards.now_ms / 1000 + 4, UTC)
    for sender in ("one", "two"):
        shards.ask(shards.entity(Alarm, "a", sender).options(at=at, message_id="m").signal.ring("named"))
    shards.ask(shards.entity(Alarm, "b").ring_later("a", 1))
    shards.run(wake_later, "a", 2.0)
    for number in range(3):
        shards.commit(number)
        shards.crash(number)
    shards.settle()
    assert shards.ask(alarm.rung()) == []
    shards.advance(10_000)
    expected = [("from b", 0, zero + 1), ("flow", 0, zero + 2), ("client", 0, zero + 3), ("named", 0, zero + 4)]
    assert shards.ask(alarm.rung()) == expected
    shards.crash(shards.shard_of("Alarm/a"))
    shards.advance(10_000)
    assert shards.ask(alarm.rung()) == expected


def test_a_signal_for_later_never_takes_the_place_of_another(shards: Shards) -> None:
    """I22, also where the one before was put off and came due, or was ended, within one batch."""
    alarm, home = shards.entity(Alarm, "a"), shards.shard_of("Alarm/a")
    alarm.options(at=timedelta(seconds=1)).signal.ring("first")
    shards.now_ms += 1000
    shards.owners[home].advance(shards.now_ms)
    alarm.options(at=timedelta(seconds=1)).signal.ring("second")
    shards.settle()
    shards.crash(home)
    shards.ask(alarm.options(at=timedelta(seconds=2)).signal.ring("third"))
    shards.advance(5_000)
    assert [name for name, *_ in shards.ask(alarm.rung())] == ["first", "second", "third"]
    alarm.options(at=timedelta(seconds=1)).signal.ring("never")
    alarm.destroy()
    alarm.options(at=timedelta(seconds=1)).signal.ring("fourth")
    shards.settle()
    shards.crash(home)
    shards.ask(alarm.options(at=timedelta(seconds=2)).signal.ring("fifth"))
    shards.advance(5_000)
    assert [name for name, *_ in shards.ask(alarm.rung())] == ["fourth", "fifth"]


def test_bad_times_are_refused(shards: Shards) -> None:
    alarm = shards.entity(Alarm, "a")
    with pytest.raises(InvalidInput, match="has no time zone"):
        alarm.options(at=datetime(2027, 1, 1))
    with pytest.raises(InvalidInput, match=r"write .signal.ring\("):
        alarm.options(at=timedelta(1)).ring("x")
    assert "say when it is due first" in shards.ask(alarm.set("x")).message
    assert "every=0" in shards.ask(alarm.set("x", every=0)).message
    assert "after=-1" in shards.ask(alarm.set("x", after=-1)).message
    assert "cannot be named '@x'" in shards.ask(alarm.set("@x", after=1)).message


def test_destroy_leaves_nothing_behind_and_the_next_message_begins_anew(shards: Shards) -> None:
    alarm = shards.entity(Alarm, "a")
    shards.ask(alarm.options(message_id="m").ring("x"))
    shards.ask(alarm.set("often", every=1))
    shards.ask(alarm.options(at=timedelta(seconds=1)).signal.ring("later"))
    shards.ask(alarm.destroy())
    shards.advance(5_000)
    assert shards.ask(alarm.rung()) == []
    assert shards.ask(alarm.options(message_id="m").ring("x")) is None
    assert shards.ask(alarm.rung()) == [], "a message that comes again makes no ghost"
    home = shards.shard_of("Alarm/a")
    shards.crash(home)
    row = shards.owners[home].state.entities.rows["Alarm/a"]
    assert (row.state, row.changes, row.timers) == (None, 0, {})
    alarm.ring("new")
    alarm.destroy()
    alarm.ring("newer")
    shards.settle()
    shards.crash(home)
    assert [name for name, *_ in shards.ask(alarm.rung())] == ["newer"]


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
    step = st.tuples(st.sampled_from(("crash", "commit", "lost", "carry", "again", "snapshot")), st.integers(0, shards.count - 1))
    for what, number in data.draw(st.lists(step, max_size=30)):
        if what == "crash":
            shards.crash(number)
        elif what in ("commit", "lost"):
            shards.commit(number, lost=what == "lost")
        elif what == "snapshot":
            shards.snapshot(number)
        else:
            shards.carry(number, confirmed=what == "carry")
    shards.settle()


# -- memory and form ---------------------------------------------------------------------------------------------------------


def test_an_idle_entity_leaves_memory_and_the_next_message_brings_it_back(shards: Shards) -> None:
    account = shards.entity(Account, "a")
    home = shards.owners[shards.shard_of("Account/a")].entities
    shards.ask(account.add(5))
    assert len(home.active) == 1
    shards.advance(limits.current().entity_idle_ms - 1)
    assert len(home.active) == 1
    shards.advance(1001)
    assert len(home.active) == 0
    assert home.next_due_ms() is None, "nothing is woken for an entity that is idle"
    assert shards.ask(account.get()) == 5


@limits.using(entity_bytes=5 * 2300)
def test_beyond_the_high_water_mark_the_least_recently_used_leave() -> None:
    shards = Shards(1)
    for number in range(20):
        shards.ask(shards.entity(Account, f"a{number}").add(number))
        shards.ask(shards.entity(Account, "often").add(1))
    assert len(shards.owners[0].entities.active) <= 5
    assert [shards.ask(shards.entity(Account, f"a{number}").get()) for number in range(20)] == list(range(20))
    for number in range(20):  # what is not durable yet does not leave, whatever it takes
        shards.entity(Account, f"b{number}").add(1)
    assert len(shards.owners[0].entities.active) >= 20
    shards.settle()


@limits.using(entity_mailbox=10)
def test_a_full_mailbox_refuses_and_loses_nothing(shards: Shards) -> None:
    account = shards.entity(Account, "a")
    tokens = [account.add(1).result() for _ in range(15)]
    shards.settle()
    refused = [shards.answers[token] for token in tokens if isinstance(shards.answers[token], Refused)]
    assert [one.error for one in refused] == ["Overloaded"] * 5
    assert "try again in a second" in refused[0].message
    assert shards.ask(account.get()) == 10


class Old(rayflow.Entity[Sum]):
    entity_type = "Versioned"

    @rayflow.operation
    def add(self, by: int) -> int:
        self.state.value += by
        return self.state.value


@dataclass(slots=True)
class Euros:
    cents: int = 0


class New(rayflow.Entity[Euros]):
    entity_type = "Versioned"
    state_version = 3

    @rayflow.migrate(from_version=1)
    def _count(fields: dict[str, Any]) -> dict[str, Any]:
        return {"euros": fields["value"]}

    @rayflow.migrate(from_version=2)
    def _cents(fields: dict[str, Any]) -> Euros:
        return Euros(fields["euros"] * 100)

    @rayflow.operation
    def add(self, by: int) -> int:
        self.state.cents += by
        return self.state.cents


class Newer(rayflow.Entity[Euros]):
    entity_type = "Versioned"
    state_version = 5

    @rayflow.operation
    def add(self, by: int) -> int:
        return by


def test_a_state_of_an_older_version_is_migrated(shards: Shards) -> None:
    shards.ask(shards.entity(Old, "a").add(7))
    home = shards.shard_of("Versioned/a")
    shards.crash(home)
    assert shards.ask(shards.entity(New, "a").add(1)) == 701
    shards.crash(home)
    assert shards.ask(shards.entity(New, "a").add(1)) == 702
    assert shards.owners[home].state.entities.rows["Versioned/a"].state_version == 3


def test_a_state_that_cannot_be_read_stops_that_entity_alone_and_can_be_ended(shards: Shards) -> None:
    shards.ask(shards.entity(New, "a").add(7))
    home = shards.shard_of("Versioned/a")
    shards.crash(home)
    refused = shards.ask(shards.entity(Newer, "a").add(1))
    assert refused.error == "EntityUnreadable"
    assert "Versioned/a has a state of version 3" in refused.message
    assert "there is no @rayflow.migrate(from_version=3) in Newer" in refused.message
    older = shards.ask(shards.entity(Old, "a").add(1))
    assert older.error == "EntityUnreadable", "newer than the code"
    assert shards.ask(shards.entity(Newer, "b").add(1)) == 1
    assert shards.ask(shards.entity(New, "a").add(1)) == 8
    shards.crash(home)
    assert shards.ask(shards.entity(Newer, "a").destroy()) is None
    assert shards.ask(shards.entity(Newer, "a").add(1)) == 1


# -- what cannot be handled --------------------------------------------------------------------------------------------------


def test_a_signal_that_fails_is_kept_as_a_dead_letter_and_can_be_handled_later(shards: Shards) -> None:
    """I24."""
    token = shards.run(sign_off, "a", 7)
    shards.settle()
    home = shards.shard_of("Account/a")
    [letter] = shards.owners[home].state.entities.dead.values()
    assert (letter.entity, letter.operation, letter.sender) == ("Account/a", "take", "x")
    assert (letter.reason.type, letter.reason.message) == ("ValueError", "7 too little")
    assert shards.outcome(token) == 7
    for number in range(3):
        shards.snapshot(number)
        shards.crash(number)
    settle = SettleDeadLetter("Account/a", letter.number, letter.at_ms, discard=False)
    assert shards.ask(done(shards.tell(settle))).type == "ValueError", "it fails again and stays"
    shards.ask(shards.entity(Account, "a").add(10))
    assert shards.ask(done(shards.tell(settle))) == 3
    assert shards.ask(done(shards.tell(settle))).error == "NotFound"
    shards.crash(home)
    assert not shards.owners[home].state.entities.dead
    assert shards.ask(shards.entity(Account, "a").get()) == 3


def test_a_dead_letter_can_be_thrown_away(shards: Shards) -> None:
    shards.run(sign_off, "a", 7)
    shards.settle()
    [letter] = shards.owners[shards.shard_of("Account/a")].state.entities.dead.values()
    shards.ask(done(shards.tell(SettleDeadLetter("Account/a", letter.number, letter.at_ms, discard=True))))
    shards.crash(shards.shard_of("Account/a"))
    assert not shards.owners[shards.shard_of("Account/a")].state.entities.dead


@pytest.mark.parametrize("discard", [True, False])
def test_a_request_to_settle_a_dead_letter_that_comes_again_is_answered_as_before(shards: Shards, discard: bool) -> None:
    """I21: the crash is between the commit and its answer, and what asked for it cannot know."""
    shards.run(sign_off, "a", 7)
    shards.settle()
    home = shards.shard_of("Account/a")
    [letter] = shards.owners[home].state.entities.dead.values()
    shards.ask(shards.entity(Account, "a").add(10))
    settle = SettleDeadLetter("Account/a", letter.number, letter.at_ms, discard)
    token = shards.tell(settle)
    shards.owners[home].receive(token, settle, shards.now_ms)
    shards.commit(home, lost=True)
    shards.snapshot(home)
    shards.crash(home)
    assert not shards.owners[home].state.entities.dead
    assert shards.ask(done(token)) == (None if discard else 3)
    assert isinstance(shards.answers[token], Answered)
    assert shards.ask(shards.entity(Account, "a").get()) == (10 if discard else 3), "it is handled once"
    assert shards.ask(done(shards.tell(settle))).error == "NotFound", "who asks anew is told"


def test_of_a_request_to_settle_a_dead_letter_nothing_is_kept_once_its_answer_was_heard(shards: Shards) -> None:
    shards.run(sign_off, "a", 7)
    shards.settle()
    home = shards.shard_of("Account/a")
    [letter] = shards.owners[home].state.entities.dead.values()
    settle = SettleDeadLetter("Account/a", letter.number, letter.at_ms, discard=True)
    token = shards.tell(settle)
    assert shards.ask(done(token)) is None
    shards.ask(shards.entity(Account, "a").add(10))
    shards.owners[home].receive(token, settle, shards.now_ms)
    assert shards.ask(done(token)).error == "NotFound"


def test_a_dead_letter_is_not_taken_for_an_earlier_one_of_its_number(shards: Shards) -> None:
    """I24: numbers begin again once all are settled, and a request to throw one away may come again, or be a day old."""
    home = shards.shard_of("Account/a")
    letters: list[DeadLetter] = []
    for execution in ("x", "y"):
        shards.run(sign_off, "a", 7, id=execution)
        shards.settle()
        letters += shards.owners[home].state.entities.dead.values()
        discard = SettleDeadLetter("Account/a", letters[0].number, letters[0].at_ms, discard=True)
        answer = shards.ask(done(shards.tell(discard)))
        shards.snapshot(home)
        shards.crash(home)
        shards.advance(1_000)
    assert letters[0].number == letters[1].number
    assert answer.error == "NotFound"
    assert list(shards.owners[home].state.entities.dead.values()) == letters[1:]


def test_a_message_that_killed_its_process_too_often_is_not_tried_again(shards: Shards) -> None:
    account = shards.entity(Account, "a").options(message_id="m")
    account.add(1)
    shards.crashes.counts[shards.crashes.last] = 3
    shards.crash(shards.shard_of("Account/a"))
    failure = shards.ask(account.add(1))
    assert failure.type == "ProcessCrashed"
    assert "add killed the process that ran it 3 times and is not tried again; it is dead letter 1 of Account/a" in failure.message
    assert shards.ask(shards.entity(Account, "a").add(5)) == 5, "the entity goes on"
    assert shards.ask(done(shards.tell(SettleDeadLetter("Account/a", 1, shards.now_ms, discard=False)))) == 6


def test_a_dead_letter_that_kills_its_process_again_is_given_up_too(shards: Shards) -> None:
    """I24: whoever asks for it repeats the request after each crash, and that is not to go on for ever."""
    shards.run(sign_off, "a", 7)
    shards.settle()
    home = shards.shard_of("Account/a")
    [letter] = shards.owners[home].state.entities.dead.values()
    settle = SettleDeadLetter("Account/a", letter.number, letter.at_ms, discard=False)
    token = shards.tell(settle)
    for _ in range(3):
        name = shards.crashes.last
        shards.crashes.counts[name] = shards.crashes.counts.get(name, 0) + 1
        shards.crashes.last = ""
        shards.crash(home)
    assert shards.crashes.last == "", "it is not tried a fourth time"
    assert shards.ask(done(token)).type == "ProcessCrashed"
    assert shards.owners[home].state.entities.dead, "it stays"
    shards.ask(shards.entity(Account, "a").add(10))
    assert shards.ask(done(shards.tell(settle))) == 3, "who asks again has it tried again"


def test_a_reminder_that_killed_its_process_too_often_is_left_out_and_the_next_one_comes(shards: Shards) -> None:
    """I24: nothing is under way again and again, with the entity's other messages behind it."""
    alarm, home = shards.entity(Alarm, "a"), shards.shard_of("Alarm/a")
    shards.ask(alarm.set("often", every=10))
    shards.now_ms += 10_000
    shards.crashes.deadly = " reminded "
    for _ in range(3):
        with pytest.raises(Died):
            shards.crash(home)
    shards.crash(home)
    shards.crashes.deadly = ""
    shards.advance(0)
    assert shards.ask(alarm.rung()) == []
    shards.advance(10_000)
    assert [(name, missed) for name, missed, _ in shards.ask(alarm.rung())] == [("often", 0)]


@pytest.mark.parametrize("written_after", [0, 1, 2, 3])
def test_a_reminder_for_now_kills_its_process_three_times_at_most_whenever_it_comes_on_record(
    shards: Shards, written_after: int
) -> None:
    """I24: before that, what set it comes again after a crash, and then it is due at another time."""
    alarm, home = shards.entity(Alarm, "a"), shards.shard_of("Alarm/a")
    token, killed = alarm.set("now", after=0).result(), 0
    shards.crashes.deadly = " reminded "
    for round in range(8):
        try:
            if round == written_after:
                shards.commit(home)
            shards.now_ms += 100
            shards.crash(home)
        except Died:
            killed += 1
    shards.advance(0)
    assert token in shards.answers
    assert killed == 3
    assert shards.ask(alarm.rung()) == []


def test_a_reminder_for_now_comes_as_soon_as_it_is_on_record(shards: Shards) -> None:
    alarm = shards.entity(Alarm, "a")
    shards.ask(alarm.set("now", after=0))
    shards.advance(0)
    assert [name for name, _, _ in shards.ask(alarm.rung())] == ["now"]


# -- event sourcing ----------------------------------------------------------------------------------------------------------


def test_the_state_follows_from_the_events(shards: Shards) -> None:
    ledger, home = shards.entity(Ledger, "a"), shards.shard_of("Ledger/a")
    assert shards.ask(ledger.pay(5, 6)) == 11
    assert shards.ask(ledger.pay(-100)).type == "ValueError"
    assert shards.ask(ledger.pay(1)) == 12
    records = [decode_record(one) for segment in shards.log[home] for one in segment]
    assert [(one.state, len(one.events)) for one in records if isinstance(one, Handled)] == [(None, 2), (None, 0), (None, 1)]
    shards.crash(home)
    assert shards.ask(ledger.get()) == Sum(12, 3)
    assert "changed the state without an event" in shards.ask(ledger.cheat()).message
    assert "query pry" in shards.ask(ledger.pry()).message
    assert shards.ask(ledger.get()) == Sum(12, 3)
    shards.ask(ledger.destroy())
    shards.crash(home)
    assert shards.ask(ledger.get()) == Sum(0, 0)


def test_few_events_have_to_be_applied_again(shards: Shards) -> None:
    ledger, home = shards.entity(Ledger, "a"), shards.shard_of("Ledger/a")
    for number in range(3 * limits.current().events_per_state + 20):
        shards.ask(ledger.pay(1))
        if number % 77 == 0:
            shards.crash(home)
            shards.snapshot(home)
    shards.crash(home)
    row = shards.owners[home].state.entities.rows["Ledger/a"]
    assert (len(row.events), len(row.events) - row.folded) == (3 * limits.current().events_per_state + 20, 20)
    assert shards.ask(ledger.get()) == Sum(len(row.events), len(row.events))
