"""What a dispatcher owes shards, whoever does the work.

Invariants: I2, I13.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from rayflow.checkpoint.queues import WaitingSteps
from rayflow.core import limits
from rayflow.core.ledger import Connection, Disconnected
from rayflow.core.messages import RUNNING, Attempt, StepProgress, StepResult
from rayflow.errors import Fenced
from rayflow.runtime.assignments import Assignments
from rayflow.runtime.dispatching import Collected

A, B = Attempt("e", "a", 1, 7), Attempt("e", "b", 1, 7)
FIRST, SECOND = Connection(1, 1), Connection(2, 1)


class _Workers:
    def __init__(self) -> None:
        self.started: list[tuple[int, list[Attempt]]] = []
        self.stopped: list[Attempt] = []
        self.assignments = Assignments[Attempt](lambda one: one, self._start, self.stopped.append)

    async def _start(self, number: int, wanted: list[Attempt]) -> None:
        self.started.append((number, wanted))


def _run(work: Callable[[_Workers], Awaitable[None]]) -> None:
    async def all_of_it() -> None:
        await work(_Workers())

    asyncio.run(all_of_it())


def _result(attempt: Attempt) -> StepResult:
    return StepResult(attempt.execution, attempt.operation, attempt.attempt, result=b"", run=attempt.run)


def _word(attempt: Attempt, **fields: float) -> StepProgress:
    return StepProgress(attempt.execution, attempt.operation, attempt.attempt, fields, attempt.run)


def test_who_waits_is_woken_by_results_by_words_of_steps_and_by_what_waits_for_nodes() -> None:
    async def work(workers: _Workers) -> None:
        assignments = workers.assignments
        assert assignments.attach(3, FIRST, []) == []
        await assignments.submit(3, FIRST, 1, [A, B], [])
        await assignments.submit(3, FIRST, 1, [A, B], [])  # the same call again
        assert workers.started == [(3, [A, B]), (3, [])]

        async def collected(seen: int, happen: Callable[[], None]) -> Collected:
            call = asyncio.ensure_future(assignments.collect(3, FIRST, 0, seen))
            await asyncio.sleep(0)
            assert not call.done()
            happen()
            return await call

        first = await collected(0, lambda: assignments.finish(3, _result(A)))
        assert first.results == [(1, _result(A))]
        heard = await collected(1, lambda: assignments.heard(3, _word(B, done=0.5)))
        assert [(one.fields, one.state) for one in heard.progress] == [({"done": 0.5}, RUNNING)]
        lacking = WaitingSteps("e", "b", "a GPU", 1, (("b", 1),))
        waits = await collected(1, lambda: assignments.wait(3, [lacking]))
        assert waits.waiting == [lacking]
        with limits.using(poll_s=0.001):
            assert not (await assignments.collect(3, FIRST, 1, 1)).results
        assert (assignments.running, assignments.held) == (1, 0)

    _run(work)


def test_a_later_owner_takes_over_what_runs_and_the_call_of_the_earlier_one_that_waits_is_refused() -> None:
    async def work(workers: _Workers) -> None:
        assignments = workers.assignments
        with pytest.raises(Disconnected):
            await assignments.submit(3, FIRST, 1, [A], [])
        assignments.attach(3, FIRST, [])
        await assignments.submit(3, FIRST, 1, [A, B], [])
        waiting = asyncio.ensure_future(assignments.collect(3, FIRST, 0, 0))
        await asyncio.sleep(0)
        gone = Attempt("e", "c", 1, 7)
        assert assignments.attach(3, SECOND, [A, gone]) == [gone]
        assert workers.stopped == [B]
        with pytest.raises(Disconnected):
            await waiting
        with pytest.raises(Fenced):
            assignments.attach(3, FIRST, [])
        with pytest.raises(Disconnected):
            await assignments.submit(3, FIRST, 2, [], [A])
        assignments.finish(3, _result(A))
        assignments.finish(3, _result(B))  # nobody waits for it
        assert [result for _, result in (await assignments.collect(3, SECOND, 0, 0)).results] == [_result(A)]

    _run(work)


def test_words_of_attempts_that_are_over_are_not_passed_on() -> None:
    async def work(workers: _Workers) -> None:
        assignments = workers.assignments
        assignments.heard(3, _word(A))  # of a shard that is not known
        assignments.attach(3, FIRST, [])
        await assignments.submit(3, FIRST, 1, [A, B], [])
        assignments.heard(3, _word(A, done=0.5))
        assignments.told(3, B, "waiting for resources: a GPU")
        assignments.told(3, A, "running")
        await assignments.submit(3, FIRST, 2, [], [B])
        assignments.told(3, B, "running")
        collected = await assignments.collect(3, FIRST, 0, 0)
        assert [(one.operation, one.fields, one.state) for one in collected.progress] == [("a", {"done": 0.5}, "running")]

    _run(work)
