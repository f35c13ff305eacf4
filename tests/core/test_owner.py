"""The order of things of a shard's owner: what has to be written before what leaves, and what the dispatcher should know of.

Invariants: I2, I8, I12, I13, I14.
"""

from __future__ import annotations

from collections.abc import Hashable
from itertools import chain
from typing import cast

from rayflow.core import codec
from rayflow.core.context import Context
from rayflow.core.definitions import Workflow, step, workflow
from rayflow.core.entities import Entities
from rayflow.core.ledger import NOT_CONNECTED, Connection, Ledger
from rayflow.core.mail import Mail
from rayflow.core.messages import (
    Accepted,
    Answer,
    Attempt,
    AwaitOutcome,
    Ended,
    ForgetExecution,
    Message,
    Refused,
    StartExecution,
    StepResult,
    Token,
    attempt_of,
)
from rayflow.core.outbox import Outbox, Reply, StartStep
from rayflow.core.owner import Commit, Owner, Parts, Sending
from rayflow.core.records import Failed, Function, Status, decode_record
from rayflow.core.state import DurableState
from rayflow.core.workflows import Workflows
from tests.core.driver import EPOCH_MS, MemoryCode

LOG = list[tuple[bytes, ...]]


@step
def work(value: str) -> str:
    return value


@step(inline=True)
def glance(value: str) -> str:
    return value


@workflow
async def working(ctx: Context, value: str) -> str:
    return await ctx.step(work, value)


@workflow
async def glancing(ctx: Context, value: str) -> str:
    return await ctx.step(glance, value)


@workflow
async def twice(ctx: Context, value: str) -> str:
    return await ctx.step(work, await ctx.step(work, value))


class Shard:
    """An owner on a log in memory. Nothing happens by itself."""

    def __init__(self, log: LOG | None = None, epoch: int = 1) -> None:
        self.log: LOG = [] if log is None else log
        self.code = MemoryCode()
        self.code.workflows = {one.name: one for one in (working, glancing, twice)}
        outbox = Outbox()
        state = DurableState()
        state.extend(chain.from_iterable(self.log))
        mail = Mail.alone(outbox)
        parts = Parts(Workflows(outbox, self.code, mail, epoch), Entities(outbox, self.code, mail, state.entities), mail)
        self.owner = Owner(epoch, parts, outbox, state)
        self.owner.restore(EPOCH_MS)
        self.answers: dict[Hashable, Answer] = {}
        self.inline: list[StartStep] = []

    def tell(self, message: Message) -> int:
        """Hand a message in; its answer comes under the token that is returned, once it may."""
        token = len(self.answers) + 100
        self.owner.receive(Token("client", token, 0), message, EPOCH_MS)
        return token

    def start(self, workflow: Workflow[..., str], value: str = "a", id: str = "x", seed: int = 7) -> int:
        data, fingerprint = codec.encode_with_fingerprint(((value,), {}))
        return self.tell(StartExecution(id, Function(workflow.name), workflow.version, data, fingerprint, seed))

    def finish(self, commit: Commit) -> None:
        """Write, if that is to be done, and let the effects go."""
        if commit.write:
            self.log.append(tuple(commit.batch.encoded))
            self.owner.written(commit)
        for effect in commit.batch.effects:
            mine = self.owner.let_go(effect)
            if isinstance(mine, Reply):
                self.answers[cast("Token", mine.token).number] = mine.answer
            elif mine is not None:
                self.inline.append(mine)

    def commit(self) -> None:
        """Commit all there is."""
        while self.owner.has_work():
            self.finish(self.owner.next_commit())

    def attach(self, ledger: Ledger) -> Connection:
        """Connect, and prove it."""
        connection = self.owner.next_connection()
        lost, _ = ledger.attach(connection, self.owner.expected())
        self.owner.attached(connection, lost, EPOCH_MS)
        self.commit()
        return connection

    def send(self, ledger: Ledger) -> Sending | None:
        """Send what may be sent."""
        sending = self.owner.next_sending()
        if sending is not None:
            ledger.submit(sending.connection, sending.call, [attempt_of(one) for one in sending.starts], sending.stops)
        return sending

    def collect(self, ledger: Ledger) -> None:
        """Fetch what is new."""
        ledger.recorded(self.owner.connection, self.owner.recorded, self.owner.seen)
        self.owner.collected(ledger.news(self.owner.seen), EPOCH_MS)

    def on_record(self, kind: type[Failed]) -> list[Failed]:
        decoded = [decode_record(one) for segment in self.log for one in segment]
        return [one for one in decoded if isinstance(one, kind)]


def done(attempt: Attempt, value: str) -> StepResult:
    return StepResult(attempt.execution, attempt.operation, attempt.attempt, codec.encode(value), run=attempt.run)


def started(sending: Sending | None) -> list[Attempt]:
    return [] if sending is None else [attempt_of(one) for one in sending.starts]


# -- what is written first -----------------------------------------------------------------------------------------------------


