"""Replay: crash anywhere, and nothing is different but the time; change the code, and you are told how, and lose nothing.

Invariants: I9, I10, I11, I16.
"""

import asyncio
import gc
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rayflow.core import execution
from rayflow.core.context import Context
from rayflow.core.definitions import Retry, Workflow, step, workflow
from rayflow.core.instance import Instance, Outcome
from rayflow.core.messages import Attempt, AwaitOutcome
from rayflow.core.records import Completed, Finished, Record, Scheduled, Started, Suspended, decode_record
from rayflow.core.replay import replay
from rayflow.errors import NonDeterminismError, StepFailed
from tests.core.driver import SEED, Driver

EAGER = Retry(max_attempts=3, initial_s=0.5)


@step(retry=EAGER)
def add(a: Any, b: Any = 0) -> Any:
    return a + b


@step(retry=EAGER)
def broken(text: str) -> None:
    raise ValueError(text)


@step
def stuck() -> None:
    """Never finishes by itself: the driver holds it."""


@step
def clean_up(what: str) -> str:
    return what


# -- crash anywhere ------------------------------------------------------------------------------------------------------------


@workflow
async def sequential(ctx: Context) -> int:
    total = 0
    for number in range(5):
        total = await ctx.step(add, total, number)
    return total


@workflow
async def gathered(ctx: Context) -> list[int]:
    async def branch(start: int) -> int:
        first = await ctx.step(add, start, 1)
        return await ctx.step(add, first, 10)

    return list(await asyncio.gather(*(branch(start) for start in range(4))))


@workflow
async def mapped(ctx: Context) -> list[Any]:
    batch = await ctx.map(add, range(7), 100, key=lambda item: f"item/{item}", max_concurrency=3)
    again = await ctx.map(broken, ["a", "b"], max_concurrency=1)
    return [batch.results(), [item.key for item in again.failed()], type(again.items[0].error).__name__]


@workflow
async def timed(ctx: Context) -> list[str]:
    out: list[str] = []
    for _ in range(3):
        try:
            async with asyncio.timeout(2.5):
                await ctx.step(stuck)
        except TimeoutError:
            out.append(await ctx.step(clean_up, "timed out"))
    await asyncio.sleep(0.3)
    return out


@workflow
async def failing_group(ctx: Context) -> list[str]:
    out: list[str] = []

    async def branch(name: str) -> None:
        try:
            await ctx.step(stuck)
        finally:
            out.append(await ctx.step(clean_up, name))

    try:
        async with asyncio.TaskGroup() as group:
            for name in "abcdefgh":
                group.create_task(branch(name))
            await ctx.step(add, 1)
            await ctx.step(broken, "no")
    except* StepFailed as failed:
        out.append(failed.exceptions[0].args[0].split(" ")[0])
    return out


@workflow
async def retried(ctx: Context) -> str:
    try:
        await ctx.step(broken, "always")
    except StepFailed as failed:
        return f"{type(failed).__name__}: {failed.error_type}"
    return ""


@workflow
async def waiting(ctx: Context) -> list[str]:
    nap = asyncio.ensure_future(ctx.wait(3600, name="hour"))
    long = asyncio.ensure_future(ctx.wait(86_400))
    done, _ = await asyncio.wait({nap, long}, return_when=asyncio.FIRST_COMPLETED)
    long.cancel()
    await ctx.scope("part").wait(1)
    return [str(len(done)), str(nap.done()), await ctx.scope("part").step(clean_up, "end")]


@workflow
async def racing(ctx: Context) -> Any:
    race = {asyncio.ensure_future(ctx.step(add.options(key=str(n)), n)): n for n in range(3)}
    race[asyncio.ensure_future(ctx.step(stuck))] = 99
    results: list[int] = []
    while len(results) < 3:
        done, _ = await asyncio.wait(race, return_when=asyncio.FIRST_COMPLETED)
        results += [await ctx.step(add, race.pop(one), 1000) for one in done]
    for left in race:
        left.cancel()
    return sorted(results)


EXAMPLES = [sequential, gathered, mapped, timed, failing_group, retried, waiting, racing]


