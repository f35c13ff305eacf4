"""Systems that lack one rule about entities, letters, reminders or locks each; see ``simulation_variant``."""

# pyright: reportPrivateUsage=false
# The rules are private methods of their classes; switching one off means replacing it.
from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec

from rayflow.checkpoint import log
from rayflow.checkpoint.requests import Operation
from rayflow.core.activation import Activation, Outcome
from rayflow.core.answers import Answers
from rayflow.core.dead_letters import DeadLetters
from rayflow.core.entities import Entities, _Due
from rayflow.core.entity import Entity, EntityOperation
from rayflow.core.entity_state import Kept, KeptEntity, KeptSender
from rayflow.core.execution import Execution
from rayflow.core.mail import KeptMail, Mail, _decode
from rayflow.core.messages import Answered, CallEntity, Deliver, FromClient, Letter, Lock, Refused, Token
from rayflow.core.outbox import Batch
from rayflow.core.owner import Outbox, Owner
from rayflow.core.records import Blob, DeadLetter, Failure, Handled, MailRecord, Settled, Stored, Timer, Turn
from rayflow.core.state import DurableState
from rayflow.core.timers import Timers
from rayflow.core.workflows import Workflows
from rayflow.runtime.hosting import Host
from rayflow.runtime.session import Call, Open, Session
from rayflow.runtime.shard import Shard
from rayflow.runtime.snapshots import Snapshots
from rayflow.testing import simulation_judge as judge
from rayflow.testing import simulation_traces as traces
from rayflow.testing.simulation_crashes import CrashNotes
from rayflow.testing.simulation_variant import GateOpen, Variant
from rayflow.testing.simulator import Parts

# -- turns -------------------------------------------------------------------------------------------------------------------


class _SignalsOfFailedTurns(Activation):
    def run(self, name: str, function: Callable[[Entity[Any]], Any], now_ms: int, *, reads_only: bool) -> Outcome:
        scopes: list[Any] = []

        def watched(instance: Entity[Any]) -> Any:
            scopes.append(instance._scope)
            return function(instance)

        outcome = super().run(name, watched, now_ms, reads_only=reads_only)
        return outcome if outcome.failure is None else msgspec.structs.replace(outcome, sent=scopes[0].sent)


class _StateOfFailedTurns(Activation):
    def run(self, name: str, function: Callable[[Entity[Any]], Any], now_ms: int, *, reads_only: bool) -> Outcome:
        instance = self.instance
        outcome = super().run(name, function, now_ms, reads_only=reads_only)
        if outcome.failure is not None:
            self.instance = instance
        return outcome


class _TimersAreNotRecorded(Activation):
    def set_timer(self, timer: Timer) -> None:
        super().set_timer(timer)
        self._new_timers.clear()


class _AnswersAreNotRecorded(Activation):
    def take_record(self) -> Handled:
        self._turns.clear()
        return super().take_record()


class _ValuesOnlyFromTheStore(Outbox):
    def readable(self, stored: Stored) -> Stored:
        return stored


# -- messages of clients -----------------------------------------------------------------------------------------------------


class _IdsAreNotRemembered(Answers):
    def seen(self, active: Activation, token: Token, message: CallEntity, *, waited: bool) -> Turn | Refused | None:
        return None if message.message_id else super().seen(active, token, message, waited=waited)


class _ArgumentsOfIdsAreNotCompared(Answers):
    def seen(self, active: Activation, token: Token, message: CallEntity, *, waited: bool) -> Turn | Refused | None:
        row = self._durable.rows.get(active.address)
        known = active.pending.get(message.message_id) or (row.answer(message.message_id) if row is not None else None)
        if message.message_id and known is not None:
            return known
        return super().seen(active, token, message, waited=waited)


class _NumbersAreNotRemembered(Answers):
    def seen(self, active: Activation, token: Token, message: CallEntity, *, waited: bool) -> Turn | Refused | None:
        return super().seen(active, token, message, waited=waited) if message.message_id else None


