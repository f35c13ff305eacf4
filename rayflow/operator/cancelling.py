"""Cancel an execution from outside: the only command that needs Ray, for only the owner of its shard may write to the log.

A second Ray would take the shards away from the one that works on them, so a running one is looked for first.
"""

from __future__ import annotations

import logging
import os

import ray

import rayflow
from rayflow.checkpoint.reading import identity_of
from rayflow.checkpoint.store import Store
from rayflow.runtime.cluster import actor_names
from rayflow.runtime.task import NAMESPACE


def cancel_execution(store: Store, execution: str, reason: str, address: str | None) -> None:
    """Put the request on record; returns once it is durable.

    It goes to the Ray at ``address`` or $RAY_ADDRESS; without either, to the Ray on this machine if it serves this store; else to
    one that is started for this purpose and ends with the call. That one also takes up every unfinished execution of the store for
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
    """Connect to the Ray on this machine, if there is one and the actors of this store run on it."""
    names = actor_names(identity_of(store))
    try:
        ray.init(address="auto", namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
        for name in names:
            ray.get_actor(name)
    except Exception:  # ray raises a dozen types here; whatever it is, no Ray that we know of serves the store
        ray.shutdown()
        return False
    return True