def replay_every_prefix(driver: Driver, id: str = "x") -> None:
    """The code goes through every beginning of the record, and at the end of it to the same end."""
    history: list[Record] = []
    outcome: Outcome | None = None
    for batch in driver.log:
        history += [record for record in map(decode_record, batch) if record.execution == id]
        if not history:
            continue
        started, last = history[0], history[-1]
        assert isinstance(started, Started)
        known = [record for record in history if not isinstance(record, Finished)]
        instance = replay(known, partial(execution.body, driver.code, started), driver.code).instance
        outcome = instance.outcome
        instance.close()
        if isinstance(last, Finished):
            break
        assert outcome is None
    assert isinstance(last, Finished)
    assert outcome is not None
    assert (outcome.status, outcome.result) == (last.status, last.result)


@pytest.mark.parametrize("dispatcher", ["survives", "dies"])
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda one: one.name)
def test_a_crash_after_any_batch_changes_neither_the_result_nor_runs_a_completed_step_again(
    example: Workflow[..., Any], dispatcher: Any
) -> None:
    undisturbed = Driver(example)
    undisturbed.hold = {"stuck"}
    expected = undisturbed.run(example)
    assert expected[0] == "completed"
    replay_every_prefix(undisturbed)
    for point in range(len(undisturbed.log)):
        driver = Driver(example, dispatcher=dispatcher)
        driver.hold = {"stuck"}
        driver.crash_at = point
        assert driver.run(example) == expected, f"crash after batch {point}"
        assert driver.crashes == 1
        assert driver.reruns == []
        if dispatcher == "survives":
            assert all(driver.runs[operation] == count for operation, count in undisturbed.runs.items())
    gc.collect()


def test_a_crash_at_every_batch_in_turn_only_costs_what_was_under_way() -> None:
    for example in EXAMPLES:
        undisturbed = Driver(example)
        undisturbed.hold = {"stuck"}
        expected = undisturbed.run(example)
        driver = Driver(example, dispatcher="survives")
        driver.hold = {"stuck"}
        driver.start(example)
        for _ in range(400):
            driver.crash()
            ready = [attempt for attempt in driver.running if attempt[1].split("#")[0] != "stuck"]
            if ready:
                driver.finish(ready[0])
            elif (due_ms := driver.machine.next_due_ms()) is not None:
                driver.pass_until(due_ms)
            else:
                break
        assert (driver.ended().status, driver.ended().result and driver.result()) == (expected[0], expected[2])
        assert driver.reruns == []


@workflow
async def cleans_up(ctx: Context) -> None:
    try:
        await ctx.step(stuck)
    finally:
        await ctx.step(clean_up, "files")
        await ctx.wait(5)
        await ctx.step(clean_up, "more files")


def test_cancellation_runs_the_clean_up_once_wherever_it_crashes() -> None:
    def run(point: int | None) -> Driver:
        driver = Driver(cleans_up)
        driver.hold = {"stuck"}
        driver.start(cleans_up)
        driver.crash_at = point
        while not driver.cancel():
            pass
        driver.settle()
        return driver

    undisturbed = run(None)
    for point in range(1, len(undisturbed.log)):
        driver = run(point)
        assert driver.crashes == 1
        ended = driver.ended()
        assert (ended.status, ended.failure and ended.failure.message) == ("cancelled", "the execution was cancelled: asked")
        assert driver.reruns == []
        assert [one.operation for one in driver.records() if isinstance(one, Completed)] == ["clean_up#1", "clean_up#2"]


# -- any program ---------------------------------------------------------------------------------------------------------------

Program = tuple[Any, ...]


async def interpret(ctx: Context, program: Program) -> Any:
    """Run a program whose result does not depend on the order in which its steps finish."""
    kind, *rest = program
    match kind:
        case "step":
            return await ctx.step(add, rest[0], 1)
        case "keyed":
            return await ctx.scope("k").step(add.options(key=f"{rest[0]}/%"), rest[0], 2)
        case "broken":
            await ctx.step(broken, "x")
        case "wait":
            await ctx.wait(rest[0])
        case "sleep":
            await asyncio.sleep(rest[0])
        case "seq":
            return [await interpret(ctx, one) for one in rest]
        case "gather":
            return list(await asyncio.gather(*(interpret(ctx, one) for one in rest)))
        case "scoped":
            return await asyncio.gather(*(interpret(ctx.scope("s"), one) for one in rest))
        case "map":
            return [item.value for item in await ctx.map(add, range(rest[0]), 5, max_concurrency=rest[1])]
        case "race":
            child, rival = asyncio.ensure_future(interpret(ctx, rest[0])), asyncio.ensure_future(ctx.step(stuck))
            try:
                done, pending = await asyncio.wait([child, rival], return_when=asyncio.FIRST_COMPLETED)
                assert (done, pending) == ({child}, {rival})
                return child.result()
            finally:
                rival.cancel()
                child.cancel()
        case "timeout":
            try:
                async with asyncio.timeout(rest[0]):
                    await ctx.step(stuck)
            except TimeoutError:
                return "timed out"
        case "try":
            try:
                return await interpret(ctx, rest[0])
            except Exception as error:
                return f"caught {type(error).__name__}"
        case "finally":
            try:
                return await interpret(ctx, rest[0])
            finally:
                await ctx.step(clean_up, "now")
        case _:  # a group: fails as soon as one of its members does
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(interpret(ctx, one)) for one in rest]
            except ExceptionGroup:
                return "group failed"
            return [task.result() for task in tasks]
    return kind


