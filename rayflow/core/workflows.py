"""The workflows of a shard: a pure machine from messages, step results and the passing of time to records and effects.

Whatever happens is first a record, then a turn of the execution's code, then the records of what the code asked for; all of them go
into the same batch of the outbox, so that they become durable together or not at all. Effects pass the gate with that batch.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import ClassVar

from rayflow.core.crashes import SAME_SEED_BITS, Crashes, NoCrashes, Noted, crashed_too_often
from rayflow.core.execution import Execution, Passive
from rayflow.core.failures import describe_error, failure_of, without_error
from rayflow.core.instance import Code, StepRequest, step_name
from rayflow.core.mail import Mail
from rayflow.core.memory import Memory
from rayflow.core.messages import (
    Accepted,
    AskOutcome,
    Attempt,
    AwaitOutcome,
    CancelExecution,
    Ended,
    ExecutionView,
    ForgetExecution,
    Refused,
    ResumeExecution,
    Returned,
    StartExecution,
    StepProgress,
    StepResult,
    StopWaiting,
    Token,
    WorkflowMessage,
    not_found,
    refusal,
)
from rayflow.core.operations import Before, Due, Operations
from rayflow.core.outbox import Outbox, Reply
from rayflow.core.records import (
    Blob,
    CancelRequested,
    Cause,
    Completed,
    Elapsed,
    Event,
    Failed,
    Failure,
    Finished,
    Forgotten,
    Kept,
    Record,
    Resumed,
    Started,
    Status,
    Stored,
    Summary,
    Suspended,
    Usage,
    Woke,
    decode_record,
    large_values,
    summarise,
)
from rayflow.core.replay import OpenOperation
from rayflow.core.state import running_attempts
from rayflow.core.turns import Turns
from rayflow.errors import RayflowError, StoreError, StoreUnavailable

_LOST = failure_of("StepLost", "whoever ran it is gone: the dispatcher, or the cluster, went down")


_PART = 200
_PART_BYTES = 32 * 2**20
"""So many executions, or with so many bytes of large values, are brought back after their values were read together."""


def _parts(durable: Mapping[str, Sequence[bytes]]) -> Iterator[dict[str, list[Record]]]:
    """The records of all, some executions at a time."""
    part: dict[str, list[Record]] = {}
    size = 0
    for execution, encoded in durable.items():
        records = part[execution] = [decode_record(one) for one in encoded]
        size += sum(one.size_bytes for record in records for one in large_values(record))
        if len(part) >= _PART or size >= _PART_BYTES:
            yield part
            part, size = {}, 0
    if part:
        yield part


def _reads_to_go_on(entry: Execution) -> list[Blob]:
    """The large values that it takes to give the code what could not be given to it before."""
    if entry.unstarted:
        return large_values(entry.started)
    return [one for kept in entry.kept.values() if entry.instance is not None for one in large_values(kept)]


_SWEEP = Due("", "", 0)


class Workflows:
    """All executions of one shard. Pure: told the time, given values and code through ``Code``, never fails half-way.

    ``epoch`` is that of its owner; where there is only ever one, it may be left out. ``turns`` is told whose code runs, and so
    is ``crashes``. ``code_version`` names the code that there is: what has ended the process too often is tried again with other.

    An execution that rests for long leaves memory, and is replayed from its record once something happens to it.
    """

    memory: ClassVar[type[Memory]] = Memory

    def __init__(
        self,
        outbox: Outbox,
        code: Code,
        mail: Mail,
        epoch: int = 0,
        turns: Turns | None = None,
        crashes: Crashes | None = None,
        code_version: str = "",
    ) -> None:
        self._outbox = outbox
        self._code = code
        self._operations = Operations(outbox, mail)
        self._timers = self._operations.timers
        self._epoch = epoch
        self._turns = turns or Turns()
        self._crashes = crashes or NoCrashes()
        self._code_version = code_version
        self._forgotten = 0
        """How many executions this owner has forgotten."""
        self._memory = self.memory(self._replayed, lambda due_ms: self._timers.set(due_ms, _SWEEP))
        self._live = self._memory.live
        self._ended: dict[str, Summary] = {}

    # -- recovery ------------------------------------------------------------------------------------------------------------

    def restore(self, durable: Mapping[str, Sequence[bytes]], ended: Mapping[str, Summary], now_ms: int) -> None:
        """``restoring`` in one go. Raises StoreUnavailable."""
        for _ in self.restoring(durable, ended, now_ms):
            pass

    def restoring(
        self, durable: Mapping[str, Sequence[bytes]], ended: Mapping[str, Summary], now_ms: int
    ) -> Iterator[Sequence[Blob]]:
        """Take over the state of a predecessor: replay every execution in ``durable``, part by part, each time after telling which
        large values that is going to read. Nothing new happens before ``go_on``.

        ``durable`` must be kept up: it is what passive executions are replayed from. Raises StoreUnavailable.
        """
        self._memory.durable = durable
        self._ended.update(ended)
        for part in _parts(durable):
            yield [one for records in part.values() for record in records for one in large_values(record)]
            for execution, records in part.items():
                entry = self._made(execution, records, None, now_ms)
                for operation, one in entry.open.items():
                    if one.due_ms is not None:
                        self._operations.set_clock(execution, operation, one.due_ms)
                self._memory.restored(execution, entry, now_ms)
        yield [one for entry in self._live.values() for one in _reads_to_go_on(entry)]

    def go_on(self, now_ms: int) -> None:
        """Have those that could not go on before, and can now, do so."""
        for entry in list(self._live.values()):
            if entry.suspended is None and not entry.kept:
                continue
            if entry.unstarted and not entry.ends_its_process():
                self._begin(entry, now_ms)
            recorded = entry.recorded
            self._deliver_kept(entry, now_ms)
            if entry.instance is not None and entry.started.execution in self._live:
                if entry.suspended is not None and entry.recorded == recorded:  # else what is there says that it goes on
                    self._operations.record(entry, Resumed(entry.started.execution, now_ms))
                entry.suspended = None
                self._memory.watch(entry, now_ms)

    def _begin(self, entry: Execution, now_ms: int) -> None:
        """The first turn of one whose start is on record without it."""
        before = self._operations.before(entry)
        try:
            entry.begin(self._code, self._turns)
            entry.unstarted = False
            self._after_turn(entry, now_ms)
        except StoreUnavailable:
            raise
        except Exception as error:
            entry.unstarted = True
            self._fail(entry, before, error, now_ms)

    def _replayed(self, execution: str, passive: Passive | None, now_ms: int) -> Execution:
        records = [decode_record(one) for one in self._memory.durable[execution]]
        return self._made(execution, records, passive, now_ms)

    def _made(
        self, execution: str, records: list[Record], passive: Passive | None, now_ms: int, noted: Noted | None = None
    ) -> Execution:
        started = records[0]
        assert isinstance(started, Started)
        entry = self._live[execution] = Execution.on_record(records, noted or self._noted(started))
        entry.used_ms = now_ms
        if passive is not None:
            entry.activate(passive)
        if entry.ends_its_process():
            entry.detached = running_attempts(records)
            self._suspend_crashed(entry, now_ms)
            return entry
        if entry.unstarted:
            return entry
        self._memory.replays += 1
        before = self._operations.before(entry)
        try:
            entry.replay(records, self._code, self._turns)
            self._after_turn(entry, entry.started.at_ms)
        except StoreUnavailable:
            raise  # then the shard opens again later
        except Exception as error:  # the code cannot be loaded or does not match: this execution stops, the others go on
            self._fail(entry, before, error, now_ms)
            entry.detached = running_attempts(records)
        return entry

    def close(self) -> None:
        """Drop all executions from memory, as when the shard is lost. Without this their ``finally`` blocks run some time later."""
        self._memory.close()

    def reads(self, message: WorkflowMessage | Returned) -> Sequence[Stored | None]:
        """The stored values that handling this may read, whether they are large or not."""
        if isinstance(message, StartExecution):
            return (message.arguments, message.workflow.code)
        if isinstance(message, AwaitOutcome | AskOutcome | StopWaiting):
            return ()
        if isinstance(message, Returned):
            return (message.result, *self._memory.large_values(message.caller.execution))
        if isinstance(message, ResumeExecution):
            entry = self._live.get(message.execution)
            return self._memory.large_values(message.execution) if entry is None else entry.large
        return self._memory.large_values(message.execution)

    def reads_of_result(self, result: StepResult) -> Stored | None:
        """The stored value that handling this result may read."""
        entry = self._live.get(result.execution)
        if entry is not None and entry.instance is not None and entry.instance.leaves_unread(result.operation):
            return None
        return result.result

    def reads_to_view(self, execution: str) -> Sequence[Stored | None]:
        """The stored values that ``view`` may read."""
        return self._memory.large_values(execution)

    def reads_when_due(self, now_ms: int) -> list[Stored | None]:
        """The stored values that ``advance`` may read."""
        return [one for due in self._timers.due(now_ms) for one in self._memory.large_values(due.execution)]

    # -- steps that run ------------------------------------------------------------------------------------------------------

    def running_steps(self) -> list[Attempt]:
        """Every attempt that should be running now."""
        return [attempt for entry in self._live.values() for attempt in entry.running_steps()]

    def inline_steps(self) -> set[Attempt]:
        """Those of ``running_steps`` that run in the shard's own process."""
        return {attempt for entry in self._live.values() for attempt in entry.inline_steps()}

    # -- messages ------------------------------------------------------------------------------------------------------------

    def receive(self, token: Hashable, message: WorkflowMessage, now_ms: int) -> None:
        """Handle a client's message; answers pass the gate."""
        if isinstance(message, StartExecution):
            answer = self._start(message, now_ms)
        elif isinstance(message, AwaitOutcome):
            answer = self._outcome(message.execution)
            if answer is None:
                self._memory.await_end(message.execution, token)
        elif isinstance(message, AskOutcome):
            answer = self._outcome(message.execution) or Accepted(message.execution, created=False)
        elif isinstance(message, StopWaiting):
            answer = self._stop_waiting(token, message)
        elif isinstance(message, CancelExecution):
            answer = self._cancel(message, now_ms)
        elif isinstance(message, ResumeExecution):
            answer = self._resume(token, message, now_ms)
        else:
            answer = self._forget(message, now_ms)
        if answer is not None:
            self._outbox.effect(Reply(token, answer))

    def _start(self, message: StartExecution, now_ms: int) -> Accepted | Refused:
        execution = message.execution
        known = self._memory.started(execution)
        ended = self._ended.get(execution)
        if known is not None or ended is not None:
            name = known.workflow.name if known is not None else ended.workflow if ended is not None else ""
            fingerprint = (known or ended or message).fingerprint
            if name != message.workflow.name:
                return Refused(
                    "IdInUse",
                    f"id {execution!r} belongs to an execution of {name}, not of {message.workflow.name}; choose another id",
                )
            if fingerprint != message.fingerprint:
                return Refused(
                    "IdInUse", f"id {execution!r} was started with other arguments; choose another id or forget that execution"
                )
            return Accepted(execution, created=False)
        # The same message may come again after the execution was forgotten, from a client that had no answer: another run.
        seed = (message.seed + (self._epoch << 2 * SAME_SEED_BITS) + (self._forgotten << SAME_SEED_BITS)) % 2**63
        started = Started(execution, now_ms, message.workflow, message.version, message.arguments, message.fingerprint, seed)
        entry = Execution(started, self._noted(started), used_ms=now_ms)
        before = self._operations.before(entry)
        self._live[execution] = entry
        try:
            if entry.ends_its_process():
                entry.unstarted = True
                self._operations.record(entry, started)
                self._suspend_crashed(entry, now_ms)
            else:
                entry.begin(self._code, self._turns)
                self._operations.record(entry, started)
                self._after_turn(entry, now_ms)
        except Exception as error:
            self._operations.take_back(entry, before)
            self._live.pop(execution, None)
            entry.close()
            if isinstance(error, StoreUnavailable):
                raise  # then the shard opens again later, and the message comes again
            if isinstance(error, StoreError):
                return Refused(type(error).__name__, f"execution {execution} was not started: {error}")
            failure = describe_error(error)
            what = "" if isinstance(error, RayflowError) else f"{message.workflow.name} cannot be started: {failure.type}: "
            return Refused("InvalidInput", what + failure.message)
        return Accepted(execution, created=True)

    def _outcome(self, execution: str) -> Ended | Refused | None:
        """How an execution has ended, or why it will not by itself; None: it goes on."""
        ended = self._ended.get(execution)
        if ended is not None:
            return Ended(execution, ended.status, ended.result, ended.failure)
        entry = self._live.get(execution)
        if entry is None:
            return None if execution in self._memory.passive else not_found(execution)
        return None if entry.suspended is None else refusal(entry.suspended.failure)

    def _stop_waiting(self, token: Hashable, message: StopWaiting) -> Accepted | None:
        answer = Accepted(message.execution, created=False)
        if message.gone:
            self._memory.stop_waiting(message.execution, message.gone, message.number)
            return None
        if isinstance(token, Token):
            for waiting in self._memory.stop_waiting(message.execution, token.sender, message.number):
                self._outbox.effect(Reply(waiting, answer))
        return answer

    def _cancel(self, message: CancelExecution, now_ms: int) -> Accepted | Refused:
        entry = self._memory.find(message.execution, now_ms)
        if entry is None:
            if message.execution in self._ended:
                return Accepted(message.execution, created=False)
            return not_found(message.execution)
        if entry.instance is None:  # its code cannot run, so there is nothing to unwind
            self._operations.record(entry, CancelRequested(message.execution, now_ms, message.reason))
            failure = failure_of("CancelledError", f"cancelled while suspended: {message.reason}")
            self._end(entry, Finished(message.execution, now_ms, Status.CANCELLED, None, failure))
        elif entry.instance.cancelling:  # asked again, for want of an answer perhaps: that must not break into its clean-up
            return Accepted(message.execution, created=False)
        else:
            self._turn(entry, CancelRequested(message.execution, now_ms, message.reason))
            if entry.suspended is not None:  # it does not unwind; who asks again ends it without
                return refusal(entry.suspended.failure)
        return Accepted(message.execution, created=True)

    def _resume(self, token: Hashable, message: ResumeExecution, now_ms: int) -> Accepted | Refused:
        execution = message.execution
        entry = self._memory.find(execution, now_ms)
        if entry is None:
            return Accepted(execution, created=False) if execution in self._ended else not_found(execution)
        if entry.suspended is None:
            return Accepted(execution, created=False)
        durable = self._memory.durable.get(execution, ())
        if len(durable) != entry.recorded:
            return Refused("Overloaded", f"what has become of {execution} is being written just now; try again in a second")
        # Should that end the process, then or before it is on record, it counts for this request, which comes again: else it would
        # go round in circles.
        asker = token[:2] if isinstance(token, Token) else token
        noted = Noted(self._crashes, entry.started, self._code_version, f" resumed for {asker}")
        if noted.too_often():
            return refusal(crashed_too_often(entry.started))
        entry.noted.forget()
        resumed = Resumed(execution, now_ms)
        self._operations.record(entry, resumed)
        runs = entry.detached
        again = self._made(execution, [*map(decode_record, durable), resumed], None, now_ms, noted)
        if again.unstarted and again.suspended is None:
            self._begin(again, now_ms)
        for operation, one in list(again.open.items()):
            if one.due_ms is not None:
                self._operations.set_clock(execution, operation, one.due_ms)
        for attempt in again.running_steps():  # what ended badly meanwhile had nobody to say whether it is tried again
            if runs.get(attempt.operation) != attempt.attempt:
                self.step_lost(attempt, now_ms)
        self._deliver_kept(again, now_ms)
        return Accepted(execution, created=True) if again.suspended is None else refusal(again.suspended.failure)

    def _forget(self, message: ForgetExecution, now_ms: int) -> Accepted | Refused:
        entry = self._memory.find(message.execution, now_ms)
        if entry is not None:
            del self._live[message.execution]
            self._operations.stop_all(entry)
            self._free_locks(entry)
            refused = Refused("ExecutionCancelled", f"execution {message.execution} was dropped")
            self._answer(entry, refused)
            entry.close()
        elif self._ended.pop(message.execution, None) is None:
            return Accepted(message.execution, created=False)
        self._forgotten += 1
        self._outbox.record(Forgotten(message.execution, now_ms))
        return Accepted(message.execution, created=True)

    # -- steps ---------------------------------------------------------------------------------------------------------------

    def step_finished(self, result: StepResult, now_ms: int) -> None:
        """Record how an attempt went, and go on. Results that nobody waits for, or of older attempts, change nothing."""
        entry = self._live.get(result.execution)
        if entry is None or entry.started.seed != result.run:
            return
        if entry.instance is None:
            self._keep(entry, result, now_ms)
            return
        one = entry.open.get(result.operation)
        if one is None or one.attempt != result.attempt or one.due_ms is not None:
            return
        entry.progress.pop(result.operation, None)
        usage = result.usage
        if result.failure is None and result.result is not None:
            del entry.open[result.operation]
            usage = usage or Usage(now_ms, now_ms)
            unread = entry.instance.leaves_unread(result.operation)
            completed = Completed(result.execution, now_ms, result.operation, result.attempt, result.result, usage, unread=unread)
            self._turn(entry, completed)
            return
        before = self._operations.before(entry)
        try:
            self._failed(entry, one, result, now_ms)
        except StoreUnavailable:
            raise
        except Exception as error:
            entry.open.pop(result.operation, None)
            self._fail(entry, before, error, now_ms)

    def _failed(self, entry: Execution, one: OpenOperation, result: StepResult, now_ms: int) -> None:
        """An attempt has failed: there is another one, or the code gets to know."""
        failure = result.failure or _LOST
        cause = Cause(result.cause or Cause.ERROR)
        retry_ms = entry.retry_ms(one, cause, result, now_ms)
        entry.failed_attempts += 1
        if retry_ms is not None:  # nobody gets it raised
            failure = without_error(failure)
        record = Failed(result.execution, now_ms, result.operation, result.attempt, cause, failure, retry_ms, result.usage)
        if retry_ms is None:
            del entry.open[result.operation]
            self._turn(entry, record)
            return
        self._operations.record(entry, record)
        one.attempt += 1
        one.due_ms = retry_ms
        if retry_ms <= now_ms:
            self._operations.retry(entry, one, now_ms)
        else:
            self._operations.set_clock(result.execution, result.operation, retry_ms)

    def _keep(self, entry: Execution, result: StepResult, now_ms: int) -> None:
        """Record a result that came while the code is suspended; the code gets it when it goes on.

        What to do after a failure only the code's own settings can say: that attempt counts as lost when the code goes on.
        """
        if entry.detached.get(result.operation) != result.attempt:
            return
        del entry.detached[result.operation]
        if result.result is None or result.failure is not None:
            return
        usage = result.usage or Usage(now_ms, now_ms)
        kept = Kept(result.execution, now_ms, result.operation, result.attempt, result.result, usage)
        entry.kept[result.operation] = kept
        self._operations.record(entry, kept)

    def returned(self, letter: Returned, now_ms: int) -> None:
        """An entity has answered a call. It does so once, so the answer is kept whatever state the caller is in."""
        caller = letter.caller
        entry = self._memory.find(caller.execution, now_ms)
        if entry is None or entry.started.seed != caller.run:
            return
        usage = Usage(now_ms, now_ms)
        result = letter.result if letter.result is not None else b""
        if entry.instance is None:
            kept = Kept(caller.execution, now_ms, caller.operation, 1, result, usage, letter.failure)
            entry.kept[caller.operation] = kept
            self._operations.record(entry, kept)
        elif entry.open.pop(caller.operation, None) is not None:
            self._turn(entry, Completed(caller.execution, now_ms, caller.operation, 1, result, usage, letter.failure))

    def _deliver_kept(self, entry: Execution, now_ms: int) -> None:
        """Give the code, which can go on again, what came while it could not."""
        for kept in list(entry.kept.values()):
            if entry.instance is None:
                return
            one = entry.open.get(kept.operation)
            if one is None or one.attempt != kept.attempt:
                continue
            del entry.open[kept.operation]
            unread = entry.instance.leaves_unread(kept.operation)
            completed = Completed(
                kept.execution, now_ms, kept.operation, kept.attempt, kept.result, kept.usage, kept.failure, unread
            )
            self._turn(entry, completed)

    def step_lost(self, attempt: Attempt, now_ms: int) -> None:
        """Whoever ran this attempt is gone and will never say how it went."""
        lost = StepResult(attempt.execution, attempt.operation, attempt.attempt, cause=Cause.LOST, failure=_LOST, run=attempt.run)
        self.step_finished(lost, now_ms)

    def step_progress(self, progress: StepProgress) -> None:
        """Keep what a step says of itself, and what is said of it, for display."""
        entry = self._live.get(progress.execution)
        if entry is None or entry.started.seed != progress.run:
            return
        one = entry.open.get(progress.operation)
        if one is not None and one.attempt == progress.attempt and one.due_ms is None:
            entry.told(progress)

    # -- time ----------------------------------------------------------------------------------------------------------------

    def next_due_ms(self) -> int | None:
        """When ``advance`` next has something to do."""
        return self._timers.next_due_ms()

    def advance(self, now_ms: int) -> None:
        """Fire what is due."""
        all_due = self._timers.pop_due(now_ms)
        for due in all_due:
            if due is _SWEEP:
                continue
            entry = self._memory.find(due.execution, now_ms)
            if entry is None:
                continue
            if not due.operation:
                if entry.wake_ms == due.due_ms:
                    entry.wake_ms = None
                    self._turn(entry, Woke(due.execution, now_ms))
                continue
            one = entry.open.get(due.operation)
            if one is None or one.due_ms != due.due_ms:
                continue  # it was set for something else, perhaps for a run that was forgotten
            if isinstance(one.request, StepRequest):
                self._retry(entry, one, now_ms)
            else:
                del entry.open[due.operation]
                self._turn(entry, Elapsed(due.execution, now_ms, due.operation))
        if _SWEEP in all_due:  # last: what something is due of would leave memory, and come back at once
            self._memory.sweep(now_ms)

    def _retry(self, entry: Execution, one: OpenOperation, now_ms: int) -> None:
        before = self._operations.before(entry)
        try:
            self._operations.retry(entry, one, now_ms)
        except Exception as error:
            entry.open.pop(one.request.operation, None)
            self._fail(entry, before, error, now_ms)

    # -- turns ---------------------------------------------------------------------------------------------------------------

    def _turn(self, entry: Execution, event: Event) -> None:
        """Have the code go on with what happened. Where that fails, in the code's values or here, it has not happened for the
        record: the code is dropped, and gets the event when it goes on."""
        before = self._operations.before(entry)
        kept = entry.kept.get(event.operation) if isinstance(event, Completed) else None
        try:
            instance = entry.turn(event)
            if instance.mismatch is not None:
                raise instance.mismatch
            self._operations.record(entry, event)
            if isinstance(event, Completed):
                entry.completed[step_name(event.operation)] += 1
                entry.kept.pop(event.operation, None)
            self._after_turn(entry, event.at_ms)
        except StoreUnavailable:
            raise  # then the shard opens again later, and the event comes again
        except Exception as error:
            if kept is not None:
                entry.kept[kept.operation] = kept
            self._fail(entry, before, error, event.at_ms)
            if isinstance(event, Completed) and kept is None:
                kept = Kept(event.execution, event.at_ms, event.operation, event.attempt, event.result, event.usage, event.failure)
                entry.kept[event.operation] = kept
                self._operations.record(entry, kept)
        else:
            entry.suspended = None

    def _fail(self, entry: Execution, before: Before, error: Exception, now_ms: int) -> None:
        """Something has gone wrong with one execution, half-way perhaps: it is suspended as it was before, and the others go on."""
        self._operations.take_back(entry, before)
        self._live[entry.started.execution] = entry
        self._ended.pop(entry.started.execution, None)
        self._suspend(entry, entry.why_not(error), now_ms)

    def _after_turn(self, entry: Execution, at_ms: int) -> None:
        """Record and carry out what the code asked for; after a replay that is nothing, for it is on record already."""
        instance = entry.instance
        assert instance is not None
        execution = entry.started.execution
        requested, abandoned = instance.take()
        for request in requested:
            self._operations.schedule(entry, request, at_ms)
        self._operations.give_up(entry, abandoned, at_ms)
        if instance.outcome is not None:
            outcome = instance.outcome
            result = None if outcome.result is None else self._outbox.store(outcome.result, instance.blobs)
            self._end(entry, Finished(execution, max(at_ms, instance.now_ms), outcome.status, result, outcome.failure))
            return
        wake_ms = instance.next_wake_ms()
        if wake_ms is not None and (entry.wake_ms is None or wake_ms < entry.wake_ms):
            entry.wake_ms = wake_ms
            self._operations.set_clock(execution, "", wake_ms)
        self._memory.watch(entry, entry.used_ms)

    def _free_locks(self, entry: Execution) -> None:
        """It is over, however it ended: nobody shall wait for it."""
        for address in sorted(entry.locks):
            self._operations.calls.unlock(entry.started, address)
        entry.locks.clear()

    def _end(self, entry: Execution, finished: Finished) -> None:
        started = entry.started
        self._outbox.record(finished)
        self._operations.stop_all(entry)
        self._free_locks(entry)
        self._ended[started.execution] = summarise(started, finished)
        del self._live[started.execution]
        self._answer(entry, Ended(started.execution, finished.status, finished.result, finished.failure))
        entry.close()

    def _noted(self, started: Started) -> Noted:
        return Noted(self._crashes, started, self._code_version)

    def _suspend_crashed(self, entry: Execution, now_ms: int) -> None:
        self._suspend(entry, crashed_too_often(entry.started), now_ms, self._code_version)

    def _suspend(self, entry: Execution, failure: Failure, now_ms: int, code: str = "") -> None:
        known = entry.suspended
        if known is None or (known.failure.message, known.code) != (failure.message, code):  # else it is on record already
            entry.suspended = Suspended(entry.started.execution, now_ms, without_error(failure), code, entry.unstarted)
            self._operations.record(entry, entry.suspended)
        self._operations.stop_clocks(entry)
        entry.detach()
        self._answer(entry, refusal(failure))

    def _answer(self, entry: Execution, answer: Ended | Refused) -> None:
        for token in entry.watchers:
            self._outbox.effect(Reply(token, answer))
        entry.watchers.clear()

    # -- display -------------------------------------------------------------------------------------------------------------

    def view(self, execution: str, now_ms: int) -> ExecutionView | None:
        """A live execution as it is now; None if it is not live here. Shows what may not be durable yet."""
        entry = self._memory.find(execution, now_ms)
        return None if entry is None else entry.view()

    @property
    def live_count(self) -> int:
        """How many executions have not ended."""
        return len(self._memory)

    @property
    def passive_count(self) -> int:
        """How many of them are not in memory."""
        return len(self._memory.passive)

    @property
    def executions(self) -> Memory:
        """Which of them are in memory: to be looked at only."""
        return self._memory
