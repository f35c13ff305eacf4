"""The workflows that run in a simulation, each with an outcome that no disturbance may change.

Steps are functions of their arguments; those that fail do so in their first attempt, or always. What a workflow returns does not
depend on which of two things was faster.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from random import Random
from typing import Any

from rayflow.core.context import Context
from rayflow.core.definitions import Retry, Workflow, step, workflow
from rayflow.errors import StepFailed

ATTEMPT: ContextVar[int] = ContextVar("attempt", default=2)
"""The number of the attempt that runs; set by whoever runs a step of this module."""

_PATIENT = Retry(max_attempts=50, initial_s=0.05, max_s=0.2)


class Unlucky(Exception):
    """What steps of this module fail with."""


@step(retry=_PATIENT)
def add(left: int, right: int) -> int:
    return left + right


@step(retry=_PATIENT)
def stumble(value: int) -> int:
    if ATTEMPT.get() == 1:
        raise Unlucky("the first attempt")
    return value * 2


@step(retry=Retry(max_attempts=2, initial_s=0.05))
def hopeless(value: int) -> int:
    raise Unlucky(f"never works with {value}")


@step(retry=_PATIENT)
def large(value: int) -> str:
    return str(value) * 400


@step(inline=True, retry=_PATIENT)
def small(value: int) -> int:
    return value + 1


@step(delivery="at_most_once")
def once(value: int) -> int:
    return value


@workflow
async def chain(ctx: Context, length: int) -> int:
    total = 0
    for number in range(length):
        total = await ctx.step(add, total, number)
    return total


@workflow
async def fan(ctx: Context, width: int, at_a_time: int) -> int:
    batch = await ctx.map(stumble, range(width), key=lambda item: f"item-{item}", max_concurrency=at_a_time)
    return await ctx.step(add, sum(batch.results()), width)


@workflow
async def patience(ctx: Context, seconds: float) -> int:
    before = ctx.now()
    await ctx.wait(seconds)
    value = await ctx.step(small, 1)
    await ctx.wait(seconds)
    return value if (ctx.now() - before).total_seconds() >= 2 * seconds else -1


@workflow
async def tolerance(ctx: Context, value: int) -> str:
    try:
        await ctx.step(hopeless, value)
    except StepFailed:
        return f"{await ctx.step(add, value, 1)} without it"
    return "it worked"


@workflow
async def race(ctx: Context, value: int) -> int:
    tasks = [asyncio.ensure_future(ctx.step(add, value, number)) for number in range(2)]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    try:
        async with asyncio.timeout(0.2):
            await ctx.step(stumble, value)
    except TimeoutError:
        pass
    return await ctx.step(add, value, len(done) + len(pending))


@workflow
async def inline_chain(ctx: Context, length: int) -> int:
    value = 0
    for _ in range(length):
        value = await ctx.step(small, value)
    return value


@workflow
async def careful(ctx: Context, value: int) -> int:
    try:
        await ctx.step(once, value)
    except StepFailed:
        value += 0
    return await ctx.step(add, value, value)


@workflow
async def bulky(ctx: Context, value: int) -> str:
    text = await ctx.step(large, value)
    other = await ctx.step(large, len(text))
    return text + other


@workflow
async def failing(ctx: Context, value: int) -> int:
    await ctx.step(add, value, 1)
    raise Unlucky(f"of {value}")


def draw(random: Random) -> tuple[Workflow[..., Any], tuple[Any, ...]]:
    """One of the workflows, with arguments."""
    choices: list[tuple[Workflow[..., Any], Callable[[], tuple[Any, ...]]]] = [
        (chain, lambda: (random.randint(1, 4),)),
        (fan, lambda: (random.randint(1, 5), random.randint(1, 3))),
        (patience, lambda: (random.choice((0.01, 0.5)),)),
        (tolerance, lambda: (random.randint(0, 3),)),
        (race, lambda: (random.randint(0, 3),)),
        (inline_chain, lambda: (random.randint(1, 3),)),
        (careful, lambda: (random.randint(0, 3),)),
        (bulky, lambda: (random.randint(0, 3),)),
        (failing, lambda: (random.randint(0, 3),)),
    ]
    chosen, arguments = random.choice(choices)
    return chosen, arguments()
