"""What happens to a shard while large values are read for it: order, time, and who waits for whom.

Invariants: I21, I22.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import msgspec
import pytest

import rayflow
from rayflow.checkpoint.blobs import put_blob
from rayflow.checkpoint.memory import MemoryStore
from rayflow.core import codec, limits, workflows
from rayflow.core.messages import (
    Answered,
    AskOutcome,
    CallEntity,
    Caller,
    Ended,
    Lock,
    StepResult,
    Token,
)
from rayflow.core.records import Blob, Function
from rayflow.errors import Fenced
from rayflow.runtime import intake
from rayflow.runtime.code import StoredCode
from tests.runtime.lives import READ_MS, Life

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


@rayflow.workflow
async def at_once(ctx: rayflow.Context) -> str:
    return "done"


@rayflow.step
def idle() -> None:
    """Nothing."""


@rayflow.workflow
async def steps(ctx: rayflow.Context) -> str:
    await ctx.step(idle)
    return "done"


@pytest.fixture(autouse=True)
def ended() -> Iterator[None]:
    yield
    Life.end_all()


def busy(life: Life) -> None:
    """Two clients send large values for ever, one while those of the other are read."""
    sent = 0

    def send(client: str) -> None:
        nonlocal sent
        sent += 1
        value = life.keep(((f"value {sent}".encode(),), {}))
        life.send(client, CallEntity(f"Sizes/{client}", Function(f"{__name__}:Sizes"), "add", value))

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


def test_an_execution_that_is_due_does_not_leave_memory_before() -> None:
    with limits.using(execution_idle_ms=500, blob_cache_bytes=1):
        life = Life(MemoryStore())
        for number in range(3):
            life.start(naps_with, f"nap {number}", life.keep(((f"value {number}".encode(), 0.9), {})))
        life.until(lambda: False, 400)
        assert life.shard.levels().running == 3
        life.late_ms = 700
        assert isinstance(life.outcome("nap 2", within_ms=500), Ended)
        assert life.shard.levels().rested == 0


def test_what_came_for_suspended_executions_is_read_before_they_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workflows, "_PART", 1)
    store, usual = MemoryStore(), steps
    with limits.using(blob_cache_bytes=1):
        life = Life(store)
        for number in range(3):
            life.start(steps, f"steps {number}")
        life.until(lambda: len(life.outside.sent) == 3)
        monkeypatch.delattr(f"{__name__}.steps")
        without = Life(store)
        for start in life.outside.sent:
            result = put_blob(store, codec.encode(start.execution))
            without.outside.finish(StepResult(start.execution, start.operation, start.attempt, result, run=start.run))
        without.until(lambda: without.shard.idle)
        monkeypatch.setattr(f"{__name__}.steps", usual, raising=False)
        again = Life(store)
        for number in range(3):
            assert isinstance(again.outcome(f"steps {number}", within_ms=500), Ended)


def test_values_that_all_executions_share_are_not_read_on_the_loop_when_a_shard_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workflows, "_PART", 1)
    store = MemoryStore()
    with limits.using(blob_cache_bytes=1):
        life = Life(store)
        for number in range(3):
            life.start(naps_with, f"nap {number}", life.keep(((b"value", 50), {})))
        life.until(lambda: len(life.answers) == 3)
        assert Life(store).shard.levels().running == 3


def test_a_shard_that_is_closed_begins_no_snapshot_any_more() -> None:
    with limits.using(snapshot_bytes=1):
        store = MemoryStore()
        life = Life(store)
        life.start(at_once, "x")
        life.until(lambda: bool(life.answers))
        life.until(lambda: life.port.reads == 1)  # what has ended is filed, before the snapshot
        closing = life.loop.start(life.shard.close())
        life.world.run(life.world.now_ms + 10 * READ_MS, lambda: False)
        assert closing.done()
        assert life.port.reads == 1
        assert not list(store.list("shards/000/snapshots/"))


def test_an_owner_whose_clients_wait_for_a_lock_learns_that_it_was_replaced() -> None:
    sizes, store = Function(f"{__name__}:Sizes"), MemoryStore()
    with limits.using(owner_look_s=0.5):
        life = Life(store)
        lock = Lock("Sizes/a", sizes, Caller("a workflow of another shard", "lock", 1))
        life.loop.call(life.shard.letters_arrived, Token("other shard", 1, 0), 1, [(1, msgspec.msgpack.encode(lock))])
        life.send("client", CallEntity("Sizes/a", sizes, "add", codec.encode(((b"data",), {}))))
        life.until(lambda: False, 100)
        assert len(life.answers) == 1, "the letter's; the message waits"
        assert life.shard.levels().running == 0
        Life(store)
        life.world.run(life.world.now_ms + 1000, life.shard.closed.done)
        assert isinstance(life.shard.closed.result(), Fenced)