class _TheForgottenIsNew(Answers):
    def _may_be_dropped(self, active: Activation, token: Token, forgotten_ms: int, window_ms: int) -> bool:
        return False


class NothingIsReadAhead(Owner):
    """A shard reads large values by itself, while it handles something."""

    def _not_at_hand(self, stored: Iterable[Stored | None]) -> list[Blob]:
        return []


class _HalvesAreCommitted(Shard):
    def _may_commit(self) -> bool:
        return True


class _AnyAnswerWillDo(Answers):
    def under_number(self, token: Token) -> Turn | None:
        durable = self._durable.senders.get(token.sender)
        answers = list(durable.answers.values()) if durable is not None else []
        return answers[-1] if answers else super().under_number(token)


class _Incomplete(Snapshots):
    """Something is left out."""

    def frozen(self, state: DurableState) -> DurableState:
        frozen, left = super().frozen(state), DurableState()
        frozen.entities, frozen.mail = left.entities, left.mail
        for kept in (*state.frozen().entities.kept(), *state.frozen().mail.kept()):
            mine = self.left(kept)
            if isinstance(mine, KeptMail):
                left.mail.restore(mine)
            elif mine is not None:
                left.entities.restore(mine)
        return frozen

    def left(self, kept: Kept | KeptMail) -> Kept | KeptMail | None:
        """What is left of a piece of the state; None: nothing."""
        raise NotImplementedError


def _without(kept: Kept | KeptMail, **empty: Any) -> Kept | KeptMail:
    return msgspec.structs.replace(kept, **empty) if isinstance(kept, KeptEntity) else kept


class _IdsAreNotInSnapshots(_Incomplete):
    def left(self, kept: Kept | KeptMail) -> Kept | KeptMail | None:
        return _without(kept, recent=[], older=[])


class _SendersAreNotInSnapshots(_Incomplete):
    def left(self, kept: Kept | KeptMail) -> Kept | KeptMail | None:
        return None if isinstance(kept, KeptSender) else kept


class _TheForgottenWaitForTheirTurn(Session):
    def has_forgotten(self, call: Call) -> bool:
        return False


class _OrderIsLostInWaiting(Host):
    def open_requests(self, shard: int) -> list[Open]:
        return super().open_requests(shard)[::-1]


# -- letters -----------------------------------------------------------------------------------------------------------------


class _MarksAreNotRecorded(Mail):
    def _record_marks(self) -> None:
        self._heard.clear()
        super()._record_marks()


class _EveryLetterCounts(Mail):
    def arrived(self, shard: int, letters: Iterable[tuple[int, bytes]]) -> Iterator[Letter]:
        for number, letter in letters:
            self._received[shard] = self._heard[shard] = max(number, self._received.get(shard, 0))
            yield _decode(letter)


class _LettersInAnyOrder(Mail):
    def arrived(self, shard: int, letters: Iterable[tuple[int, bytes]]) -> Iterator[Letter]:
        yield from reversed(list(super().arrived(shard, letters)))


class _LettersAreNotInSnapshots(_Incomplete):
    def left(self, kept: Kept | KeptMail) -> Kept | KeptMail | None:
        return msgspec.structs.replace(kept, letters=[]) if isinstance(kept, KeptMail) else kept


class _LettersAreNotRecorded(Mail):
    def send(self, to: str, letter: Letter) -> None:
        batch = self._outbox._batch
        count = len(batch.records)
        super().send(to, letter)
        del batch.records[count:], batch.encoded[count:]


class _LettersBeforeTheirTurn(Shard):
    def _write_records(self, batch: Batch) -> Operation[log.Tail]:
        pairs = list(zip(batch.records, batch.encoded, strict=True))
        mail = [data for record, data in pairs if isinstance(record, MailRecord)]
        rest = [data for record, data in pairs if not isinstance(record, MailRecord)]
        tail = self._tail
        if mail and rest:
            tail = yield from log.append(tail, mail)
        return (yield from log.append(tail, rest or mail))


