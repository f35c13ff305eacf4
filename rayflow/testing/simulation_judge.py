"""What must hold, whatever happens: the properties that a simulated run is judged by.

The truth is what was really written: the slots that came into being beyond the newest snapshot, in order. Everything that anybody
does or hears is compared with it at that very moment, and what a reader finds in the end with all of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from rayflow.checkpoint.segment import Kind, decode
from rayflow.core.messages import Accepted, Answer, Attempt, CancelExecution, Ended, Message, Refused, StartExecution
from rayflow.core.records import (
    Abandoned,
    CancelRequested,
    Cause,
    Completed,
    Failed,
    Finished,
    Record,
    Retried,
    Scheduled,
    Started,
    decode_record,
)
from rayflow.testing.simulation_world import World

LOST = "an acknowledged event is lost"
RERUN = "a completed step runs again"
UNRECORDED = "an attempt starts that is not on record"
TWICE = "an attempt starts twice"
AT_MOST_ONCE = "an at-most-once step runs twice"
MADE_UP = "a result is recorded that no attempt gave"
TWO_RESULTS = "an operation gets two results"
WRITERS = "two writers in one epoch"
DROPPED = "a result is dropped before it is on record"
CONTRADICTION = "an answer contradicts the log"
OUTCOME = "an outcome differs from that of an undisturbed run"
UNFINISHED = "an execution does not end after the disturbance"
DAMAGE = "an intact log is taken for damaged"
ERROR = "an owner fails in a way that it should not"

PROPERTIES = (
    LOST,
    RERUN,
    UNRECORDED,
    TWICE,
    AT_MOST_ONCE,
    MADE_UP,
    TWO_RESULTS,
    WRITERS,
    DROPPED,
    CONTRADICTION,
    OUTCOME,
    UNFINISHED,
    DAMAGE,
    ERROR,
)


@dataclass(slots=True)
class Fate:
    """What is on record of one execution."""

    started: Started
    records: list[bytes] = field(default_factory=list[bytes])
    attempts: dict[tuple[str, int], None] = field(default_factory=dict[tuple[str, int], None])
    completed: dict[str, int] = field(default_factory=dict[str, int])
    """Operation to the slot that has its result."""
    settled: dict[tuple[str, int], None] = field(default_factory=dict[tuple[str, int], None])
    """Attempts whose end is on record."""
    abandoned: dict[str, None] = field(default_factory=dict[str, None])
    cancelled: bool = False
    """Whether somebody asked for that."""
    finished: Finished | None = None


@dataclass(slots=True)
class _Log:
    newest_snapshot: int = -1
    epoch: int = 0
    incarnation: str = ""


class Judge:
    """Told of everything; ``violations`` counts by property."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.violations: Counter[str] = Counter()
        self.fates: dict[str, Fate] = {}
        self._acknowledged: dict[bytes, str] = {}
        """Records that their owner knows to be durable, and of which execution."""
        self._logs: dict[str, _Log] = {}
        self._ran: dict[Attempt, bool] = {}
        """Attempts that began, and whether they came to an end."""
        self._once: dict[tuple[str, str, int], None] = {}

    def violated(self, what: str, detail: str) -> None:
        """Note that a property does not hold."""
        self.violations[what] += 1
        self.world.log("VIOLATION", f"{what}: {detail}")

    # -- the log -------------------------------------------------------------------------------------------------------------

    def created(self, key: str, data: bytes) -> None:
        """An object came into being in the store."""
        top, _, rest = key.partition("/")
        if top != "shards":
            return
        shard, _, rest = rest.partition("/")
        log = self._logs.setdefault(shard, _Log())
        if rest.startswith("snapshots/"):
            log.newest_snapshot = max(log.newest_snapshot, int(rest[10:22]))
            return
        slot = decode(data, key)
        if slot.number <= log.newest_snapshot:
            return  # a late write into a slot that was truncated: nobody may read it
        if self.world.tracing:
            self.world.log("log", f"{key} {slot.kind.name} epoch {slot.epoch} of {slot.incarnation}")
        if slot.kind is Kind.CLAIM:
            if slot.epoch <= log.epoch:
                self.violated(WRITERS, f"{key} does not raise the epoch")
            log.epoch, log.incarnation = slot.epoch, slot.incarnation
        elif (slot.epoch, slot.incarnation) != (log.epoch, log.incarnation):
            self.violated(WRITERS, key)
        for encoded in slot.records:
            self._recorded(decode_record(encoded), encoded, slot.number)

    def _recorded(self, record: Record, encoded: bytes, slot: int) -> None:
        if self.world.tracing:
            self.world.log("log", f"    {type(record).__name__} {record.execution} {getattr(record, 'operation', '')}")
        if isinstance(record, Started):
            if record.execution in self.fates:
                self.violated(CONTRADICTION, f"{record.execution} is started twice")
            self.fates[record.execution] = Fate(record)
        fate = self.fates.get(record.execution)
        if fate is None:
            self.violated(LOST, f"{record} is written, but no start of {record.execution}")
            return
        fate.records.append(encoded)
        if isinstance(record, Scheduled):
            if record.kind == "step":
                fate.attempts[record.operation, 1] = None
        elif isinstance(record, Retried):
            fate.attempts[record.operation, record.attempt] = None
        elif isinstance(record, Completed):
            if record.operation in fate.completed:
                self.violated(TWO_RESULTS, f"{record.execution} {record.operation}")
            fate.completed[record.operation] = slot
            self._settled(fate, record)
        elif isinstance(record, Failed):
            self._settled(fate, record)
        elif isinstance(record, Abandoned):
            fate.abandoned[record.operation] = None
        elif isinstance(record, CancelRequested):
            fate.cancelled = True
        elif isinstance(record, Finished):
            fate.finished = record

    def _settled(self, fate: Fate, record: Completed | Failed) -> None:
        fate.settled[record.operation, record.attempt] = None
        lost = isinstance(record, Failed) and record.cause is Cause.LOST
        if not lost and not self._ran.get(Attempt(record.execution, record.operation, record.attempt, fate.started.seed)):
            self.violated(MADE_UP, f"{record.execution} {record.operation} attempt {record.attempt}")

    def acknowledge(self, records: Sequence[Record], encoded: Sequence[bytes]) -> None:
        """An owner was told that these records are durable."""
        for record, data in zip(records, encoded, strict=True):
            self._acknowledged[data] = record.execution

    # -- steps ---------------------------------------------------------------------------------------------------------------

    def attempt_starts(self, attempt: Attempt, at_most_once: bool, known_slot: int | None) -> None:
        """A step begins to run. ``known_slot``: the last one that its owner knows of, where nobody could have told it more."""
        fate = self.fates.get(attempt.execution)
        if fate is None or (attempt.operation, attempt.attempt) not in fate.attempts:
            self.violated(UNRECORDED, f"{attempt}")
        if fate is not None:
            slot = fate.completed.get(attempt.operation)
            if slot is not None and (known_slot is None or slot <= known_slot):
                self.violated(RERUN, f"{attempt}")
        if attempt in self._ran and known_slot is None:
            self.violated(TWICE, f"{attempt}")
        if at_most_once:
            step = (attempt.execution, attempt.operation, attempt.run)
            if step in self._once:
                self.violated(AT_MOST_ONCE, f"{attempt}")
            self._once[step] = None
        self._ran.setdefault(attempt, False)

    def attempt_ends(self, attempt: Attempt) -> None:
        """A step has a result."""
        self._ran[attempt] = True

    def result_dropped(self, attempt: Attempt) -> None:
        """A result is not held for its owner any more: it must be on record, or count for nothing."""
        fate = self.fates.get(attempt.execution)
        if (
            fate is not None
            and fate.finished is None
            and attempt.operation not in fate.abandoned
            and (attempt.operation, attempt.attempt) not in fate.settled
        ):
            self.violated(DROPPED, f"{attempt}")

    # -- clients -------------------------------------------------------------------------------------------------------------

    def answered(self, message: Message, answer: Answer, known: bool) -> None:
        """A client gets an answer. ``known``: it knew, before it asked, that the execution had been started."""
        fate = self.fates.get(message.execution)
        if isinstance(answer, Accepted):
            if fate is None:
                self.violated(CONTRADICTION, f"{message} is accepted, but not on record")
            elif isinstance(message, StartExecution) and message.fingerprint != fate.started.fingerprint:
                self.violated(CONTRADICTION, f"{message} is accepted with other arguments than those on record")
            elif isinstance(message, CancelExecution) and not fate.cancelled and fate.finished is None:
                self.violated(CONTRADICTION, f"{message} is accepted, but not on record")
        elif isinstance(answer, Ended):
            finished = fate.finished if fate is not None else None
            if finished is None:
                self.violated(CONTRADICTION, f"the end of {message.execution} is told, but not on record")
            elif (finished.status, finished.result, finished.failure) != (answer.status, answer.result, answer.failure):
                self.violated(CONTRADICTION, f"the end of {message.execution} is told otherwise than recorded")
        else:
            self._refused(message, answer, known)

    def _refused(self, message: Message, answer: Refused, known: bool) -> None:
        fate = self.fates.get(message.execution)
        if answer.error == "ExecutionNotFound":
            if known:
                self.violated(CONTRADICTION, f"{message.execution} is not found, but was started before")
        elif answer.error == "IdInUse":
            same = isinstance(message, StartExecution) and fate is not None and message.fingerprint == fate.started.fingerprint
            if fate is None or same:
                self.violated(CONTRADICTION, f"{message.execution} is said to be in use, but is not on record so")
        else:
            self.violated(ERROR, f"{message.execution}: {answer.error}: {answer.message}")

    # -- the end -------------------------------------------------------------------------------------------------------------

    def compare(self, found: dict[str, list[bytes]]) -> None:
        """Compare what a reader finds in the end with what was written, and with what was acknowledged."""
        for execution, fate in self.fates.items():
            records = found.get(execution, [])
            if records != fate.records:
                self.violated(LOST, f"{execution}: {len(records)} records of {len(fate.records)}")
        present = {data for records in found.values() for data in records}
        for data, execution in self._acknowledged.items():
            if data not in present:
                self.violated(LOST, f"{execution}: {decode_record(data)}")
