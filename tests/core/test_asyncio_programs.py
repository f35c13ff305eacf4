"""Whatever asyncio does with what a context returns, it does the same after a crash, and in the same order.

Invariant: I10. Memory is stirred between runs, so that what is hashed by address is found elsewhere each time.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from random import Random
from typing import Any

import hypothesis
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from rayflow import Entity, operation
from rayflow.core.context import Context
from rayflow.core.definitions import step, workflow
from rayflow.core.records import Abandoned, Scheduled
from rayflow.testing import run_workflow
from tests.core.driver import Driver
from tests.core.test_replay import replay_every_prefix


@step
def label(name: str) -> str:
    return name


@step
def note(name: str) -> None:
    """What the code does next depends on the order: other arguments are another record."""


@step
def stuck() -> None:
    """Never finishes by itself: the driver holds it."""


def stirred(seed: int) -> list[bytearray]:
    """Have what comes next lie elsewhere in memory, for as long as the list is kept."""
    rng = Random(seed)
    blocks = [bytearray(rng.randrange(1, 600)) for _ in range(rng.randrange(500))]
    rng.shuffle(blocks)
    return blocks[::2]


# -- any program ---------------------------------------------------------------------------------------------------------------

Program = tuple[Any, ...]


async def work(ctx: Context, program: Program) -> str:
    """Run a program; each thing that it learns it notes in a step, in the order in which it learns it."""
    kind, *rest = program
    match kind:
        case "label":
            return await ctx.step(label, rest[0])
        case "wait" | "first":
            told: list[str] = []
            pending: set[Any] = {given(ctx, form, one) for form, one in rest}
            while pending:
                when = asyncio.FIRST_COMPLETED if kind == "first" else asyncio.ALL_COMPLETED
                done, pending = await asyncio.wait(pending, return_when=when)
                for one in done:
                    told.append(text_of(one.result()))
                    await ctx.step(note, told[-1])
            return "".join(told)
        case "completed":
            told = []
            for one in asyncio.as_completed([work(ctx, program) for _, program in rest]):
                told.append(await one)
                await ctx.step(note, told[-1])
            return "".join(told)
        case "given up":
            held: set[Any] = {asyncio.gather(ctx.step(stuck), given(ctx, form, one)) for form, one in rest}
            _, pending = await asyncio.wait(held, timeout=0.5)
            for number, one in enumerate(pending):
                await ctx.step(note, str(number))
                one.cancel()
            return "given up"
        case _:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(work(ctx, one)) for _, one in rest]
                tasks.append(group.create_task(ctx.step(label, "direct")))
            return "".join(task.result() for task in tasks)


def given(ctx: Context, form: str, program: Program) -> asyncio.Future[Any]:
    """A program under way, in one of the forms in which asyncio can wait for it."""
    match form:
        case "gather":
            return asyncio.gather(work(ctx, program), ctx.step(label, "beside"))
        case "nested":
            return asyncio.gather(asyncio.gather(work(ctx, program)), asyncio.gather())
        case "shield":
            return asyncio.shield(work(ctx, program))
        case "step":
            return ctx.step(label, str(program))
        case "step as task":
            return asyncio.create_task(ctx.step(label, str(program)))
        case "limited":
            return asyncio.create_task(asyncio.wait_for(ctx.step(label, str(program)), 1000))
        case _:
            return asyncio.create_task(work(ctx, program))


def text_of(value: Any) -> str:
    return value if isinstance(value, str) else "".join(map(text_of, value))


@workflow
async def interpreter(ctx: Context, program: Program) -> str:
    return await work(ctx, program)


FORMS = ["gather", "nested", "shield", "step", "step as task", "limited", "task"]
_leaf = st.tuples(st.just("label"), st.sampled_from("abcdefgh"))


def _nest(inner: st.SearchStrategy[Program]) -> st.SearchStrategy[Program]:
    members = st.lists(st.tuples(st.sampled_from(FORMS), inner), min_size=1, max_size=5)
    kinds = ("wait", "first", "completed", "given up", "group")
    return st.one_of(*(members.map(lambda parts, kind=kind: (kind, *parts)) for kind in kinds))


programs = st.recursive(_leaf, _nest, max_leaves=8).filter(lambda program: program[0] != "label")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@hypothesis.given(programs, st.integers(0, 2**32))
def test_a_program_that_goes_by_the_order_in_which_asyncio_tells_it_things_does_the_same_after_a_crash_at_any_record(
    program: Program, order: int
) -> None:
    kept = [stirred(order)]
    undisturbed = driver_of()
    assert undisturbed.run(interpreter, program, rng=Random(order))[0] == "completed"
    kept.append(stirred(order + 1))
    replay_every_prefix(undisturbed)
    for point in range(len(undisturbed.log)):
        kept.append(stirred(order + point))
        driver = driver_of()
        driver.crash_at = point
        assert driver.run(interpreter, program, rng=Random(order))[0] == "completed"
        assert (driver.crashes, driver.reruns) == (1, [])


def driver_of() -> Driver:
    driver = Driver(interpreter, dispatcher="survives")
    driver.hold = {"stuck"}
    return driver


# -- one by one ----------------------------------------------------------------------------------------------------------------


def orders(body: Callable[[Context], Coroutine[Any, Any, list[str]]]) -> set[tuple[str, ...]]:
    """The results of a body in several runs."""

    @workflow
    async def once(ctx: Context) -> list[str]:
        return await body(ctx)

    found: set[tuple[str, ...]] = set()
    kept: list[Any] = []
    for seed in range(8):
        kept.append(stirred(seed))
        found.add(tuple(run_workflow(once)))
    return found


NAMES = "abcdefgh"


def test_wait_returns_groups_of_gather_in_the_same_order_in_every_process() -> None:
    async def body(ctx: Context) -> list[str]:
        done, _ = await asyncio.wait([asyncio.gather(ctx.step(label, one)) for one in NAMES])
        return [one.result()[0] for one in done]

    assert len(orders(body)) == 1


def test_as_completed_starts_coroutines_in_the_order_given() -> None:
    async def body(ctx: Context) -> list[str]:
        began: list[str] = []

        async def branch(name: str) -> None:
            began.append(name)
            await ctx.step(label, name)

        for one in asyncio.as_completed(map(branch, NAMES)):
            await one
        return began

    assert orders(body) == {tuple(NAMES)}


def test_a_set_of_coroutines_which_has_no_order_is_refused_with_what_to_write() -> None:
    async def body(ctx: Context) -> list[str]:
        async def branch(name: str) -> str:
            return await ctx.step(label, name)

        branches = {branch(name) for name in "ab"}
        try:
            return [await one for one in asyncio.as_completed(branches)]
        except RuntimeError as error:
            for one in branches:
                one.close()
            return [str(error)]

    ((message,),) = orders(body)
    assert message.endswith("they would be started in another order on every replay; give a list")


def test_outside_of_workflows_asyncio_is_as_it_was() -> None:
    async def main() -> None:
        outer = asyncio.gather(asyncio.sleep(0), asyncio.sleep(0))
        assert hash(outer) == object.__hash__(outer)
        done, pending = await asyncio.wait([outer])
        assert (type(done), done, pending) == (set, {outer}, set())
        assert [await one for one in asyncio.as_completed({asyncio.sleep(0, 1), asyncio.sleep(0, 1)})] == [1, 1]

    asyncio.run(main())


class Greeter(Entity[int]):
    @operation
    def greet(self, name: str) -> str:
        self.state += 1
        return name


async def in_a_task(awaitable: Any) -> Any:
    return await asyncio.create_task(awaitable)


async def in_a_named_task(awaitable: Any) -> Any:
    task = asyncio.create_task(awaitable, name="mine")
    assert task.get_name() == "mine"
    return await task


async def in_a_task_of_the_loop(awaitable: Any) -> Any:
    return await asyncio.get_running_loop().create_task(awaitable)


async def in_a_group(awaitable: Any) -> Any:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(awaitable)
    return task.result()


async def gathered(awaitable: Any) -> Any:
    return (await asyncio.gather(awaitable))[0]


async def waited_for(awaitable: Any) -> Any:
    (done,), _ = await asyncio.wait([awaitable])
    return done.result()


async def as_first_completed(awaitable: Any) -> Any:
    (only,) = asyncio.as_completed([awaitable])
    return await only


async def limited(awaitable: Any) -> Any:
    return await asyncio.wait_for(awaitable, 10)


async def ensured(awaitable: Any) -> Any:
    return await asyncio.ensure_future(awaitable)


WAYS = [
    in_a_task,
    in_a_named_task,
    in_a_task_of_the_loop,
    in_a_group,
    gathered,
    waited_for,
    as_first_completed,
    limited,
    asyncio.shield,
    ensured,
]


@pytest.mark.parametrize("way", WAYS, ids=lambda one: one.__name__)
def test_everything_that_a_context_returns_can_be_given_to_asyncio_in_every_way(way: Callable[[Any], Awaitable[Any]]) -> None:
    @workflow
    async def every(ctx: Context) -> list[Any]:
        greeter = ctx.entity(Greeter, "one")
        batch = await way(ctx.map(label, ["m", "n"]))
        return [
            await way(ctx.step(label, "s")),
            batch.results(),
            await way(ctx.wait(5)),
            await way(greeter.greet("call")),
            await way(greeter.signal.greet("signal")),
            await way(greeter.greet("after")),
        ]

    assert run_workflow(every) == ["s", ["m", "n"], None, "call", None, "after"]


def test_what_a_context_returns_is_under_way_before_its_task_is_and_given_up_with_it() -> None:
    @workflow
    async def eager(ctx: Context) -> None:
        begun = asyncio.create_task(ctx.step(stuck))
        waits = asyncio.create_task(ctx.wait(3600))
        at_once = asyncio.create_task(ctx.step(stuck))
        at_once.cancel()  # before it has begun to wait
        await ctx.step(note, "begun")
        begun.cancel()
        waits.cancel()
        await ctx.step(note, "given up")

    driver = Driver(eager)
    driver.hold = {"stuck"}
    assert driver.run(eager)[0] == "completed"
    records = [(type(one).__name__, one.operation) for one in driver.records() if isinstance(one, Scheduled | Abandoned)]
    assert records[:3] == [("Scheduled", "stuck#1"), ("Scheduled", "wait#1"), ("Scheduled", "note#1")]
    assert sorted(records[3:]) == [("Abandoned", "stuck#1"), ("Abandoned", "wait#1"), ("Scheduled", "note#2")]
    replay_every_prefix(driver)
