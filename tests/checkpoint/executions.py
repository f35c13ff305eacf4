"""Stores with executions in them, made by the real core and the real log, step by step and without Ray.

The test says how each attempt went and what time it is; ``Owner`` writes what a shard would write.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import rayflow
from rayflow.checkpoint import log
from rayflow.checkpoint.identity import identify
from rayflow.checkpoint.requests import run
from rayflow.checkpoint.store import Store
from rayflow.checkpoint.tables import read_snapshot, write_history, write_snapshot
from rayflow.core import codec
from rayflow.core.messages import CancelExecution, ForgetExecution, StartExecution, StepResult
from rayflow.core.outbox import Outbox
from rayflow.core.records import Cause, Failure, Function, Stored, Usage, decode_record
from rayflow.core.state import DurableState
from rayflow.core.workflows import Workflows
from rayflow.runtime.shard import shard_prefix

T0_MS = 1_700_000_000_000


@rayflow.step(retry=rayflow.Retry(max_attempts=3, initial_s=10, jitter=0))
def fetch(number: int) -> int:
    return number


@rayflow.step(retry=rayflow.Retry(max_attempts=1))
def convert(number: int) -> int:
    return number


@rayflow.workflow(version="7")
async def single(ctx: rayflow.Context, number: int) -> int:
    return await ctx.step(fetch, number)


@rayflow.workflow(version="7")
async def busy(ctx: rayflow.Context, items: int) -> None:
    """Ends up with one operation in every state."""
    loser = asyncio.ensure_future(ctx.step(convert.with_key("loser") if hasattr(convert, "with_key") else convert, 0))
    batch = await ctx.map(fetch, range(items))
    loser.cancel()
    try:
        await ctx.step(convert, 1)
    except rayflow.StepFailed:
        pass
    await asyncio.gather(ctx.step(fetch, 2), ctx.step(fetch, 3), ctx.wait(3600), return_exceptions=True)
    batch.results()
