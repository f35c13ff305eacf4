"""Workflows that the tests of ``rayflow.testing`` run."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta

import rayflow


class Busy(Exception):
    """Worth another attempt."""


@rayflow.step
def double(value: int) -> int:
    return 2 * value


@rayflow.step(retry=rayflow.Retry(max_attempts=4, initial_s=600, backoff=2, max_s=86_400))
def fetch(name: str) -> str:
    return f"content of {name}"


@rayflow.step
async def blob(size: int) -> bytes:
    return bytes(size)


@rayflow.step
def shelve(count: int) -> list[str]:
    step = rayflow.current_step()
    assert step is not None
    keys = [f"{step.files_prefix}{step.attempt_name}" for _ in range(count)]
    for key in keys:
        step.store.create(key, b"content")
    return keys


@rayflow.step
def clear() -> None:
    step = rayflow.current_step()
    assert step is not None
    step.store.delete([info.key for info in step.store.list(step.files_prefix)])


@rayflow.workflow
async def total(ctx: rayflow.Context, numbers: list[int]) -> int:
    """Branches, a map and an ordinary step."""
    first, batch = await asyncio.gather(ctx.step(double, 100), ctx.map(double, numbers, key=str, max_concurrency=2))
    return await ctx.step(double, first + sum(batch.results()))


@rayflow.workflow
async def reminder(ctx: rayflow.Context, days: int) -> tuple[datetime, datetime, str, float]:
    """Durable waits, the recorded clock and dice."""
    begun = ctx.now()
    for _ in range(days):
        await ctx.wait(timedelta(days=1))
    return begun, ctx.now(), str(ctx.uuid4()), ctx.random.random()


@rayflow.workflow
async def download(ctx: rayflow.Context, name: str) -> str:
    """Retries, and an error that is caught."""
    try:
        return await ctx.step(fetch, name)
    except rayflow.StepFailed as error:
        return f"gave up after {error.error_type}"


@rayflow.workflow
async def large(ctx: rayflow.Context, size: int) -> int:
    """Values that leave the log for a blob, as argument and as result."""
    data = await ctx.step(blob, size)
    return len(data) + len(await ctx.step(blob, size + 1))


@rayflow.step
def length(*parts: bytes) -> int:
    return sum(map(len, parts))


@rayflow.workflow
async def unread(ctx: rayflow.Context, size: int) -> int:
    """Large values that go from step to step, and are not looked at."""
    one, two = ctx.step(blob, size), ctx.step(blob, size + 1)
    both = await ctx.step(length, one, two)
    return both + sum((await ctx.map(length, ctx.map(blob, [size, size + 2]), one)).results())


@rayflow.workflow
async def shelving(ctx: rayflow.Context, count: int) -> int:
    """Objects in the store of the execution, of which nothing is to be left."""
    keys = await ctx.step(shelve, count)
    await ctx.step(clear)
    return len(keys)


@rayflow.workflow
async def first_of_two(ctx: rayflow.Context) -> str:
    """A race: what is slower is given up."""
    quick, slow = asyncio.ensure_future(ctx.step(fetch, "quick")), asyncio.ensure_future(ctx.wait(3600, name="slow"))
    done, pending = await asyncio.wait({quick, slow}, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    return "quick" if quick in done else "slow"


@rayflow.workflow
async def refused(ctx: rayflow.Context, value: int) -> int:
    """One that fails."""
    await ctx.step(double, value)
    raise ValueError(f"{value} is refused")


@rayflow.workflow
async def stuck(ctx: rayflow.Context) -> None:
    """One that waits for something that nobody will ever do."""
    await asyncio.get_running_loop().create_future()
