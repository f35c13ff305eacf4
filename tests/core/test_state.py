"""The durable truth without user code: what a shard starts from and what tools read."""

import asyncio
from itertools import chain

import msgspec
import pytest

from rayflow.core.context import Context
from rayflow.core.definitions import step, workflow
from rayflow.core.messages import Attempt, ForgetExecution
from rayflow.core.records import Cause, Failure, Forgotten, Started, decode_record, encode_record
from rayflow.core.state import DurableState, decode_summary, encode_summary, running_attempts
from tests.core.driver import SEED, Driver


@step
def work(value: int) -> int:
    return value


@workflow
async def fanning(ctx: Context) -> list[int]:
    return (await ctx.map(work, range(4), max_concurrency=2)).results()


def state_of(log: list[list[bytes]]) -> DurableState:
    state = DurableState()
    state.extend(chain.from_iterable(log))
    return state


def test_at_every_batch_it_agrees_with_the_machine_that_wrote_the_log() -> None:
    driver = Driver(fanning)
    for id in ("a", "b", "c"):
        driver.start(fanning, id=id)
    while driver.running:
        driver.finish(list(driver.running)[-1])
        state = state_of(driver.log)
        assert {id for id in ("a", "b", "c") if driver.machine.view(id, driver.now_ms)} == set(state.live)
        running = {
            Attempt(id, operation, attempt, SEED)
            for id, records in state.live.items()
            for operation, attempt in running_attempts([decode_record(one) for one in records]).items()
        }
        assert running == set(driver.machine.running_steps()) == set(driver.running)
    assert set(state.ended) == {"a", "b", "c"}
    summary = state.ended["a"]
    assert (summary.workflow, summary.version, summary.status) == ("fanning", "1", "completed")
    assert summary.result == driver.ended("a").result
    assert decode_summary(encode_summary(summary)) == summary


def test_attempts_are_told_from_the_record_alone_through_retries_and_losses() -> None:
    driver = Driver(fanning)
    driver.start(fanning)
    for cause in (Cause.CRASH, Cause.LOST, Cause.TIMEOUT):
        driver.fail("work#1/[0]", cause)
        records = driver.records()
        waits = cause is not Cause.LOST
        expected = {"work#1/[1]": 1} if waits else {"work#1/[0]": 3, "work#1/[1]": 1}
        assert running_attempts(records) == expected == {one: attempt for _, one, attempt, _ in driver.machine.running_steps()}
        if waits and (due_ms := driver.machine.next_due_ms()) is not None:
            driver.pass_until(due_ms)
    assert running_attempts(driver.records()) == {"work#1/[0]": 4, "work#1/[1]": 1}


def test_an_attempt_that_the_code_gave_up_is_not_running() -> None:
    @workflow
    async def giving_up(ctx: Context) -> None:
        left = asyncio.ensure_future(ctx.step(work.options(name="left"), 1))
        await ctx.step(work, 2)
        left.cancel()
        await ctx.step(work, 3)

    driver = Driver(giving_up)
    driver.start(giving_up)
    assert running_attempts(driver.records()) == {"left#1": 1, "work#1": 1}
    driver.finish("work#1")
    assert running_attempts(driver.records()) == {"work#2": 1}


def test_forgetting_leaves_no_trace_and_a_new_execution_of_the_same_id_starts_afresh() -> None:
    driver = Driver(fanning)
    driver.start(fanning)
    driver.tell(ForgetExecution("x"))
    state = state_of(driver.log)
    assert (state.live, state.ended, state.unfiled) == ({}, {}, {})
    driver.run(fanning)
    state = state_of(driver.log)
    assert list(state.ended) == list(state.unfiled) == ["x"]
    assert isinstance(decode_record(state.unfiled["x"][0]), Started)
    driver.tell(ForgetExecution("x"))
    state = state_of(driver.log)
    assert (state.live, state.ended, state.unfiled) == ({}, {}, {})


def test_records_that_were_filed_leave_unless_a_later_execution_has_the_id() -> None:
    driver = Driver(fanning)
    driver.run(fanning)
    state = state_of(driver.log)
    taken = {id: list(records) for id, records in state.unfiled.items()}
    state.apply(Forgotten("x", 1), encode_record(Forgotten("x", 1)))
    driver.now_ms += 1
    driver.crash(batches=0)
    driver.run(fanning)
    state.extend(chain.from_iterable(driver.log))
    state.filed(taken, "history/old")
    assert state.ended["x"].history == ""
    state.filed(dict(state.unfiled), "history/new")
    assert (state.unfiled, state.ended["x"].history) == ({}, "history/new")


def test_what_is_no_summary_is_refused() -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_summary(msgspec.msgpack.encode(Failure("a", "b")))
