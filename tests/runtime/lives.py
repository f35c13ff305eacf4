"""A shard that ships on a store that takes its time, in a world in which nothing goes wrong."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Hashable, Sequence
from random import Random
from typing import Any, ClassVar, TypeVar

from rayflow.checkpoint.blobs import put_blob
from rayflow.checkpoint.memory import MemoryStore
from rayflow.checkpoint.queues import WaitingSteps
from rayflow.checkpoint.requests import Operation, run
from rayflow.checkpoint.store import Store
from rayflow.core import codec
from rayflow.core.crashes import NoCrashes
from rayflow.core.definitions import Workflow
from rayflow.core.ledger import Connection
from rayflow.core.messages import Answer, Attempt, AwaitOutcome, Message, StartExecution, StepResult, Token
from rayflow.core.outbox import StartStep
from rayflow.core.owner import Sending
from rayflow.core.records import Blob, Function, Stored
from rayflow.core.turns import Turns
from rayflow.runtime.code import StoredCode
from rayflow.runtime.dispatching import Collected
from rayflow.runtime.ports import NoMeter, ShardPorts
from rayflow.runtime.shard import Shard
from rayflow.testing.in_process import EPOCH_MS
from rayflow.testing.simulated_loop import ProcessLoop
from rayflow.testing.simulation_world import Group, World

T = TypeVar("T")

READ_MS = 20

_NOTHING: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})


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
                value = run(operation, self._store)
            except Exception as error:
                if not future.done():
                    future.set_exception(error)
            else:
                if not future.done():
                    future.set_result(value)

        self._loop.world.after(pause_ms, self._loop.group, carry_out)
        return future


class NotOnTheLoop(MemoryStore):
    """The store as the code of a shard sees it, which is to find in memory what it reads: the loop is there for others, too."""

    def __init__(self, store: MemoryStore, read: Callable[[str], None]) -> None:
        super().__init__()
        self._objects = store._objects
        self._read = read

    def get(self, key: str) -> bytes:
        self._read(f"{key} is read on the loop")
        return super().get(key)


class Outside:
    """A dispatcher that starts nothing by itself, other shards, and what runs inline steps: nothing of them is needed here."""

    def __init__(self, attach_ms: float, loop: ProcessLoop) -> None:
        self.sent: list[StartStep] = []
        self._results: list[tuple[int, StepResult]] = []
        self._news = asyncio.Event()
        self._attach_s = attach_ms / 1000
        self._loop = loop

    async def attach(self, connection: Connection, expected: tuple[Attempt, ...]) -> list[Attempt]:
        await asyncio.sleep(self._attach_s)
        return []

    async def send(self, sending: Sending) -> None:
        self.sent += sending.starts

    async def collect(self, connection: Connection, recorded: int, seen: int) -> Collected:
        while not (results := [one for one in self._results if one[0] > seen]):
            self._news.clear()
            await self._news.wait()
        return Collected(results, [])

    def finish(self, result: StepResult) -> None:
        """An attempt has ended."""
        self._results.append((len(self._results) + 1, result))
        self._loop.call(self._news.set)

    def submit(self, starts: list[StartStep]) -> None:
        """None come."""

    def close(self) -> None:
        """Nothing runs."""

    def steps_waiting(self, steps: Sequence[WaitingSteps]) -> None:
        """There is room."""

    def shard_of(self, instance: str) -> int:
        return 1 if "another shard" in instance else 0

    async def post(self, source: int, target: int, letters: list[tuple[int, bytes]]) -> int:
        return letters[-1][0]


class Life:
    """An open shard on a store that takes its time, and its clients."""

    lives: ClassVar[list[Life]] = []

    def __init__(self, store: MemoryStore, attach_ms: float = 0) -> None:
        self.store = store
        self.world = World(0)
        self.world.disturbed = False
        self.world.pause_ms = lambda: 0.0
        self.errors: list[str] = []
        self.late_ms = 0
        """How long the process was held up."""
        self.loop = ProcessLoop(self.world, Group("shard"), self.errors.append)
        self.port = SlowStore(store, self.loop)
        self.outside = Outside(attach_ms, self.loop)
        self.code = StoredCode(NotOnTheLoop(store, self.errors.append))
        self.answers: dict[Hashable, Answer] = {}
        self.answered: Callable[[Token], None] = lambda token: None
        self._numbers: dict[str, int] = {}
        self.ports = ShardPorts(
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
        self.shard = self.loop.call(Shard, 0, self.ports)
        self.lives.append(self)
        opening = self.loop.start(self.shard.open())
        self.until(opening.done)
        opening.result()

    @classmethod
    def end_all(cls) -> None:
        """Nothing of them is left to chance."""
        for life in cls.lives:
            life.world.run(math.inf, life.loop.start(life.shard.close()).done)
            life.loop.end()
        cls.lives.clear()

    def now_ms(self) -> int:
        return EPOCH_MS + math.ceil(self.world.now_ms) + self.late_ms

    def until(self, finished: Callable[[], bool], within_ms: float = 60_000) -> None:
        end_ms = self.world.now_ms + within_ms
        self.world.run(end_ms, finished)
        if not finished():
            self.world.now_ms = end_ms
        assert not self.shard.closed.done(), self.shard.closed.result()
        assert not self.errors, self.errors

    def send(self, client: str, message: Message) -> Token:
        number = self._numbers[client] = self._numbers.get(client, 0) + 1
        token = Token(client, number, number - 1)
        self.loop.call(self.shard.receive, [(token, message)])
        return token

    def start(self, workflow: Workflow[..., Any], id: str, arguments: Stored | None = None) -> None:
        data, fingerprint = codec.encode_with_fingerprint(_NOTHING)
        function = Function(f"{workflow.function.__module__}:{workflow.name}")
        self.send("starter", StartExecution(id, function, "1", arguments or data, fingerprint, 1))

    def outcome(self, id: str, within_ms: float) -> Answer | None:
        token = self.send("waiter", AwaitOutcome(id))
        self.until(lambda: token in self.answers, within_ms)
        return self.answers.get(token)

    def keep(self, arguments: Any) -> Blob:
        """Arguments in the store, as a client puts them there."""
        return put_blob(self.store, codec.encode(arguments))

    def _answer(self, token: Hashable, answer: Answer) -> None:
        self.answers[token] = answer
        assert isinstance(token, Token)
        self.answered(token)
