"""``run_workflow``: a workflow's own logic, in a unit test."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

import rayflow
from rayflow.testing import run_workflow
from tests.testing.workflows import Busy, double, download, fetch, first_of_two, large, refused, reminder, stuck, total


def test_returns_the_result_of_the_real_steps() -> None:
    assert run_workflow(total, [1, 2, 3]) == 2 * (200 + 12)
    assert run_workflow(large, 100_000) == 200_001


def test_a_month_of_waiting_takes_no_time_and_repeats_itself() -> None:
    begun, ended, name, dice = run_workflow(reminder, days=31)
    assert begun == datetime(2026, 1, 1, tzinfo=UTC)
    assert ended - begun == timedelta(days=31)
    assert run_workflow(reminder, days=31) == (begun, ended, name, dice)
    assert run_workflow(reminder, days=31, id="another")[2:] != (name, dice)


def test_steps_are_replaced_and_retried_as_declared() -> None:
    asked: list[str] = []

    def flaky(name: str) -> str:
        asked.append(name)
        if len(asked) < 3:
            raise Busy(name)
        return "at last"

    assert run_workflow(download, "a", steps={fetch: flaky}) == "at last"
    assert asked == ["a", "a", "a"]

    def broken(name: str) -> str:
        raise Busy(name)

    assert run_workflow(download, "a", steps={fetch: broken}) == "gave up after Busy"


def test_the_slower_of_two_is_given_up() -> None:
    assert run_workflow(first_of_two) == "quick"


def test_closures_are_workflows_too() -> None:
    seen: list[int] = []

    @rayflow.step
    def note(value: int) -> int:
        seen.append(value)
        return value

    @rayflow.workflow
    async def local(ctx: rayflow.Context) -> int:
        return await ctx.step(note, 7) + await ctx.step(double, 1)

    assert run_workflow(local) == 9
    assert seen == [7]


def test_failures_say_what_happened() -> None:
    with pytest.raises(rayflow.ExecutionFailed, match="ValueError: 3 is refused") as caught:
        run_workflow(refused, 3)
    assert caught.value.error_type == "ValueError"
    assert "workflows.py" in caught.value.remote_traceback
    with pytest.raises(rayflow.RayflowError, match="nothing will ever wake it"):
        run_workflow(stuck)
    with pytest.raises(rayflow.InvalidInput, match="is no workflow"):
        run_workflow(double, 1)  # pyright: ignore[reportArgumentType]  # that it is refused is the point


def test_runs_inside_a_running_loop() -> None:
    async def test() -> int:
        return run_workflow(large, 1)

    assert asyncio.run(test()) == 3
