"""Stores with executions in them, made by the real core and the real log, step by step and without Ray.

The test says how each attempt went and what time it is; ``Owner`` writes what a shard would write.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable
from typing import Any

import rayflow
from rayflow.checkpoint import log
from rayflow.checkpoint.blobs import get_blob
from rayflow.checkpoint.identity import identify, shard_prefix
from rayflow.checkpoint.recovery import state_in
from rayflow.checkpoint.requests import run
from rayflow.checkpoint.store import Store
from rayflow.checkpoint.tables import history_key, write_history, write_snapshot
from rayflow.core import codec
from rayflow.core.mail import Mail
from rayflow.core.messages import Attempt, CancelExecution, ForgetExecution, Message, StartExecution, StepResult
from rayflow.core.outbox import Outbox
from rayflow.core.records import Blob, Cause, Failure, Function, Stored, Usage
from rayflow.core.workflows import Workflows

T0_MS = 1_700_000_000_000
SEED = 1


@rayflow.step(retry=rayflow.Retry(max_attempts=3, initial_s=10, jitter=0))
def fetch(number: int) -> int:
    return number


@rayflow.step(retry=rayflow.Retry(max_attempts=1))
def convert(number: int) -> int:
    return number


@rayflow.workflow(version="7")
async def single(ctx: rayflow.Context, number: int) -> int:
    return await ctx.step(fetch, number)


@rayflow.workflow(version="8")
async def single_changed(ctx: rayflow.Context, number: int) -> int:
    return await ctx.step(convert, number)


@rayflow.workflow(version="7")
async def busy(ctx: rayflow.Context, items: int) -> None:
    """Has, after ``Owner.drive_busy``, an operation in every state."""
    loser = asyncio.ensure_future(ctx.step(convert, 0))
    await ctx.map(fetch, range(items))
    loser.cancel()
    with contextlib.suppress(rayflow.StepFailed):
        await ctx.step(convert, 1)
    await asyncio.gather(ctx.step(fetch, 2), ctx.step(fetch, 3), ctx.wait(3600))


@rayflow.workflow
async def sleeper(ctx: rayflow.Context) -> None:
    await ctx.wait(3600)


class Code:
    """Workflows by name, exchangeable between two openings; values as the codec has them."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.workflows: dict[str, rayflow.Workflow[..., Any]] = {"single": single, "busy": busy}

    def workflow(self, function: Function) -> rayflow.Workflow[..., Any]:
        return self.workflows[function.name]

    def decode(self, stored: Stored) -> Any:
        return codec.decode(get_blob(self._store, stored) if isinstance(stored, Blob) else stored)

    def describe(self, function: Callable[..., Any]) -> Function:
        return Function(function.__qualname__)


class Owner:
    """One owner of one shard. Everything is durable when a method returns. ``now_ms`` is what the records say."""

    def __init__(self, store: Store, number: int, code: Code, now_ms: int = T0_MS) -> None:
        self.store = store
        self.number = number
        self.now_ms = now_ms
        self._outbox = Outbox()
        self._machine = Workflows(self._outbox, code, Mail.alone(self._outbox))
        recovered = run(log.recover(shard_prefix(number), secrets.token_hex(16)), store)
        self.tail = recovered.tail
        self.state = state_in(recovered.view, shard_prefix(number))
        self._machine.restore(self.state.live, self.state.ended, now_ms)
        self._machine.go_on(now_ms)
        self._commit()

    def start(self, execution: str, workflow: str, *arguments: object) -> None:
        data, fingerprint = codec.encode_with_fingerprint((arguments, {}), label="arguments")
        self._receive(StartExecution(execution, Function(workflow), "7", data, fingerprint, seed=SEED))

    def cancel(self, execution: str, reason: str = "enough") -> None:
        self._receive(CancelExecution(execution, reason))

    def forget(self, execution: str) -> None:
        self._receive(ForgetExecution(execution))

    def complete(self, execution: str, operation: str, value: object, *, attempt: int = 1, cpu_s: float = 2.0) -> None:
        usage = Usage(self.now_ms - 1500, self.now_ms - 500, cpu_s, "node-a")
        self._machine.step_finished(
            StepResult(execution, operation, attempt, codec.encode(value, label="result"), usage=usage, run=SEED), self.now_ms
        )
        self._commit()

    def fail(self, execution: str, operation: str, message: str, *, attempt: int = 1, cause: Cause = Cause.ERROR) -> None:
        usage = Usage(self.now_ms - 1500, self.now_ms - 500, 0.5, "node-b")
        failure = Failure("OSError", message, "Traceback: here")
        self._machine.step_finished(
            StepResult(execution, operation, attempt, cause=cause, failure=failure, usage=usage, run=SEED), self.now_ms
        )
        self._commit()

    def lose(self, execution: str, operation: str, *, attempt: int = 1) -> None:
        self._machine.step_lost(Attempt(execution, operation, attempt, SEED), self.now_ms)
        self._commit()

    def advance(self, milliseconds: int) -> None:
        """Let time pass, timers included."""
        self.now_ms += milliseconds
        self._machine.advance(self.now_ms)
        self._commit()

    def drive_busy(self, execution: str) -> None:
        """Take a fresh ``busy`` execution of two items to the point where an operation is in every state."""
        self.advance(2000)
        self.complete(execution, "fetch#1/[0]", 0)
        self.fail(execution, "fetch#1/[1]", "flaky")
        self.advance(10_000)
        self.complete(execution, "fetch#1/[1]", 1, attempt=2, cpu_s=3.0)
        self.fail(execution, "convert#2", "too slow", cause=Cause.TIMEOUT)
        self.advance(2000)
        self.fail(execution, "fetch#2", "no [bold]luck\x1b[31m\nat all")
        self.lose(execution, "fetch#3")

    def snapshot(self) -> None:
        """File what ended, write the state, truncate: as a shard does."""
        unfiled = dict(self.state.unfiled)
        if unfiled:
            file = write_history(unfiled)
            history = history_key(self.number, self.tail.number, file)
            self.store.create(history, file)
            self.state.filed(unfiled, history)
        self.tail = self.tail.after_snapshot(run(log.write_snapshot(self.tail, write_snapshot(self.state)), self.store))

    def _receive(self, message: Message) -> None:
        self._machine.receive("token", message, self.now_ms)
        self._commit()

    def _commit(self) -> None:
        batch = self._outbox.close()
        if batch.records:
            self.tail = run(log.append(self.tail, batch.encoded), self.store)
            for record, encoded in zip(batch.records, batch.encoded, strict=True):
                self.state.apply(record, encoded)


class Owners:
    """The owners of all shards of a store; ``owner[execution]`` is the one of that execution's shard."""

    def __init__(self, store: Store, shards: int = 2) -> None:
        self.store = store
        self.code = Code(store)
        self.identity = identify(store, shards)
        self.all = [Owner(store, number, self.code) for number in range(self.identity.shards)]

    def __getitem__(self, execution: str) -> Owner:
        return self.all[self.identity.shard_of(execution)]

    def reopen(self) -> None:
        """Every shard gets a new owner, with what is durable and the code as it is now."""
        self.all = [Owner(self.store, owner.number, self.code, owner.now_ms) for owner in self.all]

    def snapshot(self) -> None:
        for owner in self.all:
            owner.snapshot()

    def id_in(self, shard: int, stem: str = "job") -> str:
        """An id that belongs to ``shard``."""
        return next(id for id in (f"{stem}-{number}" for number in range(1000)) if self.identity.shard_of(id) == shard)
