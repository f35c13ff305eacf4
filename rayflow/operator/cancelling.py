"""Cancel an execution from outside: the only command that needs Ray, for only the owner of its shard may write to the log.

A second Ray would take the shards away from the one that works on them, so a running one is looked for first.
"""

from __future__ import annotations

import logging
import os
from typing import cast

import ray
from ray._private.services import find_gcs_addresses

import rayflow
from rayflow.checkpoint.reading import identity_of
from rayflow.checkpoint.store import Store
from rayflow.runtime.cluster import actor_names
from rayflow.runtime.task import NAMESPACE


def cancel_execution(store: Store, execution: str, reason: str, address: str | None) -> None:
    """Put the request on record; returns once it is durable.

    It goes to the Ray at ``address`` or $RAY_ADDRESS; without either, to a Ray on this machine that serves this store; else to one
    that is started for this purpose and ends with the call. That one also takes up every unfinished execution of the store for
    that moment. Raises RayflowError.
    """
    joined = not address and not os.environ.get("RAY_ADDRESS") and _join_serving(store)
    try:
        with rayflow.connect(store.url, address=address) as client:
            client.get(execution).cancel(reason)
    finally:
        if joined:
            ray.shutdown()


def _join_serving(store: Store) -> bool:
    """Connect to the Ray on this machine on which the actors of this store run; False if there is none."""
    names = actor_names(identity_of(store))
    # Ray offers no other way to learn of all its clusters on a machine: the address "auto" is that of any one of them.
    for address in sorted(cast("frozenset[str]", find_gcs_addresses())):
        try:
            ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
            for name in names:
                ray.get_actor(name)
        except Exception:  # ray raises a dozen types here; whatever it is, this cluster does not serve the store
            ray.shutdown()
        else:
            return True
    return False
