"""One running workflow: user code on a deterministic loop, fed with recorded events, asked what it wants next.

``turn(event)`` delivers one event and runs the code until it waits again. What the code asked for in that turn (``requested``,
``abandoned``, ``outcome``) is a function of the events so far and of nothing else; that is what replay checks. The instance knows
no attempts, no retries, no storage: the shard does.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import uuid
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol

from rayflow.core.codec import encode
from rayflow.core.definitions import StepOptions, Workflow
from rayflow.core.failures import describe_error, failure_of, raised_as
from rayflow.core.futures import Operation, Receiver
from rayflow.core.loop import DeterministicLoop
from rayflow.core.map_arguments import Shared
from rayflow.core.passing import Parts, Source
from rayflow.core.records import (
    Blob,
    CancelRequested,
    Cause,
    Completed,
    Elapsed,
    Event,
    Failed,
    Failure,
    Function,
    Started,
    Status,
    Stored,
)
from rayflow.core.turns import Turns
from rayflow.errors import (
    InvalidInput,
    NonDeterminismError,
    OperationFailed,
    StepFailed,
    StepLost,
    StepTimedOut,
)

_log = logging.getLogger("rayflow.workflow")


class Values(Protocol):
    """How stored values and code are found again."""

    def decode(self, stored: Stored) -> Any:
        """The value, read from its blob where it is one."""
        ...

    def describe(self, function: Callable[..., Any]) -> Function:
        """Code as another process can find it."""
        ...


class Code(Values, Protocol):
    """Values, and workflow code by reference."""

    def workflow(self, function: Function) -> Workflow[..., Any]:
        """Raises InvalidInput where the code cannot be loaded."""
        ...


@dataclass(frozen=True, slots=True)
class StepRequest:
    """The code wants a step run. What is ``shared`` with other steps comes behind the positional ones of ``arguments``; ``parts``
    go into the places of those that are empty."""

    operation: str
    settings: StepOptions
    function: Function
    arguments: bytes
    fingerprint: str
    kind: str = "step"
    shared: Shared | None = None
    parts: Parts = ()


@dataclass(frozen=True, slots=True)
class WaitRequest:
    """The code wants to sleep until ``due_ms``, durably."""

    operation: str
    name: str
    due_ms: int
    fingerprint: str
    kind: str = "wait"


@dataclass(frozen=True, slots=True)
class CallRequest:
    """The code sends something to an entity, and waits for the answer (kind "call", "lock") or not ("signal", "unlock")."""

    operation: str
    name: str
    address: str
    function: Function
    method: str
    arguments: bytes
    fingerprint: str
    kind: str
    at_ms: int = 0


Request = StepRequest | WaitRequest | CallRequest


def is_one_way(request: Request) -> bool:
    """Whether it has no outcome that the code could wait for."""
    return request.kind in ("signal", "unlock")


def name_of(request: Request) -> str:
    """The name that the operation is recorded under."""
    return request.settings.name if isinstance(request, StepRequest) else request.name


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the code ended. ``result`` is encoded."""

    status: Status
    result: bytes | None = None
    failure: Failure | None = None


class Halt(BaseException):
    """Raised into user code that no longer matches its record. A BaseException, so that ``except Exception`` cannot hide it."""


def step_error(record: Failed) -> Exception:
    """The exception that the workflow's code gets for a step that failed for good."""
    failure = record.failure
    kind = {Cause.TIMEOUT: StepTimedOut, Cause.CRASH: StepLost, Cause.LOST: StepLost}.get(record.cause, StepFailed)
    attempts = f"{record.attempt} attempt{'s' * (record.attempt > 1)}"
    return raised_as(kind, f"{record.operation} failed after {attempts}: {failure.type}: {failure.message}", failure)


def operation_error(operation: str, failure: Failure) -> Exception:
    """The exception that the workflow's code gets for an operation of an entity that raised."""
    return raised_as(OperationFailed, f"{operation} raised {failure.type}: {failure.message}", failure)


