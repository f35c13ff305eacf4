"""The workflows and steps that the benchmarks run. A module of its own: hosts and workers of Ray import it by name.

They find it because Ray gives its workers the folder of the driver's script.
"""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path

import rayflow


@rayflow.step(inline=True)
def tick() -> list[int]:
    """Nothing, and when: the clock and the CPU time of the shard's process, in nanoseconds."""
    return [time.perf_counter_ns(), time.process_time_ns()]


@rayflow.workflow
async def ticks(ctx: rayflow.Context, count: int) -> list[list[int]]:
    """``count`` inline steps, one after the other."""
    return [await ctx.step(tick) for _ in range(count)]


@rayflow.step(inline=True)
def noted(number: int, journal: Path) -> int:
    """A step that leaves a line per run in a file: its number, its process, the clock in nanoseconds."""
    line = f"{number} {os.getpid()} {time.perf_counter_ns()}\n".encode()
    descriptor = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.write(descriptor, line)
    finally:
        os.close(descriptor)
    return number


@rayflow.workflow
async def noted_ticks(ctx: rayflow.Context, count: int, journal: Path) -> int:
    """``count`` inline steps that are noted, one after the other; returns the sum of their numbers."""
    total = 0
    for number in range(count):
        total += await ctx.step(noted, number, journal)
    return total


def double(number: int) -> int:
    """The trivial work of the fan-out."""
    return number * 2


double_inline = rayflow.step(name="double", inline=True)(double)
double_as_task = rayflow.step(name="double")(double)


@rayflow.workflow
async def doubles_inline(ctx: rayflow.Context, count: int) -> int:
    """A map over ``count`` items in the shard's process."""
    return sum((await ctx.map(double_inline, range(count))).results())


@rayflow.workflow
async def doubles_as_tasks(ctx: rayflow.Context, count: int) -> int:
    """A map over ``count`` items, each a Ray task."""
    return sum((await ctx.map(double_as_task, range(count))).results())


@rayflow.workflow
async def five_steps(ctx: rayflow.Context, number: int) -> int:
    """A short workflow of five inline steps, each of which waits for the one before."""
    for _ in range(5):
        number = await ctx.step(double_inline, number)
    return number


@rayflow.workflow
async def sleeper(ctx: rayflow.Context, name: str) -> str:
    """Sleeps for longer than any benchmark takes."""
    await ctx.wait(timedelta(days=30))
    return name
