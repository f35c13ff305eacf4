"""What a host and a dispatcher count of their work, see ``rayflow.runtime.metrics`` for the names.

A shard's commits are counted by their records, once they are durable: so what is counted is what is on record, each once, whatever
was sent twice. It costs a look at each record, and nothing per message.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import NoReturn

from rayflow.core.instance import step_name
from rayflow.core.messages import StepResult
from rayflow.core.outbox import Batch
from rayflow.core.records import (
    Cause,
    Completed,
    Failed,
    Finished,
    Handled,
    Record,
    Retried,
    Scheduled,
    Started,
    Status,
    Suspended,
    Usage,
)
from rayflow.runtime import metrics
from rayflow.runtime.metrics import Kind, Names, Publisher
from rayflow.runtime.ports import ShardLevels

_MOST_OF_TIME = 200
"""Looking at all there is takes no more than this part of a process's time: what takes long is done less often."""

_log = logging.getLogger("rayflow.metrics")


_CLOSED = ShardLevels(*[0] * 15)


class ShardMeter:
    """Counts for one shard, through every owner that this process has for it."""

    def __init__(self, publisher: Publisher, steps: Names, number: int) -> None:
        self._publisher = publisher
        self._steps = steps
        self._shard = str(number)
        self._last = _CLOSED
        for metric in metrics.METRICS:
            if metric.kind is Kind.COUNTER and metric.labels == ("shard",):
                publisher.begin(metric, self._shard)
        for status in (Status.COMPLETED, Status.FAILED, Status.CANCELLED):
            publisher.begin(metrics.EXECUTIONS_ENDED, self._shard, status.value)

    def opened(self, took_s: float) -> None:
        """The shard was taken over."""
        self._publisher.count(metrics.CLAIMS, self._shard)
        self._publisher.observe(metrics.RECOVERY_TIME, self._shard, value=took_s)

    def fenced(self) -> None:
        """It has another owner."""
        self._publisher.count(metrics.FENCINGS, self._shard)

    def failed(self) -> None:
        """It stopped, and is opened again."""
        self._publisher.count(metrics.SHARD_FAILURES, self._shard)

    def store_failed(self) -> None:
        """The store did not take a write."""
        self._publisher.count(metrics.STORE_ERRORS, self._shard)

    def snapshot(self) -> None:
        """One was written."""
        self._publisher.count(metrics.SNAPSHOTS, self._shard)

    def committed(self, batch: Batch, took_s: float, size_bytes: int) -> None:
        """A batch is durable."""
        publisher, shard, records = self._publisher, self._shard, batch.records
        publisher.observe(metrics.COMMIT_TIME, shard, value=took_s)
        publisher.observe(metrics.COMMIT_RECORDS, shard, value=len(records))
        publisher.count(metrics.COMMITS, shard)
        publisher.count(metrics.RECORDS, shard, by=len(records))
        publisher.count(metrics.LOG_BYTES, shard, by=size_bytes)
        for record in records:
            if type(record) is not Handled:  # most there are
                self._count(record)

    def _count(self, record: Record) -> None:
        if isinstance(record, Scheduled):
            if record.kind == "step":
                self._publisher.count(metrics.STEPS_STARTED, self._step(record.operation))
        elif isinstance(record, Completed):
            if record.usage.node:  # else an entity has answered a call
                step = self._step(record.operation)
                self._publisher.count(metrics.STEPS_FINISHED, step)
                self._ran(step, record.usage)
        elif isinstance(record, Failed):
            step = self._step(record.operation)
            self._publisher.count(metrics.ATTEMPTS_FAILED, step, record.cause.value)
            if record.retry_ms is None:
                self._publisher.count(metrics.STEPS_FAILED, step)
            if record.usage is not None:
                self._ran(step, record.usage)
        elif isinstance(record, Retried):
            self._publisher.count(metrics.STEPS_RETRIED, self._step(record.operation))
        elif isinstance(record, Started):
            self._publisher.count(metrics.EXECUTIONS_STARTED, self._shard)
        elif isinstance(record, Finished):
            self._publisher.count(metrics.EXECUTIONS_ENDED, self._shard, record.status.value)
        elif isinstance(record, Suspended):
            self._publisher.count(metrics.SUSPENSIONS, self._shard)

    def _step(self, operation: str) -> str:
        name = step_name(operation)
        if self._steps.is_new(name):
            for metric in (metrics.STEPS_STARTED, metrics.STEPS_FINISHED, metrics.STEPS_FAILED, metrics.STEPS_RETRIED):
                self._publisher.begin(metric, name)
            for cause in Cause:
                self._publisher.begin(metrics.ATTEMPTS_FAILED, name, cause.value)
        return self._steps.label(name)

    def _ran(self, step: str, usage: Usage) -> None:
        self._publisher.observe(metrics.STEP_RUN, step, value=(usage.ended_ms - usage.started_ms) / 1000)

    def counted(self, now: ShardLevels) -> None:
        """What an owner has counted until now; to be told once more when it is closed."""
        last = self._last if now.epoch == self._last.epoch else _CLOSED
        for metric, count in (
            (metrics.REPLAYS, now.replays - last.replays),
            (metrics.RESTED, now.rested - last.rested),
            (metrics.TURNS, now.turns - last.turns),
            (metrics.ACTIVATIONS, now.activations - last.activations),
            (metrics.PASSIVATIONS, now.passivations - last.passivations),
        ):
            self._publisher.count(metric, self._shard, by=count)
        self._last = now

    def levels(self, levels: ShardLevels | None, suspended: bool, mailbox: int) -> None:
        """What there is now; None: the shard is not open."""
        publisher, shard, now = self._publisher, self._shard, levels or _CLOSED
        self.counted(now)
        for state, value in (("running", now.running), ("resting", now.resting), ("suspended", now.suspended)):
            publisher.level(metrics.EXECUTIONS, shard, state, value=value)
        for metric, value in (
            (metrics.SHARD_OPEN, int(levels is not None)),
            (metrics.SHARD_SUSPENDED, int(suspended)),
            (metrics.MAILBOX, mailbox),
            (metrics.EPOCH, now.epoch),
            (metrics.REPLAY_BYTES, now.replay_bytes),
            (metrics.SNAPSHOT_BYTES, now.snapshot_bytes),
            (metrics.ENTITIES, now.entities),
            (metrics.ENTITIES_ACTIVE, now.entities_active),
            (metrics.LETTERS, now.letters),
            (metrics.DEAD_LETTERS, now.dead_letters),
        ):
            publisher.level(metric, shard, value=value)


