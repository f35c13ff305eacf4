"""Ray's tasks of steps: how one is submitted and stopped, what its end means, and where another one could run."""

from __future__ import annotations

import asyncio
import logging
import pickle
from collections.abc import Iterable
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import Any, cast

import msgspec
import ray
from ray._common import ray_option_utils
from ray._private.state import available_resources_per_node
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayError, RayTaskError, TaskCancelledError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rayflow.core.failures import failure_of
from rayflow.core.messages import Attempt, StepResult
from rayflow.core.records import Cause, Failure
from rayflow.runtime.dispatching import Submission
from rayflow.runtime.draining import draining_nodes
from rayflow.runtime.memory_report import explain
from rayflow.runtime.named_logs import name_own_logs
from rayflow.runtime.project import code_version
from rayflow.runtime.task import run_steps

_FORCE_AFTER_S = 5.0

_log = logging.getLogger("rayflow.dispatcher")

_CAN_FALL_BACK = hasattr(ray_option_utils, "validate_fallback_strategy")
"""Whether this Ray takes a task to any node where there is none of the wanted ones."""

_encode = msgspec.msgpack.Encoder().encode
_decode_results = msgspec.msgpack.Decoder(list[StepResult]).decode


@dataclass(slots=True)
class StepTask:
    """One task, of the shard ``number``, with ``attempts`` in it; ``wanted`` are those whose results somebody still waits for.

    ``kind`` tells which tasks share their bundling, see ``bundles``; None: it is alone.
    """

    number: int
    kind: object
    attempts: list[Attempt]
    wanted: set[Attempt]
    submitted_ms: int
    name: str
    """Of the step."""
    options: bytes
    """What the task asks for, see ``Submission``."""
    reference: Any = None
    state: str = ""
    """As a ``StepView`` has it; empty while there is nothing to tell."""
    node: str = ""
    running_since_s: float = 0.0
    """When it was known to run, on the monotonic clock."""
    again: Submission | None = None
    """What to run a second time, where that may be."""
    second: StepTask | None = None
    """The second run, as long as both go on. The first that is done counts, and the other is stopped."""


class Submitter:
    """Starts tasks that report to the dispatcher of that name. Belongs to its process."""

    def __init__(self, store_url: str, dispatcher: str) -> None:
        self._store_url = store_url
        self._dispatcher = dispatcher
        self._code = code_version()

    def submit(self, bundle: list[Submission], number: int, *, avoided: Iterable[str] = (), node: str = "") -> Any:
        """Hand attempts of the shard ``number`` to Ray, as one task; returns the reference to its result.

        It runs on ``node`` alone, if one is given, and on none of ``avoided`` as long as there is another one. Raises what Ray
        raises for options that it does not take.
        """
        first = bundle[0]
        options: dict[str, Any] = {"num_cpus": 1} | pickle.loads(first.options)
        if avoided and _CAN_FALL_BACK and not options.keys() & {"label_selector", "scheduling_strategy"}:
            options["label_selector"] = {"ray.io/node-id": f"!in({','.join(sorted(avoided))})"}
            options["fallback_strategy"] = [{"label_selector": {}}]
        if node:
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node, soft=False)
        name = f"{first.start.execution} {first.start.operation}" + (f" (+{len(bundle) - 1})" if len(bundle) > 1 else "")
        if first.start.attempt > 1:
            name += f" attempt {first.start.attempt}"
        if first.code != self._code:  # the dispatcher was created by another version of the driver's project
            options["runtime_env"] = {"working_dir": first.code} | dict(options.get("runtime_env", {}))
        arguments = (_encode([one.start for one in bundle]), self._store_url, self._dispatcher, number)
        if "runtime_env" in options:
            return run_steps.options(name=name, **options).remote(*arguments)
        # What ``options(...).remote(...)`` comes down to, without the class that it makes at every call: a fifth of this
        # actor's work for short steps.
        return run_steps._remote(arguments, {}, name=name, max_retries=0, **options)  # pyright: ignore[reportAttributeAccessIssue, reportUnknownVariableType]


async def stop(reference: Any) -> None:
    """Have Ray end a task, politely first: one that blocks in C code does not react to that."""
    ray.cancel(reference, force=False)
    _, pending = await asyncio.wait([asyncio.ensure_future(_settled(reference))], timeout=_FORCE_AFTER_S)
    if pending:
        ray.cancel(reference, force=True)


async def _settled(reference: Any) -> None:
    try:
        await reference
    except Exception:  # how it ended does not matter
        return


def outcomes(task: StepTask, future: Future[bytes]) -> list[StepResult]:
    """How a Ray task ended, as the results of its attempts."""
    logs = ""
    try:
        return _decode_results(future.result())
    except (TaskCancelledError, CancelledError):
        cause, error = Cause.CRASH, RuntimeError("the task was cancelled from outside rayflow")
    except NodeDiedError as died:  # the machine went, which is not the step's doing
        cause, error = Cause.LOST, died
    except RayTaskError as raised:  # beside the step's own code: it could not be loaded there, for example
        cause, error = Cause.CRASH, raised.cause if isinstance(raised.cause, Exception) else raised
    except OutOfMemoryError as killed:
        # These count: with as much memory as before the next ones may well end so, too.
        return [_killed(attempt, str(killed)) for attempt in task.attempts]
    except RayError as crash:
        cause, error, logs = Cause.CRASH, crash, name_own_logs()
    return [crashed(attempt, cause, error, logs) for attempt in task.attempts]


def crashed(attempt: Attempt, cause: Cause, error: Exception, logs: str = "") -> StepResult:
    """The result of an attempt that has none of its own. ``logs``: where more may stand."""
    text = str(error).strip()
    message, _, more = text.partition("\n")
    if logs:
        message += f" (logs: {logs})"
    return _failed(attempt, cause, failure_of(type(error).__name__, message, text if more else ""))


def _killed(attempt: Attempt, report: str) -> StepResult:
    why = explain(report, f"{attempt.execution} {attempt.operation}")
    return _failed(attempt, Cause.CRASH, failure_of("OutOfMemoryError", why, report))


def _failed(attempt: Attempt, cause: Cause, failure: Failure) -> StepResult:
    return StepResult(
        attempt.execution,
        attempt.operation,
        attempt.attempt,
        cause=cause,
        failure=failure,
        retryable=cause is not Cause.ERROR,
        run=attempt.run,
    )


def runs(task: StepTask | None) -> list[StepTask]:
    """A task and its second run."""
    return [] if task is None else [task] if task.second is None else [task, task.second]


def likeness(submission: Submission) -> object:
    """What tasks that should take about as long as each other have in common."""
    return submission.start.execution, submission.start.name, submission.options


def cpus(submission: Submission) -> float:
    """How many CPUs its task asks for."""
    return float(pickle.loads(submission.options).get("num_cpus", 1))


def free_cpus() -> dict[str, float]:
    """By node; none that is being drained. Ray promises this to nobody: where it fails there is no second run, and that is all."""
    try:
        free = cast("dict[str, dict[str, float]]", available_resources_per_node())
    except Exception as error:
        _log.warning("which nodes have CPUs to spare is not known (%s: %s)", type(error).__name__, error)
        return {}
    draining = draining_nodes()
    return {node: resources.get("CPU", 0.0) for node, resources in free.items() if node not in draining}