class Instance:
    """One execution's code in memory."""

    def __init__(self, started: Started, values: Values, turns: Turns | None = None) -> None:
        self.execution = started.execution
        self.title = f"execution {started.execution} of workflow {started.workflow.name}"
        self.version = started.version
        self.values = values
        self.silent = False
        """Whether log lines are dropped: those of recorded history, and of code that is being closed."""
        self.now_ms = started.at_ms
        self.requested: list[Request] = []
        self.abandoned: list[str] = []
        self.outcome: Outcome | None = None
        self.mismatch: Exception | None = None
        self._turns = turns or Turns()
        self._seed = started.seed
        self._random: random.Random | None = None
        self._loop = DeterministicLoop(started.at_ms / 1000, started.seed, ReplayLogger(_log, self))
        self._task: asyncio.Task[Any] | None = None
        self._waiting: dict[str, Receiver] = {}
        self._ordinals: dict[str, int] = {}
        self._keyed: set[str] = set()
        self._cancel_reason: str | None = None
        self.blobs: set[str] = set()
        """Hashes of the large results that there were: those blobs are in the store."""
        self.locked: frozenset[str] | None = None
        """Addresses of the entities that the code has locked, or is locking."""

    # -- driven by the shard -------------------------------------------------------------------------------------------------

    def start(self, body: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        """The first turn: create the workflow's coroutine and run it until it waits."""
        self._task = self._loop.create_task(_main(body))
        self._run()

    def turn(self, event: Event) -> None:
        """Deliver one event and run the code until it waits again."""
        self.now_ms = max(self.now_ms, event.at_ms)
        if isinstance(event, Completed):
            receiver = self._take(event.operation)
            if receiver is not None and event.failure is not None:
                receiver.fail(operation_error(event.operation, event.failure))
            elif receiver is not None:
                if isinstance(event.result, Blob):
                    self.blobs.add(event.result.hash)
                try:
                    if receiver.unread:
                        receiver.keep(event.result)
                    else:
                        receiver.succeed(self.read(event.result), event.result)
                except Halt:  # noted, and nothing for the code
                    pass
        elif isinstance(event, Failed):
            receiver = self._take(event.operation)
            if receiver is not None:
                receiver.fail(step_error(event))
        elif isinstance(event, Elapsed):
            receiver = self._take(event.operation)
            if receiver is not None:
                receiver.succeed(None)
        elif isinstance(event, CancelRequested):
            self._cancel_reason = event.reason
            if self._task is not None:
                self._task.cancel(event.reason)
        self._run()

    def waits_for(self, operation: str) -> bool:
        """Whether the code still wants this operation's outcome."""
        return operation in self._waiting

    def leaves_unread(self, operation: str) -> bool:
        """Whether this operation's result goes on to others, and the code does not look at it."""
        receiver = self._waiting.get(operation)
        return receiver is not None and receiver.unread

    def next_wake_ms(self) -> int | None:
        """When asyncio's own timers in the code are next due."""
        due_s = self._loop.next_timer_s()
        if due_s is None:
            return None
        due_ms = math.ceil(due_s * 1000)
        return due_ms if due_ms / 1000 >= due_s else due_ms + 1  # rounded down in between, it would be woken too early for ever

    @property
    def cancelling(self) -> bool:
        """Whether the execution was asked to end."""
        return self._cancel_reason is not None

    def take(self) -> tuple[list[Request], list[str]]:
        """What the last turn asked for, and what it gave up. Each is handed out once."""
        requested, self.requested = self.requested, []
        abandoned, self.abandoned = self.abandoned, []
        return requested, abandoned

    def close(self) -> None:
        """Drop the code. Its ``finally`` blocks run, with nobody listening to what they ask for or log."""
        self.silent = True
        self._task = None
        self._turns.begin(self)
        try:
            self._loop.close()
        finally:
            self._turns.end()
        self._waiting.clear()

    def halt(self, error: Exception) -> None:
        """Stop for good: the code does not match its record, or the record cannot be read."""
        if self.mismatch is None:
            self.mismatch = error

    def _take(self, operation: str) -> Receiver | None:
        receiver = self._waiting.pop(operation, None)
        if receiver is None and self.silent:
            self.halt(
                NonDeterminismError(
                    f"execution {self.execution}: the record holds an outcome of {operation}, for which the code does not wait; "
                    f"it waits for {', '.join(sorted(self._waiting)) or 'nothing'}"
                )
            )
        return receiver

    def _stopped(self) -> bool:
        return self.mismatch is not None

    def _run(self) -> None:
        self._turns.begin(self)
        try:
            self._loop.run(self.now_ms / 1000, self._stopped)
        finally:
            self._turns.end()
        task = self._task
        if self.mismatch is not None or task is None or not task.done() or self.outcome is not None:
            return
        unrecorded = {request.operation for request in self.requested}
        self.abandoned.extend(operation for operation in self._waiting if operation not in unrecorded)
        self._waiting.clear()
        self.requested = [request for request in self.requested if is_one_way(request)]
        self.outcome = self._read_outcome(task)

    def _read_outcome(self, task: asyncio.Task[Any]) -> Outcome:
        if task.cancelled():
            if self._cancel_reason is not None:
                message = f"the execution was cancelled: {self._cancel_reason}"
                return Outcome(Status.CANCELLED, failure=failure_of("CancelledError", message))
            message = "the workflow awaited something that its own code had cancelled; nobody cancelled the execution"
            return Outcome(Status.FAILED, failure=failure_of("CancelledError", message))
        error = task.exception()
        if error is not None:
            return Outcome(Status.FAILED, failure=describe_error(error))
        try:
            return Outcome(Status.COMPLETED, result=encode(task.result(), label="result"))
        except Exception as refused:
            return Outcome(Status.FAILED, failure=describe_error(refused))

    # -- called by the context -----------------------------------------------------------------------------------------------

    def reserve(self, scope: str, name: str, key: str | None) -> str:
        """The identity of an operation: scope, name, and the key or the ordinal of that name in that scope."""
        stem = scope + name
        if key is None:
            ordinal = self._ordinals.get(stem, 0) + 1
            self._ordinals[stem] = ordinal
            return f"{stem}#{ordinal}"
        operation = f"{stem}[{quote(key)}]"
        if operation in self._keyed:
            raise InvalidInput(f"execution {self.execution}: key {key!r} is used twice for {stem!r}; keys name one call each")
        self._keyed.add(operation)
        return operation

    def future(self) -> Operation:
        """A future on this instance's loop, not yet tied to an operation."""
        return Operation(loop=self._loop)

    def read(self, stored: Stored) -> Any:
        """A value that the code looks at. Raises Halt where it cannot be read."""
        try:
            return self.values.decode(stored)
        except Exception as error:
            # Not for the code: it would go another way than after the value has become readable again.
            self.halt(error)
            raise Halt from error

    def check_own(self, pending: Operation) -> None:
        """Raises InvalidInput where somebody else waits for this."""
        if pending.get_loop() is not self._loop:
            raise InvalidInput(f"execution {self.execution}: what another execution waits for cannot be an argument here")

    def source(self, pending: Operation) -> Source:
        """The result of an operation, to be passed on. Raises InvalidInput where that is none of a step of this execution."""
        self.check_own(pending)
        if not pending.name:
            raise InvalidInput(f"execution {self.execution}: an argument may be what ctx.step returned; await anything else")
        pending.read = self.read
        return pending.source()

    def request(self, request: Request, receiver: Receiver) -> None:
        """Ask for an operation whose outcome goes to ``receiver``."""
        if self.mismatch is not None:
            raise Halt
        if self._task is None or self.outcome is not None:
            raise RuntimeError(f"execution {self.execution} has ended; its context asks for nothing more")
        self._waiting[request.operation] = receiver
        self.requested.append(request)

    def signal(self, request: CallRequest) -> None:
        """Ask for something that has no outcome."""
        if self.mismatch is not None:
            raise Halt
        if self._task is None or self.outcome is not None:
            raise RuntimeError(f"execution {self.execution} has ended; its context asks for nothing more")
        self.requested.append(request)

    def abandon(self, operation: str) -> None:
        """Nobody waits for this operation any more."""
        if self._waiting.pop(operation, None) is None:
            return
        for index, request in enumerate(self.requested):
            if request.operation == operation:  # asked for and given up in the same turn: it never was
                del self.requested[index]
                return
        self.abandoned.append(operation)

    @property
    def random(self) -> random.Random:
        if self._random is None:
            self._random = random.Random(self._seed)
        return self._random

    def uuid4(self) -> uuid.UUID:
        return uuid.UUID(int=self.random.getrandbits(128), version=4)


async def _main(body: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """The workflow, including the call that creates its coroutine: arguments that do not fit are its failure, not its host's."""
    return await body()


def quote(key: str) -> str:
    """``key`` as it stands in an operation's identity; different keys stay different."""
    for char in "%/[]#":
        key = key.replace(char, f"%{ord(char):02X}")
    if not key.isascii():  # surrogates, as in names of files that are no Unicode, cannot be recorded
        key = "".join(f"%u{ord(char):04X}" if "\ud800" <= char <= "\udfff" else char for char in key)
    return key


def step_name(operation: str) -> str:
    """The step's name in an operation's identity: of ``a/encode#1/[0007]`` and of ``a/encode#2`` it is ``encode``."""
    scope, _, last = operation.rpartition("/")
    stem = last if last and last[0] != "[" else scope.rpartition("/")[2]
    return stem.partition("#")[0].partition("[")[0]


class ReplayLogger(logging.LoggerAdapter[logging.Logger]):
    """A logger that names the execution and is silent while recorded history is replayed."""

    def __init__(self, logger: logging.Logger, instance: Instance) -> None:
        super().__init__(logger, {"execution": instance.execution})
        self._instance = instance

    def isEnabledFor(self, level: int) -> bool:
        return not self._instance.silent and super().isEnabledFor(level)

    def process(self, msg: Any, kwargs: Any) -> tuple[Any, Any]:
        kwargs["extra"] = {**(self.extra or {}), **kwargs.get("extra", {})}
        return f"[{self._instance.execution}] {msg}", kwargs