class DispatcherMeter:
    """Counts for a dispatcher."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self._steps = Names()

    def waited(self, submitted_ms: int, results: Sequence[StepResult]) -> None:
        """A Ray task has ended: when its attempts began, they say themselves."""
        for result in results:
            if result.usage is not None:
                waited_s = max(result.usage.started_ms - submitted_ms, 0) / 1000  # clocks differ
                self._publisher.observe(metrics.STEP_QUEUE, self._steps.label(step_name(result.operation)), value=waited_s)

    def levels(self, queued: int, running: int) -> None:
        """What there is now."""
        self._publisher.level(metrics.STEPS_QUEUED, value=queued)
        self._publisher.level(metrics.STEPS_RUNNING, value=running)


async def publish_for_ever(publisher: Publisher, look: Callable[[], None]) -> NoReturn:
    """Have ``look`` take the levels, and publish them with what was counted. Metrics inform: whatever fails, work goes on."""
    failed = ""
    while True:
        began_s = time.monotonic()
        try:
            look()
            publisher.publish()
        except Exception as error:
            if failed != repr(error):  # once, not every other second
                failed = repr(error)
                _log.exception("metrics could not be published")
        await asyncio.sleep(max(metrics.PERIOD_S, _MOST_OF_TIME * (time.monotonic() - began_s)))
