"""Runs a shard in memory, with virtual time: the one that ships, on a store that is a dict, with a dispatcher that is another.

``crash_at = k`` ends the process when batch k has become durable and before its effects have left, the worst moment there is. The
dispatcher, with what runs and with results that are not on record yet, is lost with it or survives, as ``dispatcher`` says. Every
start of a step that is on record as completed is noted in ``reruns``; nothing may ever put one there.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable
from dataclasses import replace
from random import Random
from typing import Any, Literal

from rayflow.checkpoint import log, segment
from rayflow.checkpoint.blobs import put_blob
from rayflow.checkpoint.identity import shard_prefix
from rayflow.checkpoint.memory import MemoryStore
from rayflow.checkpoint.requests import run
from rayflow.core import codec
from rayflow.core.code_reference import resolve
from rayflow.core.crashes import Crashes, NoCrashes
from rayflow.core.definitions import Workflow
from rayflow.core.failures import describe_error
from rayflow.core.ledger import Connection
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
from rayflow.core.outbox import Outbox, StartStep
from rayflow.core.owner import Sending
from rayflow.core.passing import joined
from rayflow.core.records import INLINE_LIMIT_BYTES, Cause, Completed, Function, Record, Stored, decode_record
from rayflow.core.state import DurableState
from rayflow.core.workflows import Workflows
from rayflow.errors import CodecError, InvalidInput
from rayflow.runtime.code import StoredCode
from rayflow.runtime.dispatching import Collected
from rayflow.runtime.ports import Machines
from rayflow.testing.calm import CalmShard, same_runs

EPOCH_MS = 1_790_000_000_000
SEED = 7
"""Of every execution, where a test does not say otherwise; it names the run in attempts."""


class Crashed(BaseException):
    """The process ends here."""


class Slots(MemoryStore):
    """A store that ends the process once it has the ``crash_at``-th batch, or with ``crash_next`` whatever is written to a log."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        """Of all batches."""
        self.crash_at: int | None = None
        self.crash_next = False

    def create(self, key: str, data: bytes) -> None:
        super().create(key, data)
        if "/log/" not in key:
            return
        crash, self.crash_next = self.crash_next, False
        if segment.decode(data, key).records:
            crash = crash or self.crash_at == self.count
            self.count += 1
        if crash:
            self.crash_at = None
            raise Crashed

    def view(self, shard: int = 0) -> log.View:
        """The log of a shard."""
        return run(log.read(shard_prefix(shard)), self, parallel=1)

    def batches(self, shard: int = 0) -> list[list[bytes]]:
        """The records of a shard's segments, after its snapshot if it has one."""
        return [list(one.records) for one in self.view(shard).segments if one.records]

    def append(self, records: list[bytes], shard: int = 0) -> None:
        """Put a segment at the end, as another owner would."""
        tail = run(log.recover(shard_prefix(shard), "another"), self).tail
        run(log.append(tail, records), self)

    def cut(self, batches: int) -> None:
        """Drop all after so many batches, from a log that has no snapshot."""
        last = [one.number for one in self.view().segments if one.records][:batches][-1:]
        self.delete(
            [info.key for info in self.list(f"{shard_prefix(0)}log/", log.slot_key(shard_prefix(0), *last) if last else "")]
        )


