"""The entities of a shard at work: a pure machine from messages to turns.

A turn runs the operation on the state in memory, then encodes the state: what raises, or leaves a state that cannot be stored, is
undone by reading the state before it back. All turns of one entity since the last batch become one record, so that a thousand
messages to one counter cost one state in the log; the record, the answers and the marks against repetition are in one batch and
hence durable together or not at all.

What is durable is in ``rayflow.core.entity_state``; only what is not durable yet is kept here beside it, and the states of entities
that were used lately.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from rayflow.core import codec
from rayflow.core.entity import Entity, EntityOperation, EntityType
from rayflow.core.entity_state import Entities as Durable
from rayflow.core.entity_state import EntityRow
from rayflow.core.instance import describe_error
from rayflow.core.messages import Answered, CallEntity, Refused, Token
from rayflow.core.outbox import Outbox, Reply
from rayflow.core.records import Failure, Function, Handled, Stored, Turn
from rayflow.errors import InvalidInput, RayflowError


class EntityCode(Protocol):
    """How stored values and classes are found again."""

    def decode(self, stored: Stored) -> Any:
        """The value, read from its blob where it is one."""
        ...

    def entity(self, function: Function) -> EntityType:
        """Raises InvalidInput where the class cannot be loaded."""
        ...


@dataclass(slots=True)
class _Active:
    """An entity in memory. ``data`` is its state as of the last turn, encoded; ``turns`` are those not yet in a record."""

    address: str
    kind: Function
    type: EntityType
    instance: Entity[Any]
    data: bytes | None
    changes: int
    changed: bool = False
    turns: list[Turn] = field(default_factory=list[Turn])
    at_ms: int = 0
    pending: dict[str, Turn] = field(default_factory=dict[str, Turn])
    """Turns by message id that are not durable yet."""
    unsaved: int = 0
    """Records that are not durable yet."""


@dataclass(slots=True)
class _Sender:
    """What is not durable yet of a sender's numbers."""

    number: int = 0
    pending: dict[int, Turn] = field(default_factory=dict[int, Turn])


