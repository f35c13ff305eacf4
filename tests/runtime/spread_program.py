"""A program with a cluster of several nodes on this machine, whose shards go where nodes are labelled to be there for them.

Usage: spread_program.py STORE. It counts and runs a workflow all the time, checks every answer, and prints a line for each thing
that has happened, with how many shards there are on the nodes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter as Tally
from collections.abc import Callable
from typing import Any

import ray
from ray.cluster_utils import Cluster
from ray.exceptions import GetTimeoutError

import rayflow
from pipelines.counter import Counter
from rayflow.runtime import placement
from rayflow.runtime.actors import UNREACHABLE, existing_actor
from rayflow.runtime.cluster import actor_names

SHARDS = 4
KEYS = [f"counter {number}" for number in range(12)]
LABELS = {placement.LABEL: "true"}


@rayflow.workflow
async def tally(ctx: rayflow.Context, keys: list[str], times: int) -> int:
    """Counts other counters from a shard of its own, so that letters go from host to host."""
    for _ in range(times):
        for key in keys:
            await ctx.entity(Counter, f"{key} by letter").increment()
        await ctx.wait(0.05)
    return times


class Counting:
    """A thread that counts one after the other, as long as the program runs."""

    def __init__(self, client: rayflow.Client) -> None:
        self.rounds = 0
        self.wrong: list[str] = []
        self._client = client
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._count)
        self._thread.start()

    def _count(self) -> None:
        while not self._stop.is_set():
            calls = [self._client.entity(Counter, key).increment() for key in KEYS for _ in range(3)]
            values = [call.result(60) for call in calls]
            expected = [3 * self.rounds + one for _ in KEYS for one in (1, 2, 3)]
            if values != expected:
                self.wrong.append(f"{values} instead of {expected}")
            self.rounds += 1

    def go_on(self) -> None:
        before = self.rounds
        eventually(lambda: self.rounds > before + 2, "counting goes on")

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


def eventually(holds: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline_s, f"not within a minute: {what}"
        time.sleep(0.05)


def main(store: str) -> None:
    cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    ray.init(address=cluster.address, log_to_driver=False)
    with rayflow.connect(store, shards=SHARDS) as client:
        home, dispatcher = actor_names(client.identity)

        def node_of(name: str) -> str:
            return placement.decode_entered(ray.get(existing_actor(name).introduce.remote(), timeout=10)).node

        def held() -> Tally[str]:
            """How many shards there are on which node, from what their hosts say."""
            found: Tally[str] = Tally()
            for one in ray.util.list_named_actors(all_namespaces=True):
                if one["name"].startswith(home):
                    try:
                        host = placement.decode_entered(ray.get(existing_actor(one["name"]).introduce.remote(), timeout=5))
                    except (*UNREACHABLE, ValueError, GetTimeoutError):
                        continue  # it ends
                    found[host.node] += len(host.shards)
            return +found

        def until(what: str, expected: dict[str, int]) -> None:
            eventually(lambda: held() == expected, f"{what}: {expected}, not {held()}")
            counting.go_on()
            print("now:", what, sorted(held().values()), flush=True)

        def pid(name: str) -> int:
            return ray.get(existing_actor(name).__ray_call__.remote(lambda self: os.getpid()))

        head = node_of(home)
        counting = Counting(client)
        letters = client.start(tally, KEYS, 100, id="tally")
        until("at home", {head: SHARDS})
        east = cluster.add_node(num_cpus=1, labels=LABELS)
        until("one node is there for shards", {east.node_id: SHARDS})
        west = cluster.add_node(num_cpus=1, labels=LABELS)
        until("two are", {east.node_id: 2, west.node_id: 2})
        os.kill(pid(f"{home}-{west.node_id[:12]}"), signal.SIGKILL)
        os.kill(pid(dispatcher), signal.SIGKILL)
        until("a host and the dispatcher were killed", {east.node_id: 2, west.node_id: 2})
        reason = ("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "test", "--deadline-remaining-seconds", "300")
        drain = ("-m", "ray.scripts.scripts", "drain-node", "--address", cluster.address, "--node-id", east.node_id, *reason)
        subprocess.run([sys.executable, *drain], check=True, capture_output=True)
        until("one is being drained", {west.node_id: SHARDS})
        eventually(
            lambda: f"{home}-{east.node_id[:12]}" not in str(ray.util.list_named_actors(all_namespaces=True)), "its host ends"
        )
        cluster.remove_node(west, allow_graceful=False)
        until("none is there for shards any more", {head: SHARDS})
        assert letters.result(60) == 100
        counting.stop()
        assert not counting.wrong, counting.wrong[0]
        by_letter = {client.entity(Counter, f"{key} by letter").get().result().value for key in KEYS}
        by_call = {client.entity(Counter, key).get().result().value for key in KEYS}
        print("now: exact", by_letter == {100} and by_call == {3 * counting.rounds}, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
