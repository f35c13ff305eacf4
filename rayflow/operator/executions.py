"""``python -m rayflow list`` and ``show``: what is on record, read from the store alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from rayflow.checkpoint.reading import list_executions
from rayflow.checkpoint.reports import AttemptHistory, ExecutionHistory, ExecutionInfo, OperationHistory, OperationState
from rayflow.checkpoint.store import Store
from rayflow.core.records import Failure, Status
from rayflow.operator.display import (
    NOTHING,
    Column,
    brief,
    duration,
    moment,
    print_damages,
    print_facts,
    print_json,
    print_listing,
    print_table,
    printable,
)

COLUMNS = (
    Column("id"),
    Column("workflow", gives_way=7, short=lambda name: name.rpartition(":")[2]),
    Column("version", gives_way=8),
    Column("status"),
    Column("started", gives_way=4),
    Column("duration", numeric=True, gives_way=3),
    Column("done", numeric=True, gives_way=1),
    Column("running", numeric=True, gives_way=6),
    Column("queued", numeric=True, gives_way=6),
    Column("failed attempts", numeric=True, gives_way=5),
    Column("waits for"),
    Column("error", gives_way=2),
)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which executions to list: the ``limit`` newest with this status (None: any) and an id that starts with ``prefix``."""

    limit: int
    status: Status | None = None
    prefix: str = ""


def show_executions(store: Store, selection: Selection, *, json: bool) -> bool:
    """Print executions; False if part of the store is damaged. Raises InvalidInput, StoreError."""
    listing = list_executions(store, limit=selection.limit, status=selection.status, prefix=selection.prefix)
    if json:
        for info in listing.executions:
            print_json(info)
        print_damages(listing.damages)
    else:
        print_listing("executions", COLUMNS, [row(info) for info in listing.executions], listing.total, listing.damages)
    return not listing.damages


def row(info: ExecutionInfo, now: datetime | None = None) -> Sequence[str]:
    """An execution as cells below ``COLUMNS``; one that has not ended lasts until ``now``."""
    steps = info.steps
    counts = (NOTHING,) * 4
    if steps is not None:
        queued = str(steps.queued) if steps.queued else NOTHING
        counts = (f"{steps.completed}/{steps.total}", str(steps.running + steps.retrying), queued, str(steps.failed_attempts))
    until = info.ended or now
    length_s = None if until is None else max((until - info.started).total_seconds(), 0.0)
    return (
        info.execution,
        info.workflow,
        info.version,
        info.status,
        moment(info.started),
        duration(length_s),
        *counts,
        info.waits_for or NOTHING,
        brief(info.error),
    )


_STEP_COLUMNS = (
    Column("operation"),
    Column("state"),
    Column("attempts", numeric=True, gives_way=3),
    Column("started", gives_way=5),
    Column("time", numeric=True, gives_way=1),
    Column("cpu s", numeric=True, gives_way=4),
    Column("node", gives_way=6),
    Column("error", gives_way=2),
)


_MOST_TRACEBACKS = 20


@dataclass(frozen=True, slots=True)
class ExecutionLine:
    """What ``show --json`` prints before the operations: an ExecutionHistory without them."""

    info: ExecutionInfo
    duration_s: float | None
    cpu_s: float
    cancel_reason: str | None


def show_execution(history: ExecutionHistory, *, steps: bool, json: bool) -> None:
    """Print one execution, and its steps if they are wanted."""
    if json:
        print_json(ExecutionLine(history.info, history.duration_s, history.cpu_s, history.cancel_reason))
        for operation in history.operations if steps else ():
            print_json(operation)
        return
    print_facts(_facts(history))
    if history.info.error is not None and history.info.error.traceback:
        print("traceback")
        _print_traceback(history.info.error)
    if steps and history.operations:
        _print_step_tracebacks(history.operations)
        print()
        print_table(_STEP_COLUMNS, [_step_row(operation) for operation in history.operations])


def _print_step_tracebacks(operations: Sequence[OperationHistory]) -> None:
    """Where the last attempt of each step that has not succeeded was in its code when it failed."""
    failed = [(operation, one) for operation in operations if (one := _failed_last(operation)) is not None]
    for operation, attempt in failed[:_MOST_TRACEBACKS]:
        print(f"traceback of {printable(operation.operation)}, attempt {attempt.number}")
        assert attempt.failure is not None
        _print_traceback(attempt.failure)
    if len(failed) > _MOST_TRACEBACKS:
        print(f"{len(failed) - _MOST_TRACEBACKS} more steps have failed with a traceback; --json shows them all")


def _failed_last(operation: OperationHistory) -> AttemptHistory | None:
    """The latest attempt that has failed and says where, unless a later one has succeeded."""
    failed = [one for one in operation.attempts if one.failure is not None and one.failure.traceback]
    return failed[-1] if failed and operation.state is not OperationState.COMPLETED else None


def _print_traceback(failure: Failure) -> None:
    for line in failure.traceback.splitlines():
        print(f"  {_printable_line(line)}")


def _facts(history: ExecutionHistory) -> list[tuple[str, str]]:
    info = history.info
    facts = [
        ("execution", info.execution),
        ("workflow", f"{info.workflow}, version {info.version}"),
        ("status", info.status),
        ("started", moment(info.started)),
        ("ended", moment(info.ended)),
        ("duration", duration(history.duration_s)),
        ("steps", _steps_text(history)),
        ("cpu", f"{history.cpu_s:.1f} s"),
    ]
    if info.waits_for:
        facts.append(("waits for", info.waits_for))
    if history.cancel_reason is not None:
        facts.append(("cancelled", history.cancel_reason))
    if info.error is not None:
        facts.append(("error", f"{info.error.type}: {info.error.message}"))
    return facts


def _steps_text(history: ExecutionHistory) -> str:
    steps = history.info.steps
    assert steps is not None  # they are counted from the records that were just read
    timers = sum(operation.state is OperationState.WAITING for operation in history.operations)
    states = (
        (steps.running, "running"),
        (steps.queued, "queued"),
        (steps.retrying, "retrying"),
        (steps.failed, "failed"),
        (steps.abandoned, "abandoned"),
        (steps.failed_attempts, "failed attempts"),
        (timers, "timers waiting"),
    )
    return ", ".join([f"{steps.completed} of {steps.total} completed", *(f"{count} {name}" for count, name in states if count)])


def _step_row(operation: OperationHistory) -> Sequence[str]:
    last = operation.attempts[-1] if operation.attempts else None
    state = operation.state if operation.due is None else f"{operation.state} until {moment(operation.due)}"
    if operation.waits_for:
        state = f"{state}: {operation.waits_for}"
    return (
        operation.operation,
        state,
        str(len(operation.attempts)),
        moment(operation.started),
        duration(operation.duration_s),
        f"{operation.cpu_s:.1f}",
        last.node if last is not None and last.node else NOTHING,
        _step_error(operation.attempts),
    )


def _step_error(attempts: Sequence[AttemptHistory]) -> str:
    """Why the latest attempt that failed did so; it also explains why a step that is fine by now took more than one."""
    for attempt in reversed(attempts):
        if attempt.cause is not None:
            return f"{attempt.cause}: {brief(attempt.failure)}"
    return NOTHING


def _printable_line(line: str) -> str:
    indent = len(line) - len(line.lstrip(" "))
    return " " * indent + printable(line)