class _SentIsDelivered(Host):
    async def post(self, source: int, target: int, letters: list[tuple[int, bytes]]) -> int:
        self._sent = asyncio.ensure_future(super().post(source, target, letters))
        return letters[-1][0]


# -- time --------------------------------------------------------------------------------------------------------------------


class _TimersAreNotInSnapshots(_Incomplete):
    def left(self, kept: Kept | KeptMail) -> Kept | KeptMail | None:
        return _without(kept, timers=[])


class _LaterIsNow(Entities):
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
        message = msgspec.structs.replace(message, at_ms=0)
        return super()._turn_of(message, token, now_ms, sender, waited=waited, name=name)


class _NamesOfMessagesForLaterRepeat(Activation):
    def delay(self, due_ms: int, message: bytes, sender: str, now_ms: int) -> Timer:
        self._delayed = 0
        return super().delay(due_ms, message, sender, now_ms)


class _OldClocksCount(Entities):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._timers = Timers()  # so that a clock that is set anew takes the place of none

    def advance(self, now_ms: int) -> None:
        for due in self._timers.pop_due(now_ms):
            active = self._active.get(due.entity)
            timer = active.timers.get(due.timer) if active is not None else None
            key = due if timer is None else _Due(due.entity, due.timer, timer.due_ms)
            self._timers.set(due.due_ms, key)
        super().advance(now_ms)


class _MissedIsNotSaid(Entities):
    def _remind(self, active: Activation, timer: Timer, now_ms: int) -> None:
        missed = (now_ms - timer.due_ms) // timer.every_ms if timer.every_ms else 0
        super()._remind(active, msgspec.structs.replace(timer, due_ms=timer.due_ms + missed * timer.every_ms), now_ms)


class _PassedOverIsForgotten(Entities):
    def _resume(self, active: Activation, now_ms: int) -> None:
        timers, active.timers = active.timers, {}
        super()._resume(active, now_ms)
        active.timers = {**timers, **active.timers}


# -- dead letters ------------------------------------------------------------------------------------------------------------


class _NothingIsKept(DeadLetters):
    def add(self, message: CallEntity, sender: str, reason: Failure, now_ms: int) -> int:
        return 0


class _NothingIsSettled(DeadLetters):
    def remove(self, letter: DeadLetter, turn: Turn, now_ms: int) -> None:
        del self._letters[letter.number]


class _WhoSettledIsForgotten(DeadLetters):
    def remove(self, letter: DeadLetter, turn: Turn, now_ms: int) -> None:
        del self._letters[letter.number]
        self._outbox.record(Settled(letter.entity, now_ms, letter.number))


class _RepetitionsForgetCrashes(Entities):
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
        name = name and f"{name} at {now_ms}"
        return super()._turn_of(message, token, now_ms, sender, waited=waited, name=name)


class _CrashesOfRemindersAreNotCounted(CrashNotes):
    def count(self, name: str) -> int:
        return 0 if " reminded " in name else super().count(name)


class _CrashesAreNotCounted(CrashNotes):
    def count(self, name: str) -> int:
        return 0


# -- locks -------------------------------------------------------------------------------------------------------------------


class _LocksAreNotFreed(Workflows):
    def _free_locks(self, entry: Execution) -> None:
        """Whoever has them may have them."""


class _LocksAreShared(Entities):
    def _lock(self, letter: Lock, now_ms: int) -> None:
        active = self._activated(letter.entity, letter.kind, now_ms)
        self._grant(active, letter, now_ms)
        self._note(active)


class _LettersDoNotWait(Entities):
    def _must_wait(self, letter: Deliver, now_ms: int) -> bool:
        return False


class _ClientsDoNotWait(Entities):
    def _wait(
        self, active: Activation, operation: EntityOperation[..., Any], message: CallEntity, token: Token, now_ms: int
    ) -> Answered | Refused | None:
        return self._turn_of(message, token, now_ms)


