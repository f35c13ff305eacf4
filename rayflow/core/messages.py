"""What clients ask of a shard and what it answers. All plain values: they cross processes."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import msgspec

from rayflow.core.records import Failure, Function, Status, Stored, Usage


class StartExecution(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Start a workflow, or attach to the execution that has this id already."""

    execution: str
    workflow: Function
    version: str
    arguments: Stored
    fingerprint: str
    seed: int


class AwaitOutcome(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Answer when the execution has ended."""

    execution: str


class CancelExecution(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Cancel the execution; answered once the request is durable."""

    execution: str
    reason: str


class ForgetExecution(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Stop the execution if it runs and drop it; its id is free afterwards."""

    execution: str


Message = StartExecution | AwaitOutcome | CancelExecution | ForgetExecution


class Accepted(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The request is durable. ``created`` is False where an execution with that id was there before."""

    execution: str
    created: bool


class Ended(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """How the execution ended."""

    execution: str
    status: Status
    result: Stored | None
    failure: Failure | None


class Refused(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Not done, nothing recorded. ``error`` is the name of a class in rayflow.errors."""

    error: str
    message: str


Answer = Accepted | Ended | Refused


def not_found(execution: str) -> Refused:
    """The answer about an execution that there is not."""
    return Refused(
        "ExecutionNotFound", f"there is no execution {execution!r} in this store; 'python -m rayflow list' shows those there are"
    )


class Attempt(NamedTuple):
    """What names one attempt of one step. ``run`` tells an execution from an earlier one of the same id that was dropped."""

    execution: str
    operation: str
    attempt: int
    run: int


class StepStart(msgspec.Struct, frozen=True, array_like=True):
    """One attempt of one step, as it travels to where it runs. ``retry_on`` and ``give_up_on`` are type names."""

    execution: str
    operation: str
    attempt: int
    name: str
    function: Function
    arguments: Stored
    timeout_s: float | None
    retry_on: tuple[str, ...]
    give_up_on: tuple[str, ...]
    run: int


class StepResult(msgspec.Struct, frozen=True, array_like=True):
    """How an attempt went: ``result``, or ``failure`` with its ``cause`` and whether the step's retry wants this type again."""

    execution: str
    operation: str
    attempt: int
    result: Stored | None = None
    cause: str = ""
    failure: Failure | None = None
    retryable: bool = True
    usage: Usage | None = None
    run: int = 0


class StepProgress(msgspec.Struct, frozen=True, array_like=True):
    """What a running step says of itself; for display, never recorded."""

    execution: str
    operation: str
    attempt: int
    fields: dict[str, float]
    run: int = 0


class _Named(Protocol):
    @property
    def execution(self) -> str: ...
    @property
    def operation(self) -> str: ...
    @property
    def attempt(self) -> int: ...
    @property
    def run(self) -> int: ...


def attempt_of(one: _Named) -> Attempt:
    """The attempt that a start, a result, a report or a cancellation is about."""
    return Attempt(one.execution, one.operation, one.attempt, one.run)


class StepView(msgspec.Struct, frozen=True, array_like=True):
    """One unfinished operation of a live execution."""

    operation: str
    name: str
    attempt: int
    waiting_until_ms: int | None
    progress: dict[str, float]


class ExecutionView(msgspec.Struct, frozen=True, array_like=True):
    """A live execution, for display: counts of steps by name, and the operations under way."""

    execution: str
    status: Status
    completed: dict[str, int]
    failed_attempts: int
    reused: int
    running: list[StepView]
    failure: Failure | None = None
