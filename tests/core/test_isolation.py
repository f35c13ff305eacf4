"""Whatever goes wrong while one execution is handled stays with that one, and leaves nothing half-done.

Invariants: I8, I9, I11, I20, I22.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from rayflow.core.context import Context
from rayflow.core.definitions import Retry, Step, StepOptions, step, workflow
from rayflow.core.failures import describe_error
from rayflow.core.messages import AwaitOutcome, CancelExecution, ForgetExecution, Refused, ResumeExecution, StepResult, Token
from rayflow.core.outbox import Effect, Outbox
from rayflow.core.records import Abandoned, CancelRequested, Cause, Completed, Kept, Record, Suspended
from rayflow.errors import StoreUnavailable
from tests.core.driver import Driver
from tests.core.entity_types import Account
from tests.core.shards import Shards
from tests.core.test_replay import replay_every_prefix


@step
def add(a: int, b: int = 1) -> int:
    return a + b


@step
def plus(a: int) -> int:
    return a + 1


@step(retry=Retry(max_attempts=2, initial_s=1, jitter=0))
def broken(text: str) -> None:
    raise ValueError(text)


@step(retry=Retry(max_attempts=2, initial_s=0))
def at_once() -> None:
    raise ValueError


@step
def stuck() -> None:
    """Never finishes by itself: the driver holds it."""


@workflow
async def healthy(ctx: Context) -> int:
    total = await ctx.step(plus, 1)
    await ctx.wait(5)
    return await ctx.step(plus, total)


@workflow
async def varied(ctx: Context) -> list[Any]:
    """Steps that succeed, fail, are tried again, lost and given up; waits; time-outs; something to clean up."""
    out: list[Any] = list(await asyncio.gather(ctx.step(add, 1), ctx.step(add, 2), ctx.wait(3)))
    try:
        await asyncio.gather(ctx.step(broken, "late"), ctx.step(at_once))
    except Exception as error:
        out.append(type(error).__name__)
    try:
        async with asyncio.timeout(10):
            await asyncio.gather(ctx.step(stuck), ctx.step(add, 5))
    except TimeoutError:
        out.append("late")
    out.append([one.value for one in await ctx.map(add, range(3), max_concurrency=2)])
    await asyncio.sleep(1)
    left = [asyncio.create_task(ctx.step(stuck)) for _ in range(2)]
    out.append(await ctx.step(add, 10))
    for one in left:
        one.cancel()
    return out


class Fault(Exception):
    """Something that nobody has thought of."""


class Faults:
    """Makes the ``at``-th thing that is put into the outbox for an execution fail, once."""

    def __init__(self, outbox: Outbox, at: int, execution: str = "x") -> None:
        self.left = at
        self.fired = False
        self._execution = execution
        self._record, self._effect = outbox.record, outbox.effect
        outbox.record, outbox.effect = self.record, self.effect  # type: ignore[method-assign]

    def record(self, record: Record) -> None:
        self._count(record)
        self._record(record)

    def effect(self, effect: Effect) -> None:
        self._count(effect)
        self._effect(effect)

    def _count(self, one: object) -> None:
        if getattr(one, "execution", None) == self._execution:
            self.left -= 1
            if self.left == 0:
                self.fired = True
                raise Fault("out of order")


def resume(driver: Driver, id: str = "x") -> None:
    token = Token("client", 1, 0)
    driver.machine.receive(token, ResumeExecution(id), driver.now_ms)
    driver.commit()


def undisturbed() -> Driver:
    driver = Driver(varied, healthy)
    driver.hold = {"stuck"}
    assert driver.run(varied)[0] == "completed"
    return driver


@pytest.mark.parametrize("way", ["resumed", "crashed"])
def test_wherever_an_execution_fails_half_way_it_alone_is_suspended_and_goes_on_as_if_nothing_had_been(way: str) -> None:
    expected = undisturbed().result()
    suspended = 0
    for point in range(1, 200):
        driver = Driver(varied, healthy, dispatcher="survives")
        driver.hold = {"stuck"}
        faults = Faults(driver.outbox, point)
        driver.start(healthy, id="y")
        (answer,) = driver.start(varied)
        driver.settle()
        assert driver.result("y") == 3
        if not faults.fired:
            break
        if isinstance(answer, Refused):  # nothing of it was ever recorded, so the id is free
            assert (answer.error, "varied cannot be started: Fault: out of order") == ("InvalidInput", answer.message)
            assert driver.records() == []
            driver.start(varied)
        else:
            suspended += 1
            refused = driver.suspension()
            assert refused.error == "Fault"
            assert refused.message.startswith("execution x of varied cannot go on: Fault: out of order. All others do")
            assert [type(one) for one in driver.records()].count(Suspended) == 1
            assert set(driver.machine.running_steps()) == set(driver.running), f"what runs is known after a fault at {point}"
            if way == "resumed":
                resume(driver)
            else:
                driver.crash()
        driver.settle()
        assert driver.result() == expected, f"after a fault at {point}"
        assert driver.reruns == []
        assert not driver.running, "nothing is left running that nobody waits for"
        assert {driver.runs[one] for one in driver.runs if one.startswith("add")} == {1}, "no result is lost"
        replay_every_prefix(driver)
    assert suspended > 30


def test_a_step_whose_settings_cannot_be_used_stops_its_own_execution_when_it_fails_and_no_other() -> None:
    def spoilt(fails: bool) -> None:
        if fails:
            raise ValueError("it failed")

    bad = Step(spoilt, StepOptions("spoilt", retry=cast("Retry", 3)))
    good = step(spoilt)
    run: list[Step[..., Any]] = [bad]

    @workflow
    async def unlucky(ctx: Context) -> str:
        await ctx.step(add, 1)
        await asyncio.gather(ctx.step(add, 2), ctx.step(run[0], True), return_exceptions=True)
        return "went on"

    driver = Driver(unlucky, healthy)
    driver.execute = with_failures(driver.execute)  # type: ignore[method-assign]
    driver.start(healthy, id="y")
    driver.start(unlucky)
    driver.settle()
    assert driver.result("y") == 3
    refused = driver.suspension()
    assert refused.error == "AttributeError"
    assert "execution x of unlucky cannot go on: AttributeError: 'int' object has no attribute 'max_attempts'" in refused.message
    run[0] = good
    resume(driver)
    driver.settle()
    assert driver.result() == "went on"


def with_failures(execute: Callable[..., Any]) -> Callable[..., Any]:
    """A worker that reports failures as worth another attempt, whatever the step's settings are."""

    def report(start: Any) -> Any:
        if start.request.settings.name != "spoilt":
            return execute(start)
        failure = describe_error(ValueError("it failed"))
        return StepResult(
            start.execution, start.operation, start.attempt, cause=Cause.ERROR, failure=failure, retryable=True, run=start.run
        )

    return report