def test_nothing_leaves_before_the_write_and_the_next_batch_gathers_meanwhile() -> None:
    shard, ledger = Shard(), Ledger()
    shard.attach(ledger)
    first = shard.start(working, id="first")
    commit = shard.owner.next_commit()
    second = shard.start(working, id="second")
    assert commit.write
    assert (shard.answers, shard.owner.next_sending(), shard.owner.state.live) == ({}, None, {})
    shard.finish(commit)
    assert list(shard.answers) == [first]
    assert list(shard.owner.state.live) == ["first"], "what is in flight is in no snapshot"
    assert [one.execution for one in started(shard.send(ledger))] == ["first"]
    shard.commit()
    assert shard.answers[second] == Accepted("second", created=True)
    assert [one.execution for one in started(shard.send(ledger))] == ["second"]


def test_starts_go_out_only_after_a_write_that_began_after_the_connection_was_there() -> None:
    shard, ledger = Shard(), Ledger()
    shard.start(working)
    in_flight = shard.owner.next_commit()
    connection = shard.owner.next_connection()
    shard.owner.attached(connection, ledger.attach(connection, shard.owner.expected())[0], EPOCH_MS)
    shard.finish(in_flight)
    assert shard.owner.next_sending() is None, "this write says nothing of who owned the log when the connection was made"
    assert shard.owner.has_work()
    proof = shard.owner.next_commit()
    assert (proof.write, proof.batch.encoded, proof.connection) == (True, [], connection)
    assert shard.owner.next_sending() is None
    shard.finish(proof)
    assert not shard.owner.has_work()
    assert [one.operation for one in started(shard.send(ledger))] == ["work#1"]


def test_every_new_connection_is_proved_anew_and_its_calls_are_counted_anew() -> None:
    shard, ledger = Shard(), Ledger()
    first = shard.attach(ledger)
    for number, id in enumerate("ab", 1):
        shard.start(working, id=id)
        shard.commit()
        sending = shard.send(ledger)
        assert sending is not None
        assert (sending.connection, sending.call) == (first, number)
    assert shard.owner.disconnected(first)
    shard.start(working, id="c")
    shard.commit()
    assert shard.owner.next_sending() is None
    second = shard.attach(ledger)
    assert second > first
    assert not shard.owner.disconnected(first), "a call that fails late says nothing of the connection after it"
    sending = shard.send(ledger)
    assert sending is not None
    assert (sending.connection, sending.call, [one.execution for one in sending.starts]) == (second, 1, ["c"])


def test_an_answer_is_told_after_a_write_even_if_nothing_is_to_be_recorded() -> None:
    shard = Shard()
    shard.start(working)
    shard.commit()
    shard.owner.machine.step_finished(done(shard.owner.machine.running_steps()[0], "b"), EPOCH_MS)
    shard.commit()
    for ask, expected in (
        (lambda: shard.tell(AwaitOutcome("nobody")), Refused),
        (lambda: shard.tell(ForgetExecution("nobody")), Accepted),
        (lambda: shard.tell(AwaitOutcome("x")), Ended),
        (lambda: shard.start(working), Accepted),
        (lambda: shard.start(working, "b"), Refused),
    ):
        token = ask()
        commit = shard.owner.next_commit()
        assert (commit.write, commit.batch.encoded) == (True, [])
        assert token not in shard.answers
        shard.finish(commit)
        assert isinstance(shard.answers[token], expected)


def test_what_tells_nobody_anything_and_records_nothing_waits_for_nothing() -> None:
    shard, ledger = Shard(), Ledger()
    shard.attach(ledger)
    shard.owner.collected([], EPOCH_MS)
    commit = shard.owner.next_commit()
    assert (len(commit.batch.effects), commit.write) == (1, False)


# -- who runs what -------------------------------------------------------------------------------------------------------------


def test_inline_steps_are_for_the_driver_and_their_cancellation_is_for_nobody() -> None:
    shard, ledger = Shard(), Ledger()
    shard.attach(ledger)
    shard.start(glancing)
    shard.commit()
    assert [one.operation for one in shard.inline] == ["glance#1"]
    shard.tell(ForgetExecution("x"))
    shard.commit()
    assert (shard.send(ledger), shard.owner.expected()) == (None, ())


def test_after_a_take_over_inline_steps_are_lost_and_the_dispatcher_is_asked_for_the_others() -> None:
    shard, ledger = Shard(), Ledger()
    shard.attach(ledger)
    shard.start(working, id="outside")
    shard.start(glancing, id="inside")
    shard.commit()
    shard.send(ledger)
    successor = Shard(shard.log, epoch=2)
    assert [one.execution for one in successor.owner.expected()] == ["outside"]
    successor.commit()
    assert [(one.operation, one.attempt) for one in successor.inline] == [("glance#1", 2)]
    successor.attach(ledger)
    assert successor.send(ledger) is None, "it runs on"
    assert [(one.execution, one.cause) for one in successor.on_record(Failed)] == [("inside", "lost")]


