"""A program that does a little of everything on a Ray of its own, for metrics to tell: run with a folder as its argument.

It prints where Ray says which ports to scrape, then a line of JSON when all is done, and lives on until its input is closed.
"""

from __future__ import annotations

import json
import secrets
import sys
import time
from pathlib import Path

import ray

import rayflow
from pipelines.counter import Counter
from pipelines.video import sample
from pipelines.video.job import Job
from pipelines.video.settings import Settings
from pipelines.video.source import content_key
from pipelines.video.workflow import encode_video
from rayflow.checkpoint import log
from rayflow.checkpoint.identity import shard_prefix
from rayflow.checkpoint.requests import run
from rayflow.checkpoint.store import Store
from rayflow.runtime.cluster import RayOptions, start_or_join
from rayflow.runtime.metrics import PERIOD_S
from tests.core.entity_types import Account
from tests.runtime import flows


@rayflow.workflow
async def steps(ctx: rayflow.Context, folder: str, fails: int, kind: str) -> int:
    for number in range(3):
        await ctx.step(flows.add, number, 1)
    await ctx.map(flows.double, range(4))
    return await ctx.step(flows.flaky, folder, fails, kind)


@rayflow.workflow
async def overdraw(ctx: rayflow.Context) -> int:
    ctx.entity(Account, "empty").signal.take(1)
    return await ctx.entity(Counter, "hits").increment(1)


@rayflow.workflow
async def waiting(ctx: rayflow.Context) -> None:
    await ctx.wait(3600)


def take_over(store: Store, shard: int) -> None:
    """What another cluster with the same store does."""
    run(log.recover(shard_prefix(shard), secrets.token_hex(16)), store)


def main(folder: Path) -> None:
    """Steps inline, in tasks and tried again, one that fails for good; a counter, a dead letter, a lost shard; an encode."""
    started = start_or_join(RayOptions(address="local", num_cpus=2, dashboard=True), f"metrics-{folder.name}")
    assert started is not None
    print(Path(ray.get_runtime_context().get_temp_dir(), "prom_metrics_service_discovery.json"), flush=True)
    client = rayflow.connect(folder / "store", shards=2)
    for name, fails, kind in (("retried", 1, "os"), ("failed", 9, "value")):
        (folder / name).mkdir()
        execution = client.start(steps, str(folder / name), fails, kind, id=name)
        try:
            execution.result(60)
        except rayflow.ExecutionFailed:
            assert name == "failed"
    counter = client.entity(Counter, "hits")
    for _ in range(20):
        counter.increment(1).result()
    client.start(waiting, id="waiting")
    shard_of = client.identity.shard_of
    overdrawing = next(name for number in range(99) if shard_of(name := f"overdraw-{number}") == shard_of("waiting"))
    take_over(client.store, shard_of("waiting"))
    client.start(overdraw, id=overdrawing).result(60)  # the owner finds out, and takes the shard back
    source = sample.make(folder / "film.mp4", 4.0)
    settings = Settings(preset="ultrafast", split=(2.0,))
    joined = client.start(encode_video, Job(str(source), folder / "out.mp4", settings, content_key(str(source))), id="film")
    facts = {
        "frames": joined.result(60).report.frames,
        "size_bytes": (folder / "out.mp4").stat().st_size,
        "store": client.store.url,
        "taken_over": str(shard_of("waiting")),
    }
    print(json.dumps(facts), flush=True)
    sys.stdin.read()
    client.close()
    started.shutdown()


def count_quietly(folder: Path) -> None:
    """A counter on a Ray of its own, whose nodes tell nobody anything; prints what its actors have said."""
    started = start_or_join(RayOptions(address="local", num_cpus=1), f"quiet-{folder.name}")
    assert started is not None
    client = rayflow.connect(folder / "store", shards=1)
    hits = client.entity(Counter, "hits")
    assert hits.increment(1).result() == 1
    time.sleep(2 * PERIOD_S)
    assert hits.increment(1).result() == 2
    logs = Path(ray.get_runtime_context().get_temp_dir(), "session_latest", "logs")
    said = [line for file in logs.glob("worker-*.err") for line in file.read_text().splitlines()]
    ports = [node["MetricsExportPort"] for node in ray.nodes()]
    print(json.dumps({"ports": ports, "said": [line for line in said if not line.startswith(":")]}), flush=True)
    client.close()
    started.shutdown()
