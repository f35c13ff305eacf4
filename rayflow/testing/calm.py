"""A world in which nothing goes wrong, and a shard of a store in it: the one that ships, in this thread.

Time passes only when somebody says so, and between two such moments everything happens that can. Whoever has several shards, or
steps, or wants the process to end at some point, brings the ports for that: see ``rayflow.runtime.ports``.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Hashable, Sequence
from random import Random
from typing import Any, TypeVar, cast

from rayflow.checkpoint.queues import WaitingSteps
from rayflow.checkpoint.requests import Operation, run
from rayflow.checkpoint.store import Store
from rayflow.core.crashes import NoCrashes
from rayflow.core.instance import Code
from rayflow.core.ledger import Connection
from rayflow.core.mail import Mail
from rayflow.core.messages import Answer, Attempt, Message, StepResult, Token
from rayflow.core.outbox import Outbox, StartStep
from rayflow.core.owner import Owner, Sending
from rayflow.core.turns import Turns
from rayflow.core.workflows import Workflows
from rayflow.runtime.code import StoredCode
from rayflow.runtime.dispatching import Collected
from rayflow.runtime.ports import NoMeter, ShardPorts
from rayflow.runtime.shard import Shard
from rayflow.testing.simulated_loop import ProcessLoop
from rayflow.testing.simulation_world import Group, World

T = TypeVar("T")


class Calm(World):
    """Nothing goes wrong, nothing takes time, and there is no end to it."""

    max_events = math.inf

    def __init__(self, now_ms: float) -> None:
        super().__init__(0)
        self.disturbed = False
        self.now_ms = now_ms

    def pause_ms(self) -> float:
        return 0


class CalmStore:
    """Carries everything out at once. What ends the process in the middle of it is kept, and nobody goes on."""

    def __init__(self, store: Store, loop: ProcessLoop) -> None:
        self.url = store.url
        self.ended_by: BaseException | None = None
        self._store = store
        self._loop = loop
        self._held: list[Callable[[], None]] | None = None

    def write(self, operation: Operation[T]) -> asyncio.Future[T]:
        future: asyncio.Future[T] = self._loop.create_future()
        if self._held is None:
            self._carry_out(operation, future)
        else:
            self._held.append(lambda: self._carry_out(operation, future))
        return future

    def run(self, operation: Operation[T]) -> asyncio.Future[T]:
        future: asyncio.Future[T] = self._loop.create_future()
        self._carry_out(operation, future)
        return future

    def hold(self) -> None:
        """Let what is written from now on be in flight until ``release``."""
        self._held = []

    def release(self) -> None:
        """What is in flight arrives."""
        held, self._held = self._held or [], None
        for carry_out in held:
            self._loop.call(carry_out)

    def close(self) -> None:
        """Nothing is under way."""

    def _carry_out(self, operation: Operation[T], future: asyncio.Future[T]) -> None:
        try:
            future.set_result(run(operation, self._store, parallel=1))
        except Exception as error:
            future.set_exception(error)
        except BaseException as error:
            self.ended_by = error
            self._loop.group.alive = False


class NoSteps:
    """A dispatcher that is not there, and no place for inline steps either."""

    async def attach(self, connection: Connection, expected: tuple[Attempt, ...]) -> list[Attempt]:
        return await asyncio.get_running_loop().create_future()

    async def send(self, sending: Sending) -> None:
        raise AssertionError("nobody is attached")

    async def collect(self, connection: Connection, recorded: int, seen: int) -> Collected:
        raise AssertionError("nobody is attached")

    def submit(self, starts: list[StartStep]) -> None:
        """They never end."""

    def close(self) -> None:
        """There are none."""


class Alone:
    """The other shards of a store that has one; and nobody who waits for steps."""

    def shard_of(self, instance: str) -> int:
        return 0

    async def post(self, source: int, target: int, letters: list[tuple[int, bytes]]) -> int:
        raise AssertionError("there is one shard")

    def steps_waiting(self, steps: Sequence[WaitingSteps]) -> None:
        """There is room for every step."""


def same_runs(epoch: int) -> type[Workflows]:
    """A machine whose executions have dice as if its owner's epoch were this: as a rule each epoch has others."""

    class SameRuns(Workflows):
        def __init__(self, outbox: Outbox, code: Code, mail: Mail, _: int = 0, *others: Any) -> None:
            super().__init__(outbox, code, mail, epoch, *others)

    return SameRuns


