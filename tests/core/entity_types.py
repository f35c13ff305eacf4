"""Entities and workflows that the tests of entities use."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import rayflow


@dataclass(slots=True)
class Sum:
    value: int = 0
    changes: int = 0


class Account(rayflow.Entity[Sum]):
    @rayflow.operation
    def add(self, by: int = 1) -> int:
        self.state.value += by
        self.state.changes += 1
        return self.state.value

    @rayflow.operation
    def take(self, by: int) -> int:
        self.state.value -= by
        if self.state.value < 0:
            raise ValueError(f"{-self.state.value} too little")
        return self.state.value

    @rayflow.operation
    def move(self, to: str, by: int) -> int:
        self.state.value -= by
        self.entity(Account, to).signal.add(by)
        if self.state.value < 0:
            raise ValueError("not that much")
        return self.state.value

    @rayflow.operation
    def leave(self) -> None:
        self.state.value = 99
        raise SystemExit("a user's mistake")

    @rayflow.operation
    def spoil(self) -> None:
        self.state.value = object()  # type: ignore[assignment]  # pyright: ignore[reportAttributeAccessIssue]

    @rayflow.operation
    def call(self, other: str) -> None:
        self.entity(Account, other).add(1)

    @rayflow.query
    def get(self) -> int:
        return self.state.value

    @rayflow.query
    def peek(self) -> int:
        self.state.value += 1
        return self.state.value


class Listing(rayflow.Entity[dict[str, list[int]]]):
    """Keeps what it is sent, in the order in which it came."""

    @rayflow.operation
    def add(self, sender: str, number: int) -> int:
        self.state.setdefault(sender, []).append(number)
        return len(self.state[sender])

    @rayflow.query
    def get(self) -> dict[str, list[int]]:
        return self.state


@dataclass(slots=True)
class Forward:
    sent: list[int] = field(default_factory=list[int])


class Relay(rayflow.Entity[Forward]):
    """Passes on what it gets."""

    @rayflow.operation
    def pass_on(self, to: str, number: int) -> None:
        self.state.sent.append(number)
        self.entity(Listing, to).signal.add(self.key, number)


class Alarm(rayflow.Entity[list[tuple[str, int, int]]]):
    """Keeps what it was reminded of: name, how often missed, seconds since 2026."""

    @rayflow.operation
    def set(self, name: str, after: float | None = None, every: float | None = None) -> None:
        self.remind(name, after=after, every=every)

    @rayflow.operation
    def set_and_fail(self) -> None:
        self.remind("never", after=1)
        raise ValueError

    @rayflow.operation
    def stop(self, name: str) -> None:
        self.forget_reminder(name)

    @rayflow.operation
    def ring(self, name: str) -> None:
        self.state.append((name, 0, self.seconds()))

    @rayflow.operation
    def ring_later(self, other: str, after: float) -> None:
        self.entity(Alarm, other).options(at=timedelta(seconds=after)).signal.ring(f"from {self.key}")

    @rayflow.query
    def rung(self) -> list[tuple[str, int, int]]:
        return self.state

    def reminded(self, name: str, missed: int) -> None:
        self.state.append((name, missed, self.seconds()))
        if name == "broken":
            raise ValueError

    def seconds(self) -> int:
        return round((self.now() - datetime(2026, 1, 1, tzinfo=UTC)).total_seconds())


@rayflow.workflow
async def wake_later(ctx: rayflow.Context, alarm: str, after: float) -> None:
    ctx.entity(Alarm, alarm).options(at=timedelta(seconds=after)).signal.ring("flow")


@rayflow.workflow
async def transfer(ctx: rayflow.Context, source: str, target: str, by: int) -> tuple[int, int]:
    left = await ctx.entity(Account, source).take(by)
    there = await ctx.entity(Account, target).add(by)
    ctx.entity(Account, "moves").signal.add(1)
    return left, there


@rayflow.workflow
async def overdraw(ctx: rayflow.Context, account: str) -> str:
    try:
        await ctx.entity(Account, account).take(10**6)
    except rayflow.OperationFailed as error:
        return f"{error.error_type}: {error}"
    return "it went through"


@rayflow.workflow
async def report(ctx: rayflow.Context, name: str, count: int) -> int:
    for number in range(count):
        ctx.entity(Listing, "log").signal.add(name, number)
    return count


@rayflow.workflow
async def sign_off(ctx: rayflow.Context, account: str, by: int) -> int:
    ctx.entity(Account, account).signal.take(by)
    return by


class Bomb(rayflow.Entity[Sum]):
    @rayflow.operation
    def explode(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    @rayflow.operation
    def add(self) -> int:
        self.state.value += 1
        return self.state.value


@dataclass(frozen=True, slots=True)
class Paid:
    amount: int


class Ledger(rayflow.EventSourcedEntity[Sum, Paid]):
    def apply(self, state: Sum, event: Paid) -> Sum:
        return Sum(state.value + event.amount, state.changes + 1)

    @rayflow.operation
    def pay(self, *amounts: int) -> int:
        for amount in amounts:
            self.emit(Paid(amount))
        if self.state.value < 0:
            raise ValueError("overdrawn")
        return self.state.value

    @rayflow.operation
    def cheat(self) -> None:
        self.state.value += 1

    @rayflow.query
    def get(self) -> Sum:
        return self.state

    @rayflow.query
    def pry(self) -> None:
        self.emit(Paid(0))


@rayflow.workflow
async def swap(ctx: rayflow.Context, first: str, second: str) -> tuple[int, int]:
    """Reads both, then writes both: right only if nobody comes between."""
    a, b = ctx.entity(Account, first), ctx.entity(Account, second)
    async with ctx.lock(a, b):
        x, y = await a.get(), await b.get()
        await ctx.wait(1)
        await a.add(y - x)
        await b.add(x - y)
    return y, x


@rayflow.workflow
async def hold(ctx: rayflow.Context, key: str, seconds: float, fail: bool = False) -> int:
    account = ctx.entity(Account, key)
    async with ctx.lock(account):
        await ctx.wait(seconds)
        if fail:
            raise ValueError("on purpose")
        return await account.add(100)


@rayflow.workflow
async def break_rules(ctx: rayflow.Context, how: str) -> str:
    a, b = ctx.entity(Account, "a"), ctx.entity(Account, "b")
    try:
        if how == "twice":
            async with ctx.lock(a, a):
                return "?"
        if how == "nothing":
            async with ctx.lock():
                return "?"
        if how == "stranger":
            async with ctx.lock(Account("a")):
                return "?"
        async with ctx.lock(a):
            b.signal.add(1)
            if how == "nested":
                async with ctx.lock(b):
                    return "?"
            await b.add(1)
    except rayflow.InvalidInput as error:
        return str(error)
    return "?"


@rayflow.workflow
async def hold_alarm(ctx: rayflow.Context, key: str, seconds: float) -> None:
    async with ctx.lock(ctx.entity(Alarm, key)):
        await ctx.wait(seconds)


@rayflow.workflow
async def demand(ctx: rayflow.Context, account: str, by: int) -> None:
    """Asks for more than there may be, and does not wait for an answer."""
    ctx.entity(Account, account).signal.take(by)
