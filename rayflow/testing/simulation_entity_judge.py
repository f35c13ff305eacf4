"""What must hold of entities, letters and reminders: the part of ``simulation_judge`` that looks at them.

Every message has a tag that no other has, see ``simulation_workload``, and counters keep book. So each segment that is written says
what was handled in it, and what must be in it beside that: answers, letters, marks, timers. The books on record are the truth.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from rayflow.core import limits
from rayflow.core.entity_state import EntityRow
from rayflow.core.entity_type import type_of
from rayflow.core.messages import Answer, Answered, Caller, Deliver, FromClient, Refused, Returned, SettleDeadLetter
from rayflow.core.records import (
    Completed,
    DeadLetter,
    Delivered,
    EntityRecord,
    Failure,
    Finished,
    Forgotten,
    Handled,
    MailRecord,
    Posted,
    Received,
    Record,
    Scheduled,
    Settled,
    Started,
    Stored,
    Timer,
    Turn,
    WorkflowRecord,
)
from rayflow.core.state import DurableState
from rayflow.testing.simulation_letter_judge import DeadLetterJudge, LetterJudge, TimerJudge
from rayflow.testing.simulation_lock_judge import LockJudge
from rayflow.testing.simulation_traces import (
    DISORDER,
    HALF,
    HANDLED_TWICE,
    LATE,
    LETTER_LOST,
    TURN_LOST,
    TWO_ANSWERS,
    WRONG_ANSWER,
    WRONG_TOTAL,
    Segment,
    Traces,
    decode_waiting,
    key_of,
)
from rayflow.testing.simulation_workload import ENTITIES, Book, sender_of
from rayflow.testing.simulation_world import EPOCH_MS

if TYPE_CHECKING:
    from rayflow.testing.simulation_correspondents import Asked
    from rayflow.testing.simulation_judge import Judge

GRACE_MS = 1500
"""How late a reminder may be where nothing goes wrong; clocks differ by up to a second."""


@dataclass(slots=True)
class _Run:
    """What a run of a workflow has sent so far."""

    sender: str
    seed: int
    count: int = 0


class EntityJudge:
    """Told by the judge, whose ``violated`` it calls."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._world = judge.world
        self.traces = Traces()
        self.record_bytes: set[bytes] = set()
        """All records that were written."""
        self._letters = LetterJudge(self.traces, judge.violated, self._has_arrived)
        self._dead_letters = DeadLetterJudge(self.traces, judge)
        self._timers = TimerJudge(self.traces, judge.violated)
        self._locks = LockJudge(judge.violated)
        self._states: dict[int, DurableState] = {}
        self._books: dict[str, Book] = {}
        self._history: defaultdict[str, list[tuple[float, tuple[int, int]]]] = defaultdict(list)
        """Number of entries and total of each entity, since when."""
        self._runs: dict[str, _Run] = {}
        """The latest of each execution."""
        self._asked: dict[tuple[str, int], Asked] = {}
        self._by_id: dict[tuple[str, str], Asked] = {}
        self._turns: defaultdict[tuple[str, str | int], list[Turn]] = defaultdict(list)
        """By entity and message id, or sender and number."""
        self._answers: dict[tuple[str, str], Answered] = {}
        self._acknowledged: dict[str, None] = {}
        self._last: dict[tuple[str, str], int] = {}

    def _violated(self, what: str, detail: str) -> None:
        self._judge.violated(what, detail)

    # -- the log -------------------------------------------------------------------------------------------------------------

    def written(self, shard: int, records: Iterable[Record], encoded: Iterable[bytes]) -> None:
        """A segment has come into being."""
        segment = Segment(shard)
        state = self._states.setdefault(shard, DurableState())
        for record, data in zip(records, encoded, strict=True):
            if not isinstance(record, EntityRecord | MailRecord):
                self._of_a_workflow(record, segment)
                continue
            self.record_bytes.add(data)
            if isinstance(record, Handled):
                self._turns_of(record, state, segment)
                continue
            state.apply(record, data)
            if isinstance(record, DeadLetter):
                self._dead_letters.dead(record, segment)
            elif isinstance(record, Posted):
                self._letters.posted(record, segment)
        for record in records:
            if isinstance(record, Settled):
                self._dead_letters.settled(record, segment)
            elif isinstance(record, Received):
                self._letters.received(record, segment)
            elif isinstance(record, Delivered):
                self._letters.delivered(record, segment)
        self._letters.complete(segment)
        self._dead_letters.complete(segment)
        self._locks.complete(self._row)

    def _of_a_workflow(self, record: WorkflowRecord, segment: Segment) -> None:
        if isinstance(record, Started):
            sender = sender_of(record.execution, Random(record.seed))
            self._runs[record.execution] = _Run(sender, record.seed)
            return
        run = self._runs.get(record.execution)
        if run is None:
            return
        if isinstance(record, Scheduled):
            self._scheduled(record, run, segment)
        elif isinstance(record, Completed):
            self._world.happened["locked"] += self._locks.completed(record, run.seed)
            if record.failure is not None:
                segment.raised[self.traces.calls.get(Caller(record.execution, record.operation, run.seed), "")] = None
        elif isinstance(record, Finished | Forgotten):
            self._locks.ended(record.execution, run.seed)

    def _scheduled(self, record: Scheduled, run: _Run, segment: Segment) -> None:
        if record.kind in ("lock", "unlock"):
            self._locks.scheduled(record, run.seed)
        elif record.kind in ("call", "signal") and not record.name.endswith(".totals"):
            run.count += 1
            key = self.traces.calls[Caller(record.execution, record.operation, run.seed)] = f"{run.sender}#{run.count}"
            self.traces.leaves(key, segment)
            self._locks.sent(key, record.execution, run.seed)
            if record.name.endswith(".stumble"):
                self.traces.expected.pop(key, None)  # a call, which raises: that nothing of it counts is all there is to see

    def _row(self, address: str) -> EntityRow | None:
        return next((state.entities.rows[address] for state in self._states.values() if address in state.entities.rows), None)

    def _turns_of(self, record: Handled, state: DurableState, segment: Segment) -> None:
        address = record.entity
        row = state.entities.rows.get(address)
        timers: dict[str, Timer] = {} if row is None else dict(row.timers)
        state.entities.apply(record)
        row = state.entities.rows.get(address) or EntityRow(record)  # none: nothing is left of it
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
            self.traces.leaves(f"{address}#{number}", segment)
        if book.total != sum(by for _, by in book.entries):
            self._violated(WRONG_TOTAL, f"{address}: {book}")
        self._timers.recorded(record, timers, segment)
        self._look_at_turns(record, asked, ended, fresh, book, segment)
        if record.destroyed:
            self._timers.ended(timers.values())
        self._timers.look_at_plans(address, before, book, row)
        self._locks.look_at_entries(address, base, book)
        self._locks.look_at_queue(address, row)
        for waiting in (*record.deferred, *(record.queue or ())):
            one = decode_waiting(waiting)
            if isinstance(one, Deliver | FromClient):
                segment.kept[self.traces.key(one.message)] = None
                self._world.happened["message waits for a lock"] += 1
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

    def _counts(self, tag: str, address: str, segment: Segment) -> None:
        """A message has left its trace in a state."""
        key = key_of(tag)
        if key in self.traces.handled:
            self._violated(HANDLED_TWICE, f"{tag} by {address}")
        if (key in self.traces.raised and key not in self.traces.again) or key in self.traces.gone:
            self._violated(HALF, f"{tag} by {address}, although it raised or is gone")
        self.traces.handled[key] = address
        segment.handled[key] = None
        self.traces.expected.pop(key, None)
        sender, mark, number = tag.rpartition("#")
        if mark and key not in self.traces.again:
            if int(number) <= self._last.get((sender, address), 0):
                self._violated(DISORDER, f"{tag} comes to {address} after {self._last[sender, address]}")
            self._last[sender, address] = int(number)

    # -- answers -----------------------------------------------------------------------------------------------------------

    def _look_at_what_ended(self, address: str, turns: list[Turn], asked: list[Asked | None], segment: Segment) -> int:
        """Messages that were handled in this record before the entity was ended have left no trace; returns how many."""
        ends = [index for index, one in enumerate(asked) if one is not None and one.operation == "destroy"]
        ended = ends[-1] if ends else 0
        for turn, one in zip(turns[:ended], asked[:ended], strict=True):
            if one is None or not one.tag or turn.failure is not None:
                continue
            if not one.is_for_later:
                self._counts(one.tag, address, segment)
            elif key_of(one.tag) not in self.traces.handled:
                self.traces.is_gone(key_of(one.tag))
        return ended

    def _look_at_turns(
        self, record: Handled, asked: list[Asked | None], ended: int, fresh: dict[str, int], book: Book, segment: Segment
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
            if earlier and not one.is_for_later and key_of(one.tag) not in self.traces.again:
                self._violated(HANDLED_TWICE, f"{name} by {address}")
            earlier.append(turn)
            key = key_of(one.tag)
            if not key:
                continue
            answered[key] = None
            if turn.failure is not None:
                segment.raised[key] = self.traces.raised[key] = None
                if not one.fails:
                    self._violated(self._judge.error, f"{address}: {one}: {turn.failure}")
            elif key in fresh:
                self._look_at_result(address, turn.result, fresh[key], book)
            elif index >= ended and key not in segment.kept:
                self._violated(HALF, f"{one.tag} is answered by {address}, and did nothing")
        for key in fresh:
            if key in self.traces.by_key and key not in answered and key not in segment.removed and key not in self.traces.again:
                self._violated(HALF, f"{key} counts for {address}, and its answer is not on record")

    def _look_at_result(self, address: str, result: Stored | None, index: int, book: Book) -> None:
        if result is None or self.traces.code.decode(result) not in (
            (index + 1, sum(by for _, by in book.entries[: index + 1])),
            None,  # of what is to be handled later, which is answered before
        ):
            self._violated(WRONG_ANSWER, f"entry {index + 1} of {address} is answered {result}")

    def _asked_of(self, address: str, turn: Turn) -> Asked | None:
        if turn.message_id:
            return self._by_id.get((address, turn.message_id))
        return self._asked.get((turn.sender, turn.number))

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

    def dead_letters(self) -> list[DeadLetter]:
        """Those on record."""
        return [letter for state in self._states.values() for letter in state.entities.dead.values()]

    # -- clients -------------------------------------------------------------------------------------------------------------

    def asked(self, client: str, number: int, asked: Asked) -> None:
        """A client sends a message."""
        self._asked[client, number] = asked
        if isinstance(asked.message, SettleDeadLetter):
            self._dead_letters.asked(asked.message)
        elif not asked.impostor:
            if asked.message_id:
                self._by_id[asked.message.entity, asked.message_id] = asked
            if asked.tag:
                self.traces.by_key[key_of(asked.tag)] = asked
                if asked.is_for_later:
                    self.traces.expected[key_of(asked.tag)] = None

    def answered(self, client: str, number: int, asked: Asked, answer: Answer, asked_ms: float) -> None:
        """A client gets the first answer to a message."""
        message = asked.message
        if isinstance(message, SettleDeadLetter):
            right = self._dead_letters.answered(message, answer)
        elif isinstance(answer, Refused):
            right = asked.impostor and answer.error == "IdInUse"
            if answer.error == "OutcomeUnknown" and self._world.now_ms - asked_ms >= limits.current().sender_window_ms // 2:
                right = True
                self._world.happened["outcome unknown"] += 1
                self.traces.expected.pop(key_of(asked.tag), None)
        elif not isinstance(answer, Answered) or asked.impostor:
            right = False
        elif asked.reads:
            right = answer.result is not None and self._was(message.entity, self.traces.code.decode(answer.result), asked_ms)
        else:
            right = self._is_on_record(client, number, asked, answer)
        if not right:
            self._violated(WRONG_ANSWER, f"{client} {number} ({asked}) is answered {answer}")

    def _is_on_record(self, client: str, number: int, asked: Asked, answer: Answered) -> bool:
        address, message_id = asked.message.entity, asked.message_id
        turns = self._turns.get((address, message_id) if message_id else (client, number), [])
        if answer.failure is None and asked.tag:
            self._acknowledged[key_of(asked.tag)] = None
        # Two answers have what is to be handled later, on record and as it was handled, and what was handled as a dead letter.
        if message_id and not asked.is_for_later and key_of(asked.tag) not in self.traces.again:
            first = self._answers.setdefault((address, message_id), answer)
            if (first.result, _named(first.failure)) != (answer.result, _named(answer.failure)):
                self._violated(TWO_ANSWERS, f"{address} {message_id}: {first}, {answer}")
        return any((turn.result, _named(turn.failure)) == (answer.result, _named(answer.failure)) for turn in turns)

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
        for shard, there in found.items():
            state = self._states.setdefault(shard, DurableState())
            if list(there.entities.kept()) != list(state.entities.kept()):
                self._violated(TURN_LOST, f"shard {shard}: readers do not find the entities that were written")
            if list(there.mail.kept()) != list(state.mail.kept()):
                self._violated(LETTER_LOST, f"shard {shard}: readers do not find the letters that were written")
            for address, row in there.entities.rows.items():
                self._locks.finish(address, row, self._is_live)
                for name, timer in row.timers.items():
                    if timer.due_ms + GRACE_MS < EPOCH_MS + self._world.now_ms:
                        self._violated(LATE, f"{address}: {name}: {timer}")
        for key in self._acknowledged:
            if key not in self.traces.handled and key not in self.traces.gone and key not in self.traces.expected:
                self._violated(TURN_LOST, f"{key} was acknowledged")
        for key in self.traces.expected:
            if key in self.traces.departed or key in self._acknowledged:
                self._violated(LETTER_LOST, f"{key} is not handled")

    def _is_live(self, holder: str) -> bool:
        execution, _, run = holder.rpartition("#")
        fates = self._judge.fates.get(execution, ())
        fate = next((one for one in fates if one.started.seed == int(run)), None)
        return fate is not None and fate.finished is None and fate.forgotten_ms is None


def _named(failure: Failure | None) -> tuple[str, str] | None:
    return None if failure is None else (failure.type, failure.message)
