"""``crash_sweep``: every write crashed before and after; and that it finds what it is there to find."""

from __future__ import annotations

import random
from typing import Any

import pytest

import rayflow
from rayflow.core.definitions import Workflow
from rayflow.testing import crash_sweep, run_workflow
from tests.testing.workflows import Busy, double, download, fetch, first_of_two, large, refused, reminder, shelving, total, unread


@pytest.mark.parametrize(
    ("workflow", "args"),
    [(total, ([1, 2, 3, 4],)), (reminder, (3,)), (download, ("a",)), (large, (70_000,)), (unread, (70_000,)), (first_of_two, ())],
)
def test_a_crash_at_any_write_changes_nothing(workflow: Workflow[..., Any], args: tuple[Any, ...]) -> None:
    report = crash_sweep(workflow, *args)
    assert report.result is not None
    assert report.crashes == 2 * report.writes >= 6
    assert crash_sweep(workflow, *args) == report


def test_an_execution_that_fails_fails_the_same_way() -> None:
    assert crash_sweep(refused, 1).result is None


def test_snapshots_and_histories_are_among_the_writes() -> None:
    assert crash_sweep(total, list(range(20))).writes > 25


def test_retries_survive() -> None:
    def flaky(name: str) -> str:
        if rayflow.current_step().attempt < 3:
            raise Busy
        return name

    assert crash_sweep(download, "a", steps={fetch: flaky}).result == "a"


def test_what_steps_put_into_their_store_and_delete_from_it_is_written_too() -> None:
    report = crash_sweep(shelving, 3, outcome=lambda result, store: (result, [info.key for info in store.list("files/")]))
    assert report.result == 3
    assert report.writes == crash_sweep(shelving, 0).writes + 3 + 3


def test_a_step_that_stores_under_a_name_that_its_next_attempt_finds_taken_is_found() -> None:
    @rayflow.step
    def put() -> None:
        step = rayflow.current_step()
        assert step is not None
        step.store.create(f"{step.files_prefix}always-the-same", b"")

    @rayflow.workflow
    async def careless(ctx: rayflow.Context) -> None:
        await ctx.step(put)

    with pytest.raises(AssertionError, match=r"a crash after write \d+ of \d+ \(files/.*\n.*completed .*\n.*AlreadyExists"):
        crash_sweep(careless)


def test_each_attempt_that_was_cut_off_runs_once_more() -> None:
    report = crash_sweep(total, [1])
    assert report.attempts == 3
    assert 0 < report.repeated <= 2 * report.attempts * 2


def test_code_that_does_not_repeat_itself_is_found() -> None:
    dice = random.Random(1)

    @rayflow.workflow
    async def gambler(ctx: rayflow.Context) -> int:
        await ctx.step(double, dice.randrange(10**9))
        return 1

    with pytest.raises(AssertionError, match=r"a crash after write \d+ of \d+ .*\n.*completed with 1\n.*NonDeterminismError"):
        crash_sweep(gambler)


def test_a_step_that_cannot_run_twice_is_found() -> None:
    taken: set[int] = set()

    @rayflow.step(retry=rayflow.Retry(max_attempts=1))
    def take(value: int) -> int:
        if value in taken:
            raise FileExistsError(value)
        taken.add(value)
        return value

    @rayflow.step
    def begin() -> int:
        taken.clear()
        return 1

    @rayflow.workflow
    async def careless(ctx: rayflow.Context) -> int:
        return await ctx.step(take, await ctx.step(begin))

    assert run_workflow(careless) == 1
    with pytest.raises(AssertionError, match="without the crash: completed with 1\n  with the crash:    failed with StepFailed"):
        crash_sweep(careless)
