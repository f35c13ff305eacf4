"""Ray itself: starting or joining it, and having the named actors there that serve a store, with this process's code."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, GetTimeoutError, RuntimeEnvSetupError

from rayflow.checkpoint.identity import StoreIdentity
from rayflow.errors import RayUnavailable
from rayflow.runtime.actors import existing_actor, head, named_actor
from rayflow.runtime.host import ShardHost
from rayflow.runtime.joining import join
from rayflow.runtime.local import LocalRay
from rayflow.runtime.project import code_version
from rayflow.runtime.supervisors import actor_names, find_dispatcher

_START_S = 120.0
_AGAIN_S = 0.2

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
    except RayUnavailable:
        raise
    except Exception as error:  # ray raises a dozen types here as well
        reason = str(error).strip().partition("\n")[0]
        raise RayUnavailable(f"Ray did not start on this machine ({type(error).__name__}: {reason})") from error


def find_host(identity: StoreIdentity, store_url: str) -> Any:
    """The handle of the host at home, which knows all others; it and the dispatcher are created where they do not exist."""
    host, _ = actor_names(identity)
    find_dispatcher(identity, store_url)
    return named_actor(ShardHost, host, head(), store_url, host)


def check_host(identity: StoreIdentity, store_url: str) -> None:
    """See to it that the actors of a store run in the cluster that this process has joined, with this process's code.

    A detached actor keeps the code that it was created with. One that hosts shards with other code is replaced, which costs a
    recovery; steps that run go on, and those that start later are of the new code. Raises RayUnavailable.
    """
    name, _ = actor_names(identity)
    dispatcher, host = partial(find_dispatcher, identity, store_url), partial(find_host, identity, store_url)
    try:
        _ask(dispatcher, "ping")
        if _ask(host, "code") == code_version():
            return
        # Whoever makes the next one does so with this code: this process, or the dispatcher, which misses it.
        _ask(dispatcher, "host_code", code_version())
        with contextlib.suppress(ValueError):  # it has died meanwhile
            ray.kill(existing_actor(name))
        _ask(host, "code")
    except GetTimeoutError as error:
        raise RayUnavailable(
            f"the Ray cluster started no actor within {_START_S:.0f} s: see `ray status` for nodes, and their logs for why"
        ) from error
    except (RuntimeEnvSetupError, ActorDiedError, ActorUnavailableError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise RayUnavailable(
            f"the Ray cluster cannot run rayflow ({reason}): install its requirements on every node, in the "
            f"versions of this machine (pip install rayflow-durable)"
        ) from error


def _ask(find: Callable[[], Any], method: str, *args: Any) -> Any:
    """Call an actor: another one, where it dies meanwhile."""
    deadline_s = time.monotonic() + _START_S
    while True:
        try:
            return ray.get(getattr(find(), method).remote(*args), timeout=_START_S)
        except (ActorUnavailableError, ActorDiedError) as error:
            never_began = isinstance(error, ActorDiedError) and error.actor_init_failed
            if never_began or time.monotonic() > deadline_s:
                raise
            time.sleep(_AGAIN_S)
