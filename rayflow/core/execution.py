"""One execution as its shard has it in memory: the code, what is under way, and what is shown of it.

No records and no effects come from here: those are the machine's (``workflows``), which alone knows in what order they go out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Coroutine, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from msgspec.structs import replace

from rayflow.core.context import Context
from rayflow.core.crashes import PROCESS_CRASHED, Noted
from rayflow.core.definitions import Workflow, retry_pause_ms
from rayflow.core.failures import describe_error, failure_of
from rayflow.core.instance import Code, Instance, StepRequest, name_of, step_name
from rayflow.core.messages import (
    QUEUED,
    RETRYING,
    RUNNING,
    WAITING,
    Attempt,
    ExecutionView,
    StepProgress,
    StepResult,
    StepView,
)
from rayflow.core.records import (
    Blob,
    Cause,
    Completed,
    Event,
    Failed,
    Failure,
    Kept,
    Record,
    Resumed,
    Scheduled,
    Started,
    Status,
    Suspended,
    large_values,
)
from rayflow.core.replay import OpenOperation, replay
from rayflow.core.turns import Turns
from rayflow.errors import RayflowError

MAX_LOSSES = 100
"""How often one step may be lost with dispatcher or cluster before that is taken for the step's own doing."""


class Passive(NamedTuple):
    """What memory holds of an execution whose code is not needed before something happens to it; the rest is on record."""

    wake_ms: int | None
    watchers: tuple[Hashable, ...]
    reused: int
    large: tuple[Blob, ...]
    """The large values that its record names."""


