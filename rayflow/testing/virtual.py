"""Run a workflow in a unit test: in this process, without Ray, a store or a clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any, TypeVar

from rayflow.checkpoint.memory import MemoryStore
from rayflow.core.definitions import Step, Workflow
from rayflow.core.failures import execution_error
from rayflow.core.messages import Ended, Refused
from rayflow.core.records import Status
from rayflow.errors import RayflowError
from rayflow.testing.in_process import Clock, LocalCode, Owner, Tally, start_message

R = TypeVar("R")


def run_workflow(
    workflow: Workflow[..., R],
    /,
    *args: Any,
    id: str = "test",
    steps: Mapping[Step[..., Any], Callable[..., Any]] | None = None,
    **kwargs: Any,
) -> R:
    """Run ``workflow(*args, **kwargs)`` to its end and return its result.

    Steps run here, one after the other, with the retries that they declare; waits and pauses between attempts take no time. The
    same call gives the same result every time: ``ctx.random`` and ``ctx.uuid4()`` are seeded by ``id``, and ``ctx.now()`` starts
    with 2026. Steps take no time either: no ``timeout`` of a step passes, nor one of asyncio around nothing but steps.

    Args:
        id: The id of the execution, in ``ctx.execution_id``.
        steps: Functions to run instead of those of certain steps, which get the same arguments and may raise.

    Raises:
        ExecutionFailed: The workflow raised. It is also of the type that was raised, where that can be imported.
        ExecutionCancelled: It cancelled itself.
        RayflowError: It waits for something that will never come, or an argument cannot be stored (InvalidInput).
    """
    store = MemoryStore()
    code = LocalCode(store, steps or {})
    owner = Owner(store, code, Clock(), "test", Tally())
    with closing(owner):
        return _result(owner.run(start_message(code, workflow, id, args, kwargs)), id, code)


def _result(answer: Ended | Refused | None, id: str, code: LocalCode) -> Any:
    if answer is None:
        raise RayflowError(f"execution {id} waits for something that is neither a step nor a time: nothing will ever wake it")
    if isinstance(answer, Refused):
        raise RayflowError(f"execution {id}: {answer.error}: {answer.message}")
    if answer.status is Status.COMPLETED and answer.result is not None:
        return code.decode(answer.result)
    raise execution_error(id, answer.status, answer.failure)