class Entities:
    """All entities of one shard. Pure; never fails half-way."""

    def __init__(self, outbox: Outbox, code: EntityCode, durable: Durable) -> None:
        self._outbox = outbox
        self._code = code
        self._durable = durable
        self._active: dict[str, _Active] = {}
        self._changed: dict[str, _Active] = {}
        self._senders: dict[str, _Sender] = {}
        outbox.before_close(self._record_turns)

    def receive(self, token: Token, message: CallEntity, now_ms: int) -> None:
        """Handle a message; the answer passes the gate."""
        try:
            active = self._activated(message)
        except RayflowError as error:
            self._outbox.effect(Reply(token, Refused(type(error).__name__, str(error))))
            return
        self._outbox.effect(Reply(token, self._answer(active, token, message, now_ms)))

    # -- turns ---------------------------------------------------------------------------------------------------------------

    def _answer(self, active: _Active, token: Token, message: CallEntity, now_ms: int) -> Answered | Refused:
        try:
            operation = active.type.operation(message.operation)
            args, kwargs = self._code.decode(message.arguments)
            operation.check_arguments(active.address, args, kwargs)
        except RayflowError as error:
            return Refused(type(error).__name__, str(error))
        if operation.reads_only:
            result, failure = self._run(active, operation, args, kwargs)
            return Answered(result, failure)
        seen = self._seen(active, token, message)
        if seen is None:
            result, failure = self._run(active, operation, args, kwargs)
            if message.message_id:
                seen = Turn(message.message_id, message.fingerprint, result, failure)
            else:
                seen = Turn("", "", result, failure, *token)
            self._add(active, seen, now_ms)
        return seen if isinstance(seen, Refused) else Answered(seen.result, seen.failure)

    def _seen(self, active: _Active, token: Token, message: CallEntity) -> Turn | Refused | None:
        """The turn that handled this very message before."""
        if message.message_id:
            turn = active.pending.get(message.message_id)
            if turn is None:
                row = self._durable.rows.get(active.address)
                turn = None if row is None else row.answer(message.message_id)
            if turn is not None and turn.fingerprint != message.fingerprint:
                return Refused(
                    "IdInUse",
                    f"{active.address}: message id {message.message_id!r} was used for another operation or other arguments; "
                    f"choose another id",
                )
            return turn
        durable = self._durable.senders.get(token.sender)
        sender = self._senders.get(token.sender)
        if token.number > max(0 if durable is None else durable.number, 0 if sender is None else sender.number):
            return None
        turn = None if sender is None else sender.pending.get(token.number)
        if turn is None and durable is not None:
            turn = durable.answers.get(token.number)
        if turn is None:
            return Refused(
                "RayflowError",
                f"{active.address}: message {token.number} of {token.sender} came after later ones, or again after its answer "
                f"was dropped; whether it was handled cannot be told",
            )
        return turn

    def _run(
        self, active: _Active, operation: EntityOperation[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[bytes | None, Failure | None]:
        """Run an operation; undo whatever it did unless all of it can count."""
        instance = active.instance
        try:
            result = codec.encode(operation.function(instance, *args, **kwargs), label="result")
            data = codec.encode(instance.state, label="state")
            if data == active.data:
                return result, None
            if operation.reads_only:
                raise InvalidInput(f"{active.address}: the query {operation.name} changed the state; make it an @rayflow.operation")
        except BaseException as error:  # a SystemExit of user code, too, is only that operation's failure
            self._undo(active)
            return None, describe_error(error)
        active.data = data
        active.changes += 1
        active.changed = True
        return result, None

    def _undo(self, active: _Active) -> None:
        key = active.instance.key
        active.instance = active.type.entity(key)
        if active.data is not None:
            active.instance.state = codec.decode(active.data)

    def _add(self, active: _Active, turn: Turn, now_ms: int) -> None:
        active.turns.append(turn)
        active.at_ms = now_ms
        self._changed[active.address] = active
        if turn.message_id:
            active.pending[turn.message_id] = turn
            return
        sender = self._senders.get(turn.sender)
        if sender is None:
            sender = self._senders[turn.sender] = _Sender()
        sender.number = turn.number
        sender.pending[turn.number] = turn

    # -- memory --------------------------------------------------------------------------------------------------------------

    def _activated(self, message: CallEntity) -> _Active:
        active = self._active.get(message.entity)
        if active is not None:
            return active
        kind = self._code.entity(message.kind)
        row = self._durable.rows.get(message.entity)
        active = self._active[message.entity] = self._activate(message.entity, message.kind, kind, row)
        return active

    def _activate(self, address: str, function: Function, kind: EntityType, row: EntityRow | None) -> _Active:
        instance = kind.entity(address.partition("/")[2])
        if row is None or row.state is None:
            return _Active(address, function, kind, instance, codec.encode(instance.state, label="state"), 0)
        instance.state = codec.decode(row.state)
        return _Active(address, function, kind, instance, row.state, row.changes)

    @property
    def active_count(self) -> int:
        """How many entities are in memory."""
        return len(self._active)

    # -- records -------------------------------------------------------------------------------------------------------------

    def _record_turns(self) -> None:
        """One record per entity for all its turns of this batch."""
        for active in self._changed.values():
            self._outbox.record(
                Handled(
                    active.address,
                    active.at_ms,
                    active.kind,
                    active.data if active.changed else None,
                    active.type.state_version,
                    active.changes,
                    active.type.message_window_ms,
                    active.turns,
                )
            )
            active.unsaved += 1
            active.changed = False
            active.turns = []
        self._changed.clear()

    def durable(self, record: Handled) -> None:
        """A record has become durable and is part of what was given to the constructor."""
        active = self._active[record.entity]
        active.unsaved -= 1
        for turn in record.turns:
            if turn.message_id:
                active.pending.pop(turn.message_id, None)
            else:
                sender = self._senders[turn.sender]
                sender.pending.pop(turn.number, None)
                if not sender.pending:
                    del self._senders[turn.sender]
