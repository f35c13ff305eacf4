"""Crash an execution before and after every write that it makes, and see that it ends all the same.

It finds what goes wrong in a workflow and its steps when they meet a crash: code that does not do the same when it is replayed, a
step that cannot run twice, a decision that was not recorded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rayflow.checkpoint.memory import MemoryStore
from rayflow.core.definitions import Step, Workflow
from rayflow.core.messages import Ended, Refused
from rayflow.testing.in_process import Clock, LocalCode, Owner, Tally, start_message


@dataclass(frozen=True, slots=True)
class SweepReport:
    """What a sweep did.

    Attributes:
        writes: Writes of a run without a crash; each was crashed before and after.
        crashes: Runs with a crash.
        attempts: Attempts of steps in the run without a crash.
        repeated: Attempts in all runs with a crash beyond those: what was cut off before it was on record, and ran again.
        result: What the workflow returned, every time; None if it failed every time.
    """

    writes: int
    crashes: int
    attempts: int
    repeated: int
    result: Any


def crash_sweep(
    workflow: Workflow[..., Any],
    /,
    *args: Any,
    steps: Mapping[Step[..., Any], Callable[..., Any]] | None = None,
    **kwargs: Any,
) -> SweepReport:
    """Run ``workflow(*args, **kwargs)`` once as it is, then once for every write and either side of it with a crash there.

    Everything is in this process and on a virtual clock, as in ``run_workflow``. A crash loses what is in memory, with all steps
    that run; what is in the store is taken over, and the execution goes on. The steps are the real ones, or those in ``steps``:
    those that were cut off run again, and must bear it.

    Raises:
        AssertionError: A run ended otherwise than the one without a crash, or not at all. It names the write and both ends.
    """
    functions = steps or {}
    expected = _run(workflow, args, kwargs, functions, _NEVER)
    repeated = 0
    for write in range(1, len(expected.keys) + 1):
        for when in (_Crash(write, "before"), _Crash(write, "after")):
            seen = _run(workflow, args, kwargs, functions, when)
            if seen.end != expected.end:
                key = expected.keys[write - 1]
                raise AssertionError(
                    f"workflow {workflow.name}: {when} of {len(expected.keys)} ({key}), it ended otherwise\n"
                    f"  without the crash: {expected.end}\n"
                    f"  with the crash:    {seen.end}"
                )
            repeated += seen.attempts - expected.attempts
    return SweepReport(len(expected.keys), 2 * len(expected.keys), expected.attempts, repeated, expected.value)


class _Died(BaseException):
    """The process ends here. A BaseException, so that nothing takes it for an error of the store."""


@dataclass(frozen=True, slots=True)
class _Crash:
    write: int
    side: str

    def __str__(self) -> str:
        return f"a crash {self.side} write {self.write}"


_NEVER = _Crash(0, "before")


class _CrashingStore(MemoryStore):
    """Ends the process once, on one side of one write."""

    def __init__(self, crash: _Crash) -> None:
        super().__init__()
        self.crash = crash
        self.written: list[str] = []

    def create(self, key: str, data: bytes) -> None:
        self.written.append(key)
        if len(self.written) != self.crash.write:
            super().create(key, data)
            return
        if self.crash.side == "after":
            super().create(key, data)
        raise _Died


@dataclass(frozen=True, slots=True)
class _Run:
    """One run. ``end``: how it ended, in words that must be the same every time."""

    end: str
    value: Any
    keys: tuple[str, ...]
    attempts: int


def _run(
    workflow: Workflow[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    functions: Mapping[Step[..., Any], Callable[..., Any]],
    crash: _Crash,
) -> _Run:
    store, clock = _CrashingStore(crash), Clock()
    code = LocalCode(store, functions)
    attempts = Tally()
    answer: Ended | Refused | None = None
    for life in ("first", "second"):
        try:
            owner = Owner(store, code, clock, life, attempts)
            answer = owner.run(start_message(code, workflow, "sweep", args, kwargs))
        except _Died:
            continue
        break
    value = code.decode(answer.result) if isinstance(answer, Ended) and answer.result is not None else None
    return _Run(_in_words(answer, value), value, tuple(store.written), attempts.count)


def _in_words(answer: Ended | Refused | None, value: Any) -> str:
    if answer is None:
        return "it waits for something that will never come"
    if isinstance(answer, Refused):
        return f"{answer.error}: {answer.message}"
    if answer.failure is None:
        return f"{answer.status} with {value!r}"
    # Attempts that a crash cut off are counted in the message, and differ.
    message = re.sub(r" after \d+ attempts?", "", answer.failure.message)
    return f"{answer.status} with {answer.failure.type}: {message}"
