"""The workflows and entities that run in a simulation.

Each workflow has an outcome that no disturbance may change: steps are functions of their arguments; those that fail do so in their
first attempt, or always. What a workflow returns does not depend on which of two things was faster.

Entities are counters that keep book of everything that happens to them. Each message has a *tag* that no other has: its sender and
the sender's own count, as in ``Counter/a#3``; with ``~`` in place of ``#`` it may be overtaken. So what was handled, in which order
and how often can be read off the states on record.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from random import Random
from typing import Any

from rayflow.core.context import Context
from rayflow.core.crashes import MAX_CRASHES
from rayflow.core.definitions import Retry, Workflow, step, workflow
from rayflow.core.entity import Entity, EventSourcedEntity, operation, query
from rayflow.errors import OperationFailed, StepFailed

ATTEMPT: ContextVar[int] = ContextVar("attempt", default=2)
"""The number of the attempt that runs; set by whoever runs a step of this module."""


class Fuse:
    """What kills the process that runs it: its tag, and how many times it does; looked at by whoever runs a turn, at its end.

    No context variable: the code of a workflow has contexts of its own.
    """

    def __init__(self) -> None:
        self._what = ("", 0)

    def set(self, what: tuple[str, int]) -> None:
        """Have the process die of this."""
        self._what = what

    def get(self) -> tuple[str, int]:
        return self._what


EXPLOSION = Fuse()

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


@workflow
async def deadly(ctx: Context, value: int, times: int, late: bool) -> int:
    """Kills the process that runs it so many times: in its first turn, or while a step of it runs."""
    tag = f"{ctx.execution_id} {value} {times}"
    if not late:
        EXPLOSION.set((tag, times))
    running = asyncio.ensure_future(ctx.step(add, value, 1))
    if late:
        await ctx.step(small, 1)
        EXPLOSION.set((tag, times))
    return await running + await ctx.step(add, value, 2)


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
        (deadly, lambda: (random.randint(0, 3), random.choice((1, MAX_CRASHES, 3 * MAX_CRASHES)), random.random() < 0.7)),
    ]
    chosen, arguments = random.choice(choices)
    return chosen, arguments()


# -- entities ----------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Plan:
    """A reminder that was set; ``rings``: when it came, how often it was missed before, and after how many entries that was."""

    due_ms: int
    every_ms: int
    to: str = ""
    rings: list[tuple[int, int, int]] = field(default_factory=list[tuple[int, int, int]])


@dataclass(slots=True)
class Book:
    """The state of a counter: ``entries`` has tag and amount of each message, ``sent`` is how many signals it has sent."""

    total: int = 0
    entries: list[tuple[str, int]] = field(default_factory=list[tuple[str, int]])
    sent: int = 0
    plans: dict[str, Plan] = field(default_factory=dict[str, Plan])


Event = tuple[str, str, int, int, str]
"""What happens to a book: what, a tag or the name of a reminder, two numbers, an address."""


def enter(book: Book, event: Event) -> None:
    """Put an event into a book."""
    what, name, first, second, address = event
    if what == "add":
        book.total += first
        book.entries.append((name, first))
    elif what == "send":
        book.sent += 1
    elif what == "plan":
        book.plans[name] = Plan(first, second, address)
    elif what == "ring":
        book.plans[name].rings.append((first, second, len(book.entries)))
    else:
        book.plans.pop(name, None)


MAX_RINGS = 4
"""A reminder that has come so often is not wanted any more."""


class Counter(Entity[Book]):
    """Adds up, and passes on."""

    def enter(self, what: str, name: str = "", first: int = 0, second: int = 0, address: str = "") -> None:
        """Have something happen to the book."""
        enter(self.state, (what, name, first, second, address))

    @property
    def address(self) -> str:
        return f"{type(self).__name__}/{self.key}"

    def now_ms(self) -> int:
        return milliseconds(self.now())

    def to(self, address: str) -> Counter:
        """Another counter."""
        kind, _, key = address.partition("/")
        return self.entity(ENTITIES[kind], key)

    def next_tag(self, mark: str = "#") -> str:
        """The tag of the signal that is sent next."""
        self.enter("send")
        return f"{self.address}{mark}{self.state.sent}"

    @operation
    def add(self, tag: str, by: int, note: str = "") -> tuple[int, int]:
        """Returns the number of entries and the total with this one; ``note`` makes the message large."""
        self.enter("add", tag, by)
        return len(self.state.entries), self.state.total

    @operation
    def stumble(self, tag: str, by: int) -> None:
        """Does a lot, and none of it counts."""
        self.enter("add", tag, by)
        self.to(self.address).signal.add(self.next_tag(), by)
        self.remind("never", after=0.01)
        self.state.total += by
        raise Unlucky(tag)

    @operation
    def explode(self, tag: str, by: int, times: int) -> tuple[int, int]:
        """Adds, unless the process dies of it, which it does so many times."""
        self.enter("add", tag, by)
        EXPLOSION.set((tag, times))
        return len(self.state.entries), self.state.total

    @operation
    def pass_on(self, tag: str, by: int, route: list[str], note: str) -> tuple[int, int]:
        """Adds, and has the next on the route do the same; the route may lead in circles."""
        self.enter("add", tag, by)
        if route:
            self.to(route[0]).signal.pass_on(self.next_tag(), by, route[1:], note)
        return len(self.state.entries), self.state.total

    @operation
    def provoke(self, tag: str, by: int, address: str) -> tuple[int, int]:
        """Adds, and sends what cannot be handled."""
        self.enter("add", tag, by)
        self.to(address).signal.stumble(self.next_tag(), by)
        return len(self.state.entries), self.state.total

    @operation
    def plant(self, tag: str, by: int, address: str, times: int) -> tuple[int, int]:
        """Adds, and sends what kills the process that handles it."""
        self.enter("add", tag, by)
        self.to(address).signal.explode(self.next_tag(), by, times)
        return len(self.state.entries), self.state.total

    @operation
    def send_later(self, tag: str, by: int, address: str, after_ms: int) -> tuple[int, int]:
        """Adds, and sends what is to be handled after a while."""
        self.enter("add", tag, by)
        at = timedelta(milliseconds=after_ms)
        self.to(address).options(at=at).signal.later(self.next_tag("~"), by, self.now_ms() + after_ms)
        return len(self.state.entries), self.state.total

    @operation
    def later(self, tag: str, by: int, due_ms: int) -> tuple[int, int]:
        """Adds, but not before it is time."""
        if self.now_ms() < due_ms:
            raise Unlucky(f"{tag} comes {due_ms - self.now_ms()} ms early")
        self.enter("add", tag, by)
        return len(self.state.entries), self.state.total

    @operation
    def plan(self, tag: str, by: int, name: str, after_ms: int, every_ms: int, address: str) -> tuple[int, int]:
        """Adds, and sets a reminder. With an ``address`` something is sent there whenever it comes."""
        self.enter("add", tag, by)
        self.remind(name, after=after_ms / 1000, every=every_ms / 1000 if every_ms else None)
        self.enter("plan", name, self.now_ms() + after_ms, every_ms, address)
        return len(self.state.entries), self.state.total

    @operation
    def stop(self, tag: str, by: int, name: str) -> tuple[int, int]:
        """Adds, and forgets a reminder."""
        self.enter("add", tag, by)
        self.forget_reminder(name)
        self.enter("stop", name)
        return len(self.state.entries), self.state.total

    @query
    def totals(self) -> tuple[int, int]:
        """The number of entries, and the total."""
        return len(self.state.entries), self.state.total

    def reminded(self, name: str, missed: int) -> None:
        self.enter("ring", name, self.now_ms(), missed)
        plan = self.state.plans[name]
        if name == "broken, deadly":
            EXPLOSION.set((f"{self.address} {name} {plan.due_ms}", 2 * MAX_CRASHES + 1))
        if name.startswith("broken"):
            raise Unlucky(name)
        if plan.to:
            self.to(plan.to).signal.add(self.next_tag(), 1)
        if len(plan.rings) >= MAX_RINGS:
            self.forget_reminder(name)
            self.enter("stop", name)


class Ledger(Counter, EventSourcedEntity[Book, Event]):
    """The same, from events."""

    def enter(self, what: str, name: str = "", first: int = 0, second: int = 0, address: str = "") -> None:
        self.emit((what, name, first, second, address))

    def apply(self, state: Book, event: Event) -> Book:
        plans = {name: Plan(one.due_ms, one.every_ms, one.to, list(one.rings)) for name, one in state.plans.items()}
        book = Book(state.total, list(state.entries), state.sent, plans)
        enter(book, event)
        return book


class Passing(Counter):
    """One that is ended now and then."""


ENTITIES: dict[str, type[Counter]] = {"Counter": Counter, "Ledger": Ledger, "Passing": Passing}


def milliseconds(at: datetime) -> int:
    """A time as whole milliseconds since 1970."""
    return round(at.timestamp() * 1000)


class Tags:
    """The tags of what one run of a workflow sends, from its dice: a later run of the same id has others."""

    def __init__(self, ctx: Context) -> None:
        self._sender = sender_of(ctx.execution_id, ctx.random)
        self._count = 0

    def next(self, mark: str = "#") -> str:
        self._count += 1
        return f"{self._sender}{mark}{self._count}"


def sender_of(execution: str, random: Random) -> str:
    """The sender of what a run of a workflow sends; ``random`` has not been used before."""
    return f"{execution}.{random.getrandbits(32):08x}"


def counter_of(ctx: Context, address: str) -> Counter:
    """A counter, as a workflow sees it."""
    kind, _, key = address.partition("/")
    return ctx.entity(ENTITIES[kind], key)


@workflow
async def errands(ctx: Context, addresses: tuple[str, ...], by: int, note: str) -> int:
    """Calls and signals counters, one after the other and at once; returns how many calls went as they should."""
    tags, right = Tags(ctx), 0
    counters = [counter_of(ctx, address) for address in addresses]
    for counter in counters:
        right += (await counter.add(tags.next(), by, note))[0] > 0
        counter.signal.add(tags.next(), by)
        try:
            await counter.stumble(tags.next(), by)
        except OperationFailed as error:
            right += error.error_type == "Unlucky"
    calls = [asyncio.ensure_future(_position(counter, tags.next(), by)) for counter in counters[:2]]
    right += sum(position > 0 for position in await asyncio.gather(*calls))
    due_ms = milliseconds(ctx.now()) + 300
    counters[-1].options(at=timedelta(milliseconds=300)).signal.later(tags.next("~"), by, due_ms)
    return right


async def _position(counter: Counter, tag: str, by: int) -> int:
    return (await counter.add(tag, by))[0]


@workflow
async def exclusive(ctx: Context, addresses: tuple[str, ...], by: int, seconds: float, end: str) -> int:
    """Has counters for itself; returns how many have changed by what it did alone. With ``end`` it fails before it gives them back.

    It signals the first one before, which still comes first, and runs a step meanwhile.
    """
    tags = Tags(ctx)
    counters = [counter_of(ctx, address) for address in dict.fromkeys(addresses)]
    counters[0].signal.add(tags.next(), by)
    async with ctx.lock(*counters):
        before = [await counter.totals() for counter in counters]
        for counter in counters:
            await counter.add(tags.next(), by)
        await ctx.wait(seconds)
        for counter in counters:
            counter.signal.add(tags.next(), await ctx.step(add, by, 0))
        after = [await counter.totals() for counter in counters]
        if end:
            raise Unlucky(end)
    return sum((count + 2, total + 2 * by) == then for (count, total), then in zip(before, after, strict=True))


def draw_with_entities(random: Random, addresses: list[str]) -> tuple[Workflow[..., Any], tuple[Any, ...]]:
    """One of the workflows that write to entities, with arguments."""
    chosen = tuple(random.choice(addresses) for _ in range(random.randint(1, 2)))
    if random.random() < 0.5:
        return errands, (chosen, random.randint(1, 9), "x" * random.choice((0, 300)))
    return exclusive, (chosen, random.randint(1, 9), random.choice((0.01, 0.5)), random.choice(("", "", "without reason")))
