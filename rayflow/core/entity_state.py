"""The durable part of entities: their state, and the answers that may be asked for again.

An answer under a message id is kept for at least the entity's window: answers are gathered in two generations, and when the recent
one has lasted for a window it takes the place of the older one. What a sender numbered is kept until the sender says that it has
heard the answer, or was silent for long. Of what was dropped it is kept until when that was handled: a message that was first sent
before then may be one of those. All of it follows from the records alone, so every reader of the log comes to the same.

An entity of which nothing is left, neither state nor reminders nor answers, has no row.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

import msgspec

from rayflow.core import limits
from rayflow.core.records import DeadLetter, EntityRecord, Function, Handled, Settled, Timer, Turn
from rayflow.core.timers import Timers


class KeptEntity(msgspec.Struct, frozen=True, array_like=True, tag="entity"):
    """An entity as it stands in a snapshot."""

    entity: str
    at_ms: int
    kind: Function
    state: bytes | None
    state_version: int
    changes: int
    window_ms: int
    since_ms: int
    recent: list[Turn]
    older: list[Turn]
    timers: list[Timer]
    delayed: int
    events: list[bytes] = []
    folded: int = 0
    holder: str = ""
    queue: list[bytes] = []
    forgotten_ms: int = 0


class KeptSender(msgspec.Struct, frozen=True, array_like=True, tag="sender"):
    """What a sender was answered and may ask for again, as it stands in a snapshot."""

    sender: str
    at_ms: int
    number: int
    answers: list[Turn]


class KeptSweep(msgspec.Struct, frozen=True, array_like=True, tag="swept"):
    """When senders were last swept, and until when what was dropped of senders and of entities was handled."""

    at_ms: int
    senders_ms: int
    entities_ms: int


Kept = KeptEntity | KeptSender | KeptSweep | DeadLetter

_NO_TURNS: dict[str, Turn] = {}
_NO_TIMERS: dict[str, Timer] = {}
_NO_EVENTS: list[bytes] = []
_MAX_KINDS = 1_000

_kinds: dict[Function, Function] = {}


def _shared(kind: Function) -> Function:
    """The same, once for all entities of a class: each record brings one of its own."""
    if len(_kinds) >= _MAX_KINDS:  # classes by value, of a notebook that was run again and again
        _kinds.clear()
    return _kinds.setdefault(kind, kind)


DELAYED = "@"
"""Names of timers that are messages begin with it, names of reminders do not."""


class EntityRow:
    """One entity. ``stamp`` tells since which snapshot it has been changed in place."""

    __slots__ = (
        "at_ms",
        "changes",
        "delayed",
        "events",
        "folded",
        "forgotten_ms",
        "holder",
        "kind",
        "older",
        "queue",
        "recent",
        "since_ms",
        "stamp",
        "state",
        "state_version",
        "timers",
        "window_ms",
    )

    def __init__(self, first: Handled | KeptEntity) -> None:
        self.stamp = 0
        self.kind = _shared(first.kind)
        self.state = first.state
        self.state_version = first.state_version
        self.changes = first.changes
        self.window_ms = first.window_ms
        self.at_ms = self.since_ms = first.at_ms
        self.recent = self.older = _NO_TURNS
        self.timers = _NO_TIMERS
        self.events = _NO_EVENTS
        """All that an event-sourced entity has emitted, encoded; ``state`` holds the first ``folded`` of them."""
        self.folded = 0
        self.holder = ""
        """The run of a workflow that has locked it."""
        self.queue = _NO_EVENTS
        """What waits for the lock, encoded, in order."""
        self.delayed = 0
        """The highest number of a message for later that was ever on record, so that the next one gets a name of its own."""
        self.forgotten_ms = 0
        """Answers under message ids to what was handled up to then may have been dropped."""
        if isinstance(first, KeptEntity):
            self.since_ms = first.since_ms
            self.recent = {turn.message_id: turn for turn in first.recent} or _NO_TURNS
            self.older = {turn.message_id: turn for turn in first.older} or _NO_TURNS
            self.timers = {timer.name: timer for timer in first.timers} or _NO_TIMERS
            self.delayed = first.delayed
            self.events, self.folded = first.events or _NO_EVENTS, first.folded
            self.holder, self.queue = first.holder, first.queue or _NO_EVENTS
            self.forgotten_ms = first.forgotten_ms

    def apply(self, handled: Handled) -> None:
        """Take in a record of this entity."""
        if handled.kind is not self.kind:
            self.kind = _shared(handled.kind)
        self.window_ms = handled.window_ms
        self.at_ms = handled.at_ms
        if handled.destroyed:
            self.state, self.changes, self.timers = None, 0, _NO_TIMERS
            self.events, self.folded = _NO_EVENTS, 0
        if handled.events:
            self.changes = handled.changes
            if self.events is _NO_EVENTS:
                self.events = []
            self.events.extend(handled.events)
        if handled.state is not None:
            self.state, self.state_version, self.changes = handled.state, handled.state_version, handled.changes
            self.folded = len(self.events)
        self.forget_answers(handled.at_ms)
        for turn in handled.turns:
            if turn.message_id:
                if self.recent is _NO_TURNS:
                    self.recent = {}
                self.recent[turn.message_id] = turn

        if handled.holder is not None:
            self.holder = handled.holder
        if handled.taken or handled.deferred or handled.queue is not None:
            if handled.queue is not None or not self.queue:
                self.queue = []
            del self.queue[: handled.taken]
            self.queue.extend(handled.deferred if handled.queue is None else handled.queue)
            self.queue = self.queue or _NO_EVENTS
        if handled.timers:
            if self.timers is _NO_TIMERS:
                self.timers = {}
            for timer in handled.timers:
                if timer.name.startswith(DELAYED):
                    self.delayed = max(self.delayed, int(timer.name.removeprefix(DELAYED)))
                if timer.due_ms:
                    self.timers[timer.name] = timer
                else:
                    self.timers.pop(timer.name, None)
            self.timers = self.timers or _NO_TIMERS

    def forget_answers(self, at_ms: int) -> None:
        """Drop what is older than the window, if it is time to look at that."""
        if at_ms - self.since_ms >= self.window_ms:
            if self.older:
                self.forgotten_ms = self.since_ms
            self.older, self.recent, self.since_ms = self.recent, _NO_TURNS, at_ms

    @property
    def answers_until_ms(self) -> int:
        """When ``forget_answers`` has something to do; 0: never."""
        return self.since_ms + self.window_ms if self.recent or self.older else 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left of it."""
        return self.state is None and not (self.events or self.timers or self.holder or self.queue or self.recent or self.older)

    def copy(self, stamp: int) -> EntityRow:
        """One to change while a snapshot is written from this one."""
        other = object.__new__(EntityRow)
        for name in EntityRow.__slots__:
            setattr(other, name, getattr(self, name))
        other.recent = dict(self.recent) or _NO_TURNS
        other.events = list(self.events) or _NO_EVENTS
        other.timers = dict(self.timers) or _NO_TIMERS
        other.queue = list(self.queue) or _NO_EVENTS
        other.stamp = stamp
        return other

    def answer(self, message_id: str) -> Turn | None:
        """The turn that handled this message."""
        return self.recent.get(message_id) or self.older.get(message_id)

    def kept(self, entity: str) -> KeptEntity:
        """For a snapshot."""
        return KeptEntity(
            entity,
            self.at_ms,
            self.kind,
            self.state,
            self.state_version,
            self.changes,
            self.window_ms,
            self.since_ms,
            list(self.recent.values()),
            list(self.older.values()),
            list(self.timers.values()),
            self.delayed,
            self.events,
            self.folded,
            self.holder,
            self.queue,
            self.forgotten_ms,
        )


