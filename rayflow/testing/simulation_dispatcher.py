"""The dispatcher of a simulated system: the rules of ``rayflow.runtime.dispatcher``, with workers that are a delay.

Each *connection* of a shard's owner is named by its epoch and a count within it. What belongs to an older one, or comes to a
dispatcher that does not know it, is refused, so a message that comes late can start nothing that an attach has declared lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from rayflow.core.messages import Attempt, StepResult, attempt_of
from rayflow.core.outbox import StartStep
from rayflow.core.records import Cause, Failure
from rayflow.errors import Fenced
from rayflow.testing.simulation_world import Answer, Disconnected, Group

if TYPE_CHECKING:
    from rayflow.testing.simulator import System

BLOB_OVER_BYTES = 256
"""Values over this size go to a blob: far less than in real life, so that there are some."""


class Connection(NamedTuple):
    """One try of one owner to attach; a later one is greater."""

    epoch: int
    attempt: int


NOT_CONNECTED = Connection(0, 0)
Results = list[tuple[int, StepResult]]


@dataclass(slots=True)
class Shard:
    """What is known of one shard."""

    connection: Connection = NOT_CONNECTED
    calls: int = 0
    running: dict[Attempt, None] = field(default_factory=dict[Attempt, None])
    results: dict[int, StepResult] = field(default_factory=dict[int, StepResult])
    finished: dict[Attempt, int] = field(default_factory=dict[Attempt, int])
    count: int = 0
    waiting: tuple[Answer[Results], int] | None = None


class Dispatcher:
    """One life of the dispatcher: it forgets everything when it ends."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.group = Group(system.world.name("dispatcher"))
        self._shards: dict[int, Shard] = {}

    def attach(self, number: int, connection: Connection, expected: Sequence[Attempt], answer: Answer[tuple[Attempt, ...]]) -> None:
        """Open a connection for the owner of a shard and stop what it does not expect; answers with what is not known here."""
        shard = self._shards.setdefault(number, Shard())
        if not self.may_attach(connection, shard.connection):
            over = connection.epoch < shard.connection.epoch
            answer.fail(Fenced(f"epoch {connection.epoch} is over") if over else Disconnected("a later connection is there"))
            return
        shard.connection, shard.calls = connection, 0
        self._hang_up(shard)
        wanted = dict.fromkeys(expected)
        for attempt in [one for one in shard.running if one not in wanted]:
            del shard.running[attempt]
        for attempt in [one for one in shard.finished if one not in wanted]:
            self._drop(shard, attempt)
        lost = tuple(one for one in wanted if one not in shard.running and one not in shard.finished)
        answer.resolve(lost)

    def submit(
        self,
        number: int,
        connection: Connection,
        call: int,
        starts: Sequence[StartStep],
        stops: Sequence[Attempt],
        answer: Answer[None],
    ) -> None:
        """Start and stop attempts. ``call`` counts within the connection: one that was handled before changes nothing."""
        shard = self._shards.get(number)
        if shard is None or not self.is_connected(connection, shard.connection):
            answer.fail(Disconnected("another connection"))
            return
        if self.is_new(call, shard.calls):
            shard.calls = call
            for start in starts:
                attempt = attempt_of(start)
                if not self.is_known(attempt, shard):
                    shard.running[attempt] = None
                    self._run(shard, attempt, start)
            for attempt in stops:
                shard.running.pop(attempt, None)
                if attempt in shard.finished:
                    self._drop(shard, attempt)
        answer.resolve(None)

    def collect(self, number: int, connection: Connection, recorded: int, seen: int, answer: Answer[Results]) -> None:
        """Answer with results after number ``seen``, once there are any; those up to ``recorded`` are on record."""
        shard = self._shards.get(number)
        if shard is None or shard.connection != connection:
            answer.fail(Disconnected("another connection"))
            return
        for attempt, index in list(shard.finished.items()):
            if index > self.droppable(recorded, seen):
                break
            self._drop(shard, attempt)
        self._hang_up(shard)
        shard.waiting = (answer, seen)
        self._tell(shard)

    # -- rules ---------------------------------------------------------------------------------------------------------------

    def may_attach(self, connection: Connection, newest: Connection) -> bool:
        """Whether this is not an older owner, or an older try of the same."""
        return connection > newest

    def is_connected(self, connection: Connection, newest: Connection) -> bool:
        """Whether a call of this connection counts."""
        return connection == newest

    def is_new(self, call: int, last: int) -> bool:
        """Whether this call of the connection was not carried out before."""
        return call > last

    def is_known(self, attempt: Attempt, shard: Shard) -> bool:
        """Whether the attempt was started already."""
        return attempt in shard.running or attempt in shard.finished

    def droppable(self, recorded: int, seen: int) -> int:
        """Up to which number results need not be held any more."""
        return recorded

    # -- workers -------------------------------------------------------------------------------------------------------------

    def _run(self, shard: Shard, attempt: Attempt, start: StartStep) -> None:
        system, world = self.system, self.system.world
        at_most_once = start.request.settings.delivery == "at_most_once"
        system.judge.attempt_starts(*attempt[:3], at_most_once, None)
        world.log(self.group.name, f"starts {attempt}")
        dice = world.random.random()
        duration_ms = dice * 100 if dice < 0.9 or not world.disturbed else dice * 2000
        crashes = world.disturbed and world.random.random() < 0.03 and start.request.settings.retry.max_attempts > 10

        died = Failure("WorkerCrashed", "the worker died")

        def finished() -> None:
            if crashes:
                result = StepResult(*attempt[:3], cause=Cause.CRASH, failure=died, run=attempt.run)
            else:
                result = system.execute(start)
            system.judge.attempt_ends(*attempt[:3])
            if attempt in shard.running:
                del shard.running[attempt]
                shard.count += 1
                shard.results[shard.count] = result
                shard.finished[attempt] = shard.count
                self._tell(shard)

        world.after(duration_ms, self.group, finished)

    def _drop(self, shard: Shard, attempt: Attempt) -> None:
        result = shard.results.pop(shard.finished.pop(attempt))
        self.system.judge.result_dropped(result.execution, result.operation, result.attempt)

    def _tell(self, shard: Shard) -> None:
        if shard.waiting is None:
            return
        answer, seen = shard.waiting
        results = [(index, result) for index, result in shard.results.items() if index > seen]
        if results:
            shard.waiting = None
            answer.resolve(results)

    def _hang_up(self, shard: Shard) -> None:
        if shard.waiting is not None:
            shard.waiting[0].fail(Disconnected("another call took its place"))
            shard.waiting = None
