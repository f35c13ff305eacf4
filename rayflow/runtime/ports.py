"""What the shells reach the outside through: the store, the dispatcher, other shards, time and chance.

A shard, a host and a client are asyncio code that does no I/O of its own. On a cluster their ports are threads, Ray and sockets; in
a simulation they are a world in which everything goes wrong at will. The code between is the same.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Protocol, TypeVar

from rayflow.checkpoint import tables
from rayflow.checkpoint.queues import WaitingSteps
from rayflow.checkpoint.requests import Operation
from rayflow.core.crashes import Crashes
from rayflow.core.entities import Entities
from rayflow.core.ledger import Connection
from rayflow.core.mail import Mail
from rayflow.core.messages import Answer, Attempt, StepResult
from rayflow.core.outbox import Batch, Outbox, StartStep
from rayflow.core.owner import Owner, Sending
from rayflow.core.state import DurableState
from rayflow.core.turns import Turns
from rayflow.core.workflows import Workflows
from rayflow.runtime.code import StoredCode
from rayflow.runtime.dispatching import Collected

T = TypeVar("T")


class StorePort(Protocol):
    """Carries out operations on a store. What was begun goes on to its end, also where nobody waits for it any more."""

    @property
    def url(self) -> str: ...

    def write(self, operation: Operation[T]) -> Awaitable[T]:
        """Carry out an operation once those are done that were given to ``write`` before."""
        ...

    def run(self, operation: Operation[T]) -> Awaitable[T]:
        """Carry out an operation beside others."""
        ...

    def close(self) -> None:
        """Nothing more will be asked for."""
        ...


class Link(Protocol):
    """A shard's line to the dispatcher, see ``rayflow.core.ledger``. All may raise Disconnected; the call may have got through."""

    async def attach(self, connection: Connection, expected: tuple[Attempt, ...]) -> list[Attempt]:
        """Open a connection; returns the expected attempts that the dispatcher knows nothing of. Raises Fenced, too."""
        ...

    async def send(self, sending: Sending) -> None:
        """Have attempts started and stopped."""
        ...

    async def collect(self, connection: Connection, recorded: int, seen: int) -> Collected:
        """Wait for news."""
        ...


class Inline(Protocol):
    """Runs inline steps."""

    def submit(self, starts: list[StartStep]) -> None:
        """Run these, in order; their results go to whom it was made for."""
        ...

    def close(self) -> None:
        """Start nothing more; results of what still runs are dropped."""
        ...


class Peers(Protocol):
    """The other shards of the store, and those who wait for executions."""

    def steps_waiting(self, steps: Sequence[WaitingSteps]) -> None:
        """These steps wait for what no node has."""
        ...

    def shard_of(self, instance: str) -> int:
        """The shard that an execution or entity belongs to."""
        ...

    async def post(self, source: int, target: int, letters: list[tuple[int, bytes]]) -> int:
        """Have another shard take letters in; returns up to which number it has them on record. Waits while it is not there."""
        ...


@dataclass(frozen=True, slots=True)
class ShardLevels:
    """What an open shard has now; the last five count since it was opened."""

    epoch: int
    running: int
    resting: int
    suspended: int
    replay_bytes: int
    snapshot_bytes: int
    entities: int
    entities_active: int
    letters: int
    dead_letters: int
    replays: int
    rested: int
    turns: int
    activations: int
    passivations: int


class Meter(Protocol):
    """Counts what a shard does."""

    def opened(self, took_s: float) -> None:
        """It was opened, which took so long."""
        ...

    def committed(self, batch: Batch, took_s: float, size_bytes: int) -> None:
        """A batch is durable; writing it took so long, and so much."""
        ...

    def store_failed(self) -> None:
        """A write did not succeed, and is tried again."""
        ...

    def snapshot(self) -> None:
        """A snapshot was written."""
        ...

    def fenced(self) -> None:
        """The shard has another owner."""
        ...

    def failed(self) -> None:
        """It stopped, and is opened again."""
        ...

    def counted(self, now: ShardLevels) -> None:
        """What an owner has counted until now."""
        ...

    def levels(self, levels: ShardLevels | None, suspended: bool, mailbox: int) -> None:
        """What there is now; None: the shard is not open."""
        ...


class NoMeter:
    """Counts nothing."""

    def opened(self, took_s: float) -> None:
        pass

    def committed(self, batch: Batch, took_s: float, size_bytes: int) -> None:
        pass

    def store_failed(self) -> None:
        pass

    def snapshot(self) -> None:
        pass

    def fenced(self) -> None:
        pass

    def failed(self) -> None:
        pass

    def counted(self, now: ShardLevels) -> None:
        pass

    def levels(self, levels: ShardLevels | None, suspended: bool, mailbox: int) -> None:
        pass


class Journal(Crashes, Protocol):
    """Notes on crashes that outlive the process."""

    def pause_s(self) -> float:
        """How long the shard has to stay closed, for it crashed too often; else 0."""
        ...

    def close(self) -> None:
        """Let others have it."""
        ...


@dataclass(frozen=True, slots=True)
class Machines:
    """The pure parts that a shard is made of."""

    outbox: type[Outbox] = Outbox
    mail: type[Mail] = Mail
    workflows: type[Workflows] = Workflows
    entities: type[Entities] = Entities
    owner: type[Owner] = Owner


@dataclass(frozen=True, slots=True)
class Tables:
    """How snapshots and histories are written: see ``rayflow.checkpoint.tables``."""

    write_snapshot: Callable[[DurableState], bytes] = tables.write_snapshot
    read_snapshot: Callable[[bytes, str], DurableState] = tables.read_snapshot
    unpacked_bytes: Callable[[bytes], int] = tables.unpacked_bytes
    write_history: Callable[[dict[str, list[bytes]]], bytes] = tables.write_history


@dataclass(frozen=True, slots=True)
class ShardPorts:
    """All that a shard reaches. ``answer`` takes the answers to what it was asked; ``inline`` makes what runs its inline steps.

    ``now_ms`` is the clock, in milliseconds since 1970, ``monotonic_s`` one that only measures. ``dice`` must give every process,
    and every take-over, other numbers.
    """

    store: StorePort
    link: Link
    inline: Callable[[Callable[[list[StepResult]], None]], Inline]
    answer: Callable[[Hashable, Answer], None]
    peers: Peers
    turns: Turns
    crashes: Crashes
    meter: Meter
    code: StoredCode
    code_name: str
    now_ms: Callable[[], int]
    monotonic_s: Callable[[], float]
    dice: Random
    machines: Machines = field(default_factory=Machines)
    tables: Tables = field(default_factory=Tables)
    after_recovery: Callable[[], None] = lambda: None
    """Called, in the store's thread, once what was read is not needed any more."""


def token(dice: Random) -> str:
    """A name that nobody else has."""
    return f"{dice.getrandbits(128):032x}"