@dataclass(slots=True)
class Execution:
    """An execution that has not ended. ``instance`` is None while it is suspended, and before its first turn."""

    started: Started
    noted: Noted
    instance: Instance | None = None
    open: dict[str, OpenOperation] = field(default_factory=dict[str, OpenOperation])
    watchers: list[Hashable] = field(default_factory=list[Hashable])
    progress: dict[str, StepProgress] = field(default_factory=dict[str, StepProgress])
    losses: dict[str, int] = field(default_factory=dict[str, int])
    completed: Counter[str] = field(default_factory=Counter[str])
    failed_attempts: int = 0
    reused: int = 0
    suspended: Suspended | None = None
    unstarted: bool = False
    """Whether its code has never had a turn."""
    detached: dict[str, int] = field(default_factory=dict[str, int])
    """While suspended: the attempts that go on running, by operation."""
    kept: dict[str, Kept] = field(default_factory=dict[str, Kept])
    """Results that came while suspended and that the code has not got yet, by operation."""
    wake_ms: int | None = None
    """When asyncio's own timers in the code are next due."""
    locks: set[str] = field(default_factory=set[str])
    """Addresses of the entities that it has locked, or waits to lock."""
    recorded: int = 0
    """How many records there are of it, durable or not."""
    used_ms: int = 0
    """When something last happened to it."""
    large: list[Blob] = field(default_factory=list[Blob])
    """The large values that its record names, in any order."""

    # -- recovery ------------------------------------------------------------------------------------------------------------

    @classmethod
    def on_record(cls, records: Sequence[Record], noted: Noted) -> Execution:
        """What the records say by themselves; ``replay`` adds the code."""
        started = records[0]
        assert isinstance(started, Started)
        entry = cls(started, noted, recorded=len(records), unstarted=never_began(records))
        for record in records:
            entry.large += large_values(record)
            if isinstance(record, Completed):
                entry.completed[step_name(record.operation)] += 1
                entry.reused += 1
                entry.kept.pop(record.operation, None)
            elif isinstance(record, Failed):
                entry.failed_attempts += 1
                if record.cause is Cause.LOST:
                    entry.losses[record.operation] = entry.losses.get(record.operation, 0) + 1
            elif isinstance(record, Kept):
                entry.kept[record.operation] = record
            elif isinstance(record, Scheduled) and record.kind in ("lock", "unlock"):
                entry.note_lock(record.kind, record.name)
            if isinstance(record, Suspended):
                entry.suspended = record
            elif not isinstance(record, Kept):
                entry.suspended = None
        return entry

    def note_lock(self, kind: str, name: str) -> None:
        """It asked for a lock, or gave one back; both are on record under the name "lock ADDRESS"."""
        address = name.partition(" ")[2]
        if kind == "lock":
            self.locks.add(address)
        else:
            self.locks.discard(address)

    def replay(self, records: Sequence[Record], code: Code, turns: Turns) -> None:
        """Bring the code to where its record ends. Raises whatever stops it: it cannot be loaded, or does not match."""
        with self.noted:
            replayed = replay(records, lambda instance: body(code, self.started, instance), code, turns)
        self.instance, self.open = replayed.instance, replayed.open

    # -- code ----------------------------------------------------------------------------------------------------------------

    def begin(self, code: Code, turns: Turns) -> None:
        """The first turn. Raises RayflowError where there is none: the code cannot be loaded, or the arguments do not fit."""
        self.large += large_values(self.started)
        with self.noted:
            instance = Instance(self.started, code, turns)
            create = body(code, self.started, instance)
            self.instance = instance
            instance.start(create)

    def turn(self, event: Event) -> Instance:
        """Have the code, which there must be, go on with what happened; returns it."""
        instance = self.instance
        assert instance is not None
        self.used_ms = event.at_ms
        self.large += large_values(event)
        with self.noted:
            instance.turn(event)
        return instance

    def detach(self) -> None:
        """Drop the code; what runs for it goes on without it."""
        if self.instance is None:
            return
        self.close()
        self.instance = None
        self.detached.update(
            (operation, one.attempt)
            for operation, one in self.open.items()
            if one.due_ms is None and isinstance(one.request, StepRequest) and operation not in self.kept
        )
        self.open.clear()
        self.progress.clear()
        self.wake_ms = None

    def close(self) -> None:
        """End the code, if there is any: its ``finally`` blocks run now."""
        if self.instance is not None:
            with self.noted:
                self.instance.close()

    def why_not(self, error: Exception) -> Failure:
        """Why it cannot go on, for people: some errors are meant for them, of others they have to be told what they mean here."""
        failure = describe_error(error)
        if isinstance(error, RayflowError):
            return failure
        message = (
            f"execution {self.started.execution} of {self.started.workflow.name} cannot go on: {failure.type}: {failure.message}. "
            f"All others do, and nothing of it is lost: 'python -m rayflow resume' tries once more, 'cancel' gives it up"
        )
        return failure_of(failure.type, message, failure.traceback)

    def ends_its_process(self) -> bool:
        """Whether the code there is has ended the process too often to run again."""
        known = self.suspended
        if known is not None and known.failure.type == PROCESS_CRASHED and known.code == self.noted.code:
            return True
        return self.noted.too_often()

    # -- memory --------------------------------------------------------------------------------------------------------------

    def rests(self) -> bool:
        """Whether it waits for nothing but time and letters: then its code can be made again from the record when they come."""
        return (
            self.instance is not None
            and self.suspended is None
            and not self.kept
            and not any(isinstance(one.request, StepRequest) for one in self.open.values())
        )

    def due_ms(self) -> int | None:
        """When its time next comes; None: it waits for letters only."""
        due = [one.due_ms for one in self.open.values() if one.due_ms is not None]
        return min([*due, self.wake_ms] if self.wake_ms is not None else due, default=None)

    def passivated(self) -> Passive:
        """Drop the code. Its ``finally`` blocks run now, with nobody listening."""
        self.close()
        return Passive(self.wake_ms, tuple(self.watchers), self.reused, tuple(self.large))

    def activate(self, passive: Passive) -> None:
        """Take back what ``passivated`` has kept."""
        self.wake_ms, self.reused = passive.wake_ms, passive.reused
        self.watchers.extend(passive.watchers)

    # -- attempts ------------------------------------------------------------------------------------------------------------

    def attempt(self, operation: str, number: int) -> Attempt:
        """The name of an attempt of this run."""
        return Attempt(self.started.execution, operation, number, self.started.seed)

    def running_steps(self) -> list[Attempt]:
        """Every attempt that should be running now."""
        running = [
            self.attempt(operation, one.attempt)
            for operation, one in self.open.items()
            if one.due_ms is None and isinstance(one.request, StepRequest) and not self._has(one)
        ]
        return running + [self.attempt(operation, number) for operation, number in self.detached.items()]

    def inline_steps(self) -> list[Attempt]:
        """Those of open operations that run in the shard's own process."""
        return [
            self.attempt(operation, one.attempt)
            for operation, one in self.open.items()
            if isinstance(one.request, StepRequest) and one.request.settings.inline and not self._has(one)
        ]

    def _has(self, one: OpenOperation) -> bool:
        """Whether this attempt has come to an end already, only the code does not know yet."""
        kept = self.kept.get(one.request.operation)
        return kept is not None and kept.attempt == one.attempt

    def retry_ms(self, one: OpenOperation, cause: Cause, result: StepResult, now_ms: int) -> int | None:
        """When the next attempt after this failure starts, or None: there is none. Counts the lost ones."""
        assert isinstance(one.request, StepRequest)
        settings = one.request.settings
        if settings.delivery == "at_most_once" or (cause is Cause.ERROR and not result.retryable):
            return None
        losses = self.losses.get(result.operation, 0)
        if cause is Cause.LOST:
            self.losses[result.operation] = losses + 1
            return now_ms if losses < MAX_LOSSES else None
        counted = result.attempt - losses
        if counted >= settings.retry.max_attempts:
            return None
        return now_ms + retry_pause_ms(settings.retry, self.started.seed, result.operation, counted)

    # -- display -------------------------------------------------------------------------------------------------------------

    def view(self) -> ExecutionView:
        """As it is now; shows what may not be durable yet."""
        running = [
            StepView(operation, name_of(one.request), one.attempt, one.due_ms, self._fields(operation), self._state(operation, one))
            for operation, one in self.open.items()
        ]
        status = Status.RUNNING if self.suspended is None else Status.SUSPENDED
        completed, failed = dict(self.completed), self.failed_attempts
        why = None if self.suspended is None else self.suspended.failure
        return ExecutionView(self.started.execution, status, completed, failed, self.reused, running, why)

    def told(self, progress: StepProgress) -> None:
        """A step says something of itself, or somebody of it."""
        before = self.progress.get(progress.operation)
        fields = progress.fields or (before.fields if before else {})
        self.progress[progress.operation] = replace(
            progress, fields=fields, state=progress.state or (before.state if before else "")
        )

    def _fields(self, operation: str) -> dict[str, float]:
        told = self.progress.get(operation)
        return {} if told is None else told.fields

    def _state(self, operation: str, one: OpenOperation) -> str:
        if not isinstance(one.request, StepRequest):
            return WAITING
        if one.due_ms is not None:
            return RETRYING
        told = self.progress.get(operation)
        if told is not None and told.state:
            return told.state
        return RUNNING if one.request.settings.inline else QUEUED


def never_began(records: Sequence[Record]) -> bool:
    """Whether nothing is on record of what the code asked for at its start, since it has never come to the end of that turn."""
    first, *others = records[1:] or [None]
    return isinstance(first, Suspended) and first.unstarted and all(isinstance(one, (Suspended, Resumed, Kept)) for one in others)


def body(code: Code, started: Started, instance: Instance) -> Callable[[], Coroutine[Any, Any, Any]]:
    """What creates the workflow's coroutine. Raises RayflowError where the code cannot be loaded or the arguments do not fit."""
    return bound(code.workflow(started.workflow), code.decode(started.arguments), instance)


def bound(
    workflow: Workflow[..., Any], arguments: tuple[tuple[Any, ...], dict[str, Any]], instance: Instance
) -> Callable[[], Coroutine[Any, Any, Any]]:
    """What creates the coroutine of ``workflow`` with these arguments. Raises InvalidInput where they do not fit."""
    args, kwargs = arguments
    context = Context(instance)
    workflow.check_arguments(context, *args, **kwargs)
    return lambda: workflow.function(context, *args, **kwargs)
