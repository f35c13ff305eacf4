"""What the programs of a soak run: entities, steps, and workflows of all shapes, with what each must come to.

Whatever is done leaves its name somewhere: a *tag* on a page that was asked for, a line in a file for an attempt that began. So
what was lost, done twice or done out of order shows in the end.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any

import rayflow
from rayflow.errors import StepFailed, StepLost

WINDOW_S = 90.0
"""For so long an entity knows a message again by its id."""

LOST = "lost"
"""What an at-most-once step comes to if its process was killed."""


class Tally(rayflow.Entity[int]):
    """A counter: its history is what is checked to be linearizable."""

    message_window_s = WINDOW_S

    @rayflow.operation
    def increment(self) -> int:
        self.state += 1
        return self.state

    @rayflow.query
    def get(self) -> int:
        return self.state


@dataclass
class Notes:
    """What a page holds: its tags in the order in which they came, and what makes it large."""

    tags: list[str] = field(default_factory=list[str])
    padding: bytes = b""


class Page(rayflow.Entity[Notes]):
    """Takes tags in every way in which a message can come."""

    message_window_s = WINDOW_S

    @rayflow.operation
    def note(self, tag: str) -> int:
        """How many there are now."""
        self.state.tags.append(tag)
        return len(self.state.tags)

    @rayflow.operation
    def refuse(self, tag: str) -> None:
        """What raises changes nothing."""
        self.state.tags.append(tag)
        raise ValueError(tag)

    @rayflow.operation
    def pass_on(self, tag: str, page: str) -> int:
        """To another page, with this very turn."""
        self.state.tags.append(tag)
        self.entity(Page, page).signal.note(f"{tag} passed on")
        return len(self.state.tags)

    @rayflow.operation
    def note_later(self, tag: str, after_s: float) -> int:
        """By a reminder."""
        self.remind(tag, after=after_s)
        return len(self.state.tags)

    def reminded(self, name: str, missed: int) -> None:
        self.state.tags.append(name)

    @rayflow.operation
    def grow(self, tag: str, size: int) -> int:
        """From now on it is so large."""
        self.state.padding = bytes(size)
        self.state.tags.append(tag)
        return len(self.state.tags)


class Story(rayflow.EventSourcedEntity[int, str]):
    """Takes tags as events."""

    def apply(self, state: int, event: str) -> int:
        return state + 1

    @rayflow.operation
    def tell(self, tag: str) -> int:
        self.emit(tag)
        return self.state


class Till(rayflow.Entity[list[str]]):
    """Is read, and then written with what was read: which loses nothing only under a lock."""

    @rayflow.query
    def read(self) -> list[str]:
        return self.state

    @rayflow.operation
    def put(self, tags: list[str]) -> None:
        self.state = tags


_PATIENT = rayflow.Retry(max_attempts=50, initial_s=0.05, max_s=0.5)
"""Attempts whose process was killed count; what is checked is not how many there are."""


def began(folder: str) -> int:
    """Leave a line for the attempt that begins here; its number. One write of an open file: whole, or not there."""
    here = rayflow.current_step()
    assert here is not None
    line = f"{here.execution_id} {here.operation} {here.attempt}\n"
    descriptor = os.open(Path(folder, f"attempts-{os.getpid()}"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)
    return here.attempt


@rayflow.step(retry=_PATIENT)
def square(folder: str, number: int) -> int:
    began(folder)
    return number * number


@rayflow.step(retry=_PATIENT, inline=True)
def square_inline(folder: str, number: int) -> int:
    began(folder)
    return number * number


@rayflow.step(retry=_PATIENT)
def stumble(number: int, folder: str) -> int:
    """Every third fails at first, every fifth for good."""
    if began(folder) == 1 and number % 3 == 0:
        raise OSError(f"number {number} stumbles")
    if number % 5 == 4:
        raise rayflow.InvalidInput(f"number {number} cannot")
    return number


@rayflow.step(retry=_PATIENT)
def large(folder: str, size: int) -> bytes:
    began(folder)
    return bytes(size)


@rayflow.step(retry=_PATIENT)
def length(folder: str, value: bytes) -> int:
    began(folder)
    return len(value)


@rayflow.step(delivery="at_most_once")
def only_once(folder: str) -> str:
    began(folder)
    return "done"


@rayflow.workflow
async def chain(ctx: rayflow.Context, folder: str, numbers: list[int], pause_s: float) -> int:
    total = 0
    for number in numbers:
        total += await ctx.step(square if number % 2 else square_inline, folder, number)
        await ctx.wait(pause_s)
    return total


@rayflow.workflow
async def fan(ctx: rayflow.Context, folder: str, count: int) -> list[int]:
    batch = await ctx.map(stumble, range(count), folder, max_concurrency=4)
    return [-1 if item.value is None else item.value for item in batch]


@rayflow.workflow
async def sleeper(ctx: rayflow.Context, page: str, tag: str, seconds: float) -> str:
    await ctx.wait(seconds)
    await ctx.entity(Page, page).note(tag)
    return tag


@rayflow.workflow
async def teller(ctx: rayflow.Context, page: str, tags: list[str]) -> int:
    last = 0
    for index, tag in enumerate(tags):
        if index % 2:
            ctx.entity(Page, page).signal.note(tag)
        else:
            last = await ctx.entity(Page, page).note(tag)
    return len(tags) if last else 0


@rayflow.workflow
async def locker(ctx: rayflow.Context, tills: list[str], tag: str, pause_s: float) -> str:
    entities = [ctx.entity(Till, key) for key in tills]
    async with ctx.lock(*entities):
        for till in entities:
            tags = await till.read()
            await ctx.wait(pause_s)
            await till.put([*tags, tag])
    return tag


@rayflow.workflow
async def failing(ctx: rayflow.Context, folder: str, number: int) -> int:
    try:
        await ctx.step(stumble, number, folder)
    except StepFailed as error:
        raise ValueError(f"failed as it should: {number}") from error
    return number


@rayflow.workflow
async def racing(ctx: rayflow.Context, folder: str, number: int) -> list[int | str]:
    found: list[int | str] = []
    try:
        async with asyncio.timeout(0.2):
            await ctx.wait(3600)
    except TimeoutError:
        found.append("timed out")
    found += await asyncio.gather(*(ctx.step(square_inline, folder, number + index) for index in range(3)))
    done, waiting = await asyncio.wait(
        [asyncio.ensure_future(ctx.wait(pause_s)) for pause_s in (0.05, 3600)], return_when=asyncio.FIRST_COMPLETED
    )
    for one in waiting:
        one.cancel()
    return [*found, len(done)]


@rayflow.workflow
async def carry(ctx: rayflow.Context, folder: str, size: int) -> int:
    return await ctx.step(length, folder, await ctx.step(large, folder, size))


@rayflow.workflow
async def once(ctx: rayflow.Context, folder: str) -> str:
    try:
        return await ctx.step(only_once, folder)
    except StepLost:
        return LOST


@rayflow.workflow
async def short(ctx: rayflow.Context, value: str) -> str:
    return value


@dataclass(frozen=True, slots=True)
class Places:
    """Where tags go now, and what is allowed. ``longest_s``: of a wait. ``large``: bytes of what is to be large."""

    folder: str
    pages: Sequence[str]
    tills: Sequence[str]
    longest_s: float
    large: int


@dataclass(frozen=True, slots=True)
class Shape:
    """A workflow with how its arguments are drawn, and what it returns for them: None where it fails with a ValueError."""

    workflow: rayflow.Workflow[..., Any]
    draw: Callable[[Random, str, Places], list[Any]]
    comes_to: Callable[[Sequence[Any]], Any]


def _pause_s(dice: Random, longest_s: float) -> float:
    """Mostly milliseconds, now and then as long as may be."""
    return round(min(dice.choice((0.0, 0.002, 0.05, 0.3, 2.0, longest_s)), longest_s), 3)


def _numbers(dice: Random) -> list[int]:
    return [dice.randrange(100) for _ in range(dice.randint(1, 8))]


def _some_tills(dice: Random, at: Places) -> list[str]:
    return sorted(dice.sample(at.tills, dice.randint(1, len(at.tills))))


def _raced(number: int) -> list[int | str]:
    return ["timed out", number**2, (number + 1) ** 2, (number + 2) ** 2, 1]


SHAPES: dict[str, Shape] = {
    "chain": Shape(
        chain,
        lambda dice, tag, at: [at.folder, _numbers(dice), _pause_s(dice, 0.3)],
        lambda args: sum(number * number for number in args[1]),
    ),
    "fan": Shape(
        fan,
        lambda dice, tag, at: [at.folder, dice.randint(0, 12)],
        lambda args: [-1 if number % 5 == 4 else number for number in range(args[1])],
    ),
    "sleeper": Shape(
        sleeper,
        lambda dice, tag, at: [dice.choice(at.pages), tag, _pause_s(dice, at.longest_s)],
        lambda args: args[1],
    ),
    "teller": Shape(
        teller,
        lambda dice, tag, at: [dice.choice(at.pages), [f"{tag}.{index}" for index in range(dice.randint(1, 6))]],
        lambda args: len(args[1]),
    ),
    "locker": Shape(
        locker,
        lambda dice, tag, at: [_some_tills(dice, at), tag, _pause_s(dice, 0.05)],
        lambda args: args[1],
    ),
    "failing": Shape(
        failing,
        lambda dice, tag, at: [at.folder, dice.choice((2, 4, 9))],
        lambda args: None if args[1] % 5 == 4 else args[1],
    ),
    "racing": Shape(racing, lambda dice, tag, at: [at.folder, dice.randrange(100)], lambda args: _raced(args[1])),
    "carry": Shape(carry, lambda dice, tag, at: [at.folder, dice.randint(1, at.large)], lambda args: args[1]),
    "once": Shape(once, lambda dice, tag, at: [at.folder], lambda args: "done"),
    "short": Shape(short, lambda dice, tag, at: [tag], lambda args: args[0]),
}


def page_tags(shape: str, args: Sequence[Any]) -> list[tuple[str, str]]:
    """What an execution leaves on pages, exactly once if it completes: pairs of page and tag, in their order."""
    if shape == "sleeper":
        return [(args[0], args[1])]
    return [(args[0], tag) for tag in args[1]] if shape == "teller" else []


def till_tags(shape: str, args: Sequence[Any]) -> list[tuple[str, str]]:
    """The same of tills."""
    return [(till, args[1]) for till in args[0]] if shape == "locker" else []


def after(seconds: float) -> timedelta:
    """For a message that is to be handled later."""
    return timedelta(seconds=seconds)
