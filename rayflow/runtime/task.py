"""The Ray task that every step that is not inline runs as."""

from __future__ import annotations

import contextlib
import functools
import logging
import signal
import threading
from collections.abc import Callable
from typing import Any, cast

import msgspec
import ray
from ray.exceptions import RayError

from rayflow.checkpoint.opening import open_store
from rayflow.checkpoint.patient import PatientStore
from rayflow.core.messages import StepResult, StepStart, attempt_of
from rayflow.runtime.code import StoredCode
from rayflow.runtime.output import Mouth, Who, capture
from rayflow.runtime.worker import progress_of, run_attempt, speaker, who_of

NAMESPACE = "rayflow"

_log = logging.getLogger("rayflow.step")

_TELL_AFTER_S = 0.5
"""A task that runs for as long tells the dispatcher on which node, see ``Dispatcher.runs_on``."""


_AVOID_S = 5.0

_SAY_AFTER_S, _SAY_EVERY_S = 0.1, 0.5
_SAID_S = 2.0


@functools.cache
def _code(store_url: str) -> StoredCode:
    """One per worker process: it caches what is loaded."""
    return StoredCode(PatientStore(open_store(store_url)))


def _logged(start: StepStart, run: Callable[[], StepResult]) -> StepResult:
    """Say in the worker's log whose lines those in between are: a worker runs one task at a time."""
    name = f"execution {start.execution}, step {start.operation}, attempt {start.attempt}"
    _log.info("%s: started", name)
    result = run()
    if result.failure is None:
        _log.info("%s: completed", name)
    else:
        _log.warning("%s: failed (%s: %s)", name, result.failure.type, result.failure.message)
    return result


@functools.cache
def _logging() -> None:
    """Steps are named in the worker's log, which Ray keeps and its dashboard shows, whatever the level there is otherwise."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s rayflow: %(message)s"))
    _log.addHandler(handler)
    _log.setLevel(logging.INFO)
    _log.propagate = False


@functools.cache
def _interruptible() -> None:
    """Have steps stopped politely also where the process that started Ray ignores interrupts, as a shell's background job does.

    Ray stops a task by what Python does about an interrupt; workers inherit that it is ignored, and then that is nothing. No real
    one reaches them: Ray blocks the signal.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


class _Now:
    """What this process does now: it runs one task at a time."""

    dispatcher = ""
    who: Who | None = None
    """The attempt under way, for what threads of a step print: they do not know whose they are."""


@functools.cache
def _mouth() -> Mouth:
    def send(lines: bytes) -> None:
        _owner(_Now.dispatcher).said.remote(lines)

    mouth = Mouth(send, _SAY_AFTER_S, _SAY_EVERY_S)
    capture(lambda: speaker() or _Now.who, mouth)
    return mouth


def _owner(dispatcher: str) -> Any:
    return cast("Any", ray.get_actor(dispatcher, namespace=NAMESPACE))


@ray.remote(max_retries=0)
def run_steps(starts: bytes, store_url: str, dispatcher: str, shard: int) -> bytes:
    """Run attempts one after the other; returns their encoded StepResults, in the same order.

    Ray's own retries are off: the shard decides on, and records, each attempt.
    """
    _logging()
    _interruptible()
    mouth = _mouth()
    code = _code(store_url)
    attempts = msgspec.msgpack.decode(starts, type=list[StepStart])

    def run(start: StepStart) -> StepResult:
        def report(fields: dict[str, float]) -> None:
            _owner(dispatcher).progress.remote(shard, msgspec.msgpack.encode(progress_of(start, fields)))

        def on_full_disk() -> None:
            with contextlib.suppress(ValueError, RayError):
                named = msgspec.msgpack.encode([attempt_of(start)])
                ray.get(_owner(dispatcher).avoid.remote(shard, named, ray.get_runtime_context().get_node_id()), timeout=_AVOID_S)

        _Now.who = who_of(start)
        if len(attempts) > 1:  # of milliseconds each
            return run_attempt(start, code, report, on_full_disk)
        return _logged(start, lambda: run_attempt(start, code, report, on_full_disk))

    def tell_where() -> None:
        named = msgspec.msgpack.encode([attempt_of(start) for start in attempts])
        with contextlib.suppress(ValueError, RayError):  # the dispatcher is gone: its successor starts these anew
            _owner(dispatcher).runs_on.remote(shard, named, ray.get_runtime_context().get_node_id(), task_id)

    task_id = ray.get_runtime_context().get_task_id()  # which only this thread knows
    telling = threading.Timer(_TELL_AFTER_S, tell_where)
    telling.daemon = True
    telling.start()
    _Now.dispatcher = dispatcher
    try:
        return msgspec.msgpack.encode([run(start) for start in attempts])
    finally:
        _Now.who = None
        telling.cancel()
        telling.join()  # Ray must not be called from here once the task has ended
        if rest := mouth.rest():
            # Before the result, so that whoever gets that has heard these.
            with contextlib.suppress(ValueError, RayError):
                ray.get(_owner(dispatcher).said.remote(rest), timeout=_SAID_S)
