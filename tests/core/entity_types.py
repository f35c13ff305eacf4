"""Entities and workflows that the tests of entities use."""

from __future__ import annotations

from dataclasses import dataclass, field

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
