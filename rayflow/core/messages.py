"""What clients ask of a shard and what it answers. All plain values: they cross processes."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import msgspec

from rayflow.core.records import Failure, Function, Status, Stored, Usage


class StartExecution(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=True):
    """Start a workflow, or attach to the execution that has this id already."""

    execution: str
    workflow: Function
    version: str
    arguments: Stored
    fingerprint: str
    seed: int


class AwaitOutcome(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=True):
    """Answer when the execution has ended."""

    execution: str


class StopWaiting(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=True):
    """The sender wants no answer to its AwaitOutcome of that ``number`` any more. Both are answered.

    With ``gone``, the name of a sender that is not there any more, it is about that one's, and nothing is answered: that would
    reach who comes back under the name, and is not meant for it.
    """

    execution: str
    number: int
    gone: str = ""


class AskOutcome(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=True):
    """Answer at once: how the execution has ended, or that it is accepted, which is all there is to say as long as it has not."""

    execution: str


class CancelExecution(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=True):
    """Cancel the execution; answered once the request is durable."""

    execution: str
    reason: str


class ResumeExecution(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=True):
    """Try the code of a suspended execution again; answered once it goes on, durably, or is suspended again."""

    execution: str


class ForgetExecution(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=True):
    """Stop the execution if it runs and drop it; its id is free afterwards."""

    execution: str


class CallEntity(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=True):
    """Have an entity handle a message; answered once what it did is durable.

    With a ``message_id`` it is handled once per id, ``fingerprint`` being that of operation and arguments. Without, it is handled
    once per token. ``at_ms``: not before that time, in milliseconds since 1970; it is answered once it is durable.
    """

    entity: str
    kind: Function
    operation: str
    arguments: Stored
    message_id: str = ""
    fingerprint: str = ""
    at_ms: int = 0


class SettleDeadLetter(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=True):
    """Have a dead letter handled again, or throw it away. It is gone if that succeeds; answered with how it went.

    ``at_ms`` is since when it is one: its number may have been that of another before.
    """

    entity: str
    number: int
    at_ms: int
    discard: bool


EntityMessage = CallEntity | SettleDeadLetter
WorkflowMessage = StartExecution | AwaitOutcome | StopWaiting | AskOutcome | CancelExecution | ResumeExecution | ForgetExecution
Message = WorkflowMessage | EntityMessage


class Caller(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The operation of a workflow that waits for an answer."""

    execution: str
    operation: str
    run: int


class Deliver(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=True):
    """From a workflow or an entity to an entity. Without ``caller`` nobody waits for an answer."""

    message: CallEntity
    sender: str
    caller: Caller | None = None
    run: int = 0
    """Of the sender, if it is a workflow."""


class Lock(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=True):
    """A workflow wants an entity for itself; it is answered when it has it."""

    entity: str
    kind: Function
    caller: Caller


class Unlock(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=True):
    """A workflow has done with an entity, or does not want it any more."""

    entity: str
    holder: str


def holder_of(execution: str, run: int) -> str:
    """What names a run of a workflow as the holder of a lock."""
    return f"{execution}#{run}"


class Returned(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=True):
    """From an entity to the workflow that called it."""

    caller: Caller
    result: Stored | None
    failure: Failure | None = None


Letter = Deliver | Returned | Lock | Unlock
"""What instances send each other. Each is handled exactly once, in the order in which one shard sent to another."""


class FromClient(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=True):
    """A client's message that waits until a lock is free."""

    token: Token
    message: CallEntity


class Token(NamedTuple):
    """Which request a message is: the ``number``-th of ``sender``. It has the answers to all of its requests up to ``heard``.

    A sender's requests reach a shard in the order of their numbers; one may come again, but then all later ones do, too. Numbers
    count over all shards, so the first to reach one may have any. That it is none which comes again is told by ``sent_ms``: when
    the sender first wanted to send it, by the clock of the shard's process; 0: just now.
    """

    sender: str
    number: int
    heard: int
    sent_ms: int = 0


class Accepted(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=True):
    """The request is durable. ``created`` is False where an execution with that id was there before."""

    execution: str
    created: bool


class Ended(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=True):
    """How the execution ended."""

    execution: str
    status: Status
    result: Stored | None
    failure: Failure | None


class Refused(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=True):
    """Not done, nothing recorded. ``error`` is the name of a class in rayflow.errors."""

    error: str
    message: str


class Answered(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=True):
    """An entity has handled the message; ``failure`` is what the operation raised, and then nothing that it did counts."""

    result: Stored | None
    failure: Failure | None = None


class Confirmed(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=True):
    """To another shard: its letters up to ``number`` are on record here."""

    number: int


Answer = Accepted | Ended | Refused | Answered | Confirmed


def refusal(failure: Failure) -> Refused:
    """The answer that names this failure."""
    return Refused(failure.type, failure.message)


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


class StepStart(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One attempt of one step, as it travels to where it runs. ``retry_on`` and ``give_up_on`` are type names.

    What is ``shared`` with other steps comes behind the positional ones of ``arguments``; what is ``passed`` goes into the places
    of those that are empty.
    """

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
    shared: Stored | None = None
    passed: tuple[tuple[int | str, Stored], ...] = ()


class StepResult(msgspec.Struct, frozen=True, array_like=True, gc=False):
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


QUEUED = "queued"
RUNNING = "running"
RETRYING = "retrying"
WAITING = "waiting"


class StepProgress(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a running step says of itself, and where it is; for display, never recorded. What is empty is as it was before."""

    execution: str
    operation: str
    attempt: int
    fields: dict[str, float]
    run: int = 0
    state: str = ""


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


class StepView(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One unfinished operation of a live execution.

    ``state`` of a step: "queued" until it has said, half a second after it began, that it is "running"; "retrying", before the next
    attempt; or "waiting for resources: " and what it asks for and what there is. Of anything else: "waiting".
    """

    operation: str
    name: str
    attempt: int
    waiting_until_ms: int | None
    progress: dict[str, float]
    state: str = QUEUED


class ExecutionView(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A live execution, for display: counts of steps by name, and the operations under way."""

    execution: str
    status: Status
    completed: dict[str, int]
    failed_attempts: int
    reused: int
    running: list[StepView]
    failure: Failure | None = None
