"""Large values are read before the event that reads them: many at once, in threads, while everything else goes on in order.

Invariants: I21, I22.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from dataclasses import replace
from typing import Any

import rayflow
from rayflow.checkpoint.blobs import put_blob
from rayflow.checkpoint.identity import identify
from rayflow.checkpoint.memory import MemoryStore
from rayflow.checkpoint.requests import Operation
from rayflow.core import codec, limits
from rayflow.core.messages import Accepted, Answer, AwaitOutcome, Ended, Refused, StartExecution, Token
from rayflow.core.records import Blob, Function, Stored
from rayflow.errors import NotFound, StoreUnavailable
from rayflow.runtime.code import StoredCode
from rayflow.testing.calm import CalmShard

LARGE = "x" * 100_000


@rayflow.workflow
async def length(ctx: rayflow.Context, *values: str) -> int:
    return sum(map(len, values))


@rayflow.workflow
async def patient(ctx: rayflow.Context, *values: str) -> int:
    await ctx.wait(3600)
    return sum(map(len, values))


class OnlyAhead(MemoryStore):
    """Reads of the code itself, on the loop, are refused: what it needs has to be there. ``held`` are reads that wait."""

    def __init__(self) -> None:
        super().__init__()
        self.blocking = 0

    def get(self, key: str) -> bytes:
        data = super().get(key)
        self.blocking += key.startswith("blobs/")
        return data


class Reader:
    """The port of a shard that reads when the test says so."""

    def __init__(self, shard: CalmShard) -> None:
        self.url = shard.store.url
        self.waiting: list[tuple[Operation[Any], asyncio.Future[Any]]] = []
        self.keys: list[int] = []
        """How many values each read is for."""
        self._shard = shard

    def write(self, operation: Operation[Any]) -> asyncio.Future[Any]:
        return self._shard.store.write(operation)

    def run(self, operation: Operation[Any]) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = self._shard.loop.create_future()
        self.waiting.append((operation, future))
        return future

    def close(self) -> None: ...

    def let_through(self, objects: MemoryStore) -> None:
        """Carry out what waits, each with the objects that there are."""
        waiting, self.waiting = self.waiting, []
        for operation, future in waiting:
            request = next(operation)
            self.keys.append(len(request.keys))  # type: ignore[union-attr]
            try:
                operation.send(tuple(_found(objects, key) for key in request.keys))  # type: ignore[union-attr]
            except StopIteration as stop:
                self._shard.loop.call(future.set_result, stop.value)

    def fail(self) -> None:
        """The store does not answer."""
        waiting, self.waiting = self.waiting, []
        for _, future in waiting:
            self._shard.loop.call(future.set_exception, StoreUnavailable("away"))


def _found(objects: MemoryStore, key: str) -> bytes | None:
    try:
        return MemoryStore.get(objects, key)
    except NotFound:
        return None


class Bench:
    """A shard, what it answers, and reads in the hands of the test."""

    def __init__(self, store: OnlyAhead, life: str = "first", world_ms: float = 0) -> None:
        self.store = store
        self.answers: dict[Hashable, Answer] = {}
        self.calm = CalmShard(store, StoredCode(store), world_ms, life)
        self.reader = Reader(self.calm)
        self.calm.ports = replace(self.calm.ports, store=self.reader, answer=self.answers.__setitem__)
        self._number = 0

    def start(self, id: str, workflow: str, *values: str) -> Token:
        data, fingerprint = codec.encode_with_fingerprint((values, {}))
        stored: Stored = put_blob(self.store, data) if len(data) > 65_536 else data
        return self.ask(StartExecution(id, Function(f"{__name__}:{workflow}"), "1", stored, fingerprint, 1))

    def ask(self, message: Any) -> Token:
        self._number += 1
        token = Token("client", self._number, 0)
        self.calm.receive(token, message)
        self.settle()
        return token

    def settle(self) -> None:
        self.calm.go_on(self.calm.world.now_ms + 1)


def opened() -> Bench:
    store = OnlyAhead()
    identify(store, 1)
    bench = Bench(store)
    bench.calm.open()
    return bench


def test_what_comes_behind_a_message_whose_values_are_read_waits_its_turn_and_their_values_are_read_together() -> None:
    bench = opened()
    first = bench.start("a", "length", LARGE + "a")
    others = [bench.start(f"b{number}", "length", LARGE + str(number)) for number in range(20)]
    small = bench.start("c", "length", "y")
    assert not bench.answers, "the machine does not read by itself, and nothing overtakes"
    bench.reader.let_through(bench.store)
    bench.settle()
    assert bench.answers[first] == Accepted("a", True)
    while bench.reader.waiting:
        bench.reader.let_through(bench.store)
        bench.settle()
    assert list(bench.answers) == [first, *others, small]
    assert bench.reader.keys == [1, 20], "those that gathered meanwhile at once"
    assert bench.store.blocking == 0
    bench.calm.close()


def test_values_that_cannot_be_read_now_are_read_later_and_nothing_is_refused_or_lost() -> None:
    bench = opened()
    token = bench.start("a", "length", LARGE)
    for _ in range(3):
        bench.reader.fail()
        bench.calm.go_on(bench.calm.world.now_ms + 5000)
    assert not bench.answers
    bench.reader.let_through(bench.store)
    bench.settle()
    assert bench.answers[token] == Accepted("a", True)
    bench.calm.close()


def test_a_value_that_is_gone_is_told_to_who_needs_it_and_the_others_go_on() -> None:
    bench = opened()
    data, fingerprint = codec.encode_with_fingerprint(((LARGE,), {}))
    missing = Blob("0" * 64, len(data))
    gone = bench.ask(StartExecution("a", Function(f"{__name__}:length"), "1", missing, fingerprint, 1))
    other = bench.start("b", "length", "y")
    bench.reader.let_through(bench.store)
    bench.settle()
    assert isinstance(bench.answers[gone], Refused)
    assert bench.answers[other] == Accepted("b", True)
    bench.calm.close()


@limits.using(owner_look_s=1e9)
def test_executions_are_brought_back_with_all_their_values_read_at_once() -> None:
    bench = opened()
    for number in range(30):
        bench.start(f"e{number}", "patient", LARGE + str(number))
        bench.reader.let_through(bench.store)
        bench.settle()
    bench.calm.crash()

    again = Bench(bench.store, "second", bench.calm.world.now_ms)
    opening = again.calm
    opening.shard = opening.loop.call(type(bench.calm.shard), 0, opening.ports)
    task = opening.loop.start(opening.shard.open())
    again.settle()
    assert not task.done()
    again.reader.let_through(again.store)
    again.settle()
    assert task.done() and again.reader.keys == [30]
    assert again.store.blocking == 0
    ended = again.ask(AwaitOutcome("e7"))
    again.calm.go_on(again.calm.world.now_ms + 3_700_000, lambda: ended in again.answers)
    while ended not in again.answers:
        again.reader.let_through(again.store)
        again.calm.go_on(again.calm.world.now_ms + 1000)
    answer = again.answers[ended]
    assert isinstance(answer, Ended) and codec.decode(answer.result) == len(LARGE) + 1  # type: ignore[arg-type]
    again.calm.close()
