"""The entities of a shard at work: a pure machine from messages to turns.

A turn runs the operation on the state in memory, then encodes the state: what raises, or leaves a state that cannot be stored, is
undone by reading the state before it back. All turns of one entity since the last batch become one record, so that a thousand
messages to one counter cost one state in the log; the record, the answers and the marks against repetition are in one batch and
hence durable together or not at all.

What is durable is in ``rayflow.core.entity_state``; only what is not durable yet is kept here beside it, and the states of entities
that were used lately.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, cast

from rayflow.core import codec
from rayflow.core.entity import Call, Entity, EntityOperation, EntityType, done, type_of
from rayflow.core.entity_state import Entities as Durable
from rayflow.core.entity_state import EntityRow
from rayflow.core.instance import describe_error
from rayflow.core.mail import Mail
from rayflow.core.messages import Answered, CallEntity, Deliver, Refused, Returned, Token
from rayflow.core.outbox import Outbox, Reply
from rayflow.core.proxy import EntityProxy, Outgoing
from rayflow.core.records import Failure, Function, Handled, Stored, Turn
from rayflow.core.turns import Turns
from rayflow.errors import InvalidInput, RayflowError, StoreUnavailable

E = TypeVar("E", bound=Entity[Any])

_log = logging.getLogger("rayflow.entity")


class EntityCode(Protocol):
    """How stored values and classes are found again."""

    def decode(self, stored: Stored) -> Any:
        """The value, read from its blob where it is one."""
        ...

    def describe(self, function: Callable[..., Any]) -> Function:
        """A class as another process can find it."""
        ...

    def entity(self, function: Function) -> EntityType:
        """Raises InvalidInput where the class cannot be loaded."""
        ...


class _Turn:
    """What an entity can reach while it handles a message; what it sends goes out if the turn counts."""

    def __init__(self, address: str, now_ms: int) -> None:
        self.now_ms = now_ms
        self.sent: list[Outgoing] = []
        self._address = address

    def entity(self, entity: type[E], key: str) -> E:
        return cast("E", EntityProxy(type_of(entity), key, self._send))

    def _send(self, sent: Outgoing) -> Call[Any]:
        if not sent.options.signal:
            raise InvalidInput(
                f"{self._address} calls {sent.operation} of {sent.address}: entities send signals only, "
                f"write .signal.{sent.operation}()"
            )
        self.sent.append(sent)
        return done(None)


@dataclass(slots=True)
class _Active:
    """An entity in memory. ``data`` is its state as of the last turn, encoded; ``turns`` are those not yet in a record."""

    address: str
    kind: Function
    type: EntityType
    instance: Entity[Any]
    data: bytes
    changes: int
    changed: bool = False
    turns: list[Turn] = field(default_factory=list[Turn])
    at_ms: int = 0
    pending: dict[str, Turn] = field(default_factory=dict[str, Turn])
    """Turns by message id that are not durable yet."""
    unsaved: int = 0
    """Records that are not durable yet."""

    @property
    def title(self) -> str:
        """What it is, for people."""
        return f"entity {self.address}"


@dataclass(slots=True)
class _Sender:
    """What is not durable yet of a sender's numbers."""

    number: int = 0
    pending: dict[int, Turn] = field(default_factory=dict[int, Turn])


