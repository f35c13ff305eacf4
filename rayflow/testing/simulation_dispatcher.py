"""The dispatcher of a simulated system: the ledgers of the real one, with workers that are a delay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rayflow.core.ledger import Connection, Disconnected
from rayflow.core.messages import Attempt, StepResult, attempt_of
from rayflow.core.outbox import StartStep
from rayflow.core.owner import Sending
from rayflow.core.records import Cause, Failure
from rayflow.errors import Fenced
from rayflow.testing.simulation_world import Answer, Group

if TYPE_CHECKING:
    from rayflow.testing.simulator import System

BLOB_OVER_BYTES = 256
"""Values over this size go to a blob: far less than in real life, so that there are some."""

Results = list[tuple[int, StepResult]]


class _Shard:
    """What is known of one shard, and the call that waits for news of it."""

    def __init__(self, system: System) -> None:
        self.ledger = system.parts.ledger()
        self._waiting: tuple[Answer[Results], int] | None = None

    def wait(self, answer: Answer[Results], seen: int) -> None:
        """Answer with results after number ``seen``, now or once there are some."""
        self.hang_up()
        self._waiting = (answer, seen)
        self.tell()

    def tell(self) -> None:
        """Answer the call that waits, if there are results."""
        if self._waiting is None:
            return
        answer, seen = self._waiting
        results = self.ledger.news(seen)
        if results:
            self._waiting = None
            answer.resolve(results)

    def hang_up(self) -> None:
        """Refuse the call that waits."""
        if self._waiting is not None:
            self._waiting[0].fail(Disconnected("another call took its place"))
            self._waiting = None


class Dispatcher:
    """One life of the dispatcher: it forgets everything when it ends."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.group = Group(system.world.name("dispatcher"))
        self._shards: dict[int, _Shard] = {}

    def attach(self, number: int, connection: Connection, expected: Sequence[Attempt], answer: Answer[list[Attempt]]) -> None:
        """``Ledger.attach``; answers with what is not known here."""

        def attach(shard: _Shard) -> None:
            lost, _ = shard.ledger.attach(connection, expected)
            shard.hang_up()
            answer.resolve(lost)

        self._shards.setdefault(number, _Shard(self.system))
        self._serve(number, answer, attach)

    def submit(self, number: int, sending: Sending, answer: Answer[None]) -> None:
        """``Ledger.submit``. Workers that are stopped may go on; nobody waits for them."""

        def submit(shard: _Shard) -> None:
            starts = [attempt_of(one) for one in sending.starts]
            fresh, _ = shard.ledger.submit(sending.connection, sending.call, starts, sending.stops)
            for index in fresh:
                self._run(shard, sending.starts[index])
            answer.resolve(None)

        self._serve(number, answer, submit)

    def collect(self, number: int, connection: Connection, recorded: int, seen: int, answer: Answer[Results]) -> None:
        """``Ledger.recorded``; answers with results after number ``seen``, once there are any."""

        def collect(shard: _Shard) -> None:
            shard.ledger.recorded(connection, recorded, seen)
            shard.wait(answer, seen)

        self._serve(number, answer, collect)

    def _serve(self, number: int, answer: Answer[Any], work: Callable[[_Shard], None]) -> None:
        """Tell the caller of a refusal, and the judge of results that are not held any more."""
        shard = self._shards.get(number)
        if shard is None:
            answer.fail(Disconnected("this dispatcher is a new one"))
            return
        held = list(shard.ledger.finished)
        try:
            work(shard)
        except (Disconnected, Fenced) as error:
            answer.fail(error)
        for attempt in held:
            if attempt not in shard.ledger.finished:
                self.system.judge.result_dropped(attempt)

    def _run(self, shard: _Shard, start: StartStep) -> None:
        system, world, attempt = self.system, self.system.world, attempt_of(start)
        settings = start.request.settings
        system.judge.attempt_starts(attempt, settings.delivery == "at_most_once", None)
        world.log(self.group.name, f"starts {attempt}")
        dice = world.random.random()
        duration_ms = dice * 100 if dice < 0.9 or not world.disturbed else dice * 2000
        crashes = world.disturbed and world.random.random() < 0.03 and settings.retry.max_attempts > 10

        def finished() -> None:
            result = _crashed(attempt) if crashes else system.execute(start)
            system.judge.attempt_ends(attempt)
            if shard.ledger.finish(result):
                shard.tell()

        world.after(duration_ms, self.group, finished)


def _crashed(attempt: Attempt) -> StepResult:
    died = Failure("WorkerCrashed", "the worker died")
    return StepResult(attempt.execution, attempt.operation, attempt.attempt, cause=Cause.CRASH, failure=died, run=attempt.run)
