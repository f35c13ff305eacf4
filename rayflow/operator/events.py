"""What happens to an execution, event by event, from its records. Pure.

What running steps report of their progress is not on record, and so not here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from rayflow.core.records import (
    Abandoned,
    CancelRequested,
    Completed,
    Elapsed,
    Failed,
    Finished,
    Record,
    Resumed,
    Retried,
    Scheduled,
    Started,
    Suspended,
    Usage,
)
from rayflow.operator.display import brief, clock, duration, moment, printable


class Kind(StrEnum):
    """What happened."""

    STARTED = "started"
    """The execution began."""
    STEP_STARTED = "step started"
    """An attempt of a step was put on record; Ray may still be looking for a place for it."""
    STEP_COMPLETED = "step completed"
    STEP_FAILED = "step failed"
    """An attempt failed; with ``due`` there will be another one then."""
    STEP_ABANDONED = "step abandoned"
    """The code does not wait for it any more."""
    CALL_SENT = "call sent"
    """To an entity."""
    CALL_ANSWERED = "call answered"
    CALL_DROPPED = "call dropped"
    TIMER_SET = "timer set"
    TIMER_FIRED = "timer fired"
    TIMER_DROPPED = "timer dropped"
    CANCEL_REQUESTED = "cancel requested"
    SUSPENDED = "suspended"
    RESUMED = "resumed"
    """Its code goes on, mended or tried again."""
    ENDED = "ended"
    """With ``status``, the last event there is."""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened, at a time (UTC) of the shard's clock. What does not apply is empty or None.

    ``duration_s``, ``cpu_s`` and ``node`` are of an attempt, ``duration_s`` of the execution when that ends. ``due``: when a timer
    fires or the next attempt starts. ``detail``: an error, a reason, or which workflow.
    """

    at: datetime
    event: Kind
    operation: str = ""
    attempt: int | None = None
    duration_s: float | None = None
    cpu_s: float | None = None
    node: str = ""
    due: datetime | None = None
    status: str = ""
    detail: str = ""


def events(records: Sequence[Record], seen: int) -> list[Event]:
    """The events of an execution after its first ``seen`` records. ``records`` are all of it, in order."""
    kinds = {record.operation: record.kind for record in records if isinstance(record, Scheduled)}
    first = records[0]
    assert isinstance(first, Started)
    found = (_event(record, kinds, first.at_ms) for record in records[seen:])
    return [event for event in found if event is not None]


def _event(record: Record, kinds: dict[str, str], began_ms: int) -> Event | None:
    match record:
        case Started():
            return Event(_time(record.at_ms), Kind.STARTED, detail=f"{record.workflow.name}, version {record.version}")
        case Scheduled(kind="step"):
            return Event(_time(record.at_ms), Kind.STEP_STARTED, record.operation, 1)
        case Scheduled(kind="wait"):
            return Event(_time(record.at_ms), Kind.TIMER_SET, record.operation, due=_time(record.due_ms))
        case Scheduled():
            return Event(_time(record.at_ms), Kind.CALL_SENT, record.operation)
        case Retried():
            return Event(_time(record.at_ms), Kind.STEP_STARTED, record.operation, record.attempt)
        case Completed() if kinds.get(record.operation) == "step":
            return _attempt(record, Kind.STEP_COMPLETED, record.usage)
        case Completed():
            return Event(_time(record.at_ms), Kind.CALL_ANSWERED, record.operation, detail=brief(record.failure, nothing=""))
        case Failed():
            due = None if record.retry_ms is None else _time(record.retry_ms)
            return _attempt(record, Kind.STEP_FAILED, record.usage, due, f"{record.cause}: {brief(record.failure)}")
        case Elapsed():
            return Event(_time(record.at_ms), Kind.TIMER_FIRED, record.operation)
        case Abandoned():
            dropped = {"step": Kind.STEP_ABANDONED, "wait": Kind.TIMER_DROPPED}.get(
                kinds.get(record.operation, ""), Kind.CALL_DROPPED
            )
            return Event(_time(record.at_ms), dropped, record.operation)
        case CancelRequested():
            return Event(_time(record.at_ms), Kind.CANCEL_REQUESTED, detail=record.reason)
        case Suspended():
            return Event(_time(record.at_ms), Kind.SUSPENDED, detail=brief(record.failure))
        case Resumed():
            return Event(_time(record.at_ms), Kind.RESUMED)
        case Finished():
            lasted_s = max((record.at_ms - began_ms) / 1000, 0.0)
            return Event(
                _time(record.at_ms), Kind.ENDED, duration_s=lasted_s, status=record.status, detail=brief(record.failure, nothing="")
            )
        case _:  # Woke and Kept: how the code is driven, not what happened
            return None


def _attempt(record: Completed | Failed, kind: Kind, usage: Usage | None, due: datetime | None = None, detail: str = "") -> Event:
    at, operation, attempt = _time(record.at_ms), record.operation, record.attempt
    if usage is None:
        return Event(at, kind, operation, attempt, due=due, detail=detail)
    lasted_s = max((usage.ended_ms - usage.started_ms) / 1000, 0.0)
    return Event(at, kind, operation, attempt, lasted_s, usage.cpu_s, usage.node, due, detail=detail)


def _time(at_ms: int) -> datetime:
    return datetime.fromtimestamp(at_ms / 1000, UTC)


def in_words(event: Event) -> str:
    """An event as a line for people: when, what, and what is known of it."""
    words = [f"{clock(event.at)}  {(event.status or event.event):<15}", event.operation]
    if event.attempt is not None and (event.attempt > 1 or event.event is Kind.STEP_FAILED):
        words.append(f"attempt {event.attempt}")
    if event.duration_s is not None:
        words.append(f"after {duration(event.duration_s)}")
    if event.node:
        words.append(f"on {event.node}")
    if event.due is not None:
        day = "" if event.due.date() == event.at.date() else moment(event.due)[:11]
        words.append(f"{'again' if event.event is Kind.STEP_FAILED else 'until'} {day}{clock(event.due)}")
    if event.detail:
        words.append(event.detail)
    return "  ".join(printable_words(words))


def printable_words(words: Sequence[str]) -> list[str]:
    """What is not empty, without control characters; the first as it is."""
    return [words[0], *(printable(word) for word in words[1:] if word)]
