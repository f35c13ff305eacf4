"""An owner without a cluster: one execution on a store in memory, in this thread, under a virtual clock.

The machine, the log and the order of things are those of a shard: records are written, then effects go out. Steps run in the order
in which they were asked for, one at a time, each to its end. The clock moves only when there is nothing else to do, and then to the
next moment at which something is due: a wait of a day takes no time.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, cast

import msgspec

from rayflow.checkpoint import log
from rayflow.checkpoint.blobs import put_blob
from rayflow.checkpoint.identity import shard_prefix
from rayflow.checkpoint.recovery import state_in
from rayflow.checkpoint.requests import run
from rayflow.checkpoint.store import Store
from rayflow.checkpoint.tables import history_key, write_history, write_snapshot
from rayflow.core import codec, owner
from rayflow.core.definitions import Step, Workflow
from rayflow.core.entities import Entities
from rayflow.core.mail import Mail
from rayflow.core.messages import Answer, AwaitOutcome, Ended, Message, Refused, StartExecution, Token, attempt_of
from rayflow.core.mistakes import mistaken
from rayflow.core.outbox import CancelStep, Effect, Outbox, Reply, StartStep
from rayflow.core.records import Function
from rayflow.core.workflows import Workflows
from rayflow.errors import AlreadyExists
from rayflow.runtime.code import StoredCode
from rayflow.runtime.inline import step_start
from rayflow.runtime.worker import run_attempt

PREFIX = shard_prefix(0)
EPOCH_MS = 1_767_225_600_000
"""What the virtual clock shows at first: the beginning of 2026, UTC."""

SNAPSHOT_SEGMENTS = 8
"""A snapshot follows every so many segments: often, so that short tests meet some."""

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


class Owner:
    """Takes the log on ``store`` over and works on its executions until nothing is left to do, or the store ends it."""

    def __init__(self, store: Store, code: LocalCode, clock: Clock, incarnation: str, attempts: Tally) -> None:
        self._store = store
        self._code = code
        self._clock = clock
        self._outbox = Outbox()
        self._steps: deque[StartStep] = deque()
        self._asked = 0
        self._answer: Answer | None = None
        self._unsaved = 0
        self._attempts = attempts
        recovered = run(log.recover(PREFIX, incarnation), store)
        self._tail = recovered.tail
        self._state = state = state_in(recovered.view, PREFIX)
        mail = Mail(self._outbox, 0, lambda _: 0, state.mail)
        parts = owner.Parts(Workflows(self._outbox, code, mail), Entities(self._outbox, code, mail, state.entities), mail)
        self._owner = owner.Owner(self._tail.epoch, parts, self._outbox, state)
        self._owner.restore(clock.now_ms)
        self._owner.attached(self._owner.next_connection(), list(self._owner.expected()), clock.now_ms)

    def ask(self, message: Message) -> Answer | None:
        """Hand in a message, go on until nothing is left to do, and return its answer, if there is one."""
        self._asked += 1
        self._answer = None
        self._owner.receive(Token("test", self._asked, self._asked - 1), message, self._clock.now_ms)
        while self._advance():
            continue
        return self._answer

    def run(self, message: StartExecution) -> Ended | Refused | None:
        """Start an execution, go on until nothing is left to do, and return how it ended; None: it has not."""
        answer = self.ask(message)
        if not isinstance(answer, Refused):
            answer = self.ask(AwaitOutcome(message.execution))
        return cast("Ended | Refused | None", answer)

    def close(self) -> None:
        """End what is in memory; nothing of it reaches the store any more."""
        self._owner.machine.close()

    def _advance(self) -> bool:
        if self._outbox:
            self._commit()
        elif self._steps:
            self._run(self._steps.popleft())
        elif (due_ms := self._owner.next_due_ms()) is not None:
            self._clock.now_ms = max(self._clock.now_ms, due_ms)
            self._owner.advance(self._clock.now_ms)
        else:
            return False
        return True

    def _commit(self) -> None:
        batch = self._outbox.close()
        for data in batch.blobs.values():
            put_blob(self._store, data)
        if batch.records:
            self._tail = run(log.append(self._tail, batch.encoded), self._store)
            self._owner.apply(batch)
            self._unsaved += 1
        self._release(batch.effects)
        if self._unsaved >= SNAPSHOT_SEGMENTS:
            self._snapshot()

    def _release(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, StartStep):
                self._steps.append(effect)
            elif isinstance(effect, CancelStep):
                self._steps = deque(one for one in self._steps if attempt_of(one) != attempt_of(effect))
            elif isinstance(effect, Reply) and cast("Token", effect.token).number == self._asked:
                self._answer = effect.answer

    def _run(self, effect: StartStep) -> None:
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
        self._owner.step_finished([msgspec.structs.replace(result, usage=None)], self._clock.now_ms)

    def _snapshot(self) -> None:
        self._unsaved = 0
        unfiled = dict(self._state.unfiled)
        if unfiled:
            file = write_history(unfiled)
            history = history_key(0, self._tail.number, file)
            with suppress(AlreadyExists):
                self._store.create(history, file)
            self._state.filed(unfiled, history)
        snapshot = run(log.write_snapshot(self._tail, write_snapshot(self._state)), self._store)
        self._tail = self._tail.after_snapshot(snapshot)


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