def test_a_cancellation_that_cannot_be_carried_out_says_so_and_the_next_one_ends_the_execution() -> None:
    @workflow
    async def cleaning(ctx: Context) -> None:
        try:
            await ctx.step(stuck)
        finally:
            await ctx.step(add, 1)

    driver = Driver(cleaning)
    driver.hold = {"stuck"}
    driver.start(cleaning)
    Faults(driver.outbox, 2)
    (answer,) = driver.cancel()
    assert isinstance(answer, Refused)
    assert "cannot go on: Fault: out of order" in answer.message
    assert not any(isinstance(one, CancelRequested | Abandoned) for one in driver.records())
    assert driver.running, "what ran goes on running"
    driver.cancel()
    assert driver.ended().status == "cancelled"
    assert not driver.running


def test_a_sleep_that_is_longer_than_time_is_told_never_ends_and_disturbs_nobody() -> None:
    @workflow
    async def patient(ctx: Context, seconds: float) -> str:
        forever = asyncio.create_task(asyncio.sleep(seconds))
        await ctx.step(plus, 1)
        forever.cancel()
        return "gave up"

    driver = Driver(patient, healthy)
    driver.start(healthy, id="y")
    for number, seconds in enumerate((1e306, 1e15, 1e300, float("inf"))):
        driver.start(patient, seconds, id=f"x{number}")
    driver.settle()
    assert [driver.result(f"x{number}") for number in range(4)] == ["gave up"] * 4
    assert driver.result("y") == 3


