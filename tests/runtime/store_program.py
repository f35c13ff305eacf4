"""A program with a Ray of its own that runs a workflow of steps and counts, whatever its store does meanwhile.

Usage: store_program.py STORE FOLDER STEPS. It counts until the workflow has ended and there is a file FOLDER/stop. FOLDER/host has
the process id of the actor with the shards. Once there is a file FOLDER/ask, it makes a call with a time-out, and says in
FOLDER/asked what came of it.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

import ray

import rayflow
from pipelines.counter import Counter
from rayflow.runtime.cluster import actor_names
from tests.runtime import flows


def main(store: str, folder: str, steps: str) -> None:
    with rayflow.connect(store, num_cpus=2, shards=2) as client:
        execution = client.start(flows.storing, folder, int(steps), id="flow")
        counter = client.entity(Counter, "hits")
        host = ray.get_actor(actor_names(client.identity)[0], namespace="rayflow")
        _say(folder, "host", str(ray.get(host.__ray_call__.remote(lambda self: os.getpid()))))
        asking = threading.Thread(target=_ask, args=(client, folder))
        asking.start()
        done = 0
        while not Path(folder, "stop").exists() or not execution.done():
            counter.increment().result()
            done += 1
            _say(folder, "acknowledged", str(done))
        asking.join()
        _say(folder, "result", f"{execution.result()} {counter.get().result().value}")


def _ask(client: rayflow.Client, folder: str) -> None:
    while not Path(folder, "ask").exists():
        time.sleep(0.05)
    try:
        client.entity(Counter, "another").increment().result(timeout=1)
        _say(folder, "asked", "answered")
    except TimeoutError:
        _say(folder, "asked", "timeout")


def _say(folder: str, name: str, text: str) -> None:
    partial = Path(folder, f"{name}.partial")
    partial.write_text(text)
    os.replace(partial, Path(folder, name))


if __name__ == "__main__":
    main(*sys.argv[1:])
