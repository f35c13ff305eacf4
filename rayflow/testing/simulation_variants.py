"""Systems that lack one rule each: what the simulator must find harm in, or the rule would be idle. See ``simulation_variant``.

Those of entities are in ``simulation_entity_variants``.
"""

# pyright: reportPrivateUsage=false
# The rules of the log are private functions of its module; switching one off means replacing it.
from __future__ import annotations

import sys
from collections.abc import Hashable
from typing import Any

import msgspec

from rayflow.checkpoint import log
from rayflow.checkpoint.log import Operation, SnapshotName, Tail
from rayflow.core.crashes import Noted
from rayflow.core.execution import Execution, Passive
from rayflow.core.ledger import Connection, Ledger
from rayflow.core.memory import Memory
from rayflow.core.messages import Accepted, Attempt, Refused, ResumeExecution, StartExecution, StepResult, WorkflowMessage
from rayflow.core.outbox import Batch, Reply
from rayflow.core.owner import Commit, Owner
from rayflow.core.records import Kept, Record, Resumed
from rayflow.core.workflows import Workflows
from rayflow.runtime.shard import Shard
from rayflow.testing import simulation_judge as judge
from rayflow.testing import simulation_traces as traces
from rayflow.testing.simulation_crashes import CrashNotes
from rayflow.testing.simulation_entity_variants import ENTITY_VARIANTS, NothingIsReadAhead
from rayflow.testing.simulation_variant import GateOpen, Variant
from rayflow.testing.simulator import Parts

# -- the log -----------------------------------------------------------------------------------------------------------------


def _all_slots(at: Tail) -> list[int]:
    return list(range(at.snapshot_number or 0, at.number))


def _is_no_claim(data: bytes, key: str) -> bool:
    return False


_look_again = log._is_still_newest


def _look_only_when_something_is_wrong(prefix: str, start: SnapshotName | None) -> Operation[bool]:
    return True if sys.exception() is None else (yield from _look_again(prefix, start))


def _any_is_own(found: bytes, written: bytes) -> bool:
    return True


# -- the owner ---------------------------------------------------------------------------------------------------------------


class _ValuesLast(Shard):
    def _writing(self, batch: Batch) -> Operation[Tail]:
        tail = yield from self._write_records(batch)
        yield from self._write_values(batch)
        return tail


class _SnapshotsInFlight(Owner):
    def next_commit(self) -> Commit:
        commit = super().next_commit()
        super().apply(commit.batch)
        return commit

    def apply(self, batch: Batch) -> None:
        """It was applied before it was written."""


class _NothingIsProved(Owner):
    def must_prove(self, connection: Connection, proven: Connection) -> bool:
        return False


class _AnswersAreNotProved(Owner):
    def answers(self, batch: Batch) -> bool:
        return False


class _OnlyAbsenceIsProved(Owner):
    def answers(self, batch: Batch) -> bool:
        refusals = [one.answer for one in batch.effects if isinstance(one, Reply) and isinstance(one.answer, Refused)]
        return any(one.error == "ExecutionNotFound" for one in refusals)


class _OldExpectations(Owner):
    _asked: tuple[Attempt, ...] | None = None

    def expected(self) -> tuple[Attempt, ...]:
        if self._asked is None:
            self._asked = super().expected()
        return self._asked

    def attached(self, connection: Connection, lost: list[Attempt], now_ms: int) -> None:
        super().attached(connection, lost, now_ms)
        self._asked = None

    def may_send(self) -> bool:
        return True


class _TakenIsForgotten(Owner):
    def taken(self, attempts: list[Attempt]) -> None:
        for attempt in attempts:
            self._expected.pop(attempt, None)


class _NumbersOfOldConnections(Owner):
    def counts(self, connection: Connection) -> bool:
        return True


# -- the dispatcher ----------------------------------------------------------------------------------------------------------


class _OldEpochs(Ledger):
    def may_attach(self, connection: Connection) -> bool:
        return True

    def is_connected(self, connection: Connection) -> bool:
        return True


class _OldConnections(Ledger):
    def is_connected(self, connection: Connection) -> bool:
        return connection.epoch == self.connection.epoch