class SenderRow:
    """One sender: the last number that was handled, and the answers that it has not said to have heard."""

    __slots__ = ("answers", "at_ms", "number", "stamp")

    def __init__(self, stamp: int = 0) -> None:
        self.at_ms = self.number = 0
        self.stamp = stamp
        self.answers: OrderedDict[int, Turn] = OrderedDict()

    def apply(self, turn: Turn, at_ms: int) -> None:
        """Take in a turn of this sender's."""
        self.at_ms = max(self.at_ms, at_ms)  # of what one batch says of several entities, the last to be told may be the first done
        self.number = max(self.number, turn.number)  # a message that waited for a lock comes after later ones to other entities
        self.answers[turn.number] = turn
        while (
            self.answers and next(iter(self.answers)) <= turn.heard
        ):  # about in ascending order; what waited for a lock goes later
            self.answers.popitem(last=False)

    def copy(self, stamp: int) -> SenderRow:
        """One to change while a snapshot is written from this one."""
        other = SenderRow(stamp)
        other.at_ms, other.number, other.answers = self.at_ms, self.number, self.answers.copy()
        return other


class Entities:
    """All entities of a shard as far as they are durable."""

    def __init__(self) -> None:
        self.rows: dict[str, EntityRow] = {}
        self.senders: dict[str, SenderRow] = {}
        self.dead: dict[int, DeadLetter] = {}
        self.dead_count = 0
        """The highest number of a dead letter; once all are settled the count may begin again."""
        self._swept_ms = 0
        """When senders were last swept."""
        self._forgotten_senders_ms = self._forgotten_entities_ms = 0
        self._answers_until: Timers[str] = Timers()
        """By entity, when answers under its message ids are to be dropped."""
        self._stamp = 0

    def timer(self, entity: str, name: str) -> Timer | None:
        """What is on record of a timer."""
        row = self.rows.get(entity)
        return None if row is None else row.timers.get(name)

    def forgotten_ms(self, entity: str | None = None) -> int:
        """Up to when what was handled may have been dropped: of an entity's message ids, or of senders that are not known."""
        if entity is None:
            return self._forgotten_senders_ms
        row = self.rows.get(entity)
        return self._forgotten_entities_ms if row is None else row.forgotten_ms

    def frozen(self) -> Entities:
        """The same, not to be changed any more; costs two shallow copies. What is changed here afterwards is copied first."""
        other = Entities()
        other.rows, other.senders, other.dead = dict(self.rows), dict(self.senders), dict(self.dead)
        other._swept_ms = self._swept_ms
        other._forgotten_senders_ms, other._forgotten_entities_ms = self._forgotten_senders_ms, self._forgotten_entities_ms
        self._stamp += 1
        return other

    def apply(self, record: EntityRecord) -> None:
        """Take in one record that has become durable."""
        if isinstance(record, DeadLetter):
            self.dead[record.number] = record
            self.dead_count = max(self.dead_count, record.number)
        elif isinstance(record, Settled):
            self.dead.pop(record.number, None)
            if record.turn is not None:
                self._answered(record.turn, record.at_ms)
        else:
            self._handled(record)

    def _handled(self, handled: Handled) -> None:
        entity, at_ms = handled.entity, handled.at_ms
        row = self._own(entity)
        if row is None:
            row = self.rows[entity] = EntityRow(handled)
            row.stamp = self._stamp
            row.forgotten_ms = self._forgotten_entities_ms
        row.apply(handled)
        self._look_after(entity, row)
        for turn in handled.turns:
            if not turn.message_id:
                self._answered(turn, at_ms)
        for entity in self._answers_until.pop_due(at_ms):
            row = self._own(entity)
            if row is not None and row.answers_until_ms:
                row.forget_answers(at_ms)
                self._look_after(entity, row)
        if at_ms - self._swept_ms > limits.current().sender_window_ms:
            self._sweep(at_ms)

    def _own(self, entity: str) -> EntityRow | None:
        """Its row, to be changed in place."""
        row = self.rows.get(entity)
        if row is not None and row.stamp != self._stamp:
            row = self.rows[entity] = row.copy(self._stamp)
        return row

    def _look_after(self, entity: str, row: EntityRow) -> None:
        """A row has changed."""
        until_ms = row.answers_until_ms
        if until_ms:
            self._answers_until.set(until_ms, entity)
        elif row.is_empty:
            self._forgotten_entities_ms = max(self._forgotten_entities_ms, row.forgotten_ms)
            del self.rows[entity]

    def _sweep(self, at_ms: int) -> None:
        """Drop senders that were silent since the time before this one that it was looked for them.

        Not those that were for a window: after a time when nobody could send anything that would be all of them.
        """
        before_ms, self._swept_ms = self._swept_ms, at_ms
        for name, one in list(self.senders.items()):
            if one.at_ms < before_ms:
                self._forgotten_senders_ms = max(self._forgotten_senders_ms, one.at_ms)
                del self.senders[name]

    def _answered(self, turn: Turn, at_ms: int) -> None:
        sender = self.senders.get(turn.sender)
        if sender is None:
            sender = self.senders[turn.sender] = SenderRow(self._stamp)
        elif sender.stamp != self._stamp:
            sender = self.senders[turn.sender] = sender.copy(self._stamp)
        sender.apply(turn, at_ms)

    def kept(self) -> Iterator[Kept]:
        """All of it, for a snapshot."""
        for entity, row in self.rows.items():
            yield row.kept(entity)
        for name, sender in self.senders.items():
            yield KeptSender(name, sender.at_ms, sender.number, list(sender.answers.values()))
        if self._swept_ms:
            yield KeptSweep(self._swept_ms, self._forgotten_senders_ms, self._forgotten_entities_ms)
        yield from self.dead.values()

    def restore(self, kept: Kept) -> None:
        """Take back a piece of a snapshot."""
        if isinstance(kept, KeptEntity):
            row = self.rows[kept.entity] = EntityRow(kept)
            self._look_after(kept.entity, row)
            return
        if isinstance(kept, KeptSweep):
            self._swept_ms, self._forgotten_senders_ms, self._forgotten_entities_ms = kept.at_ms, kept.senders_ms, kept.entities_ms
            return
        if isinstance(kept, DeadLetter):
            self.apply(kept)
            return
        sender = self.senders[kept.sender] = SenderRow()
        sender.at_ms, sender.number = kept.at_ms, kept.number
        sender.answers = OrderedDict((turn.number, turn) for turn in kept.answers)
