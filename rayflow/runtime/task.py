"""The Ray task that every step that is not inline runs as."""

from __future__ import annotations

import functools
from typing import Any, cast

import msgspec
import ray

from rayflow.checkpoint.opening import open_store
from rayflow.core.messages import StepResult, StepStart
from rayflow.runtime.code import StoredCode
from rayflow.runtime.worker import progress_of, run_attempt

NAMESPACE = "rayflow"


@functools.cache
def _code(store_url: str) -> StoredCode:
    """One per worker process: it caches what is loaded."""
    return StoredCode(open_store(store_url))


@ray.remote(max_retries=0)
def run_steps(starts: bytes, store_url: str, dispatcher: str, shard: int) -> bytes:
    """Run attempts one after the other; returns their encoded StepResults, in the same order.

    Ray's own retries are off: the shard decides on, and records, each attempt.
    """
    code = _code(store_url)

    def run(start: StepStart) -> StepResult:
        def report(fields: dict[str, float]) -> None:
            actor = cast("Any", ray.get_actor(dispatcher, namespace=NAMESPACE))
            actor.progress.remote(shard, msgspec.msgpack.encode(progress_of(start, fields)))

        return run_attempt(start, code, report)

    return msgspec.msgpack.encode([run(start) for start in msgspec.msgpack.decode(starts, type=list[StepStart])])