class CalmShard:
    """One take-over of shard ``number`` on ``store``, at ``world_ms`` of its world's time. ``ports`` are those of a shard that is
    alone and has no steps, to be changed before ``open``; the clock in them shows the world's time, too."""

    def __init__(self, store: Store, code: StoredCode, world_ms: float, incarnation: str, number: int = 0) -> None:
        self.world = Calm(world_ms)
        self.errors: list[str] = []
        self.loop = ProcessLoop(self.world, Group(incarnation), self.errors.append)
        self.store = CalmStore(store, self.loop)
        self.number = number
        self.shard: Shard
        no_steps = NoSteps()

        def inline(finished: Callable[[list[StepResult]], None]) -> NoSteps:
            return no_steps

        def answer(token: Hashable, answer: Answer) -> None:
            """Nobody asks."""

        self.ports = ShardPorts(
            store=self.store,
            link=no_steps,
            inline=inline,
            answer=answer,
            peers=Alone(),
            turns=Turns(),
            crashes=NoCrashes(),
            meter=NoMeter(),
            code=code,
            code_name="",
            now_ms=lambda: math.ceil(self.world.now_ms),
            monotonic_s=self.loop.time,
            dice=Random(incarnation),
        )

    @property
    def owner(self) -> Owner:
        """The machine within."""
        return self.shard._owner  # pyright: ignore[reportPrivateUsage]  # tests look at what the shard decided

    def open(self) -> None:
        """Take the log over. Raises what ends the process, and StoreError."""
        self.shard = self.loop.call(Shard, self.number, self.ports)
        opening = self.loop.start(self.shard.open())
        self.go_on(math.inf, opening.done)
        opening.result()

    def go_on(self, until_ms: float, finished: Callable[[], bool] = lambda: False) -> None:
        """Go on until nothing is left to do, the world's time has come, or ``finished()``. Raises what ends the process or the
        shard."""
        store, closed = self.store, self.shard.closed
        self.world.run(until_ms, lambda: store.ended_by is not None or closed.done() or finished())
        if store.ended_by is not None:
            raise store.ended_by
        if closed.done():
            raise closed.result()
        if self.errors:
            raise RuntimeError("; ".join(self.errors))

    def go_on_until(self, now_ms: int) -> None:
        """Have everything happen that can at this time."""
        world = self.world
        world.now_ms = max(world.now_ms, now_ms)
        self.loop.call(self.shard.receive, ())  # somebody may have spoken to the machine, or set the clock
        self.go_on(world.now_ms + 0.5)

    def receive(self, token: Hashable, message: Message) -> None:
        """Hand a client's message in; the answer comes once everything happens."""
        self.loop.call(self.shard.receive, [(cast("Token", token), message)])

    def snapshot(self) -> None:
        """Write a snapshot of what is durable now, due or not."""
        shard = self.shard
        snapshots = shard._snapshots  # pyright: ignore[reportPrivateUsage]
        writing = self.loop.start(snapshots.write(lambda: shard._tail))  # pyright: ignore[reportPrivateUsage]
        self.go_on(self.world.now_ms, writing.done)

    def close(self) -> None:
        """End what is in memory, in order."""
        if self.loop.group.alive:
            self.world.run(math.inf, self.loop.start(self.shard.close()).done)
            self.loop.end()
        else:
            self.crash()

    def crash(self) -> None:
        """The process ends: nothing goes on, but what is in memory is not left to chance."""
        self.loop.call(self.shard.drop)
        self.loop.end()
