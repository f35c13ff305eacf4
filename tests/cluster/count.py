"""A program for a host: add one to a counter, again and again, until a file says to stop. Started again, it goes on where it was.

Usage: count.py STORE NAME FOLDER [NODE]; with NODE, the actors of the store are to be on the node of that host.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, cast

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import rayflow
from pipelines.counter import Counter
from rayflow.runtime import cluster, supervisors


def main(store: str, name: str, folder: str, node: str = "") -> None:
    if node:

        def placement() -> NodeAffinitySchedulingStrategy | None:
            nodes = cast("list[dict[str, Any]]", ray.nodes())
            wanted = [one["NodeID"] for one in nodes if one["Alive"] and one["NodeManagerHostname"] == node]
            return NodeAffinitySchedulingStrategy(wanted[0], soft=True) if wanted else None

        cluster.head = supervisors.head = placement
    acknowledged = Path(folder, "acknowledged")
    done = int(acknowledged.read_text()) if acknowledged.exists() else 0
    with rayflow.connect(store, shards=1) as client:
        counter = client.entity(Counter, name)
        while not Path(folder, "stop").exists():
            # What was under way when this program was killed goes out again under the same id.
            counter.options(message_id=f"{folder} {done}").increment().result()
            done += 1
            partial = acknowledged.with_suffix(".partial")
            partial.write_text(str(done))
            os.replace(partial, acknowledged)


if __name__ == "__main__":
    main(*sys.argv[1:])
