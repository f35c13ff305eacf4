"""One execution as its shard has it in memory: the code, what is under way, and what is shown of it.

No records and no effects come from here: those are the machine's (``workflows``), which alone knows in what order they go out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Coroutine, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rayflow.core.context import Context
from rayflow.core.definitions import Workflow, retry_pause_ms
from rayflow.core.instance import Code, Instance, StepRequest, name_of, step_name
from rayflow.core.messages import Attempt, ExecutionView, StepResult, StepView
from rayflow.core.records import Cause, Completed, Failed, Failure, Kept, Record, Scheduled, Started, Status, Suspended
from rayflow.core.replay import OpenOperation, replay
from rayflow.core.turns import Turns

MAX_LOSSES = 100
"""How often one step may be lost with dispatcher or cluster before that is taken for the step's own doing."""


@dataclass(slots=True)
class Execution:
    """An execution that has not ended. ``instance`` is None while it is suspended."""

    started: Started
    instance: Instance | None
    open: dict[str, OpenOperation] = field(default_factory=dict[str, OpenOperation])
    watchers: list[Hashable] = field(default_factory=list[Hashable])
    progress: dict[str, dict[str, float]] = field(default_factory=dict[str, "dict[str, float]"])
    losses: dict[str, int] = field(default_factory=dict[str, int])
    completed: Counter[str] = field(default_factory=Counter[str])
    failed_attempts: int = 0
    reused: int = 0
    suspended: Failure | None = None
    detached: dict[str, int] = field(default_factory=dict[str, int])
    """While suspended: the attempts that go on running, by operation."""
    kept: dict[str, Kept] = field(default_factory=dict[str, Kept])
    """Results that came while suspended and that the code has not got yet, by operation."""
    wake_ms: int | None = None
    locks: set[str] = field(default_factory=set[str])
    """Addresses of the entities that it has locked, or waits to lock."""
    """When asyncio's own timers in the code are next due."""

    # -- recovery ------------------------------------------------------------------------------------------------------------

    @classmethod
    def on_record(cls, records: Sequence[Record]) -> Execution:
        """What the records say by themselves; ``replay`` adds the code."""
        started = records[0]
        assert isinstance(started, Started)
        entry = cls(started, None)
        for record in records:
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
                entry.suspended = record.failure
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
        replayed = replay(records, lambda instance: body(code, self.started, instance), code, turns)
        self.instance, self.open = replayed.instance, replayed.open

    # -- attempts ------------------------------------------------------------------------------------------------------------

    def attempt(self, operation: str, number: int) -> Attempt:
        """The name of an attempt of this run."""
        return Attempt(self.started.execution, operation, number, self.started.seed)

    def running_steps(self) -> list[Attempt]:
        """Every attempt that should be running now."""
        running = [
            self.attempt(operation, one.attempt)
            for operation, one in self.open.items()
            if one.due_ms is None and isinstance(one.request, StepRequest)
        ]
        return running + [self.attempt(operation, number) for operation, number in self.detached.items()]

    def inline_steps(self) -> list[Attempt]:
        """Those of open operations that run in the shard's own process."""
        return [
            self.attempt(operation, one.attempt)
            for operation, one in self.open.items()
            if isinstance(one.request, StepRequest) and one.request.settings.inline
        ]

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

    # -- code ----------------------------------------------------------------------------------------------------------------

    def detach(self) -> None:
        """Drop the code; what runs for it goes on without it."""
        if self.instance is None:
            return
        self.close()
        self.instance = None
        self.detached = {
            operation: one.attempt
            for operation, one in self.open.items()
            if one.due_ms is None and isinstance(one.request, StepRequest) and operation not in self.kept
        }
        self.open.clear()
        self.progress.clear()
        self.wake_ms = None

    def close(self) -> None:
        """End the code, if there is any: its ``finally`` blocks run now."""
        if self.instance is not None:
            self.instance.close()

    # -- display -------------------------------------------------------------------------------------------------------------

    def view(self) -> ExecutionView:
        """As it is now; shows what may not be durable yet."""
        running = [
            StepView(operation, name_of(one.request), one.attempt, one.due_ms, self.progress.get(operation, {}))
            for operation, one in self.open.items()
        ]
        status = Status.RUNNING if self.suspended is None else Status.SUSPENDED
        completed, failed = dict(self.completed), self.failed_attempts
        return ExecutionView(self.started.execution, status, completed, failed, self.reused, running, self.suspended)


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
