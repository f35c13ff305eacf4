"""One thing was given where another is wanted: what it is, and what to write instead."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Literal, cast

from rayflow.core.definitions import BoundStep, Step, Workflow
from rayflow.core.entity import BoundOperation, Call, Entity, EntityOperation
from rayflow.core.options import shown
from rayflow.errors import InvalidInput

Wanted = Literal["step", "workflow", "entity"]

_MESSAGE = "call it: ctx.entity(Type, key).operation(...) in a workflow, client.entity(Type, key).operation(...) outside"

_ADVICE: Mapping[Wanted, Mapping[str, str]] = {
    "step": {
        "function": "put @rayflow.step above its definition",
        "workflow": "await its code, {name}(ctx, ...); a step starts it on its own: rayflow.current_client().start({name}, ...)",
        "entity class": "await a message to one of its entities: ctx.entity({name}, key).operation(...)",
        "entity": "await a message to it: one of its operations, called",
        "operation": _MESSAGE,
        "coroutine": "it was called already; give the step, and then its arguments: ctx.step({name}, ...)",
        "operation under way": "await it as it is",
        "value": "give a step, and then its arguments: ctx.step(work, 1) and not ctx.step(work(1))",
    },
    "workflow": {
        "function": "put @rayflow.workflow above its definition, an 'async def' whose first parameter is the context",
        "step": "steps run in workflows; await ctx.step({name}, ...) in an 'async def' with @rayflow.workflow above it",
        "entity class": "entities are not started; send one a message: client.entity({name}, key).operation(...)",
        "entity": "entities are not started; send it a message by calling one of its operations",
        "operation": _MESSAGE,
        "coroutine": "it was called already; give the workflow, and then its arguments: client.start({name}, ...)",
        "value": "give a workflow, and then its arguments: client.start(flow, 1)",
    },
    "entity": {
        "step": "await ctx.step({name}, ...) in a workflow",
        "workflow": "start it with client.start({name}, ...)",
        "entity": "give the class, and then the key",
        "value": "write class Name(rayflow.Entity[State]), and give the class and a key",
    },
}


def mistaken(found: object, wanted: Wanted) -> InvalidInput:
    """The error for ``found``, which is not what is wanted. A coroutine is closed: nobody will ever await it."""
    kind = _kind_of(found)
    name = _name_of(found)
    if inspect.iscoroutine(found):
        found.close()
    advice = _ADVICE[wanted].get(kind) or _ADVICE[wanted]["value"]
    what = shown(found) if kind == "value" or not name else f"{kind} {name}"
    return InvalidInput(f"{what} is no {wanted}: {advice.format(name=name)}")


def _kind_of(found: object) -> str:
    if isinstance(found, Step | BoundStep):
        return "step"
    if isinstance(found, Workflow):
        return "workflow"
    if isinstance(found, type):
        return "entity class" if issubclass(found, Entity) else "value"
    if isinstance(found, Entity) or hasattr(type(found), "entity_address"):
        return "entity"
    if isinstance(found, EntityOperation | BoundOperation):
        return "operation"
    if inspect.iscoroutine(found):
        return "coroutine"
    if isinstance(found, Call) or inspect.isawaitable(found):
        return "operation under way"
    return "function" if inspect.isroutine(found) else "value"


def _name_of(found: Any) -> str:
    if isinstance(found, BoundStep):
        found = cast("BoundStep[..., Any]", found).step
    if isinstance(found, Entity) or hasattr(cast("object", type(found)), "entity_address"):
        return ""
    name = getattr(found, "__name__", None) or getattr(found, "name", None)
    return name if isinstance(name, str) else ""
