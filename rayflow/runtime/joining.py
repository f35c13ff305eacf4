"""Joining a Ray cluster that runs. What Ray would try for a minute, to end with a guess, is found out before and named."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import re
import socket
from typing import Any

import ray
from ray._private.services import canonicalize_bootstrap_address

from rayflow.errors import InvalidInput, RayUnavailable
from rayflow.runtime.project import collected_project
from rayflow.runtime.quiet import keep_ray_quiet
from rayflow.runtime.task import NAMESPACE

_CONNECT_S = 5.0
_ANSWER_S = 10.0

_VERSIONS = re.compile(r"Ray: (\S+)\s+Python: (\S+)\s+This process.*?Ray: (\S+)\s+Python: (\S+)", re.DOTALL)

_START = "start one with `ray up` or `ray start --head`, or leave the address out to use this machine alone"
_TOKEN = "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN (or ~/.ray/auth_token) to the token that the cluster was started with"


def join(address: str) -> None:
    """Connect this process to a cluster: host:port of its head, ``auto`` (the one on this machine), or a ``ray://`` URL.

    The code of this process goes along, see ``project``. Raises RayUnavailable; within 15 seconds where nothing answers, or nothing
    of Ray's, or where the cluster wants a token.
    """
    check_cluster(address)
    try:
        with collected_project() as project:
            ray.init(
                address=address,
                namespace=NAMESPACE,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env=None if project is None else {"working_dir": project},
            )
        keep_ray_quiet()
    except Exception as error:  # ray raises a dozen types here, from ConnectionError to RuntimeError
        versions = _VERSIONS.search(str(error))
        if versions:
            there, here = (f"Ray {ray} and Python {python}" for ray, python in (versions.groups()[:2], versions.groups()[2:]))
            raise RayUnavailable(
                f"the Ray cluster at {address} runs {there}, this process {here}: use the cluster's versions here (pip install "
                f"'ray[default]=={versions[1]}'), or these on every node"
            ) from error
        raise RayUnavailable(
            f"the Ray cluster at {address} answers, but this process cannot join it ({_brief(error)}): check that it has the same "
            f"Ray and Python versions, that this machine is one of its nodes and, where it wants a token, {_TOKEN}"
        ) from error


def check_address(address: str) -> None:
    """Raises InvalidInput if no Ray cluster answers at a command's --address, or does not take this process."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address != "auto" and not (host and port.isdecimal()):
        raise InvalidInput(f"--address {address!r} is neither host:port nor auto: see the output of `ray start --head`")
    try:
        check_cluster(address)
    except RayUnavailable as error:
        raise InvalidInput(str(error)) from error


def check_cluster(address: str) -> None:
    """Raises RayUnavailable, within 15 seconds, if no head of a Ray cluster answers at an address, or does not take this client."""
    head = address
    if address == "auto":
        try:
            head = str(canonicalize_bootstrap_address(address))
        except Exception as error:
            raise RayUnavailable(f"no Ray cluster runs on this machine ({_brief(error)}): {_START}") from error
    host, _, port = head.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S).close()
    except (OSError, OverflowError, ValueError) as error:
        raise RayUnavailable(f"no Ray cluster answers at {head} ({error}): {_START}") from error
    if not head.startswith("ray://"):  # behind which is a proxy of the head, that Ray itself asks
        _ask(head, address)


def _ask(head: str, address: str) -> None:
    """Ask the head whether it is one, as Ray's own clients do but with a deadline."""
    grpc: Any = importlib.import_module("grpc")  # only who joins a cluster needs it
    make_channel = _channel_maker()
    if make_channel is None:
        return
    try:
        # With TLS and token where the environment says so, and past any proxy for HTTP, as Ray's own channels.
        with contextlib.closing(make_channel(head, [("grpc.enable_http_proxy", 0)])) as channel:
            channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")(b"", timeout=_ANSWER_S)
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.UNAUTHENTICATED:
            raise RayUnavailable(
                f"something listens at {head}, but did not answer as the head of a Ray cluster does within {_ANSWER_S:.0f} s "
                f"({error.code().name}: {error.details()}): give the host:port that `ray start --head` printed"
            ) from error
        # With "auto" Ray itself finds a token in the usual file, unless it is told not to.
        if address != "auto" or os.environ.get("RAY_AUTH_MODE"):
            raise RayUnavailable(f"the Ray cluster at {head} wants a token that this process has not: {_TOKEN}") from error
    except Exception as error:  # certificates that cannot be read, or a token that is nowhere
        raise RayUnavailable(f"cannot ask the Ray cluster at {head} with the settings here ({_brief(error)}): {_TOKEN}") from error


def _channel_maker() -> Any:
    """What makes gRPC channels in Ray; None where this version has moved it: then Ray itself finds out, in its own time."""
    for module in ("ray._private.grpc_utils", "ray._private.utils"):
        with contextlib.suppress(ImportError, AttributeError):
            return importlib.import_module(module).init_grpc_channel
    return None


def _brief(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