class Entities:
    """All entities of one shard. Pure; never fails half-way."""

    def __init__(self, outbox: Outbox, code: EntityCode, mail: Mail, durable: Durable, turns: Turns | None = None) -> None:
        self._outbox = outbox
        self._code = code
        self._mail = mail
        self._durable = durable
        self._turns = turns or Turns()
        self._active: dict[str, _Active] = {}
        self._changed: dict[str, _Active] = {}
        self._senders: dict[str, _Sender] = {}
        outbox.before_close(self._record_turns)

    def receive(self, token: Token, message: CallEntity, now_ms: int) -> None:
        """Handle a client's message; the answer passes the gate."""
        self._outbox.effect(Reply(token, self._handle(message, token, now_ms)))

    def deliver(self, letter: Deliver, now_ms: int) -> None:
        """Handle a message of a workflow or another entity. Whoever calls this sees to it that it comes once."""
        answer = self._handle(letter.message, None, now_ms)
        failure = Failure(answer.error, answer.message) if isinstance(answer, Refused) else answer.failure
        result = None if isinstance(answer, Refused) else answer.result
        if letter.caller is not None:
            self._mail.send(letter.caller.execution, Returned(letter.caller, result, failure))
        elif failure is not None:
            _log.error("%s: a signal of %s failed: %s: %s", letter.message.entity, letter.sender, failure.type, failure.message)

    # -- turns ---------------------------------------------------------------------------------------------------------------

    def _handle(self, message: CallEntity, token: Token | None, now_ms: int) -> Answered | Refused:
        try:
            active = self._activated(message)
            operation = active.type.operation(message.operation)
            args, kwargs = self._code.decode(message.arguments)
            operation.check_arguments(active.address, args, kwargs)
        except StoreUnavailable:
            raise  # then the shard opens again later, and the message comes again
        except RayflowError as error:
            return Refused(type(error).__name__, str(error))
        except Exception as error:  # of the class's own code that makes a new state
            return Answered(None, describe_error(error))
        if operation.reads_only:
            result, failure = self._run(active, operation, args, kwargs, now_ms)
            return Answered(result, failure)
        seen = None if token is None else self._seen(active, token, message)
        if seen is not None:
            return seen if isinstance(seen, Refused) else Answered(seen.result, seen.failure)
        result, failure = self._run(active, operation, args, kwargs, now_ms)
        if message.message_id:
            self._add(active, Turn(message.message_id, message.fingerprint, result, failure), now_ms)
        elif token is not None:
            self._add(active, Turn("", "", result, failure, *token), now_ms)
        elif active.changed:
            self._changes(active, now_ms)
        return Answered(result, failure)

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
        self, active: _Active, operation: EntityOperation[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], now_ms: int
    ) -> tuple[bytes | None, Failure | None]:
        """Run an operation; undo whatever it did unless all of it can count."""
        instance = active.instance
        scope = _Turn(active.address, now_ms)
        instance._scope = scope  # pyright: ignore[reportPrivateUsage]  # it is there for this
        self._turns.begin(active)
        try:
            result = codec.encode(operation.function(instance, *args, **kwargs), label="result")
            data = codec.encode(instance.state, label="state")
            if operation.reads_only and (data != active.data or scope.sent):
                did = "sent a signal" if scope.sent else "changed the state"
                raise InvalidInput(f"{active.address}: the query {operation.name} {did}; make it an @rayflow.operation")
        except BaseException as error:  # a SystemExit of user code, too, is only that operation's failure
            self._undo(active)
            return None, describe_error(error)
        finally:
            instance._scope = None  # pyright: ignore[reportPrivateUsage]
            self._turns.end()
        for sent in scope.sent:
            self._signal(active, sent)
        if data != active.data:
            active.data = data
            active.changes += 1
            active.changed = True
        return result, None

    def _signal(self, active: _Active, sent: Outgoing) -> None:
        function = self._code.describe(sent.kind.entity)
        arguments = self._outbox.store(sent.arguments)
        message = CallEntity(sent.address, function, sent.operation, arguments, at_ms=sent.options.at_ms)
        self._mail.send(sent.address, Deliver(message, active.address))

    def _undo(self, active: _Active) -> None:
        active.instance = active.type.restored(active.instance.key, codec.decode(active.data))

    def _add(self, active: _Active, turn: Turn, now_ms: int) -> None:
        active.turns.append(turn)
        self._changes(active, now_ms)
        if turn.message_id:
            active.pending[turn.message_id] = turn
            return
        sender = self._senders.get(turn.sender)
        if sender is None:
            sender = self._senders[turn.sender] = _Sender()
        sender.number = turn.number
        sender.pending[turn.number] = turn

    def _changes(self, active: _Active, now_ms: int) -> None:
        active.at_ms = now_ms
        self._changed[active.address] = active

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
        key = address.partition("/")[2]
        if row is None or row.state is None:
            instance = kind.entity(key)
            return _Active(address, function, kind, instance, codec.encode(instance.state, label="state"), 0)
        return _Active(address, function, kind, kind.restored(key, codec.decode(row.state)), row.state, row.changes)

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
