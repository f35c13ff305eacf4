"""Replay: bring a workflow's code to where its record ends, and check that it still does what the record says."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from rayflow.core.instance import Instance, Request, Values, WaitRequest, is_one_way, name_of
from rayflow.core.records import (
    Abandoned,
    CancelRequested,
    Completed,
    Elapsed,
    Failed,
    Record,
    Retried,
    Scheduled,
    Started,
    Woke,
)
from rayflow.core.turns import Turns
from rayflow.errors import NonDeterminismError

Body = Callable[[Instance], Callable[[], Coroutine[Any, Any, Any]]]
"""Given the instance, what creates the workflow's coroutine."""


@dataclass(slots=True)
class OpenOperation:
    """An operation without an outcome. ``due_ms``: when a wait ends or the next attempt starts; None: an attempt runs."""

    request: Request
    attempt: int
    due_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Replayed:
    """An instance that has caught up with its record."""

    instance: Instance
    open: dict[str, OpenOperation]


def replay(records: Sequence[Record], body: Body, values: Values, turns: Turns | None = None) -> Replayed:
    """Run the code through ``records``, the first of which is its Started.

    Raises NonDeterminismError, with the expected and the actual operations side by side, where the code asks for something else
    than what is on record. Errors of ``body`` (code that cannot be loaded) pass through.
    """
    started = records[0]
    assert isinstance(started, Started)
    instance = Instance(started, values, turns)
    instance.silent = True
    try:
        open_operations = _run_through(instance, started, records, body)
    except BaseException:
        instance.close()
        raise
    instance.silent = False
    return Replayed(instance, open_operations)


@dataclass(slots=True)
class _Expected:
    """What the record says of the present turn."""

    scheduled: dict[str, Scheduled] = field(default_factory=dict[str, Scheduled])
    abandoned: set[str] = field(default_factory=set[str])


def _run_through(instance: Instance, started: Started, records: Sequence[Record], body: Body) -> dict[str, OpenOperation]:
    open_operations: dict[str, OpenOperation] = {}
    instance.start(body(instance))
    turn: Record = started
    expected = _Expected()
    for record in records[1:]:
        if isinstance(record, Scheduled):
            expected.scheduled[record.operation] = record
        elif isinstance(record, Abandoned):
            expected.abandoned.add(record.operation)
        elif isinstance(record, Failed) and record.retry_ms is not None:
            _settle(instance, turn, expected, open_operations)
            operation = open_operations[record.operation]
            operation.attempt = record.attempt + 1
            operation.due_ms = record.retry_ms
        elif isinstance(record, Retried):
            open_operations[record.operation].due_ms = None
        elif isinstance(record, (Completed, Failed, Elapsed, Woke, CancelRequested)):
            _settle(instance, turn, expected, open_operations)
            if isinstance(record, (Completed, Failed, Elapsed)):
                open_operations.pop(record.operation, None)
            turn = record
            instance.turn(record)
            if instance.mismatch is not None:
                raise instance.mismatch
    _settle(instance, turn, expected, open_operations)
    return open_operations


def _settle(instance: Instance, turn: Record, expected: _Expected, open_operations: dict[str, OpenOperation]) -> None:
    """Compare what the code asked for in this turn with what the record says, and keep what is still open."""
    requested, abandoned = instance.take()
    actual = {request.operation: request for request in requested}
    scheduled = expected.scheduled
    if (
        len(actual) != len(scheduled)
        or expected.abandoned != set(abandoned)
        or any(
            (entry := scheduled.get(operation)) is None
            or entry.kind != request.kind
            or entry.fingerprint != request.fingerprint
            or entry.name != name_of(request)
            for operation, request in actual.items()
        )
    ):
        raise NonDeterminismError(_difference(instance, turn, expected, actual, set(abandoned)))
    for operation, request in actual.items():
        if is_one_way(request):
            continue  # there is nothing to wait for
        due_ms = request.due_ms if isinstance(request, WaitRequest) else None
        open_operations[operation] = OpenOperation(request, 1, due_ms)
    for operation in abandoned:
        open_operations.pop(operation, None)
    scheduled.clear()
    expected.abandoned.clear()


def _difference(instance: Instance, turn: Record, expected: _Expected, actual: dict[str, Request], abandoned: set[str]) -> str:
    lines = [
        f"execution {instance.execution}: the code no longer does what its record says",
        f"  after {_event(turn)}:",
    ]
    for operation in sorted(expected.scheduled.keys() | actual.keys()):
        entry, request = expected.scheduled.get(operation), actual.get(operation)
        on_record = "nothing" if entry is None else f"{entry.kind} {entry.name} arguments {entry.fingerprint}"
        in_code = "nothing" if request is None else f"{request.kind} {name_of(request)} arguments {request.fingerprint}"
        if on_record != in_code:
            lines.append(f"  {operation}: recorded {on_record}; the code asks for {in_code}")
    lines += [f"  {one}: recorded given up; the code still waits for it" for one in sorted(expected.abandoned - abandoned)]
    lines += [f"  {one}: recorded as waited for; the code gives it up" for one in sorted(abandoned - expected.abandoned)]
    lines.append("  Nothing is lost: mend the code (or bring the old version back) and it resumes where it was.")
    return "\n".join(lines)


def _event(record: Record) -> str:
    operation = getattr(record, "operation", "")
    return f"{type(record).__name__.lower()} {operation}".strip()
