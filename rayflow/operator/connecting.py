"""The operator's line to the shards of a store, for the commands that change something: only a shard's owner may write its log.

A second Ray would take the shards away from the one that works on them, so a running one is looked for first.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stdout
from functools import partial
from subprocess import DEVNULL
from typing import cast

import ray
from ray._private.services import find_gcs_addresses

import rayflow
from rayflow.checkpoint.identity import read_identity
from rayflow.checkpoint.store import Store
from rayflow.errors import NotFound
from rayflow.runtime.cluster import actor_names
from rayflow.runtime.joining import check_address
from rayflow.runtime.quiet import keep_ray_quiet
from rayflow.runtime.task import NAMESPACE

_PROBE = """
import logging, sys, ray
address, namespace, *names = sys.argv[1:]
ray.init(address=address, namespace=namespace, log_to_driver=False, logging_level=logging.ERROR)
for name in names:
    ray.get_actor(name)
"""
_PROBE_TIMEOUT_S = 10.0


@contextmanager
def ray_on_stderr() -> Generator[None]:
    """Ray prints what happens to its nodes and workers to a driver's stdout, which is for the command's own words alone."""
    with redirect_stdout(sys.stderr):
        yield


@contextmanager
def connected(store: Store, address: str | None) -> Generator[rayflow.Client]:
    """A client of ``store``, closed after the block.

    It goes to the Ray at ``address`` or $RAY_ADDRESS; without either, to a Ray on this machine that serves this store; else to one
    that is started for the block. That one also takes up every unfinished execution of the store for that while.

    What is printed in the block goes to stderr. Raises InvalidInput where no Ray answers at ``address``, RayflowError.
    """
    with ray_on_stderr():
        yield from _connected(store, address)


def _connected(store: Store, address: str | None) -> Generator[rayflow.Client]:
    if address and address != "local":
        check_address(address)
    elsewhere = address or os.environ.get("RAY_ADDRESS") or ray.is_initialized()
    joined = not elsewhere and _join_serving(store)
    try:
        with rayflow.connect(store.url, address=address, output=lambda line: None) as client:
            yield client
    finally:
        if joined:
            ray.shutdown()


def _join_serving(store: Store) -> bool:
    """Connect to the Ray on this machine on which the actors of this store run; False if there is none."""
    try:
        names = actor_names(read_identity(store))
    except NotFound:  # a new store
        return False
    # Ray offers no other way to learn of all its clusters on a machine: the address "auto" is that of any one of them.
    addresses = sorted(cast("frozenset[str]", find_gcs_addresses()))
    with ThreadPoolExecutor(max(1, len(addresses))) as pool:
        serving = [one for one, serves in zip(addresses, pool.map(partial(_serves, names), addresses), strict=True) if serves]
    if not serving:
        return False
    ray.init(address=serving[0], namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
    keep_ray_quiet()
    return True


def _serves(names: tuple[str, ...], address: str) -> bool:
    """Whether these actors run in a cluster. In a process of its own: Ray tries for minutes where it is not let in, and says so."""
    command = [sys.executable, "-c", _PROBE, address, NAMESPACE, *names]
    try:
        return subprocess.run(command, stdout=DEVNULL, stderr=DEVNULL, timeout=_PROBE_TIMEOUT_S).returncode == 0
    except subprocess.TimeoutExpired:
        return False