class _OldAttaches(Ledger):
    def may_attach(self, connection: Connection) -> bool:
        return connection.epoch >= self.connection.epoch


class _CallsAreRepeated(Ledger):
    def is_new(self, call: int) -> bool:
        return True


class _AttemptsAreNotKnown(Ledger):
    def is_new(self, call: int) -> bool:
        return True

    def is_known(self, attempt: Attempt) -> bool:
        return False


class _SeenIsDropped(Ledger):
    def droppable(self, recorded: int, seen: int) -> int:
        return seen


# -- the machine -------------------------------------------------------------------------------------------------------------


class _IdsAreNotKnown(Workflows):
    def receive(self, token: Any, message: WorkflowMessage, now_ms: int) -> None:
        if isinstance(message, StartExecution):
            self._live.pop(message.execution, None)
            self._ended.pop(message.execution, None)
        super().receive(token, message, now_ms)


class _ArgumentsAreNotCompared(Workflows):
    def _start(self, message: StartExecution, now_ms: int) -> Accepted | Refused:
        answer = super()._start(message, now_ms)
        return Accepted(message.execution, created=False) if isinstance(answer, Refused) else answer


class _RunsAreNotTold(Workflows):
    def step_finished(self, result: StepResult, now_ms: int) -> None:
        entry = self._live.get(result.execution)
        run = result.run if entry is None else entry.started.seed
        super().step_finished(msgspec.structs.replace(result, run=run), now_ms)


class _RunsOfOneSeed(Workflows):
    def _start(self, message: StartExecution, now_ms: int) -> Accepted | Refused:
        self._epoch = self._forgotten = 0
        return super()._start(message, now_ms)


class _NothingIsTriedAgain(Workflows):
    def step_finished(self, result: StepResult, now_ms: int) -> None:
        super().step_finished(msgspec.structs.replace(result, retryable=False), now_ms)


class _OldAttempts(Workflows):
    def step_finished(self, result: StepResult, now_ms: int) -> None:
        entry = self._live.get(result.execution)
        one = entry.open.get(result.operation) if entry is not None else None
        if one is not None:
            one.due_ms = None
            result = msgspec.structs.replace(result, attempt=one.attempt)
        super().step_finished(result, now_ms)


class _Hasty(Memory):
    def _patience_ms(self) -> int:
        return 0

    def _passivate(self, execution: str, entry: Execution) -> None:
        if entry.rests() and execution in self.durable:
            del self.live[execution]
            self.passive[execution] = entry.passivated()


class _LeavesTooEarly(Workflows):
    memory = _Hasty


# -- code that ends its process ----------------------------------------------------------------------------------------------


class _CrashesOfCodeAreNotCounted(CrashNotes):
    def count(self, name: str) -> int:
        return 0 if name.startswith("execution ") else super().count(name)


class _CrashesOfResumesAreNotCounted(CrashNotes):
    def count(self, name: str) -> int:
        return 0 if " resumed for " in name else super().count(name)


class _ResumesForgetWhatWasKept(Workflows):
    def _made(
        self, execution: str, records: list[Record], passive: Passive | None, now_ms: int, noted: Noted | None = None
    ) -> Execution:
        if isinstance(records[-1], Resumed):
            records = [one for one in records if not isinstance(one, Kept)]
        return super()._made(execution, records, passive, now_ms, noted)


class _ResumesAreNotRecorded(Workflows):
    def _resume(self, token: Hashable, message: ResumeExecution, now_ms: int) -> Accepted | Refused:
        entry = self._memory.find(message.execution, now_ms)
        if entry is None or entry.suspended is None:
            return super()._resume(token, message, now_ms)
        return Accepted(message.execution, created=True)


THE_SYSTEM = Variant("", "the system as it is")

