"""How well nodes are used, and how soon lost ones are replaced, on hosts of their own on this machine (as root, see tests/cluster).

Each node has one CPU slot. The machine has fewer cores than the cluster has nodes, so what is encoded waits more than it computes:
it is the gaps between chunks that are measured, not the encoder.
"""

from __future__ import annotations

import itertools
import json
import shutil
import statistics
import sys
import time
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rayflow.checkpoint.objects import BucketObject
from rayflow.checkpoint.opening import open_store
from rayflow.checkpoint.reading import read_execution
from rayflow.checkpoint.reports import OperationHistory

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the hosts are those of the tests of a cluster

CHUNK_S = 2
CHUNKS_OF_A_NODE = 12
STEPS = 150
_PACE_S = 3
_FFMPEG = f"""\
#!/bin/sh
case "$*" in *trim=start_pts=*"-c:v"*) sleep {_PACE_S} ;; esac
exec "{{binary}}" "$@"
"""


@dataclass(frozen=True, slots=True)
class Use:
    """Of one encode. ``encoding``: share of the slots' time that was spent in chunk steps between the first and the last start of
    one, by their recorded times; ``longest_gap_s``: of a slot, between two of its chunks."""

    nodes: int
    chunks: int
    window_s: float
    encoding: float
    longest_gap_s: float


@dataclass(frozen=True, slots=True)
class Nodes:
    """Encodes of ``chunk`` on one, two and three nodes; each is preceded by a small one, so that workers are up."""

    chunk: str
    uses: list[Use]


@dataclass(frozen=True, slots=True)
class Takeover:
    """The link of the shard's node is cut while a workflow runs steps in a row on another.

    ``declared_dead_s``: from the cut until Ray says so (health checks every second, five may fail after three seconds each).
    ``next_step_s``: from then until the workflow's next step has started. Medians, and all rounds.
    """

    declared_dead_s: float
    next_step_s: float
    next_steps_s: list[float]


@contextmanager
def _cluster(*workers: str) -> Generator[Any]:
    """A ``tests.cluster.nodes.Cluster``. Raises RuntimeError where there can be none."""
    from tests.cluster import nodes
    from tests.cluster.hosts import hosts, unavailable

    if reason := unavailable():
        raise RuntimeError(f"no hosts of their own here: {reason}")
    with (
        hosts("head", "one", "two", "three") as made,
        nodes.bucket_at(made.gateway) as bucket,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in bucket.items():
            patch.setenv(name, value)
        cluster = nodes.start(made, bucket, *workers)
        try:
            yield cluster
        finally:
            cluster.kill()


def nodes() -> Nodes:
    """Measure the use of one, two and three nodes."""
    from pipelines.video import ffmpeg

    uses: list[Use] = []
    with _cluster("one") as cluster:
        for count, name in enumerate(("one", "two", "three"), 1):
            if count > 1:
                cluster.workers.append(cluster.hosts[name])
                cluster.start_worker(cluster.hosts[name])
            cluster.hosts[name].path("/root/ffmpeg").write_text(_FFMPEG.format(binary=ffmpeg.find("libx264").path))
            cluster.hosts[name].path("/root/ffmpeg").chmod(0o755)
            _encode(cluster, 2 * count)
            uses.append(_use(count, _encode(cluster, CHUNKS_OF_A_NODE * count)))
    return Nodes(f"{CHUNK_S} s of 192x108 by x264, after a sleep of {_PACE_S} s", uses)


def _encode(cluster: Any, chunks: int) -> list[OperationHistory]:
    """Encode a film of so many chunks, source and output in the bucket; returns the chunk steps."""
    from tests.pipelines.conversion import generate, picture
    from tests.s3_service import BUCKET

    root = f"s3://{BUCKET}/{uuid.uuid4().hex}"
    film = cluster.head.path("/root/film.mp4")
    every = str(CHUNK_S * 25)
    generate(film, *picture(chunks * CHUNK_S), "-c:v", "libx264", "-preset", "ultrafast", "-g", every, "-keyint_min", every)
    BucketObject(f"{root}/in.mp4").upload(film)
    command = ("-m", "rayflow.encode", f"{root}/in.mp4", "-o", f"{root}/out.mp4", "--store", f"{root}/store")
    done = cluster.drive(*command, "--chunk-seconds", str(CHUNK_S), "--json", timeout_s=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    execution = json.loads(done.stdout.splitlines()[-1])["id"]
    steps = [one for one in read_execution(open_store(f"{root}/store"), execution).operations if one.name == "encode_chunk"]
    assert len(steps) == chunks
    return steps


def _use(slots: int, steps: list[OperationHistory]) -> Use:
    spans = sorted((at.started.timestamp(), at.ended.timestamp(), at.node) for one in steps for at in one.attempts if at.ended)
    first_s, last_s = spans[0][0], spans[-1][0]
    busy_s = sum(min(ended_s, last_s) - started_s for started_s, ended_s, _ in spans)
    gaps_s = [0.0]
    for node in {node for _, _, node in spans}:
        mine = [span for span in spans if span[2] == node]
        gaps_s += [after[0] - before[1] for before, after in itertools.pairwise(mine)]
    return Use(slots, len(steps), last_s - first_s, busy_s / (slots * (last_s - first_s)), max(gaps_s))


def takeover(rounds: int) -> Takeover:
    """Measure how soon a workflow goes on after its shard's node is declared dead."""
    measured: list[tuple[float, float]] = []
    with _cluster("one", "two") as cluster:
        shutil.copy(Path(__file__).with_name("bench_cluster_flow.py"), cluster.head.path("/root/project"))
        for number in range(max(rounds, 1)):
            measured.append(_take_over(cluster, f"run-{number}"))
            cluster.repair()
    dead_s, next_s = (list(values) for values in zip(*measured, strict=True))
    return Takeover(statistics.median(dead_s), statistics.median(next_s), next_s)


def _take_over(cluster: Any, execution: str) -> tuple[float, float]:
    """Seconds from the cut to the declaration, and from that to the next step."""
    from tests.cluster.hosts import eventually
    from tests.s3_service import BUCKET

    one, two = cluster.workers
    store, log = f"s3://{BUCKET}/{uuid.uuid4().hex}", f"/tmp/{execution}.log"
    arguments = (store, execution, str(STEPS), one.name, two.address)
    code = f"import bench_cluster_flow; bench_cluster_flow.main{arguments!r}"
    said = lambda: cluster.head.path(log).read_text()  # noqa: E731
    python = str(Path(sys.prefix, "bin", "python"))
    program = cluster.head.start(python, "-c", code, environment=cluster.driver_environment, log=log)
    eventually(lambda: "started" in said(), "the workflow", 90, said)
    time.sleep(4)  # some steps
    assert one.processes("ray::ShardHost")
    one.cut()
    cut_s = time.time()
    assert program.wait(120) == 0, said()
    cluster.kill_ray(one)
    dead_s = float(said().partition("declared-dead-at ")[2].split()[0])
    operations = read_execution(open_store(store), execution).operations
    assert [len(step.attempts) for step in operations] == [1] * STEPS
    next_s = min(at.started.timestamp() for step in operations for at in step.attempts if at.started.timestamp() > dead_s)
    return dead_s - cut_s, next_s - dead_s
