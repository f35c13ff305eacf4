"""What must hold, whatever happens: the properties that a simulated run is judged by.

The truth is what was really written: the slots that came into being beyond the newest snapshot, in order. Everything that anybody
does is compared with it at that very moment, an answer with what was true at some moment between question and answer, and what a
reader finds in the end with all of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from rayflow.checkpoint.segment import Kind, decode
from rayflow.core.messages import (
    Answer,
    Answered,
    Attempt,
    CancelExecution,
    Confirmed,
    Ended,
    Refused,
    ResumeExecution,
    StartExecution,
    WorkflowMessage,
)
from rayflow.core.records import (
    Abandoned,
    CancelRequested,
    Cause,
    Completed,
    EntityRecord,
    Failed,
    Finished,
    Forgotten,
    Kept,
    MailRecord,
    Record,
    Retried,
    Scheduled,
    Started,
    Suspended,
    WorkflowRecord,
    decode_record,
)
from rayflow.testing.simulation_entity_judge import EntityJudge
from rayflow.testing.simulation_traces import ENTITY_PROPERTIES
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
BLOCKED = "a shard waits for the store on the loop that it shares"

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
    BLOCKED,
    *ENTITY_PROPERTIES,
)


@dataclass(slots=True)
class Fate:
    """What is on record of one execution; after it was forgotten there may be another of the same id."""

    started: Started
    begun_ms: float
    records: list[bytes] = field(default_factory=list[bytes])
    attempts: dict[tuple[str, int], None] = field(default_factory=dict[tuple[str, int], None])
    completed: dict[str, int] = field(default_factory=dict[str, int])
    """Operation to the slot that has its result."""
    settled: dict[tuple[str, int], None] = field(default_factory=dict[tuple[str, int], None])
    """Attempts whose end is on record."""
    abandoned: dict[str, None] = field(default_factory=dict[str, None])
    calls: dict[str, None] = field(default_factory=dict[str, None])
    """Operations that entities answer."""
    cancelled: bool = False
    """Whether somebody asked for that."""
    kept: dict[str, None] = field(default_factory=dict[str, None])
    """Operations whose result came while it was suspended and that the code has not got yet."""
    suspended: bool = False
    resumed_ms: float = -1.0
    """When it was suspended last, if it is no more."""
    finished: Finished | None = None
    forgotten_ms: float | None = None

    def is_same(self, message: StartExecution) -> bool:
        """Whether the message starts this very workflow with these arguments."""
        started = self.started
        return (started.workflow, started.fingerprint) == (message.workflow, message.fingerprint)


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
        self.error = ERROR
        self.entities = EntityJudge(self)
        self.fates: dict[str, list[Fate]] = {}
        """By execution; all but the last were forgotten."""
        self._acknowledged: dict[bytes, str] = {}
        """Records that their owner knows to be durable, and of which execution."""
        self._logs: dict[str, _Log] = {}
        self._ran: dict[Attempt, bool] = {}
        """Attempts that began, and whether they came to an end."""
        self._failed: dict[Attempt, None] = {}
        """Attempts whose end is a failure."""
        self._once: dict[tuple[str, str, int], None] = {}
        self.unfit: list[StartExecution] = []
        """Starts with arguments that do not fit their workflow; nothing of them may be recorded."""

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
        records = [decode_record(encoded) for encoded in slot.records]
        for record, encoded in zip(records, slot.records, strict=True):
            if not isinstance(record, EntityRecord | MailRecord):
                self._recorded(record, encoded, slot.number)
            elif self.world.tracing:
                self.world.log("log", f"    {record}")
        self.entities.written(int(shard), records, slot.records)

    def _recorded(self, record: WorkflowRecord, encoded: bytes, slot: int) -> None:
        if self.world.tracing:
            self.world.log("log", f"    {type(record).__name__} {record.execution} {getattr(record, 'operation', '')}")
        fate = self._current(record.execution)
        if isinstance(record, Started):
            if fate is not None:
                self.violated(CONTRADICTION, f"{record.execution} is started twice")
            if any(record.fingerprint == one.fingerprint and record.workflow == one.workflow for one in self.unfit):
                self.violated(CONTRADICTION, f"{record.execution} is started with arguments that do not fit")
            self.world.happened["started again"] += record.execution in self.fates
            fate = Fate(record, self.world.now_ms)
            self.fates.setdefault(record.execution, []).append(fate)
        if fate is None:
            self.violated(LOST, f"{record} is written, but no start of {record.execution}")
            return
        fate.records.append(encoded)
        if isinstance(record, Suspended):
            fate.suspended = True
            self.world.happened["suspended"] += 1
        elif fate.suspended and not isinstance(record, Kept):
            fate.suspended, fate.resumed_ms = False, self.world.now_ms
        if isinstance(record, Scheduled):
            if record.kind == "step":
                fate.attempts[record.operation, 1] = None
            elif record.kind in ("call", "lock"):
                fate.calls[record.operation] = None
        elif isinstance(record, Retried):
            fate.attempts[record.operation, record.attempt] = None
        elif isinstance(record, Completed | Kept):
            if record.operation in fate.completed and record.operation not in fate.kept:
                self.violated(TWO_RESULTS, f"{record.execution} {record.operation}")
            fate.completed[record.operation] = slot
            self._settled(fate, record)
            if isinstance(record, Kept):
                fate.kept[record.operation] = None
            else:
                fate.kept.pop(record.operation, None)
        elif isinstance(record, Failed):
            self._settled(fate, record)
        elif isinstance(record, Abandoned):
            fate.abandoned[record.operation] = None
        elif isinstance(record, CancelRequested):
            fate.cancelled = True
        elif isinstance(record, Finished):
            fate.finished = record
        elif isinstance(record, Forgotten):
            fate.forgotten_ms = self.world.now_ms
            self.world.happened["forgotten"] += 1

    def _current(self, execution: str) -> Fate | None:
        """What is not forgotten."""
        fates = self.fates.get(execution)
        return None if not fates or fates[-1].forgotten_ms is not None else fates[-1]

    def _fate_of(self, attempt: Attempt) -> Fate | None:
        fates = self.fates.get(attempt.execution, ())
        return next((fate for fate in reversed(fates) if fate.started.seed == attempt.run), None)

    def _settled(self, fate: Fate, record: Completed | Failed | Kept) -> None:
        fate.settled[record.operation, record.attempt] = None
        if record.operation in fate.calls:
            return
        lost = isinstance(record, Failed) and record.cause is Cause.LOST
        if not lost and not self._ran.get(Attempt(record.execution, record.operation, record.attempt, fate.started.seed)):
            self.violated(MADE_UP, f"{record.execution} {record.operation} attempt {record.attempt}")

    def acknowledge(self, records: Sequence[Record], encoded: Sequence[bytes]) -> None:
        """An owner was told that these records are durable."""
        for record, data in zip(records, encoded, strict=True):
            self._acknowledged[data] = getattr(record, "execution", "") or getattr(record, "entity", "letters")

    # -- steps ---------------------------------------------------------------------------------------------------------------

    def attempt_starts(self, attempt: Attempt, at_most_once: bool, known_slot: int | None) -> None:
        """A step begins to run. ``known_slot``: the last one that its owner knows of, where nobody could have told it more."""
        fate = self._fate_of(attempt)
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

    def attempt_ends(self, attempt: Attempt, *, failed: bool) -> None:
        """A step has a result."""
        self._ran[attempt] = True
        if failed:
            self._failed[attempt] = None

    def result_dropped(self, attempt: Attempt) -> None:
        """A result is not held for its owner any more: it must be on record, or count for nothing."""
        fate = self._fate_of(attempt)
        if (
            fate is not None
            and fate.finished is None
            and fate.forgotten_ms is None
            and attempt.operation not in fate.abandoned
            and (attempt.operation, attempt.attempt) not in fate.settled
            and not (fate.suspended and attempt in self._failed)  # it counts as lost when the code goes on
        ):
            self.violated(DROPPED, f"{attempt}")

    # -- clients -------------------------------------------------------------------------------------------------------------

    def answered(self, message: WorkflowMessage, answer: Answer, asked_ms: float) -> None:
        """A client gets an answer: it must have been true at some moment since it asked."""
        all_of_it = self.fates.get(message.execution, [])
        fates = [one for one in all_of_it if one.forgotten_ms is None or one.forgotten_ms >= asked_ms]
        always = any(one.begun_ms < asked_ms and one.forgotten_ms is None for one in fates)
        if isinstance(answer, Ended):
            told = (answer.status, answer.result, answer.failure)
            ends = [one.finished for one in fates if one.finished is not None]
            right = any((one.status, one.result, one.failure) == told for one in ends)
        elif isinstance(answer, Refused):
            right = self._is_refused(message, answer, fates, asked_ms, always)
        elif isinstance(message, StartExecution):
            right = any(one.is_same(message) for one in fates)
        elif isinstance(answer, Answered | Confirmed):
            right = False
        elif isinstance(message, ResumeExecution):
            resumed = any(one.resumed_ms >= asked_ms for one in fates)
            right = resumed if answer.created else resumed or not always or not all(one.suspended for one in fates)
        elif isinstance(message, CancelExecution):
            right = any(one.cancelled or one.finished is not None for one in fates)
        else:
            right = any(one.forgotten_ms is not None for one in fates) if answer.created else not always
        if not right:
            self.violated(CONTRADICTION, f"{message} is answered {answer}")

    def _is_refused(self, message: WorkflowMessage, answer: Refused, fates: list[Fate], asked_ms: float, always: bool) -> bool:
        match answer.error:
            case "ExecutionNotFound":
                return not always
            case "IdInUse":
                return isinstance(message, StartExecution) and any(not one.is_same(message) for one in fates)
            case "ExecutionCancelled":
                return any(one.forgotten_ms is not None for one in fates)
            case "InvalidInput":
                return isinstance(message, StartExecution) and message in self.unfit
            case "ProcessCrashed":
                return any(one.suspended or one.resumed_ms >= asked_ms for one in fates)
            case "Overloaded":
                return isinstance(message, ResumeExecution)
            case _:
                self.violated(ERROR, f"{message.execution}: {answer.error}: {answer.message}")
                return True

    # -- the end -------------------------------------------------------------------------------------------------------------

    def compare(self, found: dict[str, list[bytes]]) -> None:
        """Compare what a reader finds in the end with what was written, and with what was acknowledged."""
        present = {data for records in found.values() for data in records} | self.entities.record_bytes
        for execution, fates in self.fates.items():
            present.update(data for fate in fates if fate.forgotten_ms is not None for data in fate.records)
            current = self._current(execution)
            expected = [] if current is None else current.records
            records = found.get(execution, [])
            if records != expected:
                self.violated(LOST, f"{execution}: {len(records)} records of {len(expected)}")
        for data, execution in self._acknowledged.items():
            if data not in present:
                self.violated(LOST, f"{execution}: {decode_record(data)}")
