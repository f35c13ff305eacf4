"""Workflows that wait for time or letters only leave memory, and nobody can tell (I26)."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rayflow
from rayflow.core import limits
from rayflow.core.context import Context
from rayflow.core.definitions import step, workflow
from rayflow.core.messages import Accepted, AwaitOutcome, CancelExecution, ForgetExecution
from rayflow.core.records import Status
from rayflow.errors import StoreUnavailable
from tests.core.driver import Driver
from tests.core.shards import Shards

DAY_S = 86_400.0


@step
def double(number: int) -> int:
    return 2 * number


@workflow
async def patient(ctx: Context, days: int) -> list[int]:
    done: list[int] = []
    for number in range(days):
        await ctx.wait(DAY_S)
        done.append(await ctx.step(double, number))
    return done


def rested(driver: Driver) -> Driver:
    """Once what is in memory has rested for long enough."""
    driver.pass_until(driver.now_ms + limits.current().execution_idle_ms)
    return driver


@pytest.fixture
def driver() -> Driver:
    """A workflow that sleeps for a day, and is not in memory."""
    driver = Driver(patient)
    driver.start(patient, 3)
    rested(driver)
    assert driver.machine.passive_count == driver.machine.live_count == 1
    return driver


def test_it_wakes_when_its_time_comes_and_ends_as_if_it_had_stayed(driver: Driver) -> None:
    waiting = driver.tell(AwaitOutcome("x"))
    driver.settle()
    assert driver.result() == [0, 2, 4]
    assert [one.status for one in waiting] == [Status.COMPLETED]
    assert driver.reruns == []
    began_ms = driver.starts[0][0]
    assert [at_ms - began_ms for at_ms, _ in driver.starts] == [0, DAY_S * 1000, 2 * DAY_S * 1000]


def test_it_rests_again_after_each_day(driver: Driver) -> None:
    for _ in range(2):
        driver.pass_until(driver.machine.next_due_ms() or 0)
        assert driver.machine.passive_count == 0
        driver.finish(next(iter(driver.running)))
        rested(driver)
        assert driver.machine.passive_count == 1


def test_its_id_stays_its_own(driver: Driver) -> None:
    assert driver.start(patient, 3) == [Accepted("x", created=False)]
    assert driver.start(patient, 4) != [Accepted("x", created=False)]
    assert driver.machine.passive_count == 1, "nothing of its code is needed for that"


def test_it_can_be_cancelled_and_its_code_is_told(driver: Driver) -> None:
    driver.tell(CancelExecution("x", "enough"))
    assert driver.ended().status == Status.CANCELLED


def test_it_can_be_forgotten_and_its_id_used_again(driver: Driver) -> None:
    driver.tell(ForgetExecution("x"))
    assert driver.start(patient, 1, seed=7) == [Accepted("x", created=True)]
    rested(driver)
    driver.settle()
    assert driver.result() == [0]


def test_it_can_be_looked_at(driver: Driver) -> None:
    view = driver.machine.view("x", driver.now_ms)
    assert view is not None
    assert [one.name for one in view.running] == ["wait"]


def test_a_successor_knows_of_it_and_keeps_its_code_no_longer_than_it_takes_to_read_when_it_is_due(driver: Driver) -> None:
    driver.crash()
    assert driver.machine.passive_count == 1
    driver.settle()
    assert driver.result() == [0, 2, 4]


def test_code_that_has_changed_meanwhile_suspends_it_when_it_wakes(driver: Driver) -> None:
    @workflow(name=patient.name)
    async def changed(ctx: Context, days: int) -> None:
        await ctx.step(double, days)

    driver.deploy(changed)
    driver.settle()
    assert driver.suspension().error == "NonDeterminismError"
    driver.deploy(patient)
    driver.crash()
    driver.settle()
    assert driver.result() == [0, 2, 4]


def test_a_store_that_is_away_when_it_wakes_suspends_nothing(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(stored: object) -> object:
        raise StoreUnavailable("it is away")

    with monkeypatch.context() as patch, pytest.raises(StoreUnavailable):
        patch.setattr(driver.code, "decode", away)
        driver.settle()
    driver.crash()  # which is what a shard does then
    driver.settle()
    assert driver.result() == [0, 2, 4]


@workflow
async def sleepy(ctx: Context) -> None:
    for _ in range(3):
        await ctx.wait(DAY_S)


@pytest.mark.parametrize("again", [False, True])
def test_what_is_not_on_record_keeps_it_in_memory(again: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(sleepy)
    driver.start(sleepy)
    with monkeypatch.context() as patch:
        patch.setattr(driver, "commit", lambda: None)
        if again:  # another run, of which there are as many records as there are on record of the one before
            driver.tell(ForgetExecution("x"))
            driver.start(sleepy, seed=7)
        else:
            driver.pass_until(int(driver.now_ms + DAY_S * 1000))
        rested(driver)
        assert driver.machine.passive_count == 0
    driver.commit()
    rested(driver)
    assert driver.machine.passive_count == 1
    driver.settle()
    assert driver.ended().status == Status.COMPLETED


@workflow
async def impatient(ctx: Context) -> str:
    try:
        async with asyncio.timeout(DAY_S):
            await ctx.step(double, 1)
    except TimeoutError:
        pass
    await asyncio.sleep(DAY_S)
    return str(ctx.now())


def test_steps_that_run_keep_it_in_memory_and_timers_of_its_code_do_not() -> None:
    driver = Driver(impatient)
    driver.hold.add("double")
    began_ms = driver.now_ms
    driver.start(impatient)
    assert driver.machine.next_due_ms() == began_ms + DAY_S * 1000, "nobody looks for what cannot rest"
    rested(driver)
    assert driver.machine.passive_count == 0
    driver.pass_until(int(began_ms + DAY_S * 1000))
    rested(driver)
    assert driver.machine.passive_count == 1
    driver.settle()
    assert driver.records()[-1].at_ms == began_ms + 2 * DAY_S * 1000
    assert driver.ended().status == Status.COMPLETED


@workflow
async def napping(ctx: Context) -> None:
    await ctx.wait(50)


@limits.using(executions=3)
def test_with_many_in_memory_they_leave_sooner() -> None:
    driver = Driver(napping)
    for number in range(5):
        driver.start(napping, id=str(number))
    driver.pass_until(driver.now_ms + 1000)
    assert driver.machine.passive_count == 5
    driver.crash()
    assert driver.machine.passive_count == 2, "a successor brings back no more than that at a time"
    driver.settle()
    assert [driver.ended(str(number)).status for number in range(5)] == [Status.COMPLETED] * 5


class Desk(rayflow.Entity[int]):
    @rayflow.operation
    def add(self, by: int) -> int:
        self.state += by
        return self.state


@rayflow.workflow
async def at_the_desk(ctx: rayflow.Context, by: int, seconds: float) -> int:
    desk = ctx.entity(Desk, "one")
    async with ctx.lock(desk):
        before = await desk.add(by)
        await ctx.wait(timedelta(seconds=seconds))
        assert await desk.add(by) == before + by
    return before


@given(st.lists(st.sampled_from(("wait", "crash", "snapshot", "cancel")), max_size=12), st.integers(1, 3))
@settings(deadline=None)
def test_locks_and_answers_find_those_that_rest(happenings: list[str], count: int) -> None:
    shards = Shards(count)
    tokens = [shards.run(at_the_desk, 1, 600.0, id=f"x{number}") for number in range(4)]
    shards.settle()
    dice, cancelled = Random(len(happenings)), False
    for one in happenings:
        shard = dice.randrange(count)
        if one == "wait":
            shards.advance(limits.current().execution_idle_ms + 60_000)
        elif one == "crash":
            shards.crash(shard)
        elif one == "snapshot":
            shards.snapshot(shard)
        else:
            cancelled = True
            shards.tell(CancelExecution("x1", "enough"))
        shards.settle()
    shards.advance(4 * 700_000)
    outcomes = [shards.outcome(token) for number, token in enumerate(tokens) if not (cancelled and number == 1)]
    assert len(set(outcomes)) == len(outcomes), "two have had the lock at once"
    assert set(outcomes) <= set(range(9))
