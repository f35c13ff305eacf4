"""What must hold of letters, of dead letters and of what is to be done later: parts of ``simulation_entity_judge``."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import msgspec

from rayflow.core.crashes import MAX_CRASHES
from rayflow.core.entity_state import DELAYED, EntityRow
from rayflow.core.messages import Answer, Answered, Deliver, Letter, Refused, Returned, SettleDeadLetter
from rayflow.core.records import DeadLetter, Delivered, Handled, Posted, Received, Settled, Timer
from rayflow.errors import NotFound
from rayflow.testing.simulation_traces import (
    EARLY,
    HALF,
    HANDLED_TWICE,
    LATE,
    LETTER_LOST,
    Segment,
    Traces,
    decode_call,
)
from rayflow.testing.simulation_workload import Book, Plan

if TYPE_CHECKING:
    from rayflow.testing.simulation_judge import Judge

_decode_letter = msgspec.msgpack.Decoder(Letter).decode


class LetterJudge:
    """Looks at letters between shards. ``has_arrived`` tells whether a workflow has an answer, or is past wanting it."""

    def __init__(self, traces: Traces, violated: Callable[[str, str], None], has_arrived: Callable[[Returned], bool]) -> None:
        self._traces = traces
        self._violated = violated
        self._has_arrived = has_arrived
        self._letters: defaultdict[tuple[int, int], dict[int, tuple[str, Letter]]] = defaultdict(dict)
        """By shards from and to, and number, with the key of the message."""
        self._posted: dict[str, tuple[int, int, int]] = {}
        self._received: dict[tuple[int, int], int] = {}

    def posted(self, posted: Posted, segment: Segment) -> None:
        """A letter is on record."""
        letter = _decode_letter(posted.letter)
        key = ""
        if isinstance(letter, Deliver):
            key = self._traces.key(letter.message)
            segment.posted[key] = None
            if key and key in self._posted:
                self._violated(HANDLED_TWICE, f"{key} is posted twice")
            self._posted[key] = (segment.shard, posted.shard, posted.number)
        elif isinstance(letter, Returned) and letter.failure is not None:
            segment.raised[self._traces.calls.get(letter.caller, "")] = None
        letters = self._letters[segment.shard, posted.shard]
        if posted.number != len(letters) + 1:
            self._violated(LETTER_LOST, f"letter {posted.number} to shard {posted.shard} is on record after {len(letters)}")
        letters[posted.number] = (key, letter)

    def received(self, received: Received, segment: Segment) -> None:
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

    def delivered(self, delivered: Delivered, segment: Segment) -> None:
        """A letter is not sent again."""
        if self._received.get((segment.shard, delivered.shard), 0) < delivered.number:
            self._violated(LETTER_LOST, f"{delivered} from shard {segment.shard} is not on record there")

    def complete(self, segment: Segment) -> None:
        """What was sent in a segment is in it: as a letter, or handled; what was handled was sent, and is marked."""
        traces = self._traces
        for key in segment.left:
            if key not in segment.posted and not segment.accounts_for(key):
                self._violated(HALF, f"{key} was sent by a turn that counts, and is not there")
        for key in segment.removed:
            if key not in segment.handled and key not in segment.raised:
                self._violated(LETTER_LOST, f"{key} was put off, and is not there when it is due")
        for key in (*segment.posted, *segment.handled, *segment.raised):
            if key and key not in traces.departed and key not in traces.by_key:
                self._violated(HALF, f"{key} is there, and the turn that sent it does not count")
        for key in (*segment.handled, *segment.raised):
            if key in self._posted:
                source, target, number = self._posted[key]
                if target == segment.shard and self._received.get((source, target), 0) < number:
                    self._violated(HALF, f"{key} is handled, and its mark is not there")


_Name = tuple[str, int, int]
"""What a dead letter is known by: entity, number and time."""


class DeadLetterJudge:
    """Looks at what could not be handled."""

    def __init__(self, traces: Traces, judge: Judge) -> None:
        self._traces = traces
        self._violated = judge.violated
        self._error = judge.error
        self._happened = judge.world.happened
        self._keys: dict[_Name, str] = {}
        """Of all that there ever were; empty: nobody can tell."""
        self._now: dict[tuple[int, int], _Name] = {}
        """Those there are, by shard and number."""
        self._unwanted: dict[_Name, None] = {}
        self._requests: Counter[_Name] = Counter()

    def dead(self, letter: DeadLetter, segment: Segment) -> None:
        """A dead letter is on record."""
        traces, message = self._traces, decode_call(letter.message)
        name = (letter.entity, letter.number, letter.at_ms)
        self._happened["dead letter"] += 1
        self._keys[name], self._now[segment.shard, letter.number] = "", name
        try:
            key = self._keys[name] = traces.key(message)
        except NotFound as error:
            self._violated(LETTER_LOST, f"dead letter {letter.number} of {letter.entity} says {error}, which is not there")
            return
        if key in traces.handled or key in traces.raised:
            self._violated(HANDLED_TWICE, f"{key} is a dead letter, too")
        traces.raised[key] = segment.raised[key] = None
        traces.expected.pop(key, None)
        if letter.operation == "later":
            self._violated(EARLY, f"{letter.entity}: {letter.reason}")
        elif letter.operation == "explode":
            if letter.reason.type != "ProcessCrashed" or traces.arguments(message)[2] < MAX_CRASHES:
                self._violated(self._error, f"{letter.entity}: {key}: {letter.reason}")
        elif letter.operation != "stumble":
            self._violated(self._error, f"{letter.entity}: {key}: {letter.reason}")

    def asked(self, message: SettleDeadLetter) -> None:
        """Somebody wants a dead letter handled again, or thrown away."""
        name = (message.entity, message.number, message.at_ms)
        self._requests[name] += 1
        if message.discard:
            self._unwanted[name] = None
        elif self._keys[name]:
            self._traces.again[self._keys[name]] += 1

    def settled(self, record: Settled, segment: Segment) -> None:
        """A dead letter is none any more."""
        name = self._now.pop((segment.shard, record.number), None)
        if name is not None:
            segment.settled[self._keys[name]] = None
            self._happened["dead letter handled" if self._keys[name] in segment.handled else "dead letter thrown away"] += 1
            if name not in self._unwanted and self._keys[name] not in segment.handled:
                self._violated(LETTER_LOST, f"{name} is no dead letter any more, and nobody wanted that")

    def complete(self, segment: Segment) -> None:
        """What was handled again is no dead letter any more."""
        for key in segment.handled:
            if key in self._traces.again and key not in segment.settled:
                self._violated(HALF, f"{key} was handled again, and is a dead letter all the same")

    def answered(self, message: SettleDeadLetter, answer: Answer) -> bool:
        """Whether that may be the answer. There was such a letter, so who alone has asked for it finds it, however often."""
        name = (message.entity, message.number, message.at_ms)
        is_there = name in self._now.values()
        if isinstance(answer, Refused):
            return answer.error == "Overloaded" or (answer.error == "NotFound" and not is_there and self._requests[name] > 1)
        if not isinstance(answer, Answered):
            return False
        return (
            not is_there if answer.failure is None else not message.discard and answer.failure.type in ("Unlucky", "ProcessCrashed")
        )


class TimerJudge:
    """Looks at reminders and at messages for later."""

    def __init__(self, traces: Traces, violated: Callable[[str, str], None]) -> None:
        self._traces = traces
        self._violated = violated

    def recorded(self, record: Handled, timers: dict[str, Timer], segment: Segment) -> None:
        """What is put off is kept, and what is kept no longer has been handled. ``timers``: those before."""
        for timer in record.timers:
            if timer.message:
                key = self._traces.key(decode_call(timer.message))
                segment.kept[key] = None
                if timer.name in timers:
                    self._violated(LETTER_LOST, f"{timers[timer.name]} gives way to {key} at {record.entity}")
            elif timer.name.startswith(DELAYED):
                known = timers.get(timer.name)
                if known is not None:
                    segment.removed[self._traces.key(decode_call(known.message))] = None
                else:  # put off and due within one batch: this one may be any
                    segment.removed.update((key, None) for key in segment.handled)

    def ended(self, timers: Iterable[Timer]) -> None:
        """An entity that had these has been ended."""
        for timer in timers:
            if timer.message:
                key = self._traces.key(decode_call(timer.message))
                if key not in self._traces.handled:
                    self._traces.is_gone(key)

    def look_at_plans(self, address: str, before: Book, book: Book, row: EntityRow) -> None:
        """Each reminder comes once for each time that it is due, and is on record for the next."""
        for name in before.plans:
            self._traces.expected.pop(f"{address} {name}", None)
        for name, plan in book.plans.items():
            due_ms = self._next_due_ms(f"{address} {name}", plan)
            timer = row.timers.get(name)
            if not name.startswith("broken"):
                if (0 if timer is None else timer.due_ms) != due_ms:
                    self._violated(HALF, f"{address} {name}: {plan}, but {timer}")
                if due_ms and not plan.every_ms:
                    self._traces.expected[f"{address} {name}"] = None
        for name, timer in row.timers.items():
            if not timer.message and name not in book.plans:
                self._violated(HALF, f"{address}: {timer}, which nobody has set")

    def _next_due_ms(self, what: str, plan: Plan) -> int:
        covered = 0
        for at_ms, missed, _ in plan.rings:
            covered += 1 + missed
            if plan.due_ms + (covered - 1) * plan.every_ms > at_ms or (not plan.every_ms and covered > 1):
                self._violated(EARLY, f"{what}: {plan}")
            elif plan.every_ms and plan.due_ms + covered * plan.every_ms <= at_ms:
                self._violated(LATE, f"{what} does not say how often it was missed: {plan}")
        return plan.due_ms + covered * plan.every_ms if plan.every_ms or not covered else 0
