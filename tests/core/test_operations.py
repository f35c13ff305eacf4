"""What executions wait for leaves no trace in the shard once nobody waits for it."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from rayflow.core.context import Context
from rayflow.core.definitions import workflow
from rayflow.core.messages import ForgetExecution
from tests.core.driver import Driver

YEAR = timedelta(days=365)


@workflow
async def gives_up(ctx: Context) -> None:
    for _ in range(3):
        try:
            async with asyncio.timeout(1):
                await ctx.wait(YEAR)
        except TimeoutError:
            pass


@workflow
async def ends_first(ctx: Context) -> None:
    waits = [ctx.wait(YEAR), ctx.wait(2 * YEAR)]
    async with asyncio.timeout(YEAR.total_seconds()):
        await asyncio.wait([ctx.wait(1), *waits], return_when=asyncio.FIRST_COMPLETED)


@workflow
async def sleeps(ctx: Context) -> None:
    async with asyncio.timeout(2 * YEAR.total_seconds()):
        await ctx.wait(YEAR)


@pytest.mark.parametrize("how", ["gives up", "ends first", "cancelled", "forgotten", "rested and forgotten"])
def test_waits_that_nobody_waits_for_leave_no_clock_behind(how: str) -> None:
    flow = {"gives up": gives_up, "ends first": ends_first}.get(how, sleeps)
    driver = Driver(flow)
    for number in range(200):
        driver.start(flow, id=f"x{number}")
        if flow is not sleeps:
            for _ in range(4):
                driver.pass_until(driver.now_ms + 1000)
        if "rested" in how:
            driver.pass_until(driver.now_ms + 100_000)
        if how == "cancelled":
            driver.cancel(f"x{number}")
        if "forgotten" in how:
            driver.tell(ForgetExecution(f"x{number}"))
        assert driver.machine.live_count == 0
        assert driver.machine._timers.held < 80


def test_what_sleeps_on_is_woken_at_its_time_whatever_was_given_up_around_it() -> None:
    driver = Driver(sleeps, gives_up)
    driver.start(sleeps, id="long")
    for number in range(200):
        driver.start(gives_up, id=f"x{number}")
        driver.pass_until(driver.now_ms + 5000)
    driver.settle()
    assert driver.ended("long").status == "completed"