_OF_WORKFLOWS = (
    Variant(
        "I3",
        "claims are deleted with the rest",
        (judge.LOST,),
        log={"_replaced_segments": _all_slots, "_may_be_claim": _is_no_claim},
    ),
    Variant("I4", "nobody looks again after a claim", (judge.LOST,), log={"_is_still_newest": _look_only_when_something_is_wrong}),
    Variant(
        "I5",
        "'already exists' is taken for success",
        (judge.LOST, judge.CONTRADICTION, judge.WRITERS, judge.DAMAGE, judge.TWO_RESULTS),
        log={"_is_own": _any_is_own},
    ),
    Variant("I6", "snapshots hold what is in flight", (judge.LOST, judge.ERROR), Parts(owner=_SnapshotsInFlight)),
    Variant("I17", "records are written before their values", (judge.LOST,), Parts(shard=_ValuesLast)),
    Variant("I8", "effects leave before the write", (judge.UNRECORDED, judge.CONTRADICTION), Parts(shard=GateOpen)),
    Variant("I9", "nothing is proved after attaching", (judge.UNFINISHED,), Parts(owner=_NothingIsProved)),
    Variant("I2", "answers are given without proof", (judge.CONTRADICTION,), Parts(owner=_AnswersAreNotProved)),
    Variant("I2", "only absence is proved", (judge.CONTRADICTION,), Parts(owner=_OnlyAbsenceIsProved), first_seed=3450),
    Variant("I8", "nothing is read ahead", (judge.BLOCKED,), Parts(owner=NothingIsReadAhead)),
    Variant("I13", "attaches again with old expectations", (judge.UNFINISHED,), Parts(owner=_OldExpectations)),
    Variant("I13", "a result taken is not expected any more", (judge.DROPPED,), Parts(owner=_TakenIsForgotten)),
    Variant("I13", "numbers of an old connection count", (judge.DROPPED,), Parts(owner=_NumbersOfOldConnections)),
    Variant("I2", "the dispatcher serves old epochs", (judge.RERUN,), Parts(ledger=_OldEpochs)),
    Variant("I9", "the dispatcher serves old connections", (judge.RERUN,), Parts(ledger=_OldConnections)),
    Variant("I13", "an old attach counts", (judge.DROPPED,), Parts(ledger=_OldAttaches)),
    Variant("I9", "repeated calls are carried out", (judge.RERUN,), Parts(ledger=_CallsAreRepeated)),
    Variant("I14", "the dispatcher does not know what it started", (judge.TWICE,), Parts(ledger=_AttemptsAreNotKnown)),
    Variant("I13", "results are dropped once seen", (judge.DROPPED,), Parts(ledger=_SeenIsDropped)),
    Variant(
        "I12",
        "an id that exists starts anew",
        (judge.CONTRADICTION, judge.AT_MOST_ONCE),
        Parts(machine=_IdsAreNotKnown),
    ),
    Variant("I12", "an id serves other arguments, too", (judge.CONTRADICTION,), Parts(machine=_ArgumentsAreNotCompared)),
    Variant("I14", "what fails is not tried again", (judge.OUTCOME,), Parts(machine=_NothingIsTriedAgain)),
    Variant("I14", "results of old attempts count", (judge.MADE_UP,), Parts(machine=_OldAttempts)),
    Variant("I14", "results of a forgotten run count", (judge.MADE_UP,), Parts(machine=_RunsAreNotTold)),
    Variant("I26", "what is not durable leaves memory", (judge.UNFINISHED,), Parts(machine=_LeavesTooEarly)),
    Variant("I27", "crashes of code are not counted", (traces.DEADLY,), Parts(crashes=_CrashesOfCodeAreNotCounted)),
    Variant("I27", "who asks to resume may crash without end", (traces.DEADLY,), Parts(crashes=_CrashesOfResumesAreNotCounted)),
    Variant("I27", "a resume forgets what was kept", (judge.RERUN,), Parts(machine=_ResumesForgetWhatWasKept)),
    Variant(
        "I27",
        "a resume is promised and not done",
        (judge.CONTRADICTION, judge.UNFINISHED),
        Parts(machine=_ResumesAreNotRecorded),
    ),
    Variant("I14", "a message that comes again starts the same run", (judge.DROPPED,), Parts(machine=_RunsOfOneSeed)),
)

VARIANTS = (*(one.on("workflows") for one in _OF_WORKFLOWS), *(one.on("entities") for one in ENTITY_VARIANTS))
