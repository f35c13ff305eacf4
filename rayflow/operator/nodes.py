"""Asking every node of a Ray cluster how it is, by a task that runs there and nowhere else.

Credentials stay where they are: a node opens the store with its own, and says what the store answered.
"""

from __future__ import annotations

import platform
import shutil
import tempfile
import time
from typing import Any, cast

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import rayflow
from rayflow.checkpoint.opening import open_store, probe
from rayflow.errors import RayflowError
from rayflow.operator.cluster_diagnosis import NodeReport, Versions, skew
from rayflow.operator.connecting import ray_on_stderr
from rayflow.operator.diagnosis import used_ffmpeg
from rayflow.runtime.joining import check_address, join

ANSWER_S = 45.0
"""How long all nodes together may take; the first task on a node waits for a process to start, and for this program's code."""

_CLOCK_ROUNDS = 5


def caller_versions() -> Versions:
    """Of this process."""
    return Versions(ray.__version__, platform.python_version(), rayflow.__version__)


def ask_nodes(address: str, store_url: str) -> list[NodeReport]:
    """What every node that is alive says, by name. Leaves the cluster again. Raises InvalidInput, RayUnavailable."""
    check_address(address)
    with ray_on_stderr():
        return _ask_nodes(address, store_url)


def _ask_nodes(address: str, store_url: str) -> list[NodeReport]:
    join(address)
    try:
        nodes = [node for node in cast("list[dict[str, Any]]", ray.nodes()) if node["Alive"]]
        asked = [(_name(node), _ask(str(node["NodeID"]), store_url)) for node in nodes]
        deadline_s = time.monotonic() + ANSWER_S
        return sorted((_answer(name, actor, look, deadline_s) for name, (actor, look) in asked), key=lambda one: one.node)
    finally:
        ray.shutdown()


def _name(node: dict[str, Any]) -> str:
    head = " (head)" if "node:__internal_head__" in node["Resources"] else ""
    return f"{node['NodeManagerHostname']}{head}"


def _ask(node_id: str, store_url: str) -> tuple[Any, Any]:
    """An actor for a moment, so that the clock is asked of a process that runs already; and what it finds."""
    strategy = NodeAffinitySchedulingStrategy(node_id, soft=False)
    actor: Any = ray.remote(_Examiner).options(num_cpus=0, memory=1, max_restarts=0, scheduling_strategy=strategy).remote()
    return actor, actor.look.remote(store_url)


def _answer(name: str, actor: Any, look: Any, deadline_s: float) -> NodeReport:
    try:
        versions, ffmpeg, store_error, free_bytes = ray.get(look, timeout=max(deadline_s - time.monotonic(), 0.1))
        measured: list[tuple[float, float]] = []
        for _ in range(_CLOCK_ROUNDS):
            sent_s = time.time()
            read_s = cast("float", ray.get(actor.clock.remote(), timeout=max(deadline_s - time.monotonic(), 1.0)))
            measured.append(skew(sent_s, read_s, time.time()))
    except GetTimeoutError:
        return NodeReport(name, unanswered=f"nothing within {ANSWER_S:.0f} s")
    except RayError as error:
        return NodeReport(name, unanswered=str(error).strip().splitlines()[-1] or type(error).__name__)
    ahead_s, uncertainty_s = min(measured, key=lambda one: one[1])
    return NodeReport(name, versions, ffmpeg, store_error, ahead_s, uncertainty_s, free_bytes)


class _Examiner:
    """Runs on the node that is asked."""

    def look(self, store_url: str) -> tuple[Versions, str, str, int]:
        """Versions, that of the ffmpeg that is used, what is wrong with the store, and the free bytes for temporary files."""
        try:
            probe(open_store(store_url))
            store_error = ""
        except RayflowError as error:
            store_error = f"{type(error).__name__}: {error}"
        return caller_versions(), used_ffmpeg(), store_error, shutil.disk_usage(tempfile.gettempdir()).free

    def clock(self) -> float:
        """Seconds since 1970 by this node's clock."""
        return time.time()
