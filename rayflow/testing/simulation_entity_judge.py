"""What must hold of entities, letters and reminders: the part of ``simulation_judge`` that looks at them.

Every message has a tag that no other has, see ``simulation_workload``, and counters keep book. So each segment that is written says
what was handled in it, and what must be in it beside that: answers, letters, marks, timers. The books on record are the truth.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any

import msgspec

from rayflow.core.entity_state import DELAYED, EntityRow
from rayflow.core.entity_type import type_of
from rayflow.core.messages import (
    Answer,
    Answered,
    CallEntity,
    Caller,
    Deliver,
    FromClient,
    Letter,
    Lock,
    Refused,
    Returned,
)
from rayflow.core.records import (
    Completed,
    DeadLetter,
    Delivered,
    EntityRecord,
    Failure,
    Handled,
    MailRecord,
    Posted,
    Received,
    Record,
    Scheduled,
    Started,
    Stored,
    Timer,
    Turn,
)
from rayflow.core.state import DurableState
from rayflow.testing.simulation_workload import ENTITIES, Book, Plan, sender_of
from rayflow.testing.simulation_world import EPOCH_MS

if TYPE_CHECKING:
    from rayflow.testing.simulation_courier import Asked
    from rayflow.testing.simulation_judge import Judge
    from rayflow.testing.simulator import SimulatedCode

TURN_LOST = "an acknowledged turn is lost"
HANDLED_TWICE = "a message is handled twice"
LETTER_LOST = "a letter is lost"
DISORDER = "messages of one sender are handled out of order"
WRONG_ANSWER = "an answer of an entity contradicts the log"
HALF = "a turn counts in part"
LATE = "what is due later does not come"
EARLY = "what is due later comes too early, or twice"
TWO_ANSWERS = "one message id gets two answers"
WRONG_TOTAL = "a state is not the sum of its turns"

ENTITY_PROPERTIES = (
    TURN_LOST,
    HANDLED_TWICE,
    LETTER_LOST,
    DISORDER,
    WRONG_ANSWER,
    HALF,
    LATE,
    EARLY,
    TWO_ANSWERS,
    WRONG_TOTAL,
)

GRACE_MS = 1500
"""How late a reminder may be where nothing goes wrong; clocks differ by up to a second."""

_decode_letter = msgspec.msgpack.Decoder(Letter).decode
_decode_call = msgspec.msgpack.Decoder(CallEntity).decode
_decode_waiting = msgspec.msgpack.Decoder(Deliver | Lock | FromClient).decode


@dataclass(slots=True)
class _Run:
    """What a run of a workflow has sent so far."""

    sender: str
    seed: int
    count: int = 0


@dataclass(slots=True)
class _Segment:
    """What one segment says, by the keys of messages."""

    shard: int
    left: dict[str, None] = field(default_factory=dict[str, None])
    """Sent by turns in it."""
    posted: dict[str, None] = field(default_factory=dict[str, None])
    handled: dict[str, None] = field(default_factory=dict[str, None])
    raised: dict[str, None] = field(default_factory=dict[str, None])
    kept: dict[str, None] = field(default_factory=dict[str, None])
    """Put off until later, or until a lock is free."""
    removed: dict[str, None] = field(default_factory=dict[str, None])
    """Taken from what was put off until later."""

    def accounts_for(self, key: str) -> bool:
        """Whether something has become of a message here."""
        return key in self.handled or key in self.raised or key in self.kept


def key_of(tag: str) -> str:
    """What a message is known by, whether others may overtake it or not."""
    return tag.replace("~", "#")


class EntityJudge:
    """Told by the judge, whose ``violated`` it calls."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._world = judge.world
        self.code: SimulatedCode
        self.expected: dict[str, None] = {}
        """What must still happen: messages that are to be handled, reminders that are to come once."""
        self.record_bytes: set[bytes] = set()
        """All records that were written."""
        self._states: dict[int, DurableState] = {}
        self._books: dict[str, Book] = {}
        self._history: defaultdict[str, list[tuple[float, tuple[int, int]]]] = defaultdict(list)
        """Number of entries and total of each entity, since when."""
        self._runs: dict[str, _Run] = {}
        """The latest of each execution."""
        self._calls: dict[Caller, str] = {}
        """What workflows wait for, with the key of the message."""
        self._asked: dict[tuple[str, int], Asked] = {}
        self._by_id: dict[tuple[str, str], Asked] = {}
        self._by_key: dict[str, Asked] = {}
        self._turns: defaultdict[tuple[str, str | int], list[Turn]] = defaultdict(list)
        """By entity and message id, or sender and number."""
        self._answers: dict[tuple[str, str], Answered] = {}
        self._acknowledged: dict[str, None] = {}
        self._departed: dict[str, None] = {}
        self._handled: dict[str, str] = {}
        self._raised: dict[str, None] = {}
        self._gone: dict[str, None] = {}
        """Was to be handled later by an entity that has been ended."""
        self._last: dict[tuple[str, str], int] = {}
        self._letters: defaultdict[tuple[int, int], dict[int, tuple[str, Letter]]] = defaultdict(dict)
        """By shards from and to, and number, with the key of the message."""
        self._posted: dict[str, tuple[int, int, int]] = {}
        self._received: dict[tuple[int, int], int] = {}

    def _violated(self, what: str, detail: str) -> None:
        self._judge.violated(what, detail)

    # -- the log -------------------------------------------------------------------------------------------------------------

    def written(self, shard: int, records: Iterable[Record], encoded: Iterable[bytes]) -> None:
        """A segment has come into being."""
        segment = _Segment(shard)
        state = self._states.setdefault(shard, DurableState())
        for record, data in zip(records, encoded, strict=True):
            if isinstance(record, Started):
                sender = sender_of(record.execution, Random(record.seed))
                self._runs[record.execution] = _Run(sender, record.seed)
            elif isinstance(record, Scheduled):
                self._scheduled(record, segment)
            elif isinstance(record, Completed):
                self._completed(record, segment)
            elif isinstance(record, EntityRecord | MailRecord):
                self.record_bytes.add(data)
                if isinstance(record, Handled):
                    self._turns_of(record, state, segment)
                else:
                    state.apply(record, data)
                    if isinstance(record, DeadLetter):
                        self._dead(record, segment)
                    elif isinstance(record, Posted):
                        self._post(record, segment)
        for record in records:
            if isinstance(record, Received):
                self._receive(record, segment)
            elif isinstance(record, Delivered) and self._received.get((shard, record.shard), 0) < record.number:
                self._violated(LETTER_LOST, f"{record} from shard {shard} is not on record there")
        self._complete(segment)

    def _scheduled(self, record: Scheduled, segment: _Segment) -> None:
        if record.kind not in ("call", "signal") or record.name.endswith(".totals"):
            return
        run = self._runs[record.execution]
        run.count += 1
        key = self._calls[Caller(record.execution, record.operation, run.seed)] = f"{run.sender}#{run.count}"
        self._leaves(key, segment)
        if record.name.endswith(".stumble"):
            self.expected.pop(key, None)  # a call, which raises: that nothing of it counts is all there is to see

    def _completed(self, record: Completed, segment: _Segment) -> None:
        run = self._runs.get(record.execution)
        if run is not None and record.failure is not None:
            segment.raised[self._calls.get(Caller(record.execution, record.operation, run.seed), "")] = None

    def _leaves(self, key: str, segment: _Segment) -> None:
        """A turn in this segment has sent this message."""
        self._departed[key] = segment.left[key] = None
        if key not in self._handled and key not in self._raised:
            self.expected[key] = None

    def _turns_of(self, record: Handled, state: DurableState, segment: _Segment) -> None:
        address = record.entity
        row = state.entities.rows.get(address)
        timers: dict[str, Timer] = {} if row is None else row.timers
        state.entities.apply(record)
        row = state.entities.rows[address]
        before = self._books.get(address, Book())
        book = self._book(address, row) if record.state is not None or record.events or record.destroyed else before
        base = Book() if record.destroyed else before
        if book.entries[: len(base.entries)] != base.entries or book.sent < base.sent:
            self._violated(TURN_LOST, f"{address} goes back to {book}")
            base = Book(entries=book.entries[:0])
        fresh = {key_of(tag): index for index, (tag, _) in enumerate(book.entries) if index >= len(base.entries)}
        if len(fresh) < len(book.entries) - len(base.entries):
            self._violated(HANDLED_TWICE, f"{address}: {book.entries[len(base.entries) :]}")
        asked = [self._asked_of(address, turn) for turn in record.turns]
        ended = self._look_at_what_ended(address, record.turns, asked, segment)
        for tag, _ in book.entries[len(base.entries) :]:
            self._counts(tag, address, segment)
        for number in range(base.sent + 1, book.sent + 1):
            self._leaves(f"{address}#{number}", segment)
        if book.total != sum(by for _, by in book.entries):
            self._violated(WRONG_TOTAL, f"{address}: {book}")
        self._look_at_timers(record, timers, segment)
        self._look_at_turns(record, asked, ended, fresh, book, segment)
        if record.destroyed:
            self._end(address, timers.values())
        self._look_at_plans(address, before, book, row)
        for waiting in (*record.deferred, *(record.queue or ())):
            one = _decode_waiting(waiting)
            if isinstance(one, Deliver | FromClient):
                segment.kept[self._key(one.message)] = None
        self._books[address] = book
        history = self._history[address]
        if record.destroyed:
            history.append((self._world.now_ms, (0, 0)))
        total = base.total
        for index in fresh.values():
            total += book.entries[index][1]
            history.append((self._world.now_ms, (index + 1, total)))

    def _book(self, address: str, row: EntityRow) -> Book:
        kind = type_of(ENTITIES[address.partition("/")[0]])
        if row.events:
            return kind.replayed(address, row.state, row.state_version, row.events[row.folded :]).state
        return Book() if row.state is None else kind.read_state(address, row.state, row.state_version)

    def _counts(self, tag: str, address: str, segment: _Segment) -> None:
        """A message has left its trace in a state."""
        key = key_of(tag)
        if key in self._handled:
            self._violated(HANDLED_TWICE, f"{tag} by {address}")
        if key in self._raised or key in self._gone:
            self._violated(HALF, f"{tag} by {address}, although it raised or is gone")
        self._handled[key] = address
        segment.handled[key] = None
        self.expected.pop(key, None)
        sender, mark, number = tag.rpartition("#")
        if mark:
            if int(number) <= self._last.get((sender, address), 0):
                self._violated(DISORDER, f"{tag} comes to {address} after {self._last[sender, address]}")
            self._last[sender, address] = int(number)

    # -- answers and timers --------------------------------------------------------------------------------------------------

    def _look_at_what_ended(self, address: str, turns: list[Turn], asked: list[Asked | None], segment: _Segment) -> int:
        """Messages that were handled in this record before the entity was ended have left no trace; returns how many."""
        ends = [index for index, one in enumerate(asked) if one is not None and one.message.operation == "destroy"]
        ended = ends[-1] if ends else 0
        for turn, one in zip(turns[:ended], asked[:ended], strict=True):
            if one is None or not one.tag or turn.failure is not None:
                continue
            if not one.message.at_ms:
                self._counts(one.tag, address, segment)
            elif key_of(one.tag) not in self._handled:
                self._gone[key_of(one.tag)] = None
                self.expected.pop(key_of(one.tag), None)
        return ended

    def _look_at_turns(
        self, record: Handled, asked: list[Asked | None], ended: int, fresh: dict[str, int], book: Book, segment: _Segment
    ) -> None:
        """Each answer goes with the state, and the state of each message of a client with its answer."""
        address = record.entity
        answered: dict[str, None] = {}
        for index, (turn, one) in enumerate(zip(record.turns, asked, strict=True)):
            name = (address, turn.message_id) if turn.message_id else (turn.sender, turn.number)
            earlier = self._turns[name]
            if one is None:
                self._violated(WRONG_ANSWER, f"{address} answers what nobody asked: {turn}")
                continue
            if earlier and not one.message.at_ms:
                self._violated(HANDLED_TWICE, f"{name} by {address}")
            earlier.append(turn)
            key = key_of(one.tag)
            if not key:
                continue
            answered[key] = None
            if turn.failure is not None:
                segment.raised[key] = self._raised[key] = None
                if not one.fails:
                    self._violated(self._judge.error, f"{address}: {one.message.operation} {one.tag}: {turn.failure}")
            elif key in fresh:
                self._look_at_result(address, turn.result, fresh[key], book)
            elif index >= ended and key not in segment.kept:
                self._violated(HALF, f"{one.tag} is answered by {address}, and did nothing")
        for key in fresh:
            if key in self._by_key and key not in answered and key not in segment.removed:
                self._violated(HALF, f"{key} counts for {address}, and its answer is not on record")

    def _look_at_result(self, address: str, result: Stored | None, index: int, book: Book) -> None:
        if result is None or self.code.decode(result) not in (
            (index + 1, sum(by for _, by in book.entries[: index + 1])),
            None,  # of what is to be handled later, which is answered before
        ):
            self._violated(WRONG_ANSWER, f"entry {index + 1} of {address} is answered {result}")

    def _asked_of(self, address: str, turn: Turn) -> Asked | None:
        if turn.message_id:
            return self._by_id.get((address, turn.message_id))
        return self._asked.get((turn.sender, turn.number))

    def _look_at_timers(self, record: Handled, timers: dict[str, Timer], segment: _Segment) -> None:
        """What is put off is kept, and what is kept no longer has been handled."""
        for timer in record.timers:
            if timer.message:
                key = self._key(_decode_call(timer.message))
                segment.kept[key] = None
                if timer.name in timers:
                    self._violated(LETTER_LOST, f"{timers[timer.name]} gives way to {key} at {record.entity}")
            elif timer.name.startswith(DELAYED):
                known = timers.get(timer.name)
                if known is not None:
                    segment.removed[self._key(_decode_call(known.message))] = None
                else:  # put off and due within one batch: this one may be any
                    segment.removed.update((key, None) for key in segment.handled)

    def _end(self, address: str, timers: Iterable[Timer]) -> None:
        for timer in timers:
            if timer.message:
                key = self._key(_decode_call(timer.message))
                if key not in self._handled:
                    self._gone[key] = None
                    self.expected.pop(key, None)

    def _look_at_plans(self, address: str, before: Book, book: Book, row: EntityRow) -> None:
        """Each reminder comes once for each time that it is due, and is on record for the next."""
        for name in before.plans:
            self.expected.pop(f"{address} {name}", None)
        for name, plan in book.plans.items():
            due_ms = self._next_due_ms(f"{address} {name}", plan)
            timer = row.timers.get(name)
            if not name.startswith("broken"):
                if (0 if timer is None else timer.due_ms) != due_ms:
                    self._violated(HALF, f"{address} {name}: {plan}, but {timer}")
                if due_ms and not plan.every_ms:
                    self.expected[f"{address} {name}"] = None
        for name, timer in row.timers.items():
            if not timer.message and name not in book.plans:
                self._violated(HALF, f"{address}: {timer}, which nobody has set")

    def _next_due_ms(self, what: str, plan: Plan) -> int:
        covered = 0
        for at_ms, missed in plan.rings:
            covered += 1 + missed
            if plan.due_ms + (covered - 1) * plan.every_ms > at_ms or (not plan.every_ms and covered > 1):
                self._violated(EARLY, f"{what}: {plan}")
            elif plan.every_ms and plan.due_ms + covered * plan.every_ms <= at_ms:
                self._violated(LATE, f"{what} does not say how often it was missed: {plan}")
        return plan.due_ms + covered * plan.every_ms if plan.every_ms or not covered else 0

    # -- letters -------------------------------------------------------------------------------------------------------------

    def _key(self, message: CallEntity) -> str:
        args: tuple[Any, ...] = self.code.decode(message.arguments)[0]
        return key_of(args[0]) if args else ""

    def _dead(self, letter: DeadLetter, segment: _Segment) -> None:
        key = self._key(_decode_call(letter.message))
        if key in self._handled or key in self._raised:
            self._violated(HANDLED_TWICE, f"{key} is a dead letter, too")
        self._raised[key] = segment.raised[key] = None
        self.expected.pop(key, None)
        if letter.operation == "later":
            self._violated(EARLY, f"{letter.entity}: {letter.reason}")
        elif letter.operation != "stumble":
            self._violated(self._judge.error, f"{letter.entity}: {key}: {letter.reason}")

    def _post(self, posted: Posted, segment: _Segment) -> None:
        letter = _decode_letter(posted.letter)
        key = ""
        if isinstance(letter, Deliver):
            key = self._key(letter.message)
            segment.posted[key] = None
            if key and key in self._posted:
                self._violated(HANDLED_TWICE, f"{key} is posted twice")
            self._posted[key] = (segment.shard, posted.shard, posted.number)
        elif isinstance(letter, Returned) and letter.failure is not None:
            segment.raised[self._calls.get(letter.caller, "")] = None
        letters = self._letters[segment.shard, posted.shard]
        if posted.number != len(letters) + 1:
            self._violated(LETTER_LOST, f"letter {posted.number} to shard {posted.shard} is on record after {len(letters)}")
        letters[posted.number] = (key, letter)

    def _receive(self, received: Received, segment: _Segment) -> None:
        """What a mark says was handled has been, in this very segment."""
        way = (received.shard, segment.shard)
        letters = self._letters[way]
        for number in range(self._received.get(way, 0) + 1, received.number + 1):
            if number not in letters:
                self._violated(HALF, f"letter {number} of {way} is handled and was never on record")
                continue
            key, letter = letters[number]
            if key and not segment.accounts_for(key):
                self._violated(HALF, f"letter {number} of {way} counts as handled, and {key} did nothing")
            elif isinstance(letter, Returned) and not self._has_arrived(letter):
                self._violated(HALF, f"letter {number} of {way} counts as handled, and {letter.caller} has no answer")
        self._received[way] = received.number

    def _has_arrived(self, letter: Returned) -> bool:
        caller = letter.caller
        fate = next((one for one in self._judge.fates.get(caller.execution, ()) if one.started.seed == caller.run), None)
        return (
            fate is None
            or caller.operation in fate.completed
            or caller.operation in fate.abandoned
            or fate.finished is not None
            or fate.forgotten_ms is not None
        )

    def _complete(self, segment: _Segment) -> None:
        """What was sent in a segment is in it: as a letter, or handled; what was handled was sent, and is marked."""
        for key in segment.left:
            if key not in segment.posted and not segment.accounts_for(key):
                self._violated(HALF, f"{key} was sent by a turn that counts, and is not there")
        for key in segment.removed:
            if key not in segment.handled and key not in segment.raised:
                self._violated(LETTER_LOST, f"{key} was put off, and is not there when it is due")
        for key in (*segment.posted, *segment.handled, *segment.raised):
            if key and key not in self._departed and key not in self._by_key:
                self._violated(HALF, f"{key} is there, and the turn that sent it does not count")
        for key in (*segment.handled, *segment.raised):
            if key in self._posted:
                source, target, number = self._posted[key]
                if target == segment.shard and self._received.get((source, target), 0) < number:
                    self._violated(HALF, f"{key} is handled, and its mark is not there")

    # -- clients -------------------------------------------------------------------------------------------------------------

    def asked(self, client: str, number: int, asked: Asked) -> None:
        """A client sends a message."""
        self._asked[client, number] = asked
        if not asked.impostor:
            if asked.message.message_id:
                self._by_id[asked.message.entity, asked.message.message_id] = asked
            if asked.tag:
                self._by_key[key_of(asked.tag)] = asked
                if asked.message.at_ms:
                    self.expected[key_of(asked.tag)] = None

    def answered(self, client: str, number: int, asked: Asked, answer: Answer, asked_ms: float) -> None:
        """A client gets the first answer to a message."""
        message = asked.message
        if isinstance(answer, Refused):
            right = asked.impostor and answer.error == "IdInUse"
        elif not isinstance(answer, Answered) or asked.impostor:
            right = False
        elif asked.reads:
            right = answer.result is not None and self._was(message.entity, self.code.decode(answer.result), asked_ms)
        else:
            turns = self._turns.get((message.entity, message.message_id) if message.message_id else (client, number), [])
            right = any((turn.result, _named(turn.failure)) == (answer.result, _named(answer.failure)) for turn in turns)
            if answer.failure is None and asked.tag:
                self._acknowledged[key_of(asked.tag)] = None
            # What is to be handled later is answered twice: once it is on record, and, if it is sent again, as it was handled.
            if message.message_id and not message.at_ms:
                first = self._answers.setdefault((message.entity, message.message_id), answer)
                if (first.result, _named(first.failure)) != (answer.result, _named(answer.failure)):
                    self._violated(TWO_ANSWERS, f"{message.entity} {message.message_id}: {first}, {answer}")
        if not right:
            self._violated(WRONG_ANSWER, f"{client} {number} ({asked}) is answered {answer}")

    def _was(self, address: str, value: tuple[int, int], asked_ms: float) -> bool:
        """Whether that was true at some moment since."""
        history = [(0.0, (0, 0)), *self._history[address]]
        return any(
            values == value and (index + 1 == len(history) or history[index + 1][0] >= asked_ms)
            for index, (_, values) in enumerate(history)
        )

    # -- the end -------------------------------------------------------------------------------------------------------------

    def finish(self, found: dict[int, DurableState]) -> None:
        """Compare what readers find in the end with what was written and acknowledged, and look for what never came."""
        for shard, state in self._states.items():
            there = found[shard]
            if list(there.entities.kept()) != list(state.entities.kept()):
                self._violated(TURN_LOST, f"shard {shard}: readers do not find the entities that were written")
            if list(there.mail.kept()) != list(state.mail.kept()):
                self._violated(LETTER_LOST, f"shard {shard}: readers do not find the letters that were written")
            for address, row in there.entities.rows.items():
                for name, timer in row.timers.items():
                    if timer.due_ms + GRACE_MS < EPOCH_MS + self._world.now_ms:
                        self._violated(LATE, f"{address}: {name}: {timer}")
        for key in self._acknowledged:
            if key not in self._handled and key not in self._gone and key not in self.expected:
                self._violated(TURN_LOST, f"{key} was acknowledged")
        for key in self.expected:
            if key in self._departed or key in self._acknowledged:
                self._violated(LETTER_LOST, f"{key} is not handled")


def _named(failure: Failure | None) -> tuple[str, str] | None:
    return None if failure is None else (failure.type, failure.message)
