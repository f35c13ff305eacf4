"""One entity in memory: its state, what has happened to it since the last record, and what its code can reach in a turn.

A turn counts as a whole or not at all. The operation works on the state in place; afterwards the state is encoded, and if anything
of that raises, the state before is read back and whatever the turn wanted to send, to be reminded of or to destroy is dropped.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar, cast

import msgspec

from rayflow.core import codec, limits
from rayflow.core.entity import Call, Entity, done
from rayflow.core.entity_state import DELAYED, EntityRow
from rayflow.core.entity_type import EntityType
from rayflow.core.failures import describe_error
from rayflow.core.proxy import Outgoing, proxy_of
from rayflow.core.records import Failure, Function, Handled, Timer, Turn
from rayflow.core.waiting import Who, count_waiting
from rayflow.errors import InvalidInput, StoreUnavailable

E = TypeVar("E", bound=Entity[Any])


class Scope:
    """What an entity can reach while it handles a message; it counts if the turn does."""

    __slots__ = ("_address", "destroyed", "events", "now_ms", "sent", "timers")

    def __init__(self, address: str, now_ms: int) -> None:
        self.now_ms = now_ms
        self.sent: list[Outgoing] = []
        self.timers: list[Timer] = []
        self.events: list[bytes] = []
        self.destroyed = False
        self._address = address

    def entity(self, entity: type[E], key: str) -> E:
        """See ``Entity.entity``."""
        return cast("E", proxy_of(entity, key, self._send))

    def remind(self, name: str, due_ms: int, every_ms: int) -> None:
        """See ``Entity.remind``."""
        self.timers.append(Timer(name, due_ms, every_ms))

    def destroy(self) -> None:
        """See ``Entity.destroy``."""
        self.destroyed = True
        self.timers.clear()
        self.events.clear()

    def emit(self, event: bytes) -> None:
        """See ``EventSourcedEntity.emit``."""
        self.events.append(event)

    @property
    def did(self) -> str:
        """What was done other than changing the state, for people; empty: nothing."""
        return "sent a signal" if self.sent else "set a reminder" if self.timers else "ended the entity" if self.destroyed else ""

    def _send(self, sent: Outgoing) -> Call[Any]:
        if not sent.options.signal:
            raise InvalidInput(
                f"{self._address} calls {sent.operation} of {sent.address}: entities send signals only, "
                f"write .signal.{sent.operation}()"
            )
        self.sent.append(sent)
        return done(None)


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """How a turn went: the encoded ``result`` and what is to be sent, or the ``failure``."""

    result: bytes | None
    failure: Failure | None = None
    sent: Sequence[Outgoing] = ()


class Activation:
    """An entity in memory. ``row`` is what is durable of it; ``describe`` tells how classes are found by who gets a signal."""

    __slots__ = (
        "_changed",
        "_deferred",
        "_delayed",
        "_describe",
        "_destroyed",
        "_events",
        "_folded",
        "_new_holder",
        "_new_queue",
        "_new_timers",
        "_spoilt",
        "_taken",
        "_turns",
        "_who",
        "address",
        "at_ms",
        "changes",
        "counted_bytes",
        "data",
        "holder",
        "instance",
        "kind",
        "pending",
        "queue",
        "timers",
        "type",
        "unsaved",
        "used_ms",
    )

    def __init__(
        self, address: str, function: Function, kind: EntityType, row: EntityRow | None, describe: Callable[[type[Any]], Function]
    ) -> None:
        self._describe = describe
        self.address = address
        self.kind = function
        self.type = kind
        key = address.partition("/")[2]
        self._events: list[bytes] = []
        self._folded = 0
        """How many events have been emitted since the state was last part of a record."""
        if row is None or (row.state is None and not row.events):
            self.instance = kind.entity(key)
            self.data = codec.encode(self.instance.state, label="state")
            self.changes = 0
        elif row.events:
            self.instance = kind.replayed(address, row.state, row.state_version, row.events[row.folded :])
            self.data = codec.encode(self.instance.state, label="state")
            self.changes = row.changes
            self._folded = len(row.events) - row.folded
        else:
            assert row.state is not None
            self.instance = kind.restored(key, kind.read_state(address, row.state, row.state_version))
            self.data = row.state
            if row.state_version != kind.state_version:
                self.data = codec.encode(self.instance.state, label="state")
            self.changes = row.changes
        self.counted_bytes = 0
        """How many bytes of the memory for all entities it is taken to need."""
        self.timers: dict[str, Timer] = {} if row is None else dict(row.timers)
        self.at_ms = self.used_ms = 0
        self.pending: dict[str, Turn] = {}
        """Turns by message id that are not durable yet."""
        self.unsaved = 0
        """Records and turns that are not durable yet."""
        self._delayed = 0 if row is None else row.delayed
        self.holder = "" if row is None else row.holder
        """The run of a workflow that has locked it; empty: nobody."""
        self.queue: deque[bytes] = deque(() if row is None else row.queue)
        """What waits for the lock, in order."""
        self._who: Counter[Who] | None = None
        self._changed = False
        self._spoilt = False
        """Whether a turn has failed, and the state before it could not be read back: it is in ``data``."""
        self._destroyed = False
        self._turns: list[Turn] = []
        self._new_timers: dict[str, Timer] = {}
        self._new_holder: str | None = None
        self._taken = 0
        self._deferred: list[bytes] = []
        self._new_queue = False

    @property
    def title(self) -> str:
        """What it is, for people."""
        return f"entity {self.address}"

    @property
    def settled(self) -> bool:
        """Whether all that happened to it is durable, so that it can be dropped from memory."""
        return not self.unsaved and not self.unrecorded

    @property
    def unrecorded(self) -> bool:
        """Whether something has happened that is not in a record yet."""
        return (
            self._changed
            or self._destroyed
            or bool(self._turns or self._new_timers or self._deferred)
            or self._new_holder is not None
            or self._taken > 0
            or self._new_queue
        )

    def run(self, name: str, function: Callable[[Entity[Any]], Any], now_ms: int, *, reads_only: bool) -> Outcome:
        """One turn: ``function`` on the entity. All that can fail comes first; then the turn counts."""
        scope = Scope(self.address, now_ms)
        begun: Entity[Any] | None = None
        instance = self.instance
        try:
            if self._spoilt:  # its failure is that of this turn
                instance = self._read_back()
            instance._scope = scope  # pyright: ignore[reportPrivateUsage]  # it is there for this
            result = codec.encode(function(instance), label="result")
            data = codec.encode(instance.state, label="state")
            if reads_only and (data != self.data or scope.did):
                did = scope.did or "changed the state"
                raise InvalidInput(f"{self.address}: the query {name} {did}; make it an @rayflow.operation")
            if self.type.event_sourced and data != self.data and not scope.events and not scope.destroyed:
                raise InvalidInput(f"{self.address}: {name} changed the state without an event; emit one, and let apply change it")
            for one in scope.sent:
                self._describe(one.kind.entity)  # once it could be found it will be found again
            if scope.destroyed:
                begun = self.type.entity(instance.key)
                data = codec.encode(begun.state, label="state")
        except BaseException as error:  # a SystemExit of user code, too, is only that operation's failure
            self._spoilt = True
            with suppress(Exception):
                self._read_back()
            if isinstance(error, StoreUnavailable):
                raise
            return Outcome(None, describe_error(error))
        finally:
            instance._scope = None  # pyright: ignore[reportPrivateUsage]
        self.at_ms = now_ms
        if begun is not None:
            self._begin_anew(begun, data)
        elif data != self.data or scope.events:
            self.data = data
            self.changes += 1
            self._changed = True
            self._events += scope.events
        for timer in scope.timers:
            self.set_timer(timer)
        return Outcome(result, None, scope.sent)

    def _read_back(self) -> Entity[Any]:
        """The entity with the state before a turn that failed."""
        self.instance = self.type.restored(self.instance.key, codec.decode(self.data))
        self._spoilt = False
        return self.instance

    def durable(self, record: Handled) -> None:
        """A record taken from here is durable."""
        self.unsaved -= len(record.turns) + 1
        for turn in record.turns:
            self.pending.pop(turn.message_id, None)

    @property
    def backlog(self) -> int:
        """How many messages it has handled that are not durable yet."""
        return self.unsaved + len(self._turns)

    def add(self, turn: Turn, now_ms: int) -> None:
        """Keep a turn's answer."""
        self.at_ms = now_ms
        self._turns.append(turn)
        if turn.message_id:
            self.pending[turn.message_id] = turn

    def delay(self, due_ms: int, message: bytes, sender: str, now_ms: int) -> Timer:
        """Keep a message for later; it gets a timer of its own."""
        self.at_ms = now_ms
        self._delayed += 1
        timer = Timer(f"{DELAYED}{self._delayed}", due_ms, 0, message, sender)
        self.set_timer(timer)
        return timer

    def set_timer(self, timer: Timer) -> None:
        """Set or, without a due time, remove a timer."""
        if timer.due_ms:
            self.timers[timer.name] = timer
        else:
            self.timers.pop(timer.name, None)
        self._new_timers[timer.name] = timer

    def lock(self, holder: str, now_ms: int) -> None:
        """From now on it is there for this run of a workflow alone; empty: for all."""
        self.at_ms = now_ms
        self.holder = self._new_holder = holder

    def waits(self, who: Who) -> bool:
        """Whether that one is in the queue. Looks at all of it once, and never again while this is in memory."""
        if self._who is None:
            self._who = count_waiting(self.queue)
        return self._who[who] > 0

    def came(self, who: Who) -> None:
        """What was put into the queue is that one's."""
        if self._who is not None:
            self._who[who] += 1

    def gone(self, who: Who) -> None:
        """What was taken from the queue, or withdrawn, was that one's."""
        if self._who is not None:
            self._who[who] -= 1
            if self._who[who] <= 0:
                del self._who[who]

    def defer(self, waiting: bytes, now_ms: int) -> None:
        """Have something wait for the lock."""
        self.at_ms = now_ms
        self.queue.append(waiting)
        self._deferred.append(waiting)

    def take_deferred(self) -> bytes:
        """The first that waits; it waits no more."""
        if self._deferred and len(self._deferred) == len(self.queue):
            del self._deferred[0]
        else:
            self._taken += 1
        return self.queue.popleft()

    def withdraw(self, waiting: bytes, now_ms: int) -> None:
        """Something in the queue is not wanted any more."""
        self.at_ms = now_ms
        self.queue.remove(waiting)
        self._new_queue = True

    def take_record(self) -> Handled:
        """What has happened since the last record."""
        self._folded += len(self._events)
        whole = self._changed and not (self._events and self._folded < limits.current().events_per_state)
        if whole:
            self._folded = 0
        record = Handled(
            self.address,
            self.at_ms,
            self.kind,
            self.data if whole else None,
            self.type.state_version,
            self.changes,
            self.type.message_window_ms,
            self._turns,
            list(self._new_timers.values()),
            self._destroyed,
            self._events,
            self._new_holder,
            0 if self._new_queue else self._taken,
            [] if self._new_queue else self._deferred,
            list(self.queue) if self._new_queue else None,
        )
        self.unsaved += len(self._turns) + 1
        self._changed = self._destroyed = False
        self._turns = []
        self._new_timers = {}
        self._events = []
        self._new_holder = None
        self._taken = 0
        self._deferred = []
        self._new_queue = False
        return record

    def _begin_anew(self, instance: Entity[Any], data: bytes) -> None:
        self.instance, self.data = instance, data
        self.changes = 0
        self._changed = False
        self._destroyed = True
        self.timers = {}
        self._new_timers.clear()
        self._events = []
        self._folded = 0