class MemoryCode(StoredCode):
    """Functions by name, in dicts. ``workflows`` may be changed: that is new code being deployed."""

    def __init__(self) -> None:
        self.slots = Slots()
        super().__init__(self.slots)
        self.workflows: dict[str, Workflow[..., Any]] = {}
        self.functions: dict[str, Callable[..., Any]] = {}
        self.unreadable = False

    @property
    def blobs(self) -> dict[str, bytes]:
        """What was too large for a record, by hash."""
        return {info.key.rpartition("/")[2]: self.slots.get(info.key) for info in self.slots.list("blobs/")}

    def decode(self, stored: Stored) -> Any:
        if self.unreadable and not isinstance(stored, bytes):
            raise CodecError("the blob cannot be read")
        return super().decode(stored)

    def store_encoded(self, data: bytes) -> Stored:
        return data if len(data) <= INLINE_LIMIT_BYTES else put_blob(self.slots, data)

    def encoded(self, value: Any) -> Stored:
        return self.store_encoded(codec.encode(value))

    def describe(self, function: Callable[..., Any]) -> Function:
        name = f"{function.__module__}:{function.__qualname__}"
        self.functions[name] = function
        return Function(name)

    def function(self, function: Function) -> Any:
        return resolve(function.name)

    def workflow(self, function: Function) -> Workflow[..., Any]:
        if function.name not in self.workflows:
            raise InvalidInput(f"{function.name} cannot be loaded")
        return self.workflows[function.name]


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
        self.slots = self.code.slots
        self.now_ms = EPOCH_MS
        self.dispatcher = dispatcher
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
        self.process.receive(token, message)
        self.commit()
        return self.answers[token]

    def start(self, workflow: Workflow[..., Any], *args: Any, id: str = "x", seed: int = SEED) -> list[Answer]:
        data, fingerprint = codec.encode_with_fingerprint((args, {}))
        stored = self.code.store_encoded(data)
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
        crashes, attempt = self.crashes, attempt_of(result)
        start = self.running.get(attempt)
        self._dispatcher.ended(result, start is not None and start.request.settings.inline)
        self.commit()
        if crashes == self.crashes:
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
        return StepResult(start.execution, request.operation, start.attempt, self.code.encoded(value), run=start.run)

    def fail(self, operation: str, cause: Cause) -> None:
        """The running attempt of this operation ends without the function's doing."""
        execution, _, number, run = self.attempt(operation)
        failure = describe_error(RuntimeError(f"it was {cause}"))
        self.report(StepResult(execution, operation, number, cause=cause, failure=failure, retryable=False, run=run))

    # -- the process -----------------------------------------------------------------------------------------------------------

    def commit(self) -> None:
        """Have everything happen that can: what gathered becomes durable, batch by batch, and its effects go."""
        try:
            self.process.go_on_until(self.now_ms)
        except Crashed:
            self.crash()

    def crash(self, batches: int | None = None) -> None:
        """End the process; a new one starts from the log, or from its first ``batches`` batches."""
        self.process.crash()
        if batches is not None:
            self.slots.cut(batches)
        self.crashes += 1
        for attempt, start in list(self.running.items()):
            if self.dispatcher == "dies" or start.request.settings.inline:
                del self.running[attempt]
                self.unrecorded.pop(attempt, None)
        self._open()

    def _open(self) -> None:
        self.process = calm = CalmShard(self.slots, self.code, self.now_ms, f"life{self.crashes}")
        self._dispatcher = Dispatcher(self)

        def inline(finished: Callable[[list[StepResult]], None]) -> Dispatcher:
            self._dispatcher.inline = finished
            return self._dispatcher

        calm.ports = replace(
            calm.ports,
            link=self._dispatcher,
            inline=inline,
            answer=lambda token, answer: self.answers[token].append(answer),
            crashes=self.notes,
            code_name=self.code_version,
            now_ms=lambda: self.now_ms,
            machines=Machines(outbox=Outbox, workflows=same_runs(self.crashes)),
        )
        try:
            calm.open()
        except Crashed:
            self.crash()
        else:
            self.commit()

    @property
    def machine(self) -> Workflows:
        return self.process.owner.machine

    @property
    def outbox(self) -> Outbox:
        return self.process.owner.outbox

    @property
    def state(self) -> DurableState:
        return self.process.owner.state

    # -- the log -------------------------------------------------------------------------------------------------------------

    @property
    def log(self) -> list[list[bytes]]:
        """The records of each batch."""
        return self.slots.batches()

    @property
    def crash_at(self) -> int | None:
        """Once this batch is durable, the process ends."""
        return self.slots.crash_at

    @crash_at.setter
    def crash_at(self, batch: int | None) -> None:
        self.slots.crash_at = batch

    def records(self, execution: str = "x") -> list[Record]:
        """All that is on record of an execution."""
        decoded = [decode_record(one) for batch in self.log for one in batch]
        return [record for record in decoded if record.execution == execution]

    def begin(self, start: StartStep) -> None:
        """An attempt is to be started."""
        attempt = attempt_of(start)
        completed = [one for one in self.records(start.execution) if isinstance(one, Completed)]
        if attempt.operation in [one.operation for one in completed]:
            self.reruns.append(attempt)
        self.starts.append((self.now_ms, attempt))
        self.running.setdefault(attempt, start)


class Dispatcher:
    """The driver's dispatcher, and what runs inline steps, as its process sees them."""

    def __init__(self, driver: Driver) -> None:
        self.inline: Callable[[list[StepResult]], None] = lambda results: None
        self._driver = driver
        self._news = asyncio.Event()
        self._results: list[tuple[int, StepResult]] = []
        self._count = 0

    def ended(self, result: StepResult, inline: bool) -> None:
        """An attempt has ended, so."""
        loop = self._driver.process.loop
        if inline:
            loop.call(self.inline, [result])
        else:
            self._count += 1
            self._results.append((self._count, result))
            loop.call(self._news.set)

    async def attach(self, connection: Connection, expected: tuple[Attempt, ...]) -> list[Attempt]:
        running = self._driver.running
        for attempt in set(running) - set(expected):
            if not running[attempt].request.settings.inline:
                del running[attempt]
        return [one for one in expected if one not in running]

    async def send(self, sending: Sending) -> None:
        self.submit(sending.starts)
        for attempt in sending.stops:
            self._driver.stopped.append(attempt)
            self._driver.running.pop(attempt, None)

    async def collect(self, connection: Connection, recorded: int, seen: int) -> Collected:
        self._results = [one for one in self._results if one[0] > recorded]
        while not (news := [one for one in self._results if one[0] > seen]):
            self._news.clear()
            await self._news.wait()
        return Collected(news, [])

    def submit(self, starts: list[StartStep]) -> None:
        for start in starts:
            self._driver.begin(start)

    def close(self) -> None:
        """Nobody ends it."""
