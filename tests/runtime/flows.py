"""Workflows that the runtime's tests run. In a module, so that Ray's workers find them by name."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

import rayflow
from tests.core.entity_types import Account


def note(folder: str, name: str) -> None:
    """Leave a mark that a step's attempt has begun: one line per attempt."""
    with open(Path(folder, name), "a") as file:
        file.write(f"{os.getpid()}\n")


def marks(folder: Path | str, name: str) -> list[int]:
    """Process ids of the attempts of a step."""
    path = Path(folder, name)
    return [int(line) for line in path.read_text().split()] if path.exists() else []


@rayflow.step(inline=True)
def add(a: int, b: int) -> int:
    return a + b


@rayflow.step(inline=True)
def noted_add(folder: str, a: int, b: int) -> int:
    note(folder, f"add-{a}")
    return a + b


@rayflow.step(num_cpus=0.1)
def mark(folder: str, name: str) -> None:
    print("marking", name)
    note(folder, name)


@rayflow.step(num_cpus=0.1)
def double(x: int) -> int:
    return x * 2


@rayflow.step(num_cpus=0.1, retry=rayflow.Retry(max_attempts=3, initial_s=0.01))
def held(folder: str, name: str) -> str:
    """Runs until the test creates ``<name>.go``."""
    note(folder, name)
    while not Path(folder, f"{name}.go").exists():
        time.sleep(0.02)
    return name


@rayflow.step(num_cpus=0.1, retry=rayflow.Retry(max_attempts=2, initial_s=0.01))
def with_child(folder: str) -> str:
    note(folder, "parent")
    child = subprocess.Popen(["sleep", "300"])
    try:
        note_child(folder, child.pid)
        while child.poll() is None:
            time.sleep(0.02)
    finally:
        child.kill()
    return "done"


@rayflow.step(num_cpus=0.1)
def tidy(folder: str) -> None:
    """Runs until it is stopped, and then cleans up."""
    note(folder, "begun")
    try:
        while True:
            time.sleep(0.02)
    finally:
        note(folder, "tidied")


@rayflow.workflow
async def tidying(ctx: rayflow.Context, folder: str) -> None:
    await ctx.step(tidy, folder)


def note_child(folder: str, pid: int) -> None:
    with open(Path(folder, "child"), "a") as file:
        file.write(f"{pid}\n")


@rayflow.step(num_cpus=0.1, timeout=0.5, retry=rayflow.Retry(max_attempts=2, initial_s=0.01))
def too_slow(folder: str) -> None:
    note(folder, "too_slow")
    time.sleep(60)


@rayflow.step(num_cpus=0.1, retry=rayflow.Retry(max_attempts=3, initial_s=0.01, retry_on=(OSError,)))
def flaky(folder: str, fails: int, kind: str) -> int:
    note(folder, "flaky")
    attempt = len(marks(folder, "flaky"))
    if attempt <= fails:
        raise {"os": OSError, "value": ValueError}[kind](f"attempt {attempt} fails")
    return attempt


@rayflow.step(num_cpus=0.1)
def large(size: int) -> bytes:
    return bytes(size)


@rayflow.step(num_cpus=0.1, delivery="at_most_once")
def once(folder: str) -> None:
    note(folder, "once")
    while True:
        time.sleep(0.02)


@rayflow.workflow
async def counting(ctx: rayflow.Context, folder: str, count: int) -> int:
    total = 0
    for _ in range(count):
        total = await ctx.step(noted_add, folder, total, 1)
    return total


@rayflow.workflow
async def mapping(ctx: rayflow.Context, count: int) -> list[int]:
    batch = await ctx.map(double, range(count))
    return batch.results()


@rayflow.workflow
async def holding(ctx: rayflow.Context, folder: str, names: list[str]) -> list[str]:
    first = await ctx.step(add, 1, 1)
    rest = await asyncio.gather(*(ctx.step(held.options(key=name), folder, name) for name in names))
    return [str(first), *rest]


@rayflow.step(num_gpus=4)
def rendered() -> None:
    raise AssertionError("no node of the tests has a GPU")


@rayflow.workflow
async def wanting(ctx: rayflow.Context, folder: str) -> None:
    """Wants all CPUs for one step, and for another what there is not."""
    await asyncio.gather(ctx.step(held.options(key="b", num_cpus=2), folder, "b"), ctx.step(rendered))


@rayflow.workflow
async def sleeping_then_marking(ctx: rayflow.Context, seconds: float, folder: str) -> None:
    await asyncio.sleep(seconds)
    await ctx.step(mark, folder, "woken")


@rayflow.workflow
async def children(ctx: rayflow.Context, folder: str) -> str:
    return await ctx.step(with_child, folder)


@rayflow.workflow
async def first_wins(ctx: rayflow.Context, folder: str) -> str:
    """Gives up the step with a child once the other is done."""
    racers = [asyncio.ensure_future(ctx.step(held, folder, "a")), asyncio.ensure_future(ctx.step(with_child, folder))]
    done, pending = await asyncio.wait(racers, return_when=asyncio.FIRST_COMPLETED)
    for one in pending:
        one.cancel()
    return done.pop().result()


