"""The dispatcher of a simulated system: ``rayflow.runtime.assignments``, with workers that are a delay."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from rayflow.core.ledger import Disconnected, Ledger
from rayflow.core.messages import Attempt, StepResult, attempt_of
from rayflow.core.outbox import StartStep
from rayflow.core.records import Cause, Failure
from rayflow.errors import Fenced
from rayflow.runtime.assignments import Assignments
from rayflow.testing.simulated_loop import ProcessLoop
from rayflow.testing.simulation_judge import ERROR, Judge
from rayflow.testing.simulation_world import Answer, Group

if TYPE_CHECKING:
    from rayflow.testing.simulator import System


BLOB_OVER_BYTES = 256
"""Values over this size go to a blob: far less than in real life, so that there are some."""


class DispatcherProcess:
    """One life of the dispatcher: it forgets everything when it ends."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.world = system.world
        self.name = system.world.name("dispatcher")
        self.group = Group(self.name)
        self.loop = ProcessLoop(self.world, self.group, lambda what: system.judge.violated(ERROR, f"{self.name}: {what}"))
        ledger = type("Ledger", (_Judged, system.parts.ledger), {"judge": system.judge})
        self._assignments: Assignments[StartStep] = Assignments(attempt_of, self._start, self._stop, ledger)

    def serve(self, work: Callable[[Assignments[StartStep]], Coroutine[Any, Any, Any]], answer: Answer[Any]) -> None:
        """A call arrives."""

        async def carry_out() -> None:
            try:
                answer.resolve(await work(self._assignments))
            except (Disconnected, Fenced) as error:
                answer.fail(error)

        self.loop.start(carry_out())

    async def _start(self, number: int, wanted: list[StartStep]) -> None:
        for start in wanted:
            await asyncio.sleep(0)  # as with Ray, something else may come in between
            if self._assignments.is_running(number, attempt_of(start)):
                self._run(number, start)

    def _stop(self, attempt: Attempt) -> None:
        """A worker that is stopped may go on; nobody waits for it."""
        self.world.log(self.name, f"stops {attempt}")

    def _run(self, number: int, start: StartStep) -> None:
        system, world, attempt = self.system, self.world, attempt_of(start)
        settings = start.request.settings
        system.judge.attempt_starts(attempt, settings.delivery == "at_most_once", None)
        world.log(self.name, f"starts {attempt}")
        dice = world.random.random()
        duration_ms = dice * 100 if dice < 0.9 or not world.disturbed else dice * 2000
        crashes = world.disturbed and world.random.random() < 0.03 and settings.retry.max_attempts > 10

        def finished() -> None:
            result = _crashed(attempt) if crashes else system.execute(start)
            system.judge.attempt_ends(attempt, failed=result.failure is not None)
            self.loop.call(self._assignments.finish, number, result)

        world.after(duration_ms, self.group, finished)


class _Judged(Ledger):
    """Tells the judge of results that are not held any more."""

    judge: Judge

    def drop(self, attempt: Attempt) -> None:
        super().drop(attempt)
        self.judge.result_dropped(attempt)


def _crashed(attempt: Attempt) -> StepResult:
    died = Failure("WorkerCrashed", "the worker died")
    return StepResult(attempt.execution, attempt.operation, attempt.attempt, cause=Cause.CRASH, failure=died, run=attempt.run)
