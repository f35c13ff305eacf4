"""An owner without a cluster: one execution on a store in memory, in this thread, under a virtual clock.

The shard is the one that ships, on a loop whose clock moves only when there is nothing else to do, and then to the next moment at
which something is due: a wait of a day takes no time. Steps run in the order in which they were asked for, one at a time, each to
its end.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import msgspec

from rayflow.checkpoint.blobs import put_blob
from rayflow.checkpoint.store import Store
from rayflow.core import codec, limits
from rayflow.core.definitions import Step, Workflow
from rayflow.core.ledger import Connection
from rayflow.core.messages import (
    Answer,
    Attempt,
    AwaitOutcome,
    Ended,
    Message,
    Refused,
    StartExecution,
    StepResult,
    Token,
    attempt_of,
)
from rayflow.core.mistakes import mistaken
from rayflow.core.outbox import Outbox, StartStep
from rayflow.core.owner import Sending
from rayflow.core.records import Function
from rayflow.runtime.code import StoredCode
from rayflow.runtime.dispatching import Collected
from rayflow.runtime.inline import step_start
from rayflow.runtime.ports import Machines
from rayflow.runtime.worker import run_attempt
from rayflow.testing.calm import CalmShard, same_runs
from rayflow.testing.simulated_loop import ProcessLoop

_NEVER_S = 1e9

EPOCH_MS = 1_767_225_600_000
"""What the virtual clock shows at first: the beginning of 2026, UTC."""

SNAPSHOT_BYTES = 8 * 2048
"""A snapshot follows about every eighth segment: often, so that short tests meet some."""

Replacements = Mapping[Step[..., Any], Callable[..., Any]]
"""What runs instead of a step's function."""


class LocalCode(StoredCode):
    """Code of this process, by identity: functions inside functions and closures stay what they are. Shared between owners."""

    def __init__(self, store: Store, replacements: Replacements) -> None:
        super().__init__(store)
        self._known: dict[str, Any] = {}
        self._names: dict[Callable[..., Any], str] = {}
        self._replacements = {step.function: replacement for step, replacement in replacements.items()}

    def describe(self, function: Callable[..., Any]) -> Function:
        name = self._names.get(function)
        if name is None:
            name = f"{function.__module__}:{function.__qualname__}"
            while name in self._known:
                name += "'"
            self._names[function] = name
            self._known[name] = self._replacements.get(function, function)
        return Function(name)

    def function(self, function: Function) -> Any:
        return self._known[function.name]


class Clock:
    """Milliseconds since 1970, moved by hand."""

    def __init__(self) -> None:
        self.now_ms = EPOCH_MS


class Tally:
    """Attempts of steps that were begun, whatever became of them."""

    def __init__(self) -> None:
        self.count = 0


class _Steps:
    """Runs steps one at a time, each to its end, in the order in which they were asked for: the dispatcher of a shard."""

    def __init__(self, loop: ProcessLoop, code: LocalCode, attempts: Tally) -> None:
        self._loop = loop
        self._code = code
        self._attempts = attempts
        self._waiting: deque[StartStep] = deque()
        self._results: list[tuple[int, StepResult]] = []
        self._count = 0
        self._news = asyncio.Event()
        self.inline: Callable[[list[StepResult]], None] = lambda results: None

    async def attach(self, connection: Connection, expected: tuple[Attempt, ...]) -> list[Attempt]:
        return list(expected)  # they ended with the process before

    async def send(self, sending: Sending) -> None:
        stopped = set(sending.stops)
        self._waiting = deque(one for one in self._waiting if attempt_of(one) not in stopped)
        self.submit(sending.starts)

    async def collect(self, connection: Connection, recorded: int, seen: int) -> Collected:
        self._results = [one for one in self._results if one[0] > seen]
        while not self._results:
            self._news.clear()
            await self._news.wait()
        return Collected(self._results, [])

    def submit(self, starts: Sequence[StartStep]) -> None:
        self._waiting.extend(starts)
        for _ in starts:
            self._loop.world.after(0, self._loop.group, self._next)

    def close(self) -> None:
        self._waiting.clear()

    def _next(self) -> None:
        if not self._waiting:
            return
        effect = self._waiting.popleft()
        self._attempts.count += 1
        # The virtual clock does not move while a step runs, so no time-out can pass.
        start = msgspec.structs.replace(step_start(effect), timeout_s=None)
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            result = run_attempt(start, self._code)
        else:  # an async step needs a loop of its own, and a thread has one at most
            with ThreadPoolExecutor(1) as thread:
                result = thread.submit(run_attempt, start, self._code).result()
        result = msgspec.structs.replace(result, usage=None)
        if effect.request.settings.inline:
            self._loop.call(self.inline, [result])
            return
        self._count += 1
        self._results.append((self._count, result))
        self._loop.call(self._news.set)


class Owner:
    """Takes the log on ``store`` over and works on its executions until nothing is left to do, or the store ends it."""

    def __init__(self, store: Store, code: LocalCode, clock: Clock, incarnation: str, attempts: Tally) -> None:
        self._clock = clock
        self._asked = 0
        self._answers: dict[Hashable, Answer] = {}
        self._calm = calm = CalmShard(store, code, clock.now_ms - EPOCH_MS, incarnation)
        self._steps = _Steps(calm.loop, code, attempts)
        calm.ports = replace(
            calm.ports,
            link=self._steps,
            inline=self._inline,
            answer=self._answers.__setitem__,
            now_ms=lambda: EPOCH_MS + math.ceil(calm.world.now_ms),
            machines=Machines(workflows=same_runs(0)),
        )
        try:
            with self._work():
                calm.open()
        except BaseException:
            calm.loop.end()
            raise

    def ask(self, message: Message) -> Answer | None:
        """Hand in a message, go on until nothing is left to do, and return its answer, if there is one."""
        self._asked += 1
        token = Token("test", self._asked, self._asked - 1)
        self._calm.receive(token, message)
        with self._work():
            self._calm.go_on(math.inf, lambda: self._calm.shard.idle)
        return self._answers.pop(token, None)

    def run(self, message: StartExecution) -> Ended | Refused | None:
        """Start an execution, go on until nothing is left to do, and return how it ended; None: it has not."""
        answer = self.ask(message)
        if not isinstance(answer, Refused):
            answer = self.ask(AwaitOutcome(message.execution))
        return cast("Ended | Refused | None", answer)

    def close(self) -> None:
        """End what is in memory; nothing of it reaches the store any more."""
        self._calm.close()

    def _inline(self, finished: Callable[[list[StepResult]], None]) -> _Steps:
        self._steps.inline = finished
        return self._steps

    @contextmanager
    def _work(self) -> Generator[None]:
        try:
            with limits.using(snapshot_bytes=SNAPSHOT_BYTES, owner_look_s=_NEVER_S):
                yield
        finally:
            self._clock.now_ms = self._calm.ports.now_ms()


def start_message(
    code: LocalCode, workflow: Workflow[..., Any], id: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> StartExecution:
    """The message that starts a workflow; the seed of its dice comes from the id."""
    if not isinstance(workflow, Workflow):  # pyright: ignore[reportUnnecessaryIsInstance]  # users are not all typed
        raise mistaken(workflow, "workflow")
    data, fingerprint = codec.encode_with_fingerprint((args, kwargs), label="arguments")
    stored = Outbox().store(data)
    if stored is not data:
        put_blob(code.store, data)
    return StartExecution(id, code.describe(workflow), workflow.version, stored, fingerprint, int(codec.fingerprint(id)[:15], 16))
