"""Runs the workflow machine in memory, with virtual time: the log is a list, the dispatcher a dict, a crash is a new machine.

``crash_at = k`` throws the machine away when batch k has become durable and before its effects have left, the worst moment there
is. The dispatcher, with what runs and with results that are not on record yet, is lost with it or survives, as ``dispatcher`` says.
Every start of a step that is on record as completed is noted in ``reruns``; nothing may ever put one there.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable
from itertools import chain
from random import Random
from typing import Any, Literal

from rayflow.core import codec
from rayflow.core.code_reference import resolve
from rayflow.core.crashes import Crashes, NoCrashes
from rayflow.core.definitions import Workflow
from rayflow.core.entity_type import EntityType, type_of
from rayflow.core.failures import describe_error
from rayflow.core.mail import Mail
from rayflow.core.messages import (
    Accepted,
    Answer,
    Attempt,
    AwaitOutcome,
    CancelExecution,
    Ended,
    Message,
    Refused,
    StartExecution,
    StepResult,
    attempt_of,
)
from rayflow.core.outbox import CancelStep, Outbox, Reply, StartStep
from rayflow.core.passing import joined
from rayflow.core.records import INLINE_LIMIT_BYTES, Blob, Cause, Completed, Function, Record, Stored, decode_record, digest
from rayflow.core.state import DurableState
from rayflow.core.workflows import Workflows
from rayflow.errors import CodecError, InvalidInput

EPOCH_MS = 1_790_000_000_000
SEED = 7
"""Of every execution, where a test does not say otherwise; it names the run in attempts."""


class MemoryCode:
    """Functions by name and blobs by hash, in dicts. ``workflows`` may be changed: that is new code being deployed."""

    def __init__(self) -> None:
        self.workflows: dict[str, Workflow[..., Any]] = {}
        self.functions: dict[str, Callable[..., Any]] = {}
        self.blobs: dict[str, bytes] = {}
        self.unreadable = False

    def decode(self, stored: Stored) -> Any:
        if self.unreadable and not isinstance(stored, bytes):
            raise CodecError("the blob cannot be read")
        return codec.decode(stored if isinstance(stored, bytes) else self.blobs[stored.hash])

    def store(self, value: Any) -> Stored:
        data = codec.encode(value)
        if len(data) <= INLINE_LIMIT_BYTES:
            return data
        self.blobs[digest(data)] = data
        return Blob(digest(data), len(data))

    def describe(self, function: Callable[..., Any]) -> Function:
        name = f"{function.__module__}:{function.__qualname__}"
        self.functions[name] = function
        return Function(name)

    def workflow(self, function: Function) -> Workflow[..., Any]:
        if function.name not in self.workflows:
            raise InvalidInput(f"{function.name} cannot be loaded")
        return self.workflows[function.name]

    def entity(self, function: Function) -> EntityType:
        return type_of(resolve(function.name))


class Driver:
    """One shard, its log, its dispatcher and its clients."""

    def __init__(
        self,
        *workflows: Workflow[..., Any],
        dispatcher: Literal["survives", "dies"] = "dies",
        notes: Crashes | None = None,
    ) -> None:
        self.notes = notes or NoCrashes()
        self.code_version = "1"
        self.code = MemoryCode()
        self.log: list[list[bytes]] = []
        self.now_ms = EPOCH_MS
        self.dispatcher = dispatcher
        self.crash_at: int | None = None
        self.crashes = 0
        self.hold: set[str] = set()
        """Names of steps that do not finish by themselves."""
        self.running: dict[Attempt, StartStep] = {}
        self.unrecorded: dict[Attempt, StepResult] = {}
        self.stopped: list[Attempt] = []
        self.runs: Counter[str] = Counter()
        """How often each operation was executed."""
        self.starts: list[tuple[int, Attempt]] = []
        """When each attempt was told to start."""
        self.reruns: list[Attempt] = []
        self.answers: dict[Hashable, list[Answer]] = defaultdict(list)
        self._tokens = 0
        for workflow in workflows:
            self.deploy(workflow)
        self._open()

    # -- clients -------------------------------------------------------------------------------------------------------------

    def deploy(self, workflow: Workflow[..., Any]) -> None:
        """Make this the code of its name, from the next recovery on."""
        self.code.workflows[workflow.name] = workflow

    def tell(self, message: Message) -> list[Answer]:
        """Send a message; the list gets the answer when there is one."""
        self._tokens += 1
        token = self._tokens
        self.machine.receive(token, message, self.now_ms)
        self.commit()
        return self.answers[token]

    def start(self, workflow: Workflow[..., Any], *args: Any, id: str = "x", seed: int = SEED) -> list[Answer]:
        data, fingerprint = codec.encode_with_fingerprint((args, {}))
        stored: Stored = data
        if len(data) > INLINE_LIMIT_BYTES:
            self.code.blobs[digest(data)] = data
            stored = Blob(digest(data), len(data))
        return self.tell(StartExecution(id, Function(workflow.name), workflow.version, stored, fingerprint, seed))

    def cancel(self, id: str = "x", reason: str = "asked") -> list[Answer]:
        return self.tell(CancelExecution(id, reason))

    def ended(self, id: str = "x") -> Ended:
        """How the execution ended. Fails if it has not."""
        (answer,) = self.tell(AwaitOutcome(id))
        assert isinstance(answer, Ended), answer
        return answer

    def result(self, id: str = "x") -> Any:
        """What the execution returned. Fails if it did anything else."""
        ended = self.ended(id)
        assert ended.result is not None, ended
        return self.code.decode(ended.result)

    def run(self, workflow: Workflow[..., Any], *args: Any, id: str = "x", rng: Random | None = None) -> Any:
        """Start, let everything happen, and return how it ended; a client whose shard crashed asks again."""
        while True:
            crashes = self.crashes
            (answer,) = self.start(workflow, *args, id=id) or [None]
            self.settle(rng)
            if crashes == self.crashes:
                assert isinstance(answer, Accepted), answer
                break
        ended = self.ended(id)
        return (ended.status, ended.failure and ended.failure.type, ended.result and self.code.decode(ended.result))

    def suspension(self, id: str = "x") -> Refused:
        """Why the execution is suspended. Fails if it is not."""
        (answer,) = self.tell(AwaitOutcome(id))
        assert isinstance(answer, Refused), answer
        return answer

    # -- what happens --------------------------------------------------------------------------------------------------------

    def settle(self, rng: Random | None = None) -> None:
        """Finish steps, in order or as ``rng`` has it, and pass the time once none is left, until nothing more happens."""
        while True:
            ready = [attempt for attempt, start in self.running.items() if start.request.settings.name not in self.hold]
            if ready:
                self.finish(rng.choice(ready) if rng else ready[0])
            elif (due_ms := self.machine.next_due_ms()) is not None:
                self.pass_until(due_ms)
            else:
                return

    def pass_until(self, now_ms: int) -> None:
        """Move the time and fire what is due."""
        self.now_ms = max(self.now_ms, now_ms)
        self.machine.advance(self.now_ms)
        self.commit()

    def attempt(self, operation: str) -> Attempt:
        """The attempt of this operation that runs now."""
        (found,) = [attempt for attempt in self.running if attempt[1] == operation]
        return found

    def finish(self, attempt: Attempt | str) -> None:
        """Run an attempt's function and report how it went."""
        if isinstance(attempt, str):
            attempt = self.attempt(attempt)
        if attempt not in self.unrecorded:
            self.unrecorded[attempt] = self.execute(self.running[attempt])
        self.report(self.unrecorded[attempt])

    def report(self, result: StepResult) -> None:
        """Tell the machine of a result."""
        crashes = self.crashes
        self.machine.step_finished(result, self.now_ms)
        self.commit()
        if crashes == self.crashes:
            attempt = attempt_of(result)
            self.running.pop(attempt, None)
            self.unrecorded.pop(attempt, None)

    def execute(self, start: StartStep) -> StepResult:
        request = start.request
        self.runs[request.operation] += 1
        args, kwargs = joined(start.arguments, start.shared, start.passed, self.code.decode)
        try:
            value = self.code.functions[request.function.name](*args, **kwargs)
        except Exception as error:
            return StepResult(
                start.execution,
                request.operation,
                start.attempt,
                cause=Cause.ERROR,
                failure=describe_error(error),
                retryable=request.settings.retry.wants(error),
                run=start.run,
            )
        return StepResult(start.execution, request.operation, start.attempt, self.code.store(value), run=start.run)

    def fail(self, operation: str, cause: Cause) -> None:
        """The running attempt of this operation ends without the function's doing."""
        execution, _, number, run = self.attempt(operation)
        failure = describe_error(RuntimeError(f"it was {cause}"))
        self.report(StepResult(execution, operation, number, cause=cause, failure=failure, retryable=False, run=run))

    # -- the log -------------------------------------------------------------------------------------------------------------

    def commit(self) -> None:
        """Make everything durable, batch by batch, and let its effects go."""
        while self.outbox:
            batch = self.outbox.close()
            if batch.records:
                self.code.blobs.update(batch.blobs)
                self.log.append(batch.encoded)
                self.state.extend(batch.encoded)
                if self.crash_at == len(self.log) - 1:
                    self.crash_at = None
                    self.crash()
                    return
            for effect in batch.effects:
                if isinstance(effect, Reply):
                    self.answers[effect.token].append(effect.answer)
                elif isinstance(effect, StartStep):
                    attempt = attempt_of(effect)
                    if attempt[:2] in self._completed():
                        self.reruns.append(attempt)
                    self.starts.append((self.now_ms, attempt))
                    self.running.setdefault(attempt, effect)
                elif isinstance(effect, CancelStep):
                    attempt = attempt_of(effect)
                    self.stopped.append(attempt)
                    self.running.pop(attempt, None)

    def crash(self, batches: int | None = None) -> None:
        """Throw the machine away; a new one starts from the log, or from its first ``batches`` batches."""
        if batches is not None:
            del self.log[batches:]
        self.crashes += 1
        self.machine.close()
        if self.dispatcher == "dies":
            self.running.clear()
            self.unrecorded.clear()
        self._open()

    def _open(self) -> None:
        self.state = DurableState()
        self.state.extend(chain.from_iterable(self.log))
        self.outbox = Outbox()
        self.machine = Workflows(self.outbox, self.code, Mail.alone(self.outbox), self.crashes, None, self.notes, self.code_version)
        self.machine.restore(self.state.live, self.state.ended, self.now_ms)
        expected = self.machine.running_steps()
        for attempt in set(self.running) - set(expected):
            del self.running[attempt]
        for attempt in expected:
            if attempt not in self.running:
                self.machine.step_lost(attempt, self.now_ms)
        self.machine.go_on(self.now_ms)
        self.commit()

    def records(self, execution: str = "x") -> list[Record]:
        """All that is on record of an execution."""
        decoded = [decode_record(one) for batch in self.log for one in batch]
        return [record for record in decoded if record.execution == execution]

    def _completed(self) -> set[tuple[str, str]]:
        records = (decode_record(one) for batch in self.log for one in batch)
        return {(record.execution, record.operation) for record in records if isinstance(record, Completed)}
