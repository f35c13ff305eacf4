"""From the records of an execution to what people ask about it: how far it is, which attempts there were, what they cost.

Pure: values in, values out. What is shown is what is on record. An attempt counts as running from the moment its start is durable,
unless a note says that it is still queued; and an execution that was suspended counts as suspended until something happens to it,
although its mended code may be waiting already.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum

from rayflow.checkpoint.queues import WaitingSteps
from rayflow.core.failures import without_error
from rayflow.core.records import (
    Abandoned,
    CancelRequested,
    Cause,
    Completed,
    Elapsed,
    Failed,
    Failure,
    Finished,
    Kept,
    Record,
    Retried,
    Scheduled,
    Started,
    Status,
    Summary,
    Suspended,
    Usage,
)
from rayflow.errors import Damaged


class OperationState(StrEnum):
    """Where an operation stands. The last three are final."""

    WAITING = "waiting"
    """A durable timer that has not fired."""
    QUEUED = "queued"
    """An attempt was handed to Ray, which has not begun it."""
    RUNNING = "running"
    """An attempt is on its way."""
    RETRYING = "retrying"
    """An attempt failed, the next one starts at a known time."""
    COMPLETED = "completed"
    FAILED = "failed"
    ABANDONED = "abandoned"
    """Nobody waits for it any more: cancelled, or the execution ended without it."""


@dataclass(frozen=True, slots=True)
class StepCounts:
    """The steps of an execution by state, without timers; and how many attempts failed in all, retried or not.

    ``queued``: those that Ray has not begun for some seconds, as far as a note says so; they do not count as running.
    """

    completed: int
    running: int
    retrying: int
    failed: int
    abandoned: int
    failed_attempts: int
    queued: int = 0

    @property
    def total(self) -> int:
        """All steps that the execution has asked for so far."""
        return self.completed + self.queued + self.running + self.retrying + self.failed + self.abandoned


@dataclass(frozen=True, slots=True)
class ExecutionInfo:
    """One execution in short. Times are UTC. ``steps`` is None where the file with its records cannot be read.

    ``error`` says why it failed, was cancelled, or is suspended. ``waits_for``: steps that ask for what no node has, in words.
    """

    execution: str
    workflow: str
    version: str
    status: Status
    started: datetime
    ended: datetime | None
    steps: StepCounts | None
    error: Failure | None
    waits_for: str = ""


@dataclass(frozen=True, slots=True)
class AttemptHistory:
    """One attempt of a step, numbered from 1.

    ``started`` and ``ended`` are those of the process that ran it; where it could not say (it runs, or crashed), those of the
    records. ``cause`` and ``failure`` are None unless it failed. ``cpu_s`` includes child processes.
    """

    number: int
    state: OperationState
    started: datetime
    ended: datetime | None
    cpu_s: float
    node: str
    cause: Cause | None = None
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class OperationHistory:
    """One step or durable timer of an execution.

    ``kind`` is "step" or "wait". ``due``: when the timer fires or the next attempt starts, else None. ``started``: of the first
    attempt. ``ended``: when the outcome was recorded. ``duration_s``: from one to the other. ``cpu_s``: of all attempts together.
    A timer has no attempts. ``waits_for``: what no node has, in words, where the step is queued for that.
    """

    operation: str
    kind: str
    name: str
    state: OperationState
    started: datetime
    ended: datetime | None
    duration_s: float | None
    due: datetime | None
    cpu_s: float
    attempts: tuple[AttemptHistory, ...]
    waits_for: str = ""


@dataclass(frozen=True, slots=True)
class ExecutionHistory:
    """All that is on record of one execution; ``operations`` are in the order in which its code asked for them.

    ``duration_s``: from start to end, None before the end. ``cpu_s``: of all attempts. ``cancel_reason``: of the first request to
    cancel it, None if there was none.
    """

    info: ExecutionInfo
    duration_s: float | None
    cpu_s: float
    cancel_reason: str | None
    operations: tuple[OperationHistory, ...]


def summarize(records: Sequence[Record]) -> ExecutionInfo:
    """An execution in short. ``records`` are all of it, in order. Raises Damaged if they do not begin with its start."""
    return _Fold(records).info()


def describe_ended(summary: Summary, steps: StepCounts | None) -> ExecutionInfo:
    """An execution that ended, from what is kept of it for ever."""
    return ExecutionInfo(
        summary.execution,
        summary.workflow,
        summary.version,
        summary.status,
        _moment(summary.started_ms),
        _moment(summary.finished_ms),
        steps,
        summary.failure and without_error(summary.failure),
    )


def report(records: Sequence[Record]) -> ExecutionHistory:
    """An execution in full. ``records`` are all of it, in order. Raises Damaged if they do not begin with its start."""
    return _Fold(records).history()


def info_with_waiting(info: ExecutionInfo, waiting: Iterable[WaitingSteps]) -> ExecutionInfo:
    """With what a note says of the execution, as far as it can still be so."""
    own = [one for one in waiting if one.execution == info.execution]
    if info.steps is None or not own:
        return info
    queued = min(sum(one.count for one in own), info.steps.running)
    steps = replace(info.steps, running=info.steps.running - queued, queued=queued)
    return replace(info, steps=steps, waits_for="; ".join(str(one) for one in own if one.why) if queued else "")


def history_with_waiting(history: ExecutionHistory, waiting: Iterable[WaitingSteps]) -> ExecutionHistory:
    """With what a note says of the execution, as far as it can still be so."""
    own = [one for one in waiting if one.execution == history.info.execution]
    whys = {attempt: one.why for one in own for attempt in one.operations}
    operations = tuple(
        replace(one, state=OperationState.QUEUED, waits_for=whys[one.operation, len(one.attempts)])
        if one.state is OperationState.RUNNING and (one.operation, len(one.attempts)) in whys
        else one
        for one in history.operations
    )
    return replace(history, info=info_with_waiting(history.info, own), operations=operations)


@dataclass(slots=True)
class _Operation:
    scheduled: Scheduled
    state: OperationState
    began_ms: int
    """When the attempt under way was recorded."""
    ended_ms: int | None = None
    due_ms: int | None = None
    attempts: list[AttemptHistory] = field(default_factory=list[AttemptHistory])

    @property
    def open(self) -> bool:
        return self.state in (OperationState.WAITING, OperationState.RUNNING, OperationState.RETRYING)

    def end(self, state: OperationState, at_ms: int) -> None:
        if self.state is OperationState.RUNNING and state is OperationState.ABANDONED:
            self.attempts.append(self._attempt(state, len(self.attempts) + 1, at_ms, None))
        self.state, self.ended_ms, self.due_ms = state, at_ms, None

    def complete(self, record: Completed) -> None:
        self.attempts.append(self._attempt(OperationState.COMPLETED, record.attempt, record.at_ms, record.usage))
        self.end(OperationState.COMPLETED, record.at_ms)

    def fail(self, record: Failed) -> None:
        attempt = self._attempt(
            OperationState.FAILED, record.attempt, record.at_ms, record.usage, record.cause, without_error(record.failure)
        )
        self.attempts.append(attempt)
        if record.retry_ms is None:
            self.end(OperationState.FAILED, record.at_ms)
        else:
            self.state, self.due_ms = OperationState.RETRYING, record.retry_ms

    def retry(self, record: Retried) -> None:
        self.state, self.began_ms, self.due_ms = OperationState.RUNNING, record.at_ms, None

    def _attempt(
        self,
        state: OperationState,
        number: int,
        at_ms: int,
        usage: Usage | None,
        cause: Cause | None = None,
        failure: Failure | None = None,
    ) -> AttemptHistory:
        if usage is None:
            return AttemptHistory(number, state, _moment(self.began_ms), _moment(at_ms), 0.0, "", cause, failure)
        started, ended = _moment(usage.started_ms), _moment(usage.ended_ms)
        return AttemptHistory(number, state, started, ended, usage.cpu_s, usage.node, cause, failure)

    def history(self) -> OperationHistory:
        attempts = tuple(self.attempts)
        if self.state is OperationState.RUNNING:
            running = AttemptHistory(len(attempts) + 1, OperationState.RUNNING, _moment(self.began_ms), None, 0.0, "")
            attempts = (*attempts, running)
        started = attempts[0].started if attempts else _moment(self.scheduled.at_ms)
        ended = None if self.ended_ms is None else _moment(self.ended_ms)
        return OperationHistory(
            self.scheduled.operation,
            self.scheduled.kind,
            self.scheduled.name,
            self.state,
            started,
            ended,
            _seconds(started, ended),
            None if self.due_ms is None else _moment(self.due_ms),
            sum(attempt.cpu_s for attempt in attempts),
            attempts,
        )


class _Fold:
    """The records of one execution, taken in one by one."""

    def __init__(self, records: Sequence[Record]) -> None:
        first = records[0] if records else None
        if not isinstance(first, Started):
            raise Damaged(f"the records of an execution begin with {type(first).__name__} and not with its start; restore a copy")
        self._started = first
        self._operations: dict[str, _Operation] = {}
        self._failed_attempts = 0
        self._cancel_reason: str | None = None
        self._status = Status.RUNNING
        self._ended_ms: int | None = None
        self._failure: Failure | None = None
        for record in records[1:]:
            self._take(record)

    def _take(self, record: Record) -> None:
        if self._status is Status.SUSPENDED and not isinstance(record, Kept):
            self._status, self._failure = Status.RUNNING, None
        if isinstance(record, Scheduled):
            timer = record.kind == "wait"
            state = OperationState.WAITING if timer else OperationState.RUNNING
            due_ms = record.due_ms if timer else None
            self._operations[record.operation] = _Operation(record, state, record.at_ms, due_ms=due_ms)
        elif isinstance(record, (Completed, Failed, Retried, Elapsed, Abandoned)):
            self._take_outcome(record)
        elif isinstance(record, CancelRequested):
            self._cancel_reason = self._cancel_reason or record.reason
        elif isinstance(record, Suspended):
            self._status, self._failure = Status.SUSPENDED, record.failure
        elif isinstance(record, Finished):
            self._status, self._failure, self._ended_ms = record.status, record.failure, record.at_ms
            for operation in self._operations.values():
                if operation.open:
                    operation.end(OperationState.ABANDONED, record.at_ms)

    def _take_outcome(self, record: Completed | Failed | Retried | Elapsed | Abandoned) -> None:
        operation = self._operations.get(record.operation)
        if operation is None:
            raise Damaged(
                f"execution {record.execution}: {type(record).__name__} of {record.operation} is on record, but not that it was "
                f"asked for; restore a copy"
            )
        if isinstance(record, Completed):
            operation.complete(record)
        elif isinstance(record, Failed):
            self._failed_attempts += 1
            operation.fail(record)
        elif isinstance(record, Retried):
            operation.retry(record)
        elif isinstance(record, Elapsed):
            operation.end(OperationState.COMPLETED, record.at_ms)
        elif operation.open:
            operation.end(OperationState.ABANDONED, record.at_ms)

    def info(self) -> ExecutionInfo:
        states = Counter(operation.state for operation in self._operations.values() if operation.scheduled.kind != "wait")
        steps = StepCounts(
            states[OperationState.COMPLETED],
            states[OperationState.RUNNING],
            states[OperationState.RETRYING],
            states[OperationState.FAILED],
            states[OperationState.ABANDONED],
            self._failed_attempts,
        )
        started = self._started
        return ExecutionInfo(
            started.execution,
            started.workflow.name,
            started.version,
            self._status,
            _moment(started.at_ms),
            None if self._ended_ms is None else _moment(self._ended_ms),
            steps,
            self._failure and without_error(self._failure),
        )

    def history(self) -> ExecutionHistory:
        info = self.info()
        operations = tuple(operation.history() for operation in self._operations.values())
        cpu_s = sum(operation.cpu_s for operation in operations)
        return ExecutionHistory(info, _seconds(info.started, info.ended), cpu_s, self._cancel_reason, operations)


def _moment(at_ms: int) -> datetime:
    return datetime.fromtimestamp(at_ms / 1000, UTC)


def _seconds(started: datetime, ended: datetime | None) -> float | None:
    return None if ended is None else max((ended - started).total_seconds(), 0.0)