class _RemindersDoNotWait(Entities):
    def advance(self, now_ms: int) -> None:
        locked = [(active, active.holder) for active in self._active.values() if active.holder]
        for active, _ in locked:
            active.holder = ""
        super().advance(now_ms)
        for active, holder in locked:
            active.holder = holder


class _HoldersAreNotRecorded(Activation):
    def lock(self, holder: str, now_ms: int) -> None:
        self.holder = holder


class _LocksAreNotInSnapshots(_Incomplete):
    def left(self, kept: Kept | KeptMail) -> Kept | KeptMail | None:
        return _without(kept, holder="")


class _WhatWaitsIsNotRecorded(Activation):
    def defer(self, waiting: bytes, now_ms: int) -> None:
        self.queue.append(waiting)

    def take_deferred(self) -> bytes:
        return self.queue.popleft()


class _LastComesFirst(Activation):
    def take_deferred(self) -> bytes:
        self._new_queue = True
        return self.queue.pop()


class _WaitsTwice(Entities):
    def _wait(
        self, active: Activation, operation: EntityOperation[..., Any], message: CallEntity, token: Token, now_ms: int
    ) -> Answered | Refused | None:
        active.defer(msgspec.msgpack.encode(FromClient(token, message)), now_ms)
        self._note(active)
        return None