@workflow
async def interpreter(ctx: Context, program: Program) -> Any:
    identity = str(ctx.uuid4())
    result = await interpret(ctx, program)
    return [result, identity, ctx.random.random() if isinstance(result, int) else 0]


_leaf = st.one_of(
    st.tuples(st.just("step"), st.integers(0, 3)),
    st.just(("broken",)),
    st.tuples(st.just("wait"), st.sampled_from([0, 0.5, 90])),
    st.tuples(st.just("sleep"), st.sampled_from([0, 0.25, 45])),
    st.tuples(st.just("map"), st.integers(0, 4), st.sampled_from([1, 2, None])),
    st.tuples(st.just("timeout"), st.sampled_from([0.5, 7])),
)


def _nest(inner: st.SearchStrategy[Program]) -> st.SearchStrategy[Program]:
    many = st.lists(inner, min_size=1, max_size=4)
    return st.one_of(
        *(many.map(lambda parts, kind=kind: (kind, *parts)) for kind in ("seq", "gather", "scoped", "group")),
        *(inner.map(lambda part, kind=kind: (kind, part)) for kind in ("try", "finally", "race")),
    )


programs = st.recursive(_leaf, _nest, max_leaves=8)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(programs, st.integers(0, 2**32), st.lists(st.floats(0, 1), min_size=1, max_size=3), st.sampled_from(["survives", "dies"]))
def test_any_program_in_any_order_of_completion_and_with_any_crashes_ends_as_if_undisturbed(
    program: Program, order: int, crashes: list[float], dispatcher: Any
) -> None:
    undisturbed = Driver(interpreter)
    undisturbed.hold = {"stuck"}
    expected = undisturbed.run(interpreter, program)
    assert expected[1] in (None, "StepFailed"), expected
    driver = Driver(interpreter, dispatcher=dispatcher)
    driver.hold = {"stuck"}
    for share in sorted(crashes):
        point = int(share * (len(undisturbed.log) - 1))
        if point >= len(driver.log):
            driver.crash_at = point
            driver.start(interpreter, program)
            rng = Random(order)
            while driver.crash_at is not None and (driver.running or driver.machine.next_due_ms() is not None):
                ready = [one for one in driver.running if not one[1].rpartition("/")[2].startswith("stuck")]
                if ready:
                    driver.finish(rng.choice(ready))
                elif (due_ms := driver.machine.next_due_ms()) is not None:
                    driver.pass_until(due_ms)
                else:
                    break
    driver.crash_at = None
    assert driver.run(interpreter, program, rng=Random(order + 1)) == expected
    assert driver.reruns == []
    replay_every_prefix(driver)


# -- what replay repeats -------------------------------------------------------------------------------------------------------


