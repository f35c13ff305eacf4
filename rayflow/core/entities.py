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
import zlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import msgspec

from rayflow.core import codec, limits
from rayflow.core.activation import Activation
from rayflow.core.activations import Activations
from rayflow.core.answers import Answers
from rayflow.core.arguments import decode_arguments
from rayflow.core.crashes import MAX_CRASHES, Crashes, NoCrashes
from rayflow.core.dead_letters import DeadLetters
from rayflow.core.entity import Entity, EntityOperation
from rayflow.core.entity_state import Entities as Durable
from rayflow.core.entity_state import EntityRow
from rayflow.core.entity_type import EntityCode
from rayflow.core.failures import describe_error, failure_of, without_error
from rayflow.core.mail import Mail
from rayflow.core.messages import (
    Answered,
    CallEntity,
    Deliver,
    EntityMessage,
    FromClient,
    Lock,
    Refused,
    Returned,
    SettleDeadLetter,
    Token,
    Unlock,
    holder_of,
)
from rayflow.core.outbox import Outbox, Reply
from rayflow.core.records import DeadLetter, Failure, Function, Handled, Settled, Stored, Timer, Turn, may_name_blob
from rayflow.core.timers import Timers
from rayflow.core.turns import Turns
from rayflow.core.waiting import client_of, decode_waiting, encode_waiting, who_of
from rayflow.errors import EntityUnreadable, RayflowError, StoreUnavailable

_log = logging.getLogger("rayflow.entity")


_NOTHING = codec.encode(None)
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(CallEntity).decode


class _Due(NamedTuple):
    entity: str
    timer: str
    due_ms: int


_PASSIVATE = _Due("", "", 0)


