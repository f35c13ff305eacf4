"""Named actors of a store: no program's, and neither started again nor called twice by Ray itself, see ``supervisors``."""

from __future__ import annotations

import time
from typing import Any, cast

import ray
from ray.exceptions import ActorUnschedulableError, RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rayflow.core import limits
from rayflow.runtime.task import NAMESPACE

UNREACHABLE = (RayActorError, ActorUnschedulableError)
"""What a call to an actor may raise that was not made by the actor itself: it is dead, or not there now, or its node is gone."""

_HEAD = "node:__internal_head__"
_FREE_NAME_S = 30.0
_AGAIN_S = 0.2


def named_actor(kind: type[Any], name: str, placement: Any, *args: Any, code: str = "") -> Any:
    """The handle of the actor of that name, which is created if there is none.

    Args:
        kind: Its class.
        name: In rayflow's namespace.
        placement: A scheduling strategy of Ray's, or None.
        args: What it is made with.
        code: The version of the project that it is to run, see ``rayflow.runtime.project``; that of this process if it is empty.
    """
    deadline_s = time.monotonic() + _FREE_NAME_S
    environment: dict[str, Any] = {"working_dir": code} if code else {}
    if variables := limits.environment():
        environment["env_vars"] = variables
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
                    memory=1,  # of an actor that asks for nothing Ray ignores where it is wanted
                    max_restarts=0,  # else Ray's memory monitor takes it first, and the steps with it
                    max_task_retries=0,
                    scheduling_strategy=placement,
                    **({"runtime_env": environment} if environment else {}),
                )
                .remote(*args)
            )
        except ValueError:
            # The name of an actor that is being killed is free a moment later.
            if time.monotonic() > deadline_s:
                raise
            time.sleep(_AGAIN_S)


def existing_actor(name: str) -> Any:
    """The handle of the actor of that name. Raises ValueError if there is none."""
    return cast("Any", ray).get_actor(name, namespace=NAMESPACE)


def head() -> NodeAffinitySchedulingStrategy | None:
    """The head, where it is one of the nodes: it stays when workers come and go. Anywhere else will do as well."""
    nodes = cast("list[dict[str, Any]]", ray.nodes())
    heads = [str(node["NodeID"]) for node in nodes if node["Alive"] and _HEAD in node["Resources"]]
    return NodeAffinitySchedulingStrategy(heads[0], soft=True) if heads else None
