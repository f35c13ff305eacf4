"""The counter of a published evaluation of durable functions, in workflows of steps around it that can go wrong on purpose."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import rayflow
from pipelines.counter import Counter

RETRY = rayflow.Retry(max_attempts=3, initial_s=0.1)
SCALE = 0.01
"""What is a second in the published evaluation is so many seconds here."""
LONG_S, LIMIT_S = 70 * SCALE, 60 * SCALE
INVOCATIONS = 9
"""As many as the published evaluation counted for the step that is longer than its limit."""

Fault = Enum("Fault", "NONE ONCE ALWAYS")


@dataclass(frozen=True, slots=True)
class Order:
    """A change of a counter with a step before and after it. Every run of a step leaves a line in ``journal``."""

    counter: str
    by: int
    journal: Path
    fault: Fault = Fault.NONE

    def note(self, run: str) -> int:
        """Add a line, of what ran and its process; returns how often that is there now."""
        with self.journal.open("a+") as file:
            file.write(f"{run} {os.getpid()}\n")
            file.seek(0)
            return sum(line.split()[0] == run for line in file.read().splitlines())


@rayflow.step
def check(order: Order) -> None:
    """The step before."""
    order.note("check")


@rayflow.step(retry=RETRY)
def confirm(order: Order, value: int) -> None:
    """The step after, which fails as it is told."""
    runs = order.note("confirm")
    if order.fault is Fault.ALWAYS or (order.fault is Fault.ONCE and runs == 1):
        raise OSError(f"{order.counter} = {value} cannot be confirmed")


@rayflow.step(retry=rayflow.Retry(max_attempts=INVOCATIONS, initial_s=0.01, max_s=0.01), timeout=LIMIT_S)
def too_long(order: Order) -> None:
    """A step that takes longer than it may."""
    order.note("too_long")
    time.sleep(LONG_S)


@rayflow.step(retry=RETRY)
def long(order: Order) -> None:
    """A step that may take as long as it does; where it fails once, its first run takes a hundred times as long."""
    runs = order.note("long")
    time.sleep(LONG_S / SCALE if order.fault is Fault.ONCE and runs == 1 else LONG_S)


@rayflow.workflow
async def change(ctx: rayflow.Context, order: Order) -> int:
    """Check, change the counter, confirm; returns the counter's new value."""
    await ctx.step(check, order)
    value = await ctx.entity(Counter, order.counter).increment(order.by)
    await ctx.step(confirm, order, value)
    return value


@rayflow.workflow
async def change_and_exceed(ctx: rayflow.Context, order: Order) -> int:
    """Check, change the counter, take too long."""
    await ctx.step(check, order)
    value = await ctx.entity(Counter, order.counter).increment(order.by)
    await ctx.step(too_long, order)
    return value


@rayflow.workflow
async def change_and_take_long(ctx: rayflow.Context, order: Order) -> int:
    """Check, change the counter, take long."""
    await ctx.step(check, order)
    value = await ctx.entity(Counter, order.counter).increment(order.by)
    await ctx.step(long, order)
    return value


@rayflow.step(inline=True)
def add(total: int, number: int) -> int:
    """A step that is next to nothing."""
    return total + number


@rayflow.workflow
async def many_steps(ctx: rayflow.Context, count: int) -> int:
    """``count`` steps, one after the other."""
    total = 0
    for number in range(count):
        total = await ctx.step(add, total, number)
    return total
