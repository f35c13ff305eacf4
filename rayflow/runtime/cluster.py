"""Ray itself: starting or joining it, and the two named actors that serve a store."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray

from rayflow.checkpoint.identity import StoreIdentity
from rayflow.errors import RayUnavailable
from rayflow.runtime.dispatcher import Dispatcher
from rayflow.runtime.host import ShardHost
from rayflow.runtime.joining import join
from rayflow.runtime.local import LocalRay
from rayflow.runtime.task import NAMESPACE

_log = logging.getLogger("rayflow")


@dataclass(frozen=True, slots=True)
class RayOptions:
    """How to reach Ray.

    address: of a running cluster; None: $RAY_ADDRESS if set, else a Ray of our own on this machine.
    num_cpus, dashboard: of a Ray that is started here.
    on_wait: told why the start has to wait, where it has to.
    """

    address: str | None = None
    num_cpus: int | None = None
    dashboard: bool = False
    on_wait: Callable[[str], None] = _log.warning


def start_or_join(options: RayOptions, store_id: str) -> LocalRay | None:
    """Make sure that this process is connected to Ray; returns the Ray that was started here for it, if one was.

    Raises RayUnavailable where Ray does not start, or the cluster cannot be joined.
    """
    if ray.is_initialized():
        return None
    address = options.address or os.environ.get("RAY_ADDRESS")
    if address and address != "local":
        join(address)
        return None
    try:
        return LocalRay(store_id, options.num_cpus, options.dashboard, options.on_wait)
    except Exception as error:  # ray raises a dozen types here as well
        reason = str(error).strip().partition("\n")[0]
        raise RayUnavailable(f"Ray did not start on this machine ({type(error).__name__}: {reason})") from error


def actor_names(identity: StoreIdentity) -> tuple[str, str]:
    """The names of the shards' host and of the dispatcher of a store."""
    return f"rayflow-shards-{identity.store_id}", f"rayflow-dispatcher-{identity.store_id}"


def find_host(identity: StoreIdentity, store_url: str) -> Any:
    """The handle of the host actor; it and the dispatcher are created where they do not exist."""
    host, dispatcher = actor_names(identity)
    _named_actor(Dispatcher, dispatcher, dispatcher, store_url)
    return _named_actor(ShardHost, host, store_url, identity.shards, dispatcher)


def _named_actor(kind: type[Any], name: str, *args: Any) -> Any:
    deadline_s = time.monotonic() + 30
    while True:
        try:
            return (
                ray.remote(kind)
                .options(
                    name=name,
                    namespace=NAMESPACE,
                    lifetime="detached",
                    get_if_exists=True,
                    num_cpus=0,
                    max_restarts=-1,
                    max_task_retries=0,
                )
                .remote(*args)
            )
        except ValueError:
            # The name of an actor that is being killed is free a moment later.
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.2)