def test_a_store_that_is_away_when_an_execution_starts_is_no_fault_of_the_execution() -> None:
    driver = Driver(healthy)
    decode = driver.code.decode

    def unavailable(stored: Any) -> Any:
        raise StoreUnavailable("timed out")

    driver.code.decode = unavailable  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailable):
        driver.start(healthy)
    assert not driver.outbox
    driver.code.decode = decode  # type: ignore[method-assign]
    driver.crash()  # the shard opens again
    assert driver.run(healthy)[0] == "completed"


@workflow
async def busy(ctx: Context) -> list[Any]:
    """Calls, signals and locks, in this shard and others."""
    left, right = ctx.entity(Account, "left"), ctx.entity(Account, "right")
    out: list[Any] = [await left.add(5)]
    ctx.entity(Account, "third").signal.add(1)
    async with ctx.lock(left, right):
        out.append(await left.take(2))
        out.append(await right.add(2))
        right.signal.add(10)
    out.extend(await asyncio.gather(left.add(1), right.add(1)))
    return out


ACCOUNTS = ("left", "right", "third")


def test_wherever_an_execution_fails_half_way_its_messages_are_handled_once() -> None:
    expected = [[5, 3, 2, 4, 13], 4, 13, 1]
    for point in range(1, 100):
        shards = Shards(3)
        faults = Faults(shards.owners[shards.shard_of("x")].outbox, point)
        token = shards.run(busy)
        shards.settle()
        if faults.fired and answer_of(shards, token).error == "ExecutionNotFound":
            token = shards.run(busy)
        elif faults.fired:
            shards.tell(ResumeExecution("x"))
            token = shards.tell(AwaitOutcome("x"))
        shards.settle()
        assert [shards.outcome(token), *(shards.ask(shards.entity(Account, one).get()) for one in ACCOUNTS)] == expected, point
        if not faults.fired:
            break
    assert 10 < point < 99


@pytest.mark.parametrize("end", [CancelExecution("x", "asked"), ForgetExecution("x")], ids=["cancelled", "forgotten"])
def test_wherever_an_execution_fails_half_way_its_locks_are_free_once_it_has_ended(end: Any) -> None:
    for point in range(1, 100):
        shards = Shards(3)
        faults = Faults(shards.owners[shards.shard_of("x")].outbox, point)
        shards.run(busy)
        shards.settle()
        faults.left = 0
        shards.tell(end)
        assert all(isinstance(shards.ask(shards.entity(Account, one).get()), int) for one in ACCOUNTS), point
        if not faults.fired:
            break
    assert 10 < point < 99


def answer_of(shards: Shards, token: Token) -> Refused:
    answer = shards.answers[token]
    assert isinstance(answer, Refused)
    return answer


def test_what_fails_again_while_it_is_given_what_came_meanwhile_is_on_record_as_suspended(monkeypatch: pytest.MonkeyPatch) -> None:
    @workflow
    async def two(ctx: Context) -> list[int]:
        return await asyncio.gather(ctx.step(add, 1), ctx.step(add, 2))

    driver = Driver(two, dispatcher="survives")
    driver.start(two)
    Faults(driver.outbox, 1)
    driver.finish("add#1")
    driver.finish("add#2")

    def failing() -> Outbox:
        outbox = Outbox()
        Faults(outbox, 2)
        return outbox

    monkeypatch.setattr("tests.core.driver.Outbox", failing)
    driver.crash()
    assert [type(one) for one in driver.records()[-5:]] == [Suspended, Kept, Kept, Completed, Suspended]
    monkeypatch.undo()
    driver.crash()
    assert driver.result() == [2, 3]
    assert driver.runs["add#1"] == driver.runs["add#2"] == 1