@rayflow.workflow
async def slow(ctx: rayflow.Context, folder: str) -> str:
    try:
        await ctx.step(too_slow, folder)
    except rayflow.StepTimedOut as error:
        return str(error)
    return "finished"


@rayflow.workflow
async def flaking(ctx: rayflow.Context, folder: str, fails: int, kind: str) -> int:
    return await ctx.step(flaky, folder, fails, kind)


@rayflow.workflow
async def moving(ctx: rayflow.Context, size: int, passed: bytes) -> tuple[int, int, bytes]:
    made = await ctx.step(large, size)
    return len(made), len(passed), made


@rayflow.workflow
async def cautious(ctx: rayflow.Context, folder: str) -> str:
    try:
        await ctx.step(once, folder)
    except rayflow.StepLost as error:
        return f"unknown: {error.error_type}"
    return "done"


@rayflow.workflow
async def sleeping(ctx: rayflow.Context, seconds: float) -> str:
    await ctx.wait(seconds)
    return "woke"


@rayflow.step(num_cpus=1, retry=rayflow.Retry(max_attempts=2, initial_s=0.01))
def brief(folder: str, index: int) -> int:
    """Returns at once; of its 60 first attempts one takes its process with it."""
    if index == 40:
        note(folder, "crash")
        if len(marks(folder, "crash")) == 1:
            os.kill(os.getpid(), 9)
    return index


@rayflow.workflow
async def briefly(ctx: rayflow.Context, folder: str) -> list[int]:
    return await asyncio.gather(*(ctx.step(brief.options(key=str(index)), folder, index) for index in range(60)))


@rayflow.workflow
async def computing(ctx: rayflow.Context, folder: str) -> str:
    """Never awaits while it computes, until the test creates ``done.go``."""
    note(folder, "computing")
    while not Path(folder, "done.go").exists():
        pass
    return "done"


def deposit(key: str) -> int:
    """Calls and signals an entity from within a step, as one that may run more than once must."""
    step = rayflow.current_step()
    assert step is not None
    account = rayflow.current_client().entity(Account, key)
    account.signal.add(1)
    once = account.options(message_id=step.operation)
    assert once.add(10).result() == once.add(10).result()
    assert rayflow.current_client() is rayflow.current_client()
    return account.get().result()


@rayflow.step(num_cpus=0.1)
def deposit_as_task(key: str) -> int:
    return deposit(key)


@rayflow.step(inline=True)
def deposit_inline(key: str) -> int:
    return deposit(key)


@rayflow.step(inline=True, retry=rayflow.Retry(max_attempts=1))
async def deposit_on_the_loop(key: str) -> int:
    return deposit(key)


@rayflow.workflow
async def depositing(ctx: rayflow.Context, key: str) -> list[int]:
    sums = [await ctx.step(deposit_as_task, key), await ctx.step(deposit_inline, key)]
    with pytest.raises(rayflow.StepFailed, match="async inline step, which cannot wait"):
        await ctx.step(deposit_on_the_loop, key)
    return sums


@rayflow.step(num_cpus=0.5)
def stored(index: int, folder: str) -> bytes:
    """Too large for a record: it goes to the store from where it ran."""
    note(folder, f"stored-{index}")
    time.sleep(0.5)
    return bytes(100_000) + str(index).encode()


@rayflow.workflow
async def storing(ctx: rayflow.Context, folder: str, count: int) -> int:
    batch = await ctx.map(stored, range(count), folder, max_concurrency=2)
    return len(batch.results())


def end_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@rayflow.workflow
async def ending_its_process(ctx: rayflow.Context, folder: str, first: bool) -> list[int]:
    """Until there is a file ``mended``: at its very start, or when it has the result of a step."""
    out = [] if first else [await ctx.step(noted_add, folder, 1, 1)]
    note(folder, "turn")
    if not Path(folder, "mended").exists():
        end_process()
    return [*out, await ctx.step(noted_add, folder, 2, 2)]


@rayflow.step(num_cpus=0.1)
def random_bytes(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


@rayflow.step(num_cpus=0.1)
def sha256(data: bytes, *more: bytes) -> str:
    return hashlib.sha256(data + b"".join(more)).hexdigest()


@rayflow.workflow
async def passing_on(ctx: rayflow.Context, size: int) -> str:
    return await ctx.step(sha256, ctx.step(random_bytes, 1, size))


@rayflow.workflow
async def awaiting_and_passing_on(ctx: rayflow.Context, size: int) -> str:
    made = await ctx.step(random_bytes, 1, size)
    return await ctx.step(sha256, made)


@rayflow.workflow
async def mapping_on(ctx: rayflow.Context, size: int, count: int) -> list[str]:
    return (await ctx.map(sha256, ctx.map(random_bytes, range(count), size, max_concurrency=2), max_concurrency=2)).results()
