"""Steps that wait make a cluster grow, and what rayflow keeps running does not keep it from shrinking again."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.hosts import Host, Hosts
from tests.cluster.nodes import PROJECT, PYTHON, QUIET, copy_project, told
from tests.s3_service import BUCKET

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

_HEAD_ID = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"
_AUTOSCALER: dict[str, Any] = {
    "cluster_name": "autoscaling",
    "max_workers": 2,
    "provider": {
        "type": "fake_multinode",
        "launch_multiple": True,
        "head_node_id": _HEAD_ID,
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
    },
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "worker": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2},
    },
    "head_node_type": "ray.head.default",
    "idle_timeout_minutes": 0.1,
    "upscaling_speed": 1.0,
    # What the autoscaler expects of every configuration, and has no use for here.
    **{name: {} for name in ("auth", "docker", "file_mounts")},
    **{f"{name}_commands": [] for name in ("initialization", "setup", "head_setup", "worker_setup")},
    **{f"{name}_start_ray_commands": [] for name in ("head", "worker")},
    **{name: [] for name in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
    "file_mounts_sync_continuously": False,
}
_FLOW = """\
import sys, time
import ray, rayflow
from pipelines.counter import Counter

@rayflow.step
def work(number: int) -> str:
    time.sleep(3)
    return ray.get_runtime_context().get_node_id()

@rayflow.workflow
async def spread(ctx: rayflow.Context) -> int:
    return len(set((await ctx.map(work, range(4), key=str)).results()))

def workers() -> int:
    return sum(node["Alive"] and node["Resources"].get("CPU", 0) > 0 for node in ray.nodes())

if __name__ == "__main__":
    with rayflow.connect(sys.argv[1], address="auto") as client:
        print("told:", client.start(spread, id="spread").result(timeout=90), "workers were used", flush=True)
        counter = client.entity(Counter, "hits")
        until_s = time.monotonic() + 90
        while workers() and time.monotonic() < until_s:
            counter.increment().result()
            time.sleep(0.2)
        print("told:", workers(), "workers are left", flush=True)
        counter.increment().result()
"""


@pytest.fixture
def head(made_hosts: Hosts, bucket: dict[str, str]) -> Iterator[Host]:
    """A host with a head whose autoscaler starts raylets on the same host."""
    head = made_hosts.add("alone")
    try:
        head.path("/root/autoscaler.yaml").write_text(json.dumps(_AUTOSCALER))
        copy_project(head)
        environment = {
            **bucket, **QUIET, "RAY_FAKE_CLUSTER": "1", "RAY_OVERRIDE_NODE_ID_FOR_TESTING": _HEAD_ID,
            "RAY_CLOUD_INSTANCE_ID": _HEAD_ID, "RAY_enable_autoscaler_v2": "0",
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        }  # fmt: skip
        head.check(
            "ray", "start", "--head", "--num-cpus=0", f"--node-ip-address={head.address}", "--disable-usage-stats",
            "--autoscaling-config=/root/autoscaler.yaml", "--include-dashboard=false",
            f"--object-store-memory={100 * 2**20}", environment=environment,
        )  # fmt: skip
        yield head
    finally:
        made_hosts.remove("alone")


def test_waiting_steps_bring_workers_and_idle_ones_go_while_entities_are_at_work(head: Host, bucket: dict[str, str]) -> None:
    folder = head.path("/root/flow")
    folder.mkdir()
    (folder / "growing.py").write_text(_FLOW)
    store = f"s3://{BUCKET}/{uuid.uuid4().hex}"
    environment = {**bucket, **QUIET, "PYTHONPATH": f"{PROJECT}:/root/flow"}
    code = ("-c", f"import sys, runpy; sys.argv[1:] = [{store!r}]; runpy.run_module('growing', run_name='__main__')")
    done = head.run(PYTHON, *code, environment=environment, folder="/root/flow", timeout_s=200)
    assert told(done) == ["2 workers were used", "0 workers are left"], done.stdout[-2000:] + done.stderr[-3000:]
