"""One attempt of a step, where it runs: in a Ray task's process, or in the shard's for inline steps.

The result is encoded here and goes to the store from here if it is large; only a reference travels on. Whatever happens, the answer
is a StepResult: no exception of user code crosses a process as an object.
"""

from __future__ import annotations

import asyncio
import contextvars
import errno
import functools
import inspect
import os
import resource
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from msgspec.structs import replace

from rayflow.checkpoint.blobs import put_blob
from rayflow.checkpoint.files import name_part, prefix_of
from rayflow.core import codec, limits
from rayflow.core.failures import describe_error, failure_of
from rayflow.core.messages import StepProgress, StepResult, StepStart
from rayflow.core.passing import joined
from rayflow.core.records import Cause, Usage
from rayflow.errors import InvalidInput
from rayflow.runtime.code import StoredCode, plain_function
from rayflow.runtime.output import Who, ended

_REPORT_INTERVAL_S = 0.5
_GRACE_S = 10.0

Reporter = Callable[[dict[str, float]], None]


class _OutOfTime(BaseException):
    """Raised into a step's code by its time-out. A BaseException, so that ``except Exception`` cannot swallow it."""


class StepContext:
    """What a running step can know of itself: see ``rayflow.current_step``."""

    def __init__(self, start: StepStart, code: StoredCode, reporter: Reporter | None, *, may_block: bool = True) -> None:
        self.execution_id = start.execution
        self.operation = start.operation
        self.attempt = start.attempt
        self.who = who_of(start)
        self.store = code.store
        self.may_block = may_block
        """Whether it has a thread of its own, rather than the event loop of the shards."""
        self._reporter = reporter
        self._reported_s = 0.0

    @property
    def attempt_name(self) -> str:
        """A name that no other attempt of any step has, fit for a file: what an attempt writes counts once the log names it."""
        return f"{name_part(self.operation)[:150]}-{self.attempt}-{secrets.token_hex(4)}"

    @property
    def files_prefix(self) -> str:
        """Where the steps of this execution keep files in the store: what keys of theirs begin with."""
        return prefix_of(self.execution_id)

    def report(self, **fields: float) -> None:
        """Say how far the step is; shown with the execution, at most twice a second, never recorded."""
        now_s = time.monotonic()
        if self._reporter is not None and now_s - self._reported_s >= _REPORT_INTERVAL_S:
            self._reported_s = now_s
            self._reporter(fields)


_current: contextvars.ContextVar[StepContext] = contextvars.ContextVar("rayflow_step")


def current_step() -> StepContext | None:
    """The step that this code runs in, or None where the function was called directly."""
    return _current.get(None)


def who_of(start: StepStart) -> Who:
    """How an attempt is named where what it prints is shown."""
    return Who(start.execution, f"{start.operation} attempt {start.attempt}" if start.attempt > 1 else start.operation)


def speaker() -> Who | None:
    """Who prints what is printed here; None where no step runs."""
    step = _current.get(None)
    return None if step is None else step.who


def progress_of(start: StepStart, fields: dict[str, float]) -> StepProgress:
    """A report as it travels."""
    return StepProgress(start.execution, start.operation, start.attempt, fields, start.run)


def run_attempt(
    start: StepStart, code: StoredCode, reporter: Reporter | None = None, on_full_disk: Callable[[], None] | None = None
) -> StepResult:
    """Run one attempt to its end in this thread. In a main thread the time-out interrupts blocking calls too.

    ``on_full_disk`` is called where it failed because this machine has no space left, before that is told to anybody.
    """
    usage = _Usage()
    step = StepContext(start, code, reporter)
    token = _current.set(step)
    try:
        function, args, kwargs = _load(start, code)
        with _deadline(start.timeout_s):
            value = function(*args, **kwargs)
            if inspect.iscoroutine(value):
                value = asyncio.run(value)
        return _success(start, code, value, usage)
    except _OutOfTime:
        return _timed_out(start, usage)
    except Exception as error:
        failed = _failure(start, error, usage)
        if failed.failure is None or not _says_disk_full(error):
            return failed
        if on_full_disk is not None:
            on_full_disk()
        return replace(
            failed, failure=replace(failed.failure, message=f"{failed.failure.message} (on node {_NODE}: make room there)")
        )
    finally:
        _current.reset(token)
        ended(step.who)


