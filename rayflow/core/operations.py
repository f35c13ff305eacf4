"""The operations of executions as records and effects: asked for, tried again, given up."""

from __future__ import annotations

from collections.abc import Iterable
from sys import intern
from typing import NamedTuple

from rayflow.core.calls import Calls
from rayflow.core.execution import Execution
from rayflow.core.instance import CallRequest, Request, StepRequest, WaitRequest, name_of
from rayflow.core.mail import Mail
from rayflow.core.outbox import CancelStep, Mark, Outbox, StartStep
from rayflow.core.passing import stored_parts
from rayflow.core.records import Abandoned, Record, Retried, Scheduled
from rayflow.core.replay import OpenOperation
from rayflow.core.timers import Timers


class Due(NamedTuple):
    """What a timer was set for: an operation, or the code's own timers. It counts if that is still due at this very time.

    Of each there is one at a time.
    """

    execution: str
    operation: str
    due_ms: int


class Before(NamedTuple):
    """What there was before something happened to an execution."""

    batch: Mark
    letters: int
    recorded: int


class Operations:
    """Those of all executions of a shard."""

    def __init__(self, outbox: Outbox, mail: Mail) -> None:
        self.timers: Timers[Due] = Timers(lambda due: due[:2])
        self.calls = Calls(outbox, mail)
        self._outbox = outbox
        self._mail = mail

    def before(self, entry: Execution) -> Before:
        """To be asked for before something happens to an execution that may fail half-way."""
        return Before(self._outbox.mark(), self._mail.mark(), entry.recorded)

    def take_back(self, entry: Execution, before: Before) -> None:
        """It has failed half-way: nothing of it is recorded, sent or started. The code of the execution is ahead of its record now,
        and has to be dropped; ``detach`` then finds what was running before."""
        records, effects = self._outbox.take_back(before.batch)
        self._mail.take_back(before.letters, records)
        entry.recorded = before.recorded
        for effect in effects:
            if isinstance(effect, StartStep):
                entry.open.pop(effect.operation, None)
            elif isinstance(effect, CancelStep):
                entry.detached[effect.operation] = effect.attempt
        for record in records:
            if isinstance(record, Scheduled) and record.kind == "unlock":
                entry.note_lock("lock", record.name)

    def record(self, entry: Execution, record: Record) -> None:
        """Put something on record of an execution that has not ended."""
        entry.recorded += 1
        self._outbox.record(record)

    def schedule(self, entry: Execution, request: Request, at_ms: int) -> None:
        """The code has asked for this."""
        execution, due_ms = entry.started.execution, 0
        if isinstance(request, WaitRequest):
            due_ms = request.due_ms
        elif isinstance(request, CallRequest):
            due_ms = request.at_ms
        scheduled = Scheduled(execution, at_ms, request.operation, request.kind, name_of(request), request.fingerprint, due_ms)
        self.record(entry, scheduled)  # first: what cannot be recorded has changed nothing
        if isinstance(request, WaitRequest):
            entry.open[request.operation] = OpenOperation(request, 1, due_ms)
            self.set_clock(execution, request.operation, due_ms)
        elif isinstance(request, CallRequest):
            self.calls.send(entry, request)
        else:
            self._begin_attempt(entry, request, 1)
            entry.open[request.operation] = OpenOperation(request, 1)

    def set_clock(self, execution: str, operation: str, due_ms: int) -> None:
        """Have an operation come up then; without one, the code's own timers."""
        self.timers.set(due_ms, Due(execution, intern(operation), due_ms))  # the name of thousands

    def stop_clocks(self, entry: Execution) -> None:
        """Nothing of it comes up any more: its code is gone."""
        execution = entry.started.execution
        for operation, one in entry.open.items():
            if one.due_ms is not None:
                self.timers.cancel(Due(execution, operation, 0))
        self.timers.cancel(Due(execution, "", 0))

    def retry(self, entry: Execution, one: OpenOperation, now_ms: int) -> None:
        """The next attempt of a step begins."""
        assert isinstance(one.request, StepRequest)
        one.due_ms = None
        self.record(entry, Retried(entry.started.execution, now_ms, one.request.operation, one.attempt))
        self._begin_attempt(entry, one.request, one.attempt)

    def _begin_attempt(self, entry: Execution, request: StepRequest, attempt: int) -> None:
        arguments = self._outbox.store(request.arguments)
        shared = None if request.shared is None else request.shared.stored(self._outbox.store_apart)
        passed = stored_parts(request.parts, self._outbox)
        self._outbox.effect(StartStep(entry.started.execution, attempt, request, arguments, entry.started.seed, shared, passed))

    def give_up(self, entry: Execution, operations: Iterable[str], at_ms: int) -> None:
        """The code does not wait for these any more."""
        for operation in operations:
            self.record(entry, Abandoned(entry.started.execution, at_ms, operation))
        self._stop(entry, operations)

    def stop_all(self, entry: Execution) -> None:
        """Nobody waits for anything any more: the execution is over."""
        self.timers.cancel(Due(entry.started.execution, "", 0))
        self._stop(entry, list(entry.open))
        for operation, attempt in entry.detached.items():
            self._outbox.effect(CancelStep(entry.started.execution, operation, attempt, entry.started.seed, False))
        entry.detached.clear()

    def _stop(self, entry: Execution, operations: Iterable[str]) -> None:
        for operation in operations:
            one = entry.open.get(operation)
            if one is not None and one.due_ms is not None:
                self.timers.cancel(Due(entry.started.execution, operation, 0))
            elif one is not None and isinstance(one.request, StepRequest):
                inline = one.request.settings.inline
                started = entry.started
                self._outbox.effect(CancelStep(started.execution, operation, one.attempt, started.seed, inline))
            entry.open.pop(operation, None)
            entry.progress.pop(operation, None)
