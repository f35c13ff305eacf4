"""A program with a Ray of its own, dashboard included, that says what the state API tells of its actors, tasks and logs.

python -m tests.runtime.dashboard_names FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import ray
from ray.util.state import list_actors, list_tasks

import rayflow
from rayflow.runtime.cluster import actor_names
from rayflow.runtime.task import NAMESPACE
from tests.core.entity_types import Account
from tests.runtime.conftest import eventually
from tests.runtime.flows import holding, marks


def tell(folder: Path) -> dict[str, Any]:
    """Two steps are running while the state API is asked."""
    with rayflow.connect(folder / "store", address="local", shards=2, num_cpus=2, dashboard=True) as client:
        names = actor_names(client.identity)
        here = ray.get_runtime_context().gcs_address  # other Rays may run on this machine
        client.entity(Account, "rich").add(5).result()
        run = client.start(holding, str(folder), ["a", "b"], id="film")
        eventually(lambda: bool(marks(folder, "a") and marks(folder, "b")), "both steps running")

        def tasks() -> list[str]:
            return sorted(
                task["name"] for task in list_tasks(address=here) if task["state"] == "RUNNING" and task["name"].startswith("film")
            )

        eventually(lambda: len(tasks()) == 2, "two tasks in the state API")
        told: dict[str, Any] = {
            "url": client.store.url,
            "store_id": client.identity.store_id,
            "listed": {one["name"]: (one["class_name"], one["repr_name"]) for one in list_actors(here, detail=True)},
            "held_now": [ray.get(ray.get_actor(name, namespace=NAMESPACE).__ray_call__.remote(repr)) for name in names],
            "tasks": tasks(),
            "calls": sorted({task["name"] for task in list_tasks(here, limit=1000)}),
        }
        for name in "ab":
            Path(folder, f"{name}.go").touch()
        run.result(timeout=20)
        logs = Path(ray._private.worker._global_node.get_logs_dir_path())  # pyright: ignore
        return {**told, "logs": "".join(path.read_text() for path in logs.glob("worker-*.err"))}


if __name__ == "__main__":
    print(json.dumps(tell(Path(sys.argv[1]))))
