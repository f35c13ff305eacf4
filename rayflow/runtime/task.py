"""The Ray task that every step that is not inline runs as."""

from __future__ import annotations

import functools
from typing import Any, cast

import msgspec
import ray

from rayflow.checkpoint.opening import open_store
from rayflow.core.messages import StepStart
from rayflow.runtime.code import StoredCode
from rayflow.runtime.worker import progress_of, run_attempt

NAMESPACE = "rayflow"


@functools.cache
def _code(store_url: str) -> StoredCode:
    """One per worker process: it caches what is loaded."""
    return StoredCode(open_store(store_url))


@ray.remote(max_retries=0)
def run_step(start: bytes, store_url: str, dispatcher: str, shard: int) -> bytes:
    """Run one attempt; returns an encoded StepResult. Ray's own retries are off: the shard decides, and records, each attempt."""
    decoded = msgspec.msgpack.decode(start, type=StepStart)

    def report(fields: dict[str, float]) -> None:
        actor = cast("Any", ray.get_actor(dispatcher, namespace=NAMESPACE))
        actor.progress.remote(shard, msgspec.msgpack.encode(progress_of(decoded, fields)))

    return msgspec.msgpack.encode(run_attempt(decoded, _code(store_url), report))