def test_clock_dice_and_types_are_the_same_on_replay_and_log_lines_come_once(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[Any] = []

    @workflow
    async def observing(ctx: Context) -> None:
        for number in range(3):
            value = await ctx.step(add, (number,), (Point(1, 2),))
            ctx.logger.info("step %d", number)
            assert (type(value), type(value[1])) == (tuple, Point)
            seen.append((number, ctx.now(), ctx.random.random(), ctx.uuid4(), ctx.execution_id, value))
            await ctx.wait(2.5)

    driver = Driver(observing)
    with caplog.at_level(logging.INFO, logger="rayflow.workflow"):
        driver.start(observing)
        for _ in range(3):
            driver.finish(next(iter(driver.running)))
            driver.crash()
            driver.pass_until(driver.now_ms + 2500)
    assert driver.ended().status == "completed"
    once = {one[0]: one for one in seen}
    assert len(seen) == 3 + 1 + 2 + 3
    assert all(one == once[one[0]] for one in seen)
    assert len({one[1] for one in seen}) == len({one[2] for one in seen}) == len({one[3] for one in seen}) == 3
    assert [record.getMessage() for record in caplog.records] == [f"[x] step {number}" for number in range(3)]


@dataclass(frozen=True)
class Point:
    x: int
    y: int


# -- changed code --------------------------------------------------------------------------------------------------------------


def _body_original(ctx: Context) -> Any:
    async def body() -> list[Any]:
        first = await ctx.step(add, 1)
        second = await ctx.step(add, first, 1)
        nap = await ctx.wait(10, name="nap")
        return [first, second, nap, await ctx.step(clean_up, "end")]

    return body()


def _swallowing(change: Callable[[Context, int], Any]) -> Callable[[Context], Any]:
    """A version of the workflow that is different at its second operation and hides every Exception."""

    async def body(ctx: Context) -> Any:
        first = await ctx.step(add, 1)
        for _ in range(10):
            try:
                await change(ctx, first)
                await ctx.wait(10, name="nap")
                return "wrong way"
            except Exception:
                continue
        return "swallowed"

    return body


async def _both(ctx: Context, first: int) -> None:
    await asyncio.gather(ctx.step(add, first, 1), ctx.step(add, 5))


CHANGES: dict[str, tuple[Callable[[Context, int], Any], list[str]]] = {
    "another name": (
        lambda ctx, first: ctx.step(add.options(name="plus"), first, 1),
        [r"add#2: recorded step add arguments \w+; the code asks for nothing", r"plus#1: recorded nothing; .* step plus"],
    ),
    "another argument": (
        lambda ctx, first: ctx.step(add, first, 2),
        [r"add#2: recorded step add arguments (\w+); the code asks for step add arguments (?!\1)\w+"],
    ),
    "removed": (
        lambda ctx, first: asyncio.sleep(0),
        [r"add#2: recorded step add arguments \w+; the code asks for nothing", r"nap#1: recorded nothing; .* wait nap"],
    ),
    "asking for nothing": (
        lambda ctx, first: asyncio.Event().wait(),
        [r"add#2: recorded step add arguments \w+; the code asks for nothing"],
    ),
    "added": (_both, [r"add#3: recorded nothing; the code asks for step add arguments \w+"]),
    "another kind": (
        lambda ctx, first: (ctx.step(add, first, 2), ctx.wait(1, name="add"))[1],
        [r"add#2: recorded step add", r"add#3: recorded nothing; the code asks for wait add arguments 1s"],
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_code_is_told_both_sides_suspends_alone_and_goes_on_once_mended(change: str) -> None:
    altered, messages = CHANGES[change]
    original = Workflow(_body_original, "w", "1")
    driver = Driver(original, sequential, dispatcher="survives")
    driver.start(original)
    driver.start(sequential, id="other")
    driver.finish(Attempt("x", "add#1", 1, SEED))
    watching = driver.tell(AwaitOutcome("x"))
    assert Attempt("x", "add#2", 1, SEED) in driver.running

    driver.deploy(Workflow(_swallowing(altered), "w", "2"))
    driver.crash()
    refused = driver.suspension()
    assert refused.error == "NonDeterminismError"
    assert watching == []
    assert "after completed add#1:" in refused.message
    for message in messages:
        assert re.search(message, refused.message), refused.message
    driver.crash()
    assert sum(isinstance(one, Suspended) for one in driver.records()) == 1, "the same trouble is on record once"
    view = driver.machine.view("x", driver.now_ms)
    assert view is not None
    assert view.status == "suspended"

    driver.finish(Attempt("x", "add#2", 1, SEED))  # it ran on meanwhile; its result is kept
    driver.settle()
    assert driver.result("other") == 10
    driver.deploy(original)
    driver.crash()
    driver.settle()
    assert driver.result() == [1, 2, None, "end"]
    assert driver.runs["add#2"] == 1 + 1, "once here, once in the other execution"
    assert driver.reruns == []


def test_a_changed_kind_under_the_same_identity_shows_both_kinds() -> None:
    @workflow(name="w")
    async def before(ctx: Context) -> None:
        await ctx.step(add.options(name="same"), 1)

    @workflow(name="w")
    async def after(ctx: Context) -> None:
        await ctx.wait(1, name="same")

    driver = Driver(before)
    driver.start(before)
    driver.deploy(after)
    driver.crash()
    assert "same#1: recorded step same arguments" in driver.suspension().message
    assert "; the code asks for wait same arguments 1s" in driver.suspension().message


def test_giving_up_an_operation_is_compared_too() -> None:
    def version(gives_up: bool) -> Workflow[..., Any]:
        @workflow(name="w")
        async def body(ctx: Context) -> str:
            task = asyncio.ensure_future(ctx.step(stuck))
            await ctx.step(add, 1)
            if gives_up:
                task.cancel()
            await ctx.wait(60)
            return "done"

        return body

    for recorded, deployed, message in [
        (True, False, "stuck#1: recorded given up; the code still waits for it"),
        (False, True, "stuck#1: recorded as waited for; the code gives it up"),
    ]:
        driver = Driver(version(recorded))
        driver.hold = {"stuck"}
        driver.start(version(recorded))
        driver.finish("add#1")
        driver.deploy(version(deployed))
        driver.crash()
        assert message in driver.suspension().message
        driver.deploy(version(recorded))
        driver.crash()
        driver.settle()
        assert driver.result() == "done"


def test_code_that_cannot_be_loaded_or_breaks_on_the_way_suspends_and_can_be_cancelled_or_mended() -> None:
    driver = Driver(sequential, dispatcher="survives")
    for id in ("a", "b", "c"):
        driver.start(sequential, id=id)
    del driver.code.workflows["sequential"]
    driver.crash()
    assert driver.suspension("a").error == "InvalidInput"
    driver.cancel("b")
    assert driver.ended("b").status == "cancelled"
    assert driver.stopped == [Attempt("b", "add#1", 1, SEED)]
    driver.deploy(sequential)
    driver.crash()
    driver.settle()
    assert (driver.result("a"), driver.result("c")) == (10, 10)


def test_a_suspended_at_most_once_step_that_succeeds_meanwhile_has_succeeded() -> None:
    @step(delivery="at_most_once")
    def charge(amount: int) -> str:
        return f"charged {amount}"

    @workflow(name="w")
    async def body(ctx: Context) -> str:
        return await ctx.step(charge, 5)

    @workflow(name="w")
    async def changed(ctx: Context) -> str:
        return await ctx.step(charge, 6)

    driver = Driver(body, dispatcher="survives")
    driver.start(body)
    driver.deploy(changed)
    driver.crash()
    driver.settle()
    driver.dispatcher = "dies"
    driver.deploy(body)
    driver.crash()
    assert driver.result() == "charged 5"
    assert driver.runs["charge#1"] == 1


def test_a_result_that_cannot_be_read_suspends_and_reaches_the_code_once_it_can() -> None:
    @workflow
    async def large(ctx: Context) -> list[int]:
        other = ctx.step(clean_up, "other")
        try:
            size = len(await ctx.step(add, "x" * 70_000, "y"))
        except Exception:
            size = -1
        return [size, await ctx.step(add, size, 1), len(await other)]

    driver = Driver(large, dispatcher="survives")
    driver.start(large)
    result = driver.execute(driver.running[driver.attempt("add#1")])
    driver.code.unreadable = True
    driver.report(result)
    assert driver.suspension().error == "CodecError"
    driver.finish("clean_up#1")
    size = len(driver.records())
    driver.crash()
    assert driver.suspension().error == "CodecError"
    driver.crash()
    assert len(driver.records()) == size, "trouble that goes on is on record once"
    driver.code.unreadable = False
    for _ in range(3):
        driver.crash()
    driver.settle()
    assert driver.result() == [70_001, 70_002, 5]
    assert driver.runs == {"add#1": 1, "add#2": 1, "clean_up#1": 1}
    assert driver.reruns == []


def test_replay_that_fails_ends_the_code_it_had_begun() -> None:
    seen: list[str] = []

    @workflow
    async def body(ctx: Context) -> None:
        try:
            await ctx.step(add, 1)
        finally:
            seen.append("ended")
            ctx.logger.warning("nobody is to read this")
            await ctx.step(clean_up, "never")

    driver = Driver(body)
    driver.start(body)
    records = driver.records()
    wrong = [records[0], Scheduled("x", 0, "other#1", "step", "other", "")]
    started = records[0]
    assert isinstance(started, Started)
    instances: list[Instance] = []

    def make(instance: Instance) -> Any:
        instances.append(instance)
        return execution.body(driver.code, started, instance)

    with pytest.raises(NonDeterminismError):
        replay(wrong, make, driver.code)
    assert seen == ["ended"]
    assert instances[0].requested == []
    driver.machine.close()
