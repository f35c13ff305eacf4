"""Crash an execution before and after every write that it makes, and see that it ends all the same.

It finds what goes wrong in a workflow and its steps when they meet a crash: code that does not do the same when it is replayed, a
step that cannot run twice, a decision that was not recorded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rayflow.checkpoint.memory import MemoryStore
from rayflow.checkpoint.store import Store
from rayflow.core.definitions import Step, Workflow
from rayflow.core.messages import Ended, Refused
from rayflow.testing.in_process import Clock, LocalCode, Owner, Tally, start_message


@dataclass(frozen=True, slots=True)
class SweepReport:
    """What a sweep did.

    Attributes:
        writes: Writes of a run without a crash, by the log and by steps; each was crashed before and after.
        crashes: Runs with a crash.
        attempts: Attempts of steps in the run without a crash.
        repeated: Attempts in all runs with a crash beyond those: what was cut off before it was on record, and ran again.
        result: What the workflow returned without a crash; None if it failed.
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
    outcome: Callable[[Any, Store], Any] | None = None,
    **kwargs: Any,
) -> SweepReport:
    """Run ``workflow(*args, **kwargs)`` once as it is, then once for every write and either side of it with a crash there.

    Everything is in this process and on a virtual clock, as in ``run_workflow``. A crash loses what is in memory, with all steps
    that run; what is in the store is taken over, and the execution goes on. The steps are the real ones, or those in ``steps``:
    those that were cut off run again, and must bear it. What steps put into the store of their execution, or delete from it, is
    written too: there the crash is in the middle of a step.

    Args:
        steps: Functions to run instead of those of certain steps.
        outcome: Given what the workflow returned, and the store that it ran on, what must be the same every time; by default the
            result. For results with times in them, and for work whose result is files; it may clear these away for the next run.

    Raises:
        AssertionError: A run ended otherwise than the one without a crash, or not at all. It names the write and both ends.
    """
    run = partial(_run, workflow, args, kwargs, steps or {}, outcome or _result)
    expected = run(_NEVER)
    repeated = 0
    for write in range(1, len(expected.keys) + 1):
        for when in (_Crash(write, "before"), _Crash(write, "after")):
            seen = run(when)
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
        self._write(key, partial(super().create, key, data))

    def upload(self, key: str, path: Path) -> None:
        self._write(key, partial(super().upload, key, path))

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._write(key, partial(super().delete, [key]))

    def _write(self, key: str, write: Callable[[], None]) -> None:
        self.written.append(key)
        crashes = len(self.written) == self.crash.write
        if not crashes or self.crash.side == "after":
            write()
        if crashes:
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
    outcome: Callable[[Any, Store], Any],
    crash: _Crash,
) -> _Run:
    store, clock = _CrashingStore(crash), Clock()
    code = LocalCode(store, functions)
    attempts = Tally()
    answer: Ended | Refused | None = None
    for life in ("first", "second"):
        try:
            with closing(Owner(store, code, clock, life, attempts)) as owner:
                answer = owner.run(start_message(code, workflow, "sweep", args, kwargs))
        except _Died:
            continue
        break
    keys, value, told = tuple(store.written), None, None
    if isinstance(answer, Ended) and answer.result is not None:
        value = code.decode(answer.result)
        told = outcome(value, store)
    return _Run(_in_words(answer, told), value, keys, attempts.count)


def _result(value: Any, store: Store) -> Any:
    return value


def _in_words(answer: Ended | Refused | None, told: Any) -> str:
    if answer is None:
        return "it waits for something that will never come"
    if isinstance(answer, Refused):
        return f"{answer.error}: {answer.message}"
    if answer.failure is None:
        return f"{answer.status} with {told!r}"
    # Attempts that a crash cut off are counted in the message, and differ.
    message = re.sub(r" after \d+ attempts?", "", answer.failure.message)
    return f"{answer.status} with {answer.failure.type}: {message}"
