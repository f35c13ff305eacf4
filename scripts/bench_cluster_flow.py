"""What ``bench_cluster.takeover`` runs on the head of its cluster: a workflow whose shard's node is to be lost."""

from __future__ import annotations

import sys
import time
from typing import Any, cast

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import rayflow
from rayflow.runtime import cluster

STEP_S = 0.2


@rayflow.step
def short(number: int) -> int:
    """Says nothing but that it ran."""
    time.sleep(STEP_S)
    return number


@rayflow.workflow(version="1")
async def one_after_the_other(ctx: rayflow.Context, count: int, address: str) -> int:
    """Steps in a row, all on the node with that address."""
    pinned = short.options(resources={f"node:{address}": 0.001})
    for number in range(count):
        await ctx.step(pinned, number)
    return count


def main(store: str, execution: str, count: str, lost: str, address: str) -> None:
    """Move the shards to the node ``lost``, run the steps on the one at ``address``, and print when ``lost`` was declared dead."""
    with rayflow.connect(store, shards=1) as client:
        nodes = _alive()
        strategy = NodeAffinitySchedulingStrategy(nodes[lost], soft=True)
        cluster.head = lambda: strategy
        ray.kill(ray.get_actor(cluster.actor_names(client.identity)[0], namespace="rayflow"))
        ray.get(cluster.find_host(client.identity, store).code.remote())
        run = client.start(one_after_the_other, int(count), address, id=execution)
        print("started", flush=True)
        while lost in _alive():
            time.sleep(0.02)
        print("declared-dead-at", time.time(), flush=True)
        run.result()


def _alive() -> dict[str, str]:
    nodes = cast("list[dict[str, Any]]", ray.nodes())
    return {str(node["NodeManagerHostname"]): str(node["NodeID"]) for node in nodes if node["Alive"]}


if __name__ == "__main__":
    sys.exit("imported, so that workers find it: python -c 'import bench_cluster_flow; bench_cluster_flow.main(...)'")
