"""Nodes that are slow, and nodes that are about to go: work moves to the others.

Invariants: I9, I14, I21.
"""

from __future__ import annotations

import uuid

import pytest

from rayflow.checkpoint.opening import open_store
from rayflow.checkpoint.reading import read_execution
from tests.cluster.hosts import eventually
from tests.cluster.nodes import Cluster, told
from tests.cluster.under_way import UnderWay
from tests.s3_service import BUCKET

pytestmark = [pytest.mark.cluster, pytest.mark.ray, pytest.mark.slow]

_FLOW = """\
import os, socket, subprocess, time
import rayflow

@rayflow.step(speculative=True)
def work(number: int) -> str:
    if os.path.exists("/root/slow"):
        subprocess.run(["sleep", "1001"])
    time.sleep(0.2)
    return socket.gethostname()

@rayflow.workflow(version="1")
async def spread(ctx: rayflow.Context, count: int) -> list[str]:
    return (await ctx.map(work, range(count), key=str)).results()
"""
_RUN = """\
import rayflow, late
with rayflow.connect("s3://{store}", shards=1) as client:
    print("told:", *client.start(late.spread, 8, id="late").result(timeout=100))
"""


def test_a_chunk_on_a_slow_node_is_run_a_second_time_and_the_first_to_end_counts(cluster: Cluster) -> None:
    slow, quick = cluster.workers
    store = f"{BUCKET}/{uuid.uuid4().hex}"
    folder = cluster.head.path("/root/late")
    folder.mkdir(exist_ok=True)
    (folder / "late.py").write_text(_FLOW)
    slow.path("/root/slow").touch()
    try:
        done = cluster.drive("-c", _RUN.format(store=store), folder="/root/late")
    finally:
        slow.path("/root/slow").unlink()
    assert told(done) == [" ".join([quick.name] * 8)], done.stdout[-1000:] + done.stderr[-2000:]
    operations = read_execution(open_store(f"s3://{store}"), "late").operations
    assert [[attempt.node for attempt in one.attempts] for one in operations] == [[quick.name]] * 8
    eventually(lambda: not slow.processes("sleep 1001"), "the end of the slow run", 30)


def test_shards_leave_a_node_that_is_being_drained_before_it_goes(cluster: Cluster) -> None:
    under_way = UnderWay(cluster)
    leaving = cluster.workers[0]
    try:
        counting = under_way.count(cluster.head, node=leaving.name)
        under_way.wait_for_counts(cluster.head)
        assert leaving.processes("ray::ShardHost")
        cluster.drain(leaving, deadline_s=600)
        under_way.say(f"{leaving.name} is being drained")
        eventually(lambda: not leaving.processes("ray::ShardHost"), "the end of the shards' process there", 30)
        under_way.wait_for_counts(cluster.head)
        under_way.stop_counting(cluster.head, counting)
        under_way.assert_exact()
    finally:
        under_way.close()
        cluster.kill_ray(leaving)