class Entities:
    """All entities of one shard. Pure; never fails half-way."""

    def __init__(
        self,
        outbox: Outbox,
        code: EntityCode,
        mail: Mail,
        durable: Durable,
        turns: Turns | None = None,
        crashes: Crashes | None = None,
    ) -> None:
        self._outbox = outbox
        self._code = code
        self._mail = mail
        self._durable = durable
        self._turns = turns or Turns()
        self._crashes = crashes or NoCrashes()
        self._dead = DeadLetters(outbox, durable)
        self._active = Activations()
        self._watching_idle = False
        self._changed: dict[str, Activation] = {}
        self._answers = Answers(durable)
        self._timers: Timers[_Due] = Timers(lambda due: due[:2])
        self._now_ms = 0
        self.turns_run = 0
        outbox.before_close(self._record_turns)

    def restore(self) -> None:
        """Set the clock for what a predecessor's entities are to do later."""
        for entity, row in self._durable.rows.items():
            for timer in row.timers.values():
                self._timers.set(timer.due_ms, _Due(entity, timer.name, timer.due_ms))

    def receive(self, token: Token, message: EntityMessage, now_ms: int) -> None:
        """Handle a client's message; the answer passes the gate."""
        settles = isinstance(message, SettleDeadLetter)
        answer = self._settle(message, token, now_ms) if settles else self._handle(message, token, now_ms)
        if answer is not None:
            self._outbox.effect(Reply(token, answer))

    def reads(self, message: EntityMessage | Deliver | Lock | Unlock) -> list[Stored | None]:
        """The stored values that handling this may read, whether they are large or not."""
        if isinstance(message, CallEntity):
            return [message.arguments, message.kind.code]
        if isinstance(message, Deliver):
            return [message.message.arguments, message.message.kind.code]
        if isinstance(message, Lock):
            return [message.kind.code]
        if isinstance(message, SettleDeadLetter):
            letter = self._dead.get(message.entity, message.number)
            return [] if letter is None else self.reads(_decode(letter.message))
        active = self._active.get(message.entity)
        if active is not None and active.holder == message.holder:
            return self._reads_waiting(active.queue)
        row = self._durable.rows.get(message.entity)
        return [row.kind.code, *self._reads_waiting(row.queue)] if active is None and row is not None else []

    def _reads_waiting(self, queue: Iterable[bytes]) -> list[Stored | None]:
        """Of what waits for a lock, all of which may go on at once."""
        read: list[Stored | None] = []
        for waiting in filter(may_name_blob, queue):
            one = decode_waiting(waiting)
            if not isinstance(one, Lock):
                read += (one.message.arguments, one.message.kind.code)
        return read

    def reads_when_due(self, now_ms: int) -> list[Stored | None]:
        """The stored values that ``advance`` may read."""
        read: list[Stored | None] = []
        for due in self._timers.due(now_ms):
            row = self._durable.rows.get(due.entity)
            active = self._active.get(due.entity)
            timers = active.timers if active is not None else row.timers if row is not None else {}
            timer = timers.get(due.timer)
            if timer is not None and may_name_blob(timer.message):
                read += self.reads(_decode(timer.message))
            elif row is not None:
                read.append(row.kind.code)
        return read

    def deliver(self, letter: Deliver | Lock | Unlock, now_ms: int) -> None:
        """Handle a letter of a workflow or another entity. Whoever calls this sees to it that it comes once."""
        if isinstance(letter, Lock):
            self._lock(letter, now_ms)
        elif isinstance(letter, Unlock):
            self._unlock(letter, now_ms)
        elif not self._must_wait(letter, now_ms):
            self._deliver(letter, now_ms)

    def _deliver(self, letter: Deliver, now_ms: int) -> None:
        self._tell(letter, self._turn_of(letter.message, None, now_ms, letter.sender), now_ms)

    def _tell(self, letter: Deliver, answer: Answered | Refused, now_ms: int) -> None:
        """Have who waits for it know how a letter was answered; what went wrong and nobody waits for is a dead letter."""
        failure = failure_of(answer.error, answer.message) if isinstance(answer, Refused) else answer.failure
        result = None if isinstance(answer, Refused) else answer.result
        if letter.caller is not None:
            self._mail.send(letter.caller.execution, Returned(letter.caller, result, failure))
        elif failure is not None:
            self._dead.add(letter.message, letter.sender, without_error(failure), now_ms)

    def _settle(self, message: SettleDeadLetter, token: Token, now_ms: int) -> Answered | Refused:
        before = self._answers.under_number(token)
        if before is not None:
            return Answered(before.result, before.failure)
        letter = self._dead.get(message.entity, message.number)
        if letter is None or letter.at_ms != message.at_ms:
            return Refused("NotFound", f"{message.entity} has no dead letter {message.number}; it was settled, or never was")
        if message.discard:
            return self._settled(letter, _NOTHING, token, now_ms)
        call = msgspec.structs.replace(_decode(letter.message), at_ms=0)
        if self._is_locked(call.entity):
            return Refused("Overloaded", f"{call.entity} is locked by a workflow just now; try again when that has ended")
        again = f"{_name(call, None, letter.sender)} again for {token.sender} {token.number}"  # who asks again starts to count anew
        answer = self._turn_of(call, None, now_ms, letter.sender, name=again)
        if isinstance(answer, Refused) or answer.failure is not None:
            return answer
        return self._settled(letter, answer.result, token, now_ms)

    def _settled(self, letter: DeadLetter, result: Stored | None, token: Token, now_ms: int) -> Answered:
        turn = Turn("", "", result, None, token.sender, token.number, token.heard)
        self._answers.remember(turn)
        self._dead.remove(letter, turn, now_ms)
        return Answered(result)

    # -- turns ---------------------------------------------------------------------------------------------------------------

    def _handle(self, message: CallEntity, token: Token, now_ms: int) -> Answered | Refused | None:
        """The answer to a client's message; None: it waits for a lock."""
        active = self._active.get(message.entity)
        if active is None or active.holder or active.queue:
            try:
                active = self._activated(message.entity, message.kind, now_ms, message.operation)
                operation = active.type.operation(message.operation)
            except StoreUnavailable:
                raise
            except Exception as error:
                return self._unfit(error)
            if active.holder:
                return self._wait(active, operation, message, token, now_ms)
        return self._turn_of(message, token, now_ms)

    def _unfit(self, error: Exception) -> Answered | Refused:
        failure = describe_error(error)
        if isinstance(error, RayflowError):
            return Refused(failure.type, failure.message)  # as it is, the text may be nothing that can be sent
        return Answered(None, failure)  # of the class's own code that makes a new state

    def _turn_of(
        self,
        message: CallEntity,
        token: Token | None,
        now_ms: int,
        sender: str = "a client",
        *,
        waited: bool = False,
        name: str = "",
    ) -> Answered | Refused:
        try:
            active = self._activated(message.entity, message.kind, now_ms, message.operation)
            operation = active.type.operation(message.operation)
            stored = self._outbox.readable(message.arguments)
            args, kwargs = decode_arguments(stored) if isinstance(stored, bytes) else self._code.decode(stored)
            operation.check_arguments(active.address, args, kwargs)
        except StoreUnavailable:
            raise  # then the shard opens again later, and the message comes again
        except Exception as error:
            return self._unfit(error)
        most = limits.current().entity_mailbox
        if active.backlog >= most and token is not None and not waited:
            return Refused(
                "Overloaded",
                f"{active.address}: {most} messages wait for the store already; try again in a second, with the same message_id "
                f"where it must not be handled twice",
            )
        seen = None if token is None or operation.reads_only else self._answers.seen(active, token, message, waited=waited)
        if seen is not None:
            return seen if isinstance(seen, Refused) else Answered(seen.result, seen.failure)
        if message.at_ms > now_ms:
            self._set_clock(active, active.delay(message.at_ms, _encode(message), sender, now_ms))
            result, failure = _NOTHING, None
        else:
            name = name or _name(message, token, sender)
            if self._crashes.count(name) >= MAX_CRASHES:
                result, failure = None, self._give_up(message, token, sender, now_ms)
            else:
                self._crashes.begin(name)
                result, failure = self._run(active, operation, args, kwargs, now_ms)
                self._crashes.end()
        if operation.reads_only:
            return Answered(result, failure)
        if message.message_id:
            active.add(Turn(message.message_id, message.fingerprint, result, failure), now_ms)
        elif token is not None:
            turn = Turn("", "", result, failure, token.sender, token.number, token.heard)
            active.add(turn, now_ms)
            self._answers.remember(turn)
        self._note(active)
        return Answered(result, failure)

    def _give_up(self, message: CallEntity, token: Token | None, sender: str, now_ms: int) -> Failure:
        failure = failure_of(
            "ProcessCrashed", f"{message.operation} killed the process that ran it {MAX_CRASHES} times and is not tried again"
        )
        if token is not None:
            number = self._dead.add(message, sender, failure, now_ms)
            return failure_of(failure.type, f"{failure.message}; it is dead letter {number} of {message.entity}")
        return failure

    def _run(
        self, active: Activation, operation: EntityOperation[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], now_ms: int
    ) -> tuple[bytes | None, Failure | None]:
        return self._turn(
            active,
            operation.name,
            lambda entity: operation.function(entity, *args, **kwargs),
            now_ms,
            reads_only=operation.reads_only,
        )

    def _turn(
        self, active: Activation, name: str, function: Callable[[Entity[Any]], Any], now_ms: int, *, reads_only: bool = False
    ) -> tuple[bytes | None, Failure | None]:
        self.turns_run += 1
        before = active.timers
        self._turns.begin(active)
        try:
            outcome = active.run(name, function, now_ms, reads_only=reads_only)
        finally:
            self._turns.end()
        if active.timers is not before:  # it was ended, and begins anew
            for timer in before.values():
                self._timers.cancel(_Due(active.address, timer.name, 0))
        for sent in outcome.sent:
            arguments = self._outbox.store(sent.arguments)
            kind = self._code.describe(sent.kind.entity)
            message = CallEntity(sent.address, kind, sent.operation, arguments, at_ms=sent.due_ms(now_ms))
            self._mail.send(sent.address, Deliver(message, active.address))
        return outcome.result, outcome.failure

    def _note(self, active: Activation) -> None:
        if active.unrecorded:
            self._active.measure(active)
            self._changed[active.address] = active
            self._outbox.expect()

    # -- locks ---------------------------------------------------------------------------------------------------------------

    def _is_locked(self, entity: str) -> bool:
        active = self._active.get(entity)
        row = self._durable.rows.get(entity)
        return bool(active.holder if active is not None else row is not None and row.holder)

    def _must_wait(self, letter: Deliver, now_ms: int) -> bool:
        """Whether a letter was put into the queue because somebody else has locked the entity."""
        if not self._is_locked(letter.message.entity):
            return False
        try:
            active = self._activated(letter.message.entity, letter.message.kind, now_ms)
        except StoreUnavailable:
            raise
        except Exception as error:
            self._tell(letter, self._unfit(error), now_ms)
            return True
        if letter.run and active.holder == holder_of(letter.sender, letter.run):
            return False
        if len(active.queue) >= limits.current().entity_mailbox:
            self._tell(letter, _too_many(active), now_ms)
            return True
        active.defer(encode_waiting(letter), now_ms)
        self._note(active)
        return True

    def _wait(
        self, active: Activation, operation: EntityOperation[..., Any], message: CallEntity, token: Token, now_ms: int
    ) -> Answered | Refused | None:
        """Put a client's message into the queue, unless it waits there already or was answered before."""
        if active.waits(client_of(token)):
            return None
        seen = None if operation.reads_only else self._answers.seen(active, token, message, waited=False)
        if seen is not None:
            return seen if isinstance(seen, Refused) else Answered(seen.result, seen.failure)
        if len(active.queue) >= limits.current().entity_mailbox:
            return _too_many(active)
        active.defer(encode_waiting(FromClient(token, message)), now_ms)
        active.came(client_of(token))
        self._note(active)
        return None

    def _lock(self, letter: Lock, now_ms: int) -> None:
        try:
            active = self._activated(letter.entity, letter.kind, now_ms)
        except StoreUnavailable:
            raise
        except Exception as error:
            self._mail.send(letter.caller.execution, Returned(letter.caller, None, describe_error(error)))
            return
        if not active.holder:
            self._grant(active, letter, now_ms)
        elif len(active.queue) < limits.current().entity_mailbox:
            active.defer(encode_waiting(letter), now_ms)
            active.came(who_of(letter))
        else:
            refused = _too_many(active)
            self._mail.send(letter.caller.execution, Returned(letter.caller, None, failure_of(refused.error, refused.message)))
        self._note(active)

    def _grant(self, active: Activation, letter: Lock, now_ms: int) -> None:
        active.lock(holder_of(letter.caller.execution, letter.caller.run), now_ms)
        self._mail.send(letter.caller.execution, Returned(letter.caller, _NOTHING))

    def _unlock(self, letter: Unlock, now_ms: int) -> None:
        row = self._durable.rows.get(letter.entity)
        active = self._active.get(letter.entity)
        if active is None:
            if row is None:
                return
            try:
                active = self._activated(letter.entity, row.kind, now_ms)
            except StoreUnavailable:
                raise
            except Exception as error:
                if row.holder == letter.holder:
                    self._free_unreadable(letter.entity, row, error, now_ms)
                return
        if active.holder == letter.holder:
            active.lock("", now_ms)
            self._resume(active, now_ms)
        if active.waits(letter.holder):
            for waiting in list(active.queue):
                if who_of(decode_waiting(waiting)) == letter.holder:
                    active.withdraw(waiting, now_ms)
                    active.gone(letter.holder)
        self._note(active)

    def _free_unreadable(self, entity: str, row: EntityRow, error: Exception, now_ms: int) -> None:
        """The lock of an entity is free that there is no code for: what waited for it learns that, for it cannot be handled."""
        answer, failure = self._unfit(error), describe_error(error)
        for waiting in row.queue:
            one = decode_waiting(waiting)
            if isinstance(one, Lock):
                self._mail.send(one.caller.execution, Returned(one.caller, None, failure))
            elif isinstance(one, FromClient):
                self._outbox.effect(Reply(one.token, answer))
            else:
                self._tell(one, answer, now_ms)
        freed = Handled(entity, now_ms, row.kind, None, row.state_version, row.changes, row.window_ms, [], holder="", queue=[])
        self._outbox.record(freed)

    def _resume(self, active: Activation, now_ms: int) -> None:
        """The lock is free: go on with what waited for it, up to the next lock."""
        while active.queue and not active.holder:
            one = decode_waiting(active.take_deferred())
            active.gone(who_of(one))
            if isinstance(one, Lock):
                self._grant(active, one, now_ms)
            elif isinstance(one, FromClient):
                answer = self._turn_of(one.message, one.token, now_ms, waited=True)
                self._outbox.effect(Reply(one.token, answer))
            else:
                self._deliver(one, now_ms)
        if not active.holder:
            for timer in active.timers.values():  # those that came due meanwhile were passed over
                self._set_clock(active, timer)

    # -- time ----------------------------------------------------------------------------------------------------------------

    def next_due_ms(self) -> int | None:
        """When ``advance`` next has something to do."""
        return self._timers.next_due_ms()

    def advance(self, now_ms: int) -> None:
        """Do what is due."""
        for due in self._timers.pop_due(now_ms):
            if due is _PASSIVATE:
                self._active.passivate(now_ms)
                again_ms = self._active.next_idle_ms(now_ms)
                self._watching_idle = again_ms is not None
                if again_ms is not None:
                    self._timers.set(again_ms, _PASSIVATE)
                continue
            active = self._active.get(due.entity)
            if active is None:
                row = self._durable.rows.get(due.entity)
                if row is None:
                    continue  # nothing is left of it
                try:
                    active = self._activated(due.entity, row.kind, now_ms)
                except StoreUnavailable:
                    raise
                except Exception as error:  # of its class's own code, too
                    why = describe_error(error)
                    _log.error("%s: %s is due, but the entity cannot be read: %s: %s", due.entity, due.timer, why.type, why.message)
                    continue
            timer = active.timers.get(due.timer)
            if timer is None or timer.due_ms != due.due_ms or active.holder:
                continue  # it was set again, or removed; or it waits until the lock is free
            if timer.message:
                active.set_timer(Timer(timer.name, 0))
                active.at_ms = now_ms
                self._deliver(Deliver(msgspec.structs.replace(_decode(timer.message), at_ms=0), timer.sender), now_ms)
            elif self._durable.timer(due.entity, due.timer) == timer:
                self._remind(active, timer, now_ms)  # else once it is on record: before, a crash would set it for another time
            self._note(active)

    def _set_clock(self, active: Activation, timer: Timer) -> None:
        if timer.due_ms:
            self._timers.set(timer.due_ms, _Due(active.address, timer.name, timer.due_ms))

    def _remind(self, active: Activation, timer: Timer, now_ms: int) -> None:
        missed = (now_ms - timer.due_ms) // timer.every_ms if timer.every_ms else 0
        due_ms = timer.due_ms + (missed + 1) * timer.every_ms if timer.every_ms else 0
        active.at_ms = now_ms
        active.set_timer(msgspec.structs.replace(timer, due_ms=due_ms))
        name = f"{active.address} reminded {timer.name} {timer.due_ms}"
        if self._crashes.count(name) >= MAX_CRASHES:
            _log.error("%s: reminded(%r) killed the process %d times and is left out", active.address, timer.name, MAX_CRASHES)
            return
        self._crashes.begin(name)
        _, failure = self._turn(active, "reminded", lambda entity: entity.reminded(timer.name, missed), now_ms)
        self._crashes.end()
        if failure is not None:
            _log.error("%s: reminded(%r) failed: %s: %s", active.address, timer.name, failure.type, failure.message)

    # -- memory --------------------------------------------------------------------------------------------------------------

    def _activated(self, address: str, function: Function, now_ms: int, operation: str = "") -> Activation:
        active = self._active.use(address)
        if active is None:
            row = self._durable.rows.get(address)
            kind = self._code.entity(function)
            try:
                active = Activation(address, function, kind, row, self._code.describe)
            except EntityUnreadable:
                if operation != "destroy":
                    raise
                active = Activation(address, function, kind, None, self._code.describe)  # what cannot be read can be ended
            if not self._watching_idle:
                self._watching_idle = True
                self._timers.set(now_ms + limits.current().entity_idle_ms, _PASSIVATE)
            self._active.add(active)
        active.used_ms = now_ms
        return active

    @property
    def active(self) -> Activations:
        """Which of them are in memory: to be looked at only."""
        return self._active

    # -- records -------------------------------------------------------------------------------------------------------------

    def _record_turns(self) -> None:
        """One record per entity for all its turns of this batch."""
        for active in self._changed.values():
            self._outbox.record(active.take_record())
            self._now_ms = max(self._now_ms, active.at_ms)
        self._changed.clear()
        self._active.passivate(self._now_ms)

    def durable(self, record: Handled | Settled) -> None:
        """A record has become durable and is part of what was given to the constructor."""
        if isinstance(record, Settled):
            self._answers.durable([] if record.turn is None else [record.turn])
            return
        active = self._active.get(record.entity)
        if active is None:  # there is no code for it, and only its lock was freed
            return
        active.durable(record)
        self._answers.durable(record.turns)
        for timer in record.timers:
            now = active.timers.get(timer.name)
            if now is None:
                self._timers.cancel(_Due(active.address, timer.name, 0))
            elif not timer.message and now.due_ms == timer.due_ms:  # else another record is on its way that says when
                self._set_clock(active, now)


def _too_many(active: Activation) -> Refused:
    most = limits.current().entity_mailbox
    return Refused("Overloaded", f"{active.address} is locked, and {most} messages wait for it already; try again later")


def _name(message: CallEntity, token: Token | None, sender: str) -> str:
    """What tells a message from others, as far as that can be told without keeping anything of it."""
    who = message.message_id or (f"{token.sender} {token.number}" if token is not None else sender)
    arguments = message.arguments if isinstance(message.arguments, bytes) else message.arguments.hash.encode()
    return f"{message.entity} {message.operation} {zlib.crc32(arguments):08x} {who}"