ENTITY_VARIANTS = (
    Variant("I20", "turns leave before the write", (traces.TURN_LOST, traces.WRONG_ANSWER), Parts(GateOpen)),
    Variant("I20", "a turn that raises sends its signals", (traces.HALF,), entities={"Activation": _SignalsOfFailedTurns}),
    Variant("I20", "a turn that raises leaves its state", (traces.WRONG_TOTAL,), entities={"Activation": _StateOfFailedTurns}),
    Variant("I20", "reminders are not recorded with their turn", (traces.HALF,), entities={"Activation": _TimersAreNotRecorded}),
    Variant("I20", "answers are not recorded with their turn", (traces.HALF,), entities={"Activation": _AnswersAreNotRecorded}),
    Variant("I17", "values are read from the store alone", (judge.ERROR,), Parts(outbox=_ValuesOnlyFromTheStore)),
    Variant(
        "I21",
        "message ids are not remembered",
        (traces.HANDLED_TWICE, traces.TWO_ANSWERS),
        entities={"Answers": _IdsAreNotRemembered},
    ),
    Variant("I21", "message ids are not in snapshots", (traces.TWO_ANSWERS,), Parts(snapshots=_IdsAreNotInSnapshots)),
    Variant(
        "I21", "an id serves another message, too", (traces.WRONG_ANSWER,), entities={"Answers": _ArgumentsOfIdsAreNotCompared}
    ),
    Variant(
        "I21", "numbers of clients are not remembered", (traces.HANDLED_TWICE,), entities={"Answers": _NumbersAreNotRemembered}
    ),
    Variant("I21", "numbers of clients are not in snapshots", (traces.HANDLED_TWICE,), Parts(snapshots=_SendersAreNotInSnapshots)),
    Variant("I21", "what was forgotten of a client is new", (traces.HANDLED_TWICE,), entities={"Answers": _TheForgottenIsNew}),
    Variant(
        "I22",
        "the half of an event is committed",
        (traces.LETTER_LOST,),
        Parts(owner=NothingIsReadAhead, shard=_HalvesAreCommitted),
        first_seed=700,
    ),
    Variant("I21", "what comes again gets any answer", (traces.WRONG_ANSWER,), entities={"Answers": _AnyAnswerWillDo}),
    Variant("I21", "what waits for a shard loses its order", (traces.WRONG_ANSWER,), Parts(host=_OrderIsLostInWaiting)),
    Variant("I21", "who was forgotten waits for a turn", (judge.UNFINISHED,), hosting={"Session": _TheForgottenWaitForTheirTurn}),
    Variant("I21", "what waits for a lock waits twice", (traces.HANDLED_TWICE,), Parts(entities=_WaitsTwice)),
    Variant(
        "I22",
        "marks of letters are not recorded",
        (traces.HANDLED_TWICE, traces.HALF),
        Parts(mail=_MarksAreNotRecorded),
    ),
    Variant("I22", "a letter that comes again counts", (traces.HANDLED_TWICE,), Parts(mail=_EveryLetterCounts)),
    Variant("I22", "letters are handled in any order", (traces.DISORDER,), Parts(mail=_LettersInAnyOrder)),
    Variant("I22", "letters are not in snapshots", (traces.LETTER_LOST,), Parts(snapshots=_LettersAreNotInSnapshots)),
    Variant("I22", "letters are not recorded", (traces.HALF, traces.LETTER_LOST), Parts(mail=_LettersAreNotRecorded)),
    Variant("I22", "letters are recorded before their turn", (traces.HALF,), Parts(shard=_LettersBeforeTheirTurn)),
    Variant("I22", "a letter sent counts as delivered", (traces.LETTER_LOST,), Parts(host=_SentIsDelivered)),
    Variant("I22", "what is for later is handled at once", (traces.EARLY,), Parts(entities=_LaterIsNow)),
    Variant(
        "I22", "messages for later share a name", (traces.LETTER_LOST,), entities={"Activation": _NamesOfMessagesForLaterRepeat}
    ),
    Variant("I20", "what is for later is not in snapshots", (traces.LETTER_LOST,), Parts(snapshots=_TimersAreNotInSnapshots)),
    Variant("I20", "a reminder comes when it was first set for", (traces.EARLY,), Parts(entities=_OldClocksCount)),
    Variant("I20", "a reminder does not say what was missed", (traces.LATE,), Parts(entities=_MissedIsNotSaid)),
    Variant("I24", "what cannot be handled is not kept", (traces.LETTER_LOST,), entities={"DeadLetters": _NothingIsKept}),
    Variant("I24", "what was settled is a dead letter again", (traces.HALF,), entities={"DeadLetters": _NothingIsSettled}),
    Variant(
        "I21",
        "who settled it is forgotten",
        (traces.WRONG_ANSWER,),
        entities={"DeadLetters": _WhoSettledIsForgotten},
        first_seed=720,
    ),
    Variant("I24", "who asks again forgets crashes", (traces.DEADLY,), Parts(entities=_RepetitionsForgetCrashes)),
    Variant(
        "I24",
        "crashes of reminders are not counted",
        (traces.DEADLY,),
        Parts(crashes=_CrashesOfRemindersAreNotCounted),
    ),
    Variant("I24", "crashes are not counted", (traces.DEADLY,), Parts(crashes=_CrashesAreNotCounted)),
    Variant("I25", "the end of a workflow frees no lock", (traces.STUCK,), Parts(machine=_LocksAreNotFreed)),
    Variant("I25", "a lock is given to all who ask", (traces.SHARED, traces.BETWEEN), Parts(entities=_LocksAreShared)),
    Variant("I25", "letters pass a lock", (traces.BETWEEN,), Parts(entities=_LettersDoNotWait)),
    Variant("I25", "messages of clients pass a lock", (traces.BETWEEN,), Parts(entities=_ClientsDoNotWait)),
    Variant("I25", "reminders pass a lock", (traces.BETWEEN,), Parts(entities=_RemindersDoNotWait)),
    Variant("I25", "reminders that a lock held up do not come", (traces.LATE,), Parts(entities=_PassedOverIsForgotten)),
    Variant(
        "I25", "who has a lock is not recorded", (traces.HALF, traces.BETWEEN), entities={"Activation": _HoldersAreNotRecorded}
    ),
    Variant("I25", "locks are not in snapshots", (traces.BETWEEN,), Parts(snapshots=_LocksAreNotInSnapshots)),
    Variant("I25", "what waits for a lock is not recorded", (traces.HALF,), entities={"Activation": _WhatWaitsIsNotRecorded}),
    Variant("I25", "what waits for a lock loses its order", (traces.DISORDER,), entities={"Activation": _LastComesFirst}),
)
