"""What happens to a shard while large values are read for it: order, time, and who waits for whom.

Invariants: I21, I22.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Hashable, Sequence
from random import Random
from typing import Any, TypeVar

import pytest

import rayflow
from rayflow.checkpoint.blobs import put_blob
from rayflow.checkpoint.memory import MemoryStore
from rayflow.checkpoint.queues import WaitingSteps
from rayflow.checkpoint.requests import Operation, run
from rayflow.checkpoint.store import Store
from rayflow.core import codec, limits
from rayflow.core.crashes import NoCrashes
from rayflow.core.ledger import Connection
from rayflow.core.messages import (
    Answer,
    Answered,
    AskOutcome,
    Attempt,
    AwaitOutcome,
    CallEntity,
    Ended,
    Message,
    StartExecution,
    Token,
)
from rayflow.core.outbox import StartStep
from rayflow.core.owner import Sending
from rayflow.core.records import Blob, Function, Stored
from rayflow.core.turns import Turns
from rayflow.runtime import intake
from rayflow.runtime.code import StoredCode
from rayflow.runtime.dispatching import Collected
from rayflow.runtime.ports import NoMeter, ShardPorts
from rayflow.runtime.shard import Shard
from rayflow.testing.in_process import EPOCH_MS
from rayflow.testing.simulated_loop import ProcessLoop
from rayflow.testing.simulation_world import Group, World

T = TypeVar("T")

READ_MS = 20


woken: list[str] = []
"""Executions whose sleep is over."""


class Sizes(rayflow.Entity[int]):
    """Adds up how much it was sent."""

    def initial(self) -> int:
        return 0

    @rayflow.operation
    def add(self, data: bytes) -> int:
        self.state += len(data)
        return self.state


@rayflow.workflow
async def naps(ctx: rayflow.Context) -> str:
    await asyncio.sleep(1)
    woken.append(ctx.execution_id)
    return "awake"


@rayflow.step
def idle() -> None:
    """Nothing."""


@rayflow.workflow
async def steps(ctx: rayflow.Context) -> str:
    await ctx.step(idle)
    return "done"


class SlowStore:
    """Reads take a while, on the clock of the world; writes do not."""

    def __init__(self, store: Store, loop: ProcessLoop) -> None:
        self.url = store.url
        self.reads = 0
        self._store = store
        self._loop = loop

    def write(self, operation: Operation[T]) -> Awaitable[T]:
        return self._later(operation, 1)

    def run(self, operation: Operation[T]) -> Awaitable[T]:
        self.reads += 1
        return self._later(operation, READ_MS)

    def close(self) -> None:
        """Nothing is under way."""

    def _later(self, operation: Operation[T], pause_ms: float) -> asyncio.Future[T]:
        future: asyncio.Future[T] = self._loop.create_future()

        def carry_out() -> None:
            try:
                future.set_result(run(operation, self._store))
            except Exception as error:
                future.set_exception(error)

        self._loop.world.after(pause_ms, self._loop.group, carry_out)
        return future


class Outside:
    """A dispatcher that starts nothing, other shards, and what runs inline steps: nothing of them is needed here."""

    def __init__(self, attach_ms: float, loop: ProcessLoop) -> None:
        self.sent: list[StartStep] = []
        self._attach_s = attach_ms / 1000
        self._loop = loop

    async def attach(self, connection: Connection, expected: tuple[Attempt, ...]) -> list[Attempt]:
        await asyncio.sleep(self._attach_s)
        return []

    async def send(self, sending: Sending) -> None:
        self.sent += sending.starts

    async def collect(self, connection: Connection, recorded: int, seen: int) -> Collected:
        return await self._loop.create_future()

    def submit(self, starts: list[StartStep]) -> None:
        """None come."""

    def close(self) -> None:
        """Nothing runs."""

    def steps_waiting(self, steps: Sequence[WaitingSteps]) -> None:
        """There is room."""

    def shard_of(self, instance: str) -> int:
        return 0

    async def post(self, source: int, target: int, letters: list[tuple[int, bytes]]) -> int:
        raise AssertionError("there is one shard")


class Life:
    """An open shard on a store that takes its time, and its clients."""

    def __init__(self, store: Store, attach_ms: float = 0) -> None:
        self.store = store
        self.world = World(0)
        self.world.disturbed = False
        self.world.pause_ms = lambda: 0.0
        self.errors: list[str] = []
        self.loop = ProcessLoop(self.world, Group("shard"), self.errors.append)
        self.port = SlowStore(store, self.loop)
        self.outside = Outside(attach_ms, self.loop)
        self.code = StoredCode(store)
        self.answers: dict[Hashable, Answer] = {}
        self.answered: Callable[[Token], None] = lambda token: None
        self._numbers: dict[str, int] = {}
        ports = ShardPorts(
            store=self.port,
            link=self.outside,
            inline=lambda finished: self.outside,
            answer=self._answer,
            peers=self.outside,
            turns=Turns(),
            crashes=NoCrashes(),
            meter=NoMeter(),
            code=self.code,
            code_name="",
            now_ms=self.now_ms,
            monotonic_s=self.loop.time,
            dice=Random(1),
        )
        self.shard = self.loop.call(Shard, 0, ports)
        opening = self.loop.start(self.shard.open())
        self.until(opening.done)
        opening.result()

    def now_ms(self) -> int:
        return EPOCH_MS + math.ceil(self.world.now_ms)

    def until(self, finished: Callable[[], bool], within_ms: float = 60_000) -> None:
        end_ms = self.world.now_ms + within_ms
        self.world.run(end_ms, finished)
        if not finished():
            self.world.now_ms = end_ms
        assert not self.shard.closed.done(), self.shard.closed.result()
        assert not self.errors

    def send(self, client: str, message: Message) -> Token:
        number = self._numbers[client] = self._numbers.get(client, 0) + 1
        token = Token(client, number, number - 1)
        self.loop.call(self.shard.receive, [(token, message)])
        return token

    def start(self, workflow: Any, id: str, arguments: Stored | None = None) -> None:
        data, fingerprint = codec.encode_with_fingerprint(((), {}))
        function = Function(f"{__name__}:{workflow.name}")
        self.send("starter", StartExecution(id, function, "1", arguments or data, fingerprint, 1))

    def outcome(self, id: str, within_ms: float) -> Answer | None:
        token = self.send("waiter", AwaitOutcome(id))
        self.until(lambda: token in self.answers, within_ms)
        return self.answers.get(token)

    def add(self, client: str, entity: str, stored: Blob) -> Token:
        return self.send(client, CallEntity(entity, Function(f"{__name__}:Sizes"), "add", stored))

    def large(self, text: str) -> Blob:
        """Arguments for ``add``."""
        return self.keep(((text.encode(),), {}))

    def keep(self, arguments: Any) -> Blob:
        """Arguments in the store, as a client puts them there."""
        return put_blob(self.store, codec.encode(arguments))

    def _answer(self, token: Hashable, answer: Answer) -> None:
        self.answers[token] = answer
        assert isinstance(token, Token)
        self.answered(token)


def busy(life: Life) -> None:
    """Two clients send large values for ever, one while those of the other are read."""
    sent = 0

    def send(client: str) -> None:
        nonlocal sent
        sent += 1
        life.add(client, f"Sizes/{client}", life.large(f"value {sent}"))

    life.answered = lambda token: send(token.sender) if token.sender in ("even", "odd") else None
    life.loop.call_later(0, send, "even")
    life.loop.call_later(READ_MS / 2000, send, "odd")


def test_timers_come_up_while_clients_never_stop_sending_large_values() -> None:
    life = Life(MemoryStore())
    life.start(naps, "nap")
    busy(life)
    outcome = life.outcome("nap", within_ms=2000)
    assert isinstance(outcome, Ended)
    assert outcome.failure is None


def test_a_dispatcher_is_attached_while_clients_never_stop_sending_large_values() -> None:
    life = Life(MemoryStore(), attach_ms=100)
    life.start(steps, "steps")
    busy(life)
    life.until(lambda: bool(life.outside.sent), within_ms=2000)
    assert life.outside.sent


@rayflow.workflow
async def naps_with(ctx: rayflow.Context, data: bytes, seconds: float) -> int:
    await asyncio.sleep(seconds)
    return len(data)


def test_what_is_due_happens_though_more_becomes_due_while_its_values_are_read() -> None:
    with limits.using(executions=1, execution_idle_ms=1, execution_pressed_ms=1, blob_cache_bytes=1):
        life = Life(MemoryStore())
        for number in range(200):
            stored = life.keep(((f"value {number}".encode(), 1 + number / 100), {}))
            life.start(naps_with, f"nap {number}", stored)
        life.until(lambda: life.shard.levels().resting == 200, 500)
        assert isinstance(life.outcome("nap 0", within_ms=1200), Ended)


def test_an_event_that_needs_more_than_is_read_ahead_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "_AHEAD_BYTES", 10)
    life = Life(MemoryStore())
    one, other = life.keep(((b"some", b"value"), {})), life.keep(((b"another", b"value"), {}))
    happened: list[str] = []

    def read(*blobs: Blob) -> Callable[[], list[Blob]]:
        return lambda: [blob for blob in blobs if not life.shard._intake.at_hand(blob)]

    def happen() -> None:
        life.shard._happen(read(one), lambda: happened.append("one"))
        life.shard._happen(read(one, other), lambda: happened.append("both"))

    life.loop.call(happen)
    life.until(lambda: len(happened) == 2, 1000)
    assert happened == ["one", "both"]


def test_timers_come_up_though_something_happens_in_every_turn_of_the_loop() -> None:
    life = Life(MemoryStore())
    life.start(naps, "nap")
    life.until(lambda: False, 500)
    woken.clear()
    turns = 0

    def ask() -> None:
        nonlocal turns
        turns += 1
        life.shard.receive([(Token("restless", turns, turns - 1), AskOutcome("nap"))])
        if not woken and turns < 1000:
            life.loop.call_soon(ask)

    life.world.now_ms = 2000
    life.loop.call(life.loop.call_soon, ask)
    life.until(lambda: bool(woken), 1)
    assert woken
    assert turns < 1000


def test_large_code_by_value_is_read_once_and_not_for_each_message() -> None:
    store = MemoryStore()
    padding = "x" * limits.current().inline_bytes

    class Tall(rayflow.Entity[int]):
        text = padding

        def initial(self) -> int:
            return 0

        @rayflow.operation
        def size(self) -> int:
            return len(self.text)

    kind = StoredCode(store).describe(Tall)
    assert isinstance(kind.code, Blob)
    life = Life(store)
    for _ in range(3):
        token = life.send("client", CallEntity("Tall/a", kind, "size", codec.encode(((), {}))))
        life.until(lambda token=token: token in life.answers)
    assert life.answers[token] == Answered(codec.encode(len(padding)))
    assert life.port.reads == 1
