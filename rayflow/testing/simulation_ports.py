"""What the shells of a simulated system reach: ``rayflow.runtime.ports`` in a world in which everything goes wrong at will."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from rayflow.checkpoint.memory import MemoryStore
from rayflow.checkpoint.requests import Operation
from rayflow.core.entity_state import Kept
from rayflow.core.ledger import Connection
from rayflow.core.mail import KeptMail
from rayflow.core.messages import Attempt, StepResult, attempt_of
from rayflow.core.outbox import Batch, StartStep
from rayflow.core.owner import Sending
from rayflow.core.records import Summary
from rayflow.core.state import DurableState
from rayflow.errors import StoreUnavailable
from rayflow.runtime.assignments import Assignments
from rayflow.runtime.dispatching import Collected
from rayflow.runtime.ports import NoMeter, ShardLevels, Tables
from rayflow.testing.log_simulation import steps
from rayflow.testing.simulated_loop import ProcessLoop
from rayflow.testing.simulation_judge import BLOCKED
from rayflow.testing.simulation_world import Answer, Process

if TYPE_CHECKING:
    from rayflow.testing.simulator import System

T = TypeVar("T")


class SimulatedStorePort:
    """Operations on the system's store, request by request, beside the loop as in a thread."""

    def __init__(self, system: System, loop: ProcessLoop) -> None:
        self.url = system.blobs.url
        self._system = system
        self._loop = loop
        self._queue: deque[Answer[None]] = deque()

    def write(self, operation: Operation[T]) -> Awaitable[T]:
        return self._loop.process(self._in_turn(operation))

    def run(self, operation: Operation[T]) -> Awaitable[T]:
        return self._loop.process(steps(operation, self._system.store))

    def close(self) -> None:
        """What is under way goes on, as in a thread."""

    def _in_turn(self, operation: Operation[T]) -> Process[T]:
        before = self._queue[-1] if self._queue else None
        mine: Answer[None] = Answer(self._loop.world)
        self._queue.append(mine)
        if before is not None:
            yield from before.wait()
        try:
            return (yield from steps(operation, self._system.store))
        finally:
            self._queue.popleft()
            mine.resolve(None)


class SimulatedBlobs(MemoryStore):
    """The values in a simulated store as ``StoredCode`` sees them, which reads and does not wait."""

    def __init__(self, objects: dict[str, bytes]) -> None:
        super().__init__()
        self._objects = objects


class BlockingBlobs(SimulatedBlobs):
    """The same for a shard, which is to read everything before: what it reads by itself holds all others up, and may fail."""

    def __init__(self, system: System) -> None:
        super().__init__(system.store.objects)
        self._system = system

    def get(self, key: str) -> bytes:
        data = super().get(key)
        self._system.judge.violated(BLOCKED, key)
        if self._system.world.disturbed and self._system.random.random() < 0.5:
            raise StoreUnavailable(f"{key} cannot be read for a moment")
        return data


class SimulatedLink:
    """A shard's line to whichever dispatcher there is."""

    def __init__(self, system: System, loop: ProcessLoop, number: int) -> None:
        self._system = system
        self._loop = loop
        self._number = number

    async def attach(self, connection: Connection, expected: tuple[Attempt, ...]) -> list[Attempt]:
        async def attach(assignments: Assignments[StartStep]) -> list[Attempt]:
            return assignments.attach(self._number, connection, expected)

        return await self._call(attach)

    async def send(self, sending: Sending) -> None:
        connection, call, starts, stops = sending.connection, sending.call, sending.starts, sending.stops
        await self._call(lambda assignments: assignments.submit(self._number, connection, call, starts, stops))

    async def collect(self, connection: Connection, recorded: int, seen: int) -> Collected:
        return await self._call(lambda assignments: assignments.collect(self._number, connection, recorded, seen))

    async def _call(self, work: Callable[[Assignments[StartStep]], Coroutine[Any, Any, T]]) -> T:
        dispatcher = self._system.dispatcher
        answer: Answer[T] = self._loop.world.call(self._loop.group, dispatcher.group, lambda reply: dispatcher.serve(work, reply))
        return await self._loop.future_of(answer)


class SimulatedInline:
    """Inline steps, each a moment after it was asked for."""

    def __init__(self, system: System, loop: ProcessLoop, finished: Callable[[list[StepResult]], None]) -> None:
        self._system = system
        self._loop = loop
        self._finished = finished
        self._closed = False
        self.known_slot: Callable[[], int] = lambda: 0
        """The last slot that the owner knows of."""

    def submit(self, starts: list[StartStep]) -> None:
        for start in starts:
            self._system.judge.attempt_starts(attempt_of(start), False, self.known_slot())
            self._system.world.after(self._system.world.pause_ms(), self._loop.group, lambda start=start: self._end(start))

    def close(self) -> None:
        self._closed = True

    def _end(self, start: StartStep) -> None:
        result = self._system.execute(start)
        self._system.judge.attempt_ends(attempt_of(start), failed=result.failure is not None)
        if not self._closed:
            self._loop.call(self._finished, [result])


class SimulatedMeter(NoMeter):
    """Counts what happened, and tells the judge what a shard takes for durable."""

    def __init__(self, system: System) -> None:
        self._system = system

    def opened(self, took_s: float) -> None:
        self._system.world.happened["opened"] += 1

    def committed(self, batch: Batch, took_s: float, size_bytes: int) -> None:
        self._system.judge.acknowledge(batch.records, batch.encoded)

    def store_failed(self) -> None:
        self._system.world.happened["write failed"] += 1

    def snapshot(self) -> None:
        self._system.world.happened["snapshot"] += 1

    def fenced(self) -> None:
        self._system.world.happened["fenced"] += 1

    def counted(self, now: ShardLevels) -> None:
        self._system.world.happened["rested"] += now.rested


# -- snapshots that are quick to write ---------------------------------------------------------------------------------------


class _Body(msgspec.Struct, array_like=True):
    live: dict[str, list[bytes]]
    unfiled: dict[str, list[bytes]]
    ended: dict[str, Summary]
    kept: list[Kept | KeptMail]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Body).decode
decode_history = msgspec.msgpack.Decoder(dict[str, list[bytes]]).decode


def _write(state: DurableState) -> bytes:
    kept: list[Kept | KeptMail] = [*state.entities.kept(), *state.mail.kept()]
    return _encode(_Body(state.live, state.unfiled, state.ended, kept))


def _read(data: bytes, key: str) -> DurableState:
    body, state = _decode(data), DurableState()
    state.live, state.unfiled, state.ended = body.live, body.unfiled, body.ended
    for kept in body.kept:
        if isinstance(kept, KeptMail):
            state.mail.restore(kept)
        else:
            state.entities.restore(kept)
    return state


QUICK_TABLES = Tables(_write, _read, len, _encode)
"""What the Parquet files hold, in a hundredth of the time: for most runs, as there are thousands."""