async def run_attempt_async(start: StepStart, code: StoredCode, reporter: Reporter | None = None) -> StepResult:
    """Run one attempt of an ``async`` inline step as a task of the running loop."""
    usage = _Usage()
    step = StepContext(start, code, reporter, may_block=False)
    token = _current.set(step)
    try:
        function, args, kwargs = _load(start, code)
        async with asyncio.timeout(start.timeout_s) as timeout:
            value = await function(*args, **kwargs)
        return _success(start, code, value, usage)
    except TimeoutError as error:
        return _timed_out(start, usage) if timeout.expired() else _failure(start, error, usage)  # pyright: ignore[reportPossiblyUnboundVariable]
    except Exception as error:
        return _failure(start, error, usage)
    finally:
        _current.reset(token)
        ended(step.who)


def _load(start: StepStart, code: StoredCode) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    function = plain_function(code.function(start.function))
    return function, *joined(start.arguments, start.shared, start.passed, code.decode)


def _success(start: StepStart, code: StoredCode, value: object, usage: _Usage) -> StepResult:
    data = codec.encode(value, label=f"result of {start.name}")
    stored = data if len(data) <= limits.current().inline_bytes else put_blob(code.store, data)
    return StepResult(start.execution, start.operation, start.attempt, stored, usage=usage.read(), run=start.run)


def _failure(start: StepStart, error: Exception, usage: _Usage) -> StepResult:
    return StepResult(
        start.execution,
        start.operation,
        start.attempt,
        cause=Cause.ERROR,
        failure=describe_error(error),
        retryable=wants_retry(error, start),
        usage=usage.read(),
        run=start.run,
    )


def _timed_out(start: StepStart, usage: _Usage) -> StepResult:
    failure = failure_of("StepTimedOut", f"took longer than its time-out of {start.timeout_s} s")
    return StepResult(
        start.execution,
        start.operation,
        start.attempt,
        cause=Cause.TIMEOUT,
        failure=failure,
        usage=usage.read(),
        run=start.run,
    )


@functools.cache
def type_names(types: tuple[type[BaseException], ...]) -> tuple[str, ...]:
    """Exception types by name, to be compared where the types themselves may not be loaded."""
    return tuple(f"{kind.__module__}:{kind.__qualname__}" for kind in types)


def wants_retry(error: BaseException, start: StepStart) -> bool:
    """``Retry.wants`` by type name: any class that the error derives from counts."""
    names = set(type_names(type(error).__mro__))
    return not names.isdisjoint(start.retry_on) and names.isdisjoint(start.give_up_on)


def _says_disk_full(error: BaseException | None) -> bool:
    """Whether an error says, or was raised because, there is no space left on this machine: by number, or in a program's words."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if (isinstance(error, OSError) and error.errno in _FULL) or any(text in str(error) for text in _FULL_TEXTS):
            return True
        error = error.__cause__ or error.__context__
    return False


_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_TEXTS = tuple(os.strerror(number) for number in _FULL)


class _Usage:
    def __init__(self) -> None:
        self._started_ms = time.time_ns() // 1_000_000
        self._cpu_s = _cpu_s()

    def read(self) -> Usage:
        return Usage(self._started_ms, time.time_ns() // 1_000_000, round(_cpu_s() - self._cpu_s, 6), _NODE)


_NODE = socket.gethostname()


def _cpu_s() -> float:
    """CPU seconds of this thread and of the child processes that were waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.thread_time() + children.ru_utime + children.ru_stime


@contextmanager
def _deadline(timeout_s: float | None) -> Generator[None]:
    """Raise _OutOfTime in the block after ``timeout_s`` seconds; end the process if the code does not react to that."""
    if timeout_s is None:
        yield
        return
    if threading.current_thread() is not threading.main_thread():
        raise InvalidInput("a time-out needs the main thread of a process; an inline step with one must be async")

    def out_of_time(signum: int, frame: object) -> None:
        raise _OutOfTime

    # Code that sits in a C extension never sees the signal's exception: then the process goes, and the step counts as crashed.
    last_resort = threading.Timer(timeout_s + _GRACE_S, os._exit, (70,))
    last_resort.daemon = True
    previous = signal.signal(signal.SIGALRM, out_of_time)
    last_resort.start()
    signal.setitimer(signal.ITIMER_REAL, timeout_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        last_resort.cancel()
        signal.signal(signal.SIGALRM, previous)
