"""Nodes that are about to go, by maintenance or because a spot machine is called back: Ray starts nothing there any more."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, cast

import ray
from ray._private.state import state

_LOOK_S = 2.0

_log = logging.getLogger("rayflow")


def draining_nodes() -> set[str]:
    """Their ids. Ray promises this to nobody: where it fails, none is known."""
    try:
        return set(state.get_draining_nodes())
    except Exception as error:
        _log.warning("which nodes are being drained is not known (%s: %s)", type(error).__name__, error)
        return set()


async def until_drained() -> None:
    """Return once the node of this process is to go and there is another one that stays. Ray tells nobody, so it is asked."""
    here = ray.get_runtime_context().get_node_id()
    while True:
        await asyncio.sleep(_LOOK_S)
        if here in (draining := await asyncio.to_thread(draining_nodes)):
            nodes = cast("list[dict[str, Any]]", await asyncio.to_thread(ray.nodes))
            if any(node["Alive"] and node["NodeID"] not in draining for node in nodes):
                return
