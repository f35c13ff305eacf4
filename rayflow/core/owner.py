"""The owner of a shard: in what order things happen, without doing any of them.

Records are written, then the effects of the same batch go out. One write is in flight; the next batch gathers meanwhile. Whoever
drives this (the shard of the runtime, the owner of the simulator) does the input and output and nothing else. Four rules beyond
the gate itself:

- Starts go out over a connection only after a write that began after that connection was there. So whoever sends was the owner
  while it was attached, and a stalled owner cannot start through a new dispatcher what its successor has completed.
- Answers go out after a write that began after they were known, too, even if they say nothing new: a stalled owner does not know
  what its successor has started, ended and forgotten.
- The dispatcher is asked for the attempts that it was told, those not told yet excepted: what is lost is exactly what it never got.
- A result counts as expected until it is on record, so that a new connection does not drop it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from rayflow.core import limits
from rayflow.core.entities import Entities
from rayflow.core.ledger import NOT_CONNECTED, Connection
from rayflow.core.mail import Mail, drop_up_to
from rayflow.core.messages import (
    Attempt,
    CallEntity,
    Confirmed,
    Deliver,
    EntityMessage,
    Letter,
    Lock,
    Message,
    Returned,
    StepResult,
    Token,
    Unlock,
    attempt_of,
)
from rayflow.core.outbox import Batch, CancelStep, Durable, Effect, Outbox, Post, Reply, StartStep
from rayflow.core.records import Blob, Handled, Settled, Stored
from rayflow.core.state import DurableState
from rayflow.core.workflows import Workflows

_NONE: list[Blob] = []


@dataclass(frozen=True, slots=True)
class Commit:
    """A batch on its way. ``write`` False: it has nothing to wait for. ``connection``: the one that the write proves."""

    batch: Batch
    write: bool
    connection: Connection


@dataclass(frozen=True, slots=True)
class Sending:
    """A call to the dispatcher, the ``call``-th of its connection."""

    connection: Connection
    call: int
    starts: list[StartStep]
    stops: list[Attempt]


@dataclass(frozen=True, slots=True)
class Parts:
    """The machines of one shard."""

    workflows: Workflows
    entities: Entities
    mail: Mail
    at_hand: Callable[[Blob], bool] = lambda blob: True
    """Whether a large value can be read without waiting for the store."""


class Owner:
    """One take-over of one shard. All of ``parts`` must feed ``outbox``; ``state`` is what the log held at the take-over."""

    def __init__(self, epoch: int, parts: Parts, outbox: Outbox, state: DurableState) -> None:
        self.epoch = epoch
        self.machine = parts.workflows
        self.entities = parts.entities
        self.mail = parts.mail
        self.outbox = outbox
        self.state = state
        self.connection = NOT_CONNECTED
        self.recorded = 0
        self.seen = 0
        self._proven = NOT_CONNECTED
        self._connections = 0
        self._calls = 0
        self._expected: dict[Attempt, None] = {}
        self._queue: list[StartStep | CancelStep] = []
        self._mark = 0
        self._marks: dict[int, tuple[Connection, int, list[Attempt]]] = {}
        self._at_hand = parts.at_hand
        self.missing: list[Blob] = []
        """Large values that handling a letter of this shard to itself is going to read. Nothing else may happen, and nothing is
        committed, before ``read`` says that they are at hand: the letter belongs into the same batch as what caused it."""
        self._letters = state.mail.frozen().outgoing
        """Letters to other shards that are on record and not confirmed, by shard and number."""

    def restore(self, now_ms: int) -> None:
        """``restoring`` in one go."""
        for _ in self.restoring(now_ms):
            pass

    def restoring(self, now_ms: int) -> Iterator[Sequence[Blob]]:
        """Bring every execution back, part by part, each time after telling which large values that is going to read, those at
        hand included: what was at hand for one part need not be for the next.

        Inline steps that ran are lost with the process; the dispatcher knows of the others.
        """
        yield from self.machine.restoring(self.state.live, self.state.ended, now_ms)
        self.entities.restore()
        inline = self.machine.inline_steps()
        self._expected.update((one, None) for one in self.machine.running_steps() if one not in inline)
        for attempt in sorted(inline):
            self.machine.step_lost(attempt, now_ms)
        self.machine.go_on(now_ms)  # what that starts is not lost: it has not left yet
        self._hand_on(now_ms)

    # -- what is going to be read --------------------------------------------------------------------------------------------

    def wanted(self, message: Message) -> list[Blob]:
        """The large values that handling a client's message is going to read, those at hand excepted."""
        if isinstance(message, CallEntity) and isinstance(message.arguments, bytes) and message.kind.code is None:
            return _NONE  # most are so
        return self._not_at_hand(self._reads(message))

    def wanted_by_letters(self, shard: int, letters: list[tuple[int, bytes]]) -> list[Blob]:
        """The same for letters of another shard."""
        return self._not_at_hand([one for letter in self.mail.new(shard, letters) for one in self._reads(letter)])

    def wanted_by_results(self, results: list[StepResult]) -> list[Blob]:
        """The same for results of steps."""
        return self._not_at_hand(map(self.machine.reads_of_result, results))

    def wanted_when_due(self, now_ms: int) -> list[Blob]:
        """The same for ``advance``."""
        return self._not_at_hand([*self.machine.reads_when_due(now_ms), *self.entities.reads_when_due(now_ms)])

    def wanted_to_view(self, execution: str) -> list[Blob]:
        """The same for a look at an execution."""
        return self._not_at_hand(self.machine.reads_to_view(execution))

    def read(self, now_ms: int) -> None:
        """What was ``missing`` is at hand."""
        self.missing = []
        self._hand_on(now_ms)

    def _reads(self, message: Message | Letter) -> Sequence[Stored | None]:
        if isinstance(message, EntityMessage | Deliver | Lock | Unlock):
            return self.entities.reads(message)
        return self.machine.reads(message)

    def _not_at_hand(self, stored: Iterable[Stored | None]) -> list[Blob]:
        unwritten = self.outbox.unwritten
        return [one for one in stored if isinstance(one, Blob) and one.hash not in unwritten and not self._at_hand(one)]

    # -- what happens --------------------------------------------------------------------------------------------------------

    def receive(self, token: Token, message: Message, now_ms: int) -> None:
        """Handle a client's message; its answer passes the gate."""
        if isinstance(message, EntityMessage):
            self.entities.receive(token, message, now_ms)
        else:
            self.machine.receive(token, message, now_ms)
        self._hand_on(now_ms)

    def step_finished(self, results: list[StepResult], now_ms: int) -> None:
        """Inline steps have ended."""
        for result in results:
            self.machine.step_finished(result, now_ms)
        self._hand_on(now_ms)

    def next_due_ms(self) -> int | None:
        """When ``advance`` next has something to do."""
        due = (self.machine.next_due_ms(), self.entities.next_due_ms())
        return min((one for one in due if one is not None), default=None)

    def advance(self, now_ms: int) -> None:
        """Fire what is due."""
        self.machine.advance(now_ms)
        self.entities.advance(now_ms)
        self._hand_on(now_ms)

    def letters_arrived(self, token: Hashable, shard: int, letters: list[tuple[int, bytes]], now_ms: int) -> None:
        """Letters from another shard; it is told how far they are on record."""
        for letter in self.mail.arrived(shard, letters):
            self._hand_over(letter, now_ms)
            self._hand_on(now_ms)
        self.outbox.effect(Reply(token, Confirmed(self.mail.received(shard))))

    def _hand_on(self, now_ms: int) -> None:
        """Deliver what instances of this shard sent each other: it belongs into the same batch."""
        while not self.missing and (letter := self.mail.first_local()) is not None:
            self.missing = self._not_at_hand(self._reads(letter))
            if not self.missing:
                self.mail.next_local()
                self._hand_over(letter, now_ms)

    def _hand_over(self, letter: Letter, now_ms: int) -> None:
        if isinstance(letter, Returned):
            self.machine.returned(letter, now_ms)
        else:
            self.entities.deliver(letter, now_ms)

    # -- commits -------------------------------------------------------------------------------------------------------------

    def has_work(self) -> bool:
        """Whether ``next_commit`` has something."""
        return not self.missing and (bool(self.outbox) or self._unproven())

    def next_commit(self) -> Commit:
        """What gathered so far."""
        batch = self.outbox.close()
        return Commit(batch, self.needs_write(batch), self.connection)

    def written(self, commit: Commit) -> None:
        """The commit's records are durable."""
        self._proven = commit.connection
        self.apply(commit.batch)

    def let_go(self, effect: Effect) -> Reply | StartStep | None:
        """Take an effect of a commit that is through the gate; returns what the driver is to carry out here and now.

        That is a Reply, or the start of an inline step; what is for the dispatcher waits for ``next_sending``.
        """
        if isinstance(effect, Reply) or (isinstance(effect, StartStep) and effect.request.settings.inline):
            return effect
        if isinstance(effect, Durable):
            self._on_record(effect.mark)
        elif isinstance(effect, Post):
            self._letters[effect.shard][effect.number] = effect.letter
        elif isinstance(effect, CancelStep) and effect.inline:
            pass  # it runs to its end, and its result is ignored
        else:
            self._queue.append(effect)
        return None

    def apply(self, batch: Batch) -> None:
        """What is durable becomes part of the state that snapshots are taken from."""
        self.outbox.written(batch)
        for record, encoded in zip(batch.records, batch.encoded, strict=True):
            self.state.apply(record, encoded)
            if isinstance(record, Handled | Settled):
                self.entities.durable(record)

    # -- other shards --------------------------------------------------------------------------------------------------------

    def addressees(self) -> list[int]:
        """The shards that there are letters for."""
        return [shard for shard, letters in self._letters.items() if letters]

    @property
    def letters_count(self) -> int:
        """How many letters other shards have not confirmed."""
        return sum(len(letters) for letters in self._letters.values())

    def letters_for(self, shard: int) -> list[tuple[int, bytes]]:
        """The next letters for another shard, to be sent again until they are confirmed."""
        return list(itertools.islice(self._letters[shard].items(), limits.current().letters_at_once))

    def letters_confirmed(self, shard: int, number: int) -> None:
        """The other shard has everything up to ``number`` on record."""
        drop_up_to(self._letters[shard], number)
        self.mail.confirmed(shard, number)

    # -- dispatcher ----------------------------------------------------------------------------------------------------------

    def next_connection(self) -> Connection:
        """A name for the next try to attach."""
        self._connections += 1
        return Connection(self.epoch, self._connections)

    @property
    def step_count(self) -> int:
        """How many attempts the dispatcher should know of: those that run, and those whose result is not on record yet."""
        return len(self._expected)

    def expected(self) -> tuple[Attempt, ...]:
        """What the dispatcher should know of; to be asked again for every try to attach."""
        return tuple(self._expected)

    def attached(self, connection: Connection, lost: list[Attempt], now_ms: int) -> None:
        """The dispatcher has accepted the connection and knows nothing of ``lost``."""
        for attempt in lost:
            self._expected.pop(attempt, None)
            self.machine.step_lost(attempt, now_ms)
        self._hand_on(now_ms)
        self.connection, self._calls = connection, 0
        self.recorded = self.seen = 0

    def disconnected(self, connection: Connection) -> bool:
        """A call over ``connection`` has failed: nothing is sent until ``attached``. False if another took its place already."""
        if connection != self.connection:
            return False
        self.connection = NOT_CONNECTED
        return True

    def collected(self, results: list[tuple[int, StepResult]], now_ms: int) -> None:
        """Results came over the connection, with their numbers."""
        for number, result in results:
            self.machine.step_finished(result, now_ms)
            self.seen = max(self.seen, number)
        taken = [attempt_of(result) for _, result in results]
        self.taken(taken)
        self._hand_on(now_ms)
        self._mark += 1
        self._marks[self._mark] = (self.connection, self.seen, taken)
        self.outbox.effect(Durable(self._mark))

    def next_sending(self) -> Sending | None:
        """What is to be sent to the dispatcher now, if anything is and may be."""
        if not self._queue or not self.may_send():
            return None
        effects, self._queue = self._queue, []
        starts = [one for one in effects if isinstance(one, StartStep)]
        stops = [attempt_of(one) for one in effects if isinstance(one, CancelStep)]
        self._expected.update((attempt_of(one), None) for one in starts)
        for attempt in stops:
            self._expected.pop(attempt, None)
        self._calls += 1
        return Sending(self.connection, self._calls, starts, stops)

    def _on_record(self, mark: int) -> None:
        connection, seen, taken = self._marks.pop(mark)
        for attempt in taken:
            self._expected.pop(attempt, None)
        if self.counts(connection):
            self.recorded = max(self.recorded, seen)

    # -- rules ---------------------------------------------------------------------------------------------------------------

    def needs_write(self, batch: Batch) -> bool:
        """Whether effects have to wait for a segment, be it one without records that only proves who owns the log."""
        return bool(batch.records) or self._unproven() or self.answers(batch)

    def answers(self, batch: Batch) -> bool:
        """Whether somebody is told what this owner takes for the truth."""
        return any(isinstance(one, Reply) for one in batch.effects)

    def _unproven(self) -> bool:
        return self.connection != NOT_CONNECTED and self.must_prove(self.connection, self._proven)

    def must_prove(self, connection: Connection, proven: Connection) -> bool:
        """Whether a write has to show first that this owner still is one, after it was connected."""
        return connection != proven

    def may_send(self) -> bool:
        """Whether starts can go out now, rather than wait for a connection."""
        return self.connection != NOT_CONNECTED and not self._unproven()

    def counts(self, connection: Connection) -> bool:
        """Whether numbers of results of that connection mean anything now."""
        return connection == self.connection

    def taken(self, attempts: list[Attempt]) -> None:
        """Results were handed to the machine, and are not on record yet: the dispatcher must go on holding them."""