def test_lost_is_exactly_what_the_dispatcher_was_told_and_does_not_know() -> None:
    shard, ledger = Shard(), Ledger()
    first = shard.attach(ledger)
    shard.start(working, id="told")
    shard.commit()
    shard.send(ledger)
    shard.owner.disconnected(first)
    shard.start(working, id="not told yet")
    shard.commit()
    assert [one.execution for one in shard.owner.expected()] == ["told"]
    shard.attach(Ledger())
    assert [(one.execution, one.cause) for one in shard.on_record(Failed)] == [("told", "lost")]
    sending = shard.owner.next_sending()
    assert [(one.execution, one.attempt) for one in started(sending)] == [("not told yet", 1), ("told", 2)]


def test_what_was_sent_is_expected_even_if_nobody_knows_whether_it_arrived() -> None:
    shard, ledger = Shard(), Ledger()
    first = shard.attach(ledger)
    shard.start(working)
    shard.commit()
    sending = shard.owner.next_sending()
    assert sending is not None
    shard.owner.disconnected(first)
    assert list(shard.owner.expected()) == started(sending)
    shard.attach(ledger)
    assert [(one.operation, one.attempt) for one in started(shard.send(ledger))] == [("work#1", 2)]


def test_what_is_stopped_is_not_expected_any_more() -> None:
    shard, ledger = Shard(), Ledger()
    shard.attach(ledger)
    shard.start(working)
    shard.commit()
    (attempt,) = started(shard.send(ledger))
    shard.tell(ForgetExecution("x"))
    assert shard.owner.expected() == (attempt,), "not before that is durable"
    shard.commit()
    sending = shard.send(ledger)
    assert sending is not None
    assert (sending.starts, sending.stops) == ([], [attempt])
    assert shard.owner.expected() == ()


# -- results -------------------------------------------------------------------------------------------------------------------


def test_a_result_is_expected_until_it_is_on_record_and_counts_as_recorded_from_then_on() -> None:
    shard, ledger = Shard(), Ledger()
    shard.attach(ledger)
    shard.start(twice)
    shard.commit()
    (attempt,) = started(shard.send(ledger))
    ledger.finish(done(attempt, "b"))
    shard.collect(ledger)
    commit = shard.owner.next_commit()
    assert (shard.owner.seen, shard.owner.recorded, shard.owner.expected()) == (1, 0, (attempt,))
    shard.owner.disconnected(shard.owner.connection)
    connection = shard.owner.next_connection()
    assert ledger.attach(connection, shard.owner.expected()) == ([], [])
    assert ledger.news(0) == [(1, done(attempt, "b"))], "were the write lost, this is all there is"
    shard.owner.attached(connection, [], EPOCH_MS)
    shard.finish(commit)
    assert shard.owner.expected() == ()
    assert shard.owner.recorded == 0, "the number is one of another connection"
    shard.collect(ledger)
    shard.commit()
    assert (shard.owner.seen, shard.owner.recorded) == (1, 1)
    shard.collect(ledger)
    assert ledger.news(0) == []
    assert [one.operation for one in started(shard.send(ledger))] == ["work#2"], "it was told twice, and counted once"


def test_a_connection_that_breaks_between_result_and_record_leaves_no_number_behind() -> None:
    shard, ledger = Shard(), Ledger()
    first = shard.attach(ledger)
    shard.start(twice)
    shard.commit()
    ledger.finish(done(started(shard.send(ledger))[0], "b"))
    news = ledger.news(0)
    shard.owner.disconnected(first)
    shard.owner.collected(news, EPOCH_MS)
    assert shard.owner.connection == NOT_CONNECTED
    shard.commit()
    other = Ledger()
    shard.attach(other)
    assert (shard.owner.seen, shard.owner.recorded) == (0, 0)
    ledger = other
    (second,) = started(shard.send(ledger))
    assert second.operation == "work#2"
    ledger.finish(done(second, "c"))
    shard.collect(ledger)
    shard.commit()
    assert (shard.answers[shard_outcome(shard)], shard.owner.recorded) == (ended("c"), 1)


def test_a_late_result_of_a_run_that_was_forgotten_changes_nothing() -> None:
    shard, ledger = Shard(), Ledger()
    shard.attach(ledger)
    shard.start(working, "old")
    shard.commit()
    (old,) = started(shard.send(ledger))
    shard.tell(ForgetExecution("x"))
    shard.start(working, "new", seed=8)
    shard.commit()
    (new,) = started(shard.owner.next_sending())
    size = len(shard.log)
    assert (old[:3], shard.owner.expected()) == (new[:3], (new,))
    shard.owner.collected([(1, done(old, "old"))], EPOCH_MS)  # it ended before the dispatcher was told to stop it
    shard.commit()
    assert (len(shard.log), shard.owner.expected()) == (size, (new,))
    shard.owner.collected([(2, done(new, "new"))], EPOCH_MS)
    shard.commit()
    assert shard.answers[shard_outcome(shard)] == ended("new")


def shard_outcome(shard: Shard) -> int:
    """The token under which the outcome of ``x`` was told."""
    token = shard.tell(AwaitOutcome("x"))
    shard.commit()
    return token


def ended(value: str) -> Ended:
    return Ended("x", Status.COMPLETED, codec.encode(value), None)
