"""An owner of a shard in a simulated system: the order of things of ``rayflow.runtime.shard``, with every wait made visible.

Records are written, then the effects of the same batch go out. One write is in flight; the next batch gathers meanwhile; a snapshot
is written beside it and takes effect between two writes. Four rules beyond that:

- Starts go out over a connection only after a write that began after that connection was there. So whoever sends was the owner
  while it was attached, and a stalled owner cannot start through a new dispatcher what its successor has completed.
- That an execution does not exist is said after a write, too: a stalled owner does not know what its successor has started.
- The dispatcher is asked for the attempts that it was told, those not told yet excepted: what is lost is exactly what it never got.
- A result counts as expected until it is on record, so that a new connection does not drop it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

import msgspec

from rayflow.checkpoint import log
from rayflow.checkpoint.blobs import blob_key
from rayflow.checkpoint.requests import Create, Operation
from rayflow.core.messages import Attempt, Message, Refused, attempt_of
from rayflow.core.outbox import Batch, CancelStep, Durable, Effect, Outbox, Reply, StartStep
from rayflow.core.records import Blob, Stored, Summary, decode_record, digest
from rayflow.core.state import DurableState
from rayflow.errors import AlreadyExists, StoreUnavailable
from rayflow.testing.log_simulation import steps
from rayflow.testing.simulation_dispatcher import (
    BLOB_OVER_BYTES,
    NOT_CONNECTED,
    Connection,
    Results,
)
from rayflow.testing.simulation_world import EPOCH_MS, Answer, Disconnected, Group, Process, Signal

if TYPE_CHECKING:
    from rayflow.testing.simulation_host import Host

T = TypeVar("T")


class SmallOutbox(Outbox):
    """An outbox that makes blobs of what is hardly large."""

    def store(self, data: bytes) -> Stored:
        if len(data) <= BLOB_OVER_BYTES:
            return data
        blob = Blob(digest(data), len(data))
        self._batch.blobs[blob.hash] = data
        return blob


class SnapshotBody(msgspec.Struct, array_like=True):
    """A snapshot in a simulation: what the Parquet file holds, in a form that is quick to write."""

    live: dict[str, list[bytes]]
    unfiled: dict[str, list[bytes]]
    ended: dict[str, Summary]


_encode = msgspec.msgpack.Encoder().encode
_decode_snapshot = msgspec.msgpack.Decoder(SnapshotBody).decode
decode_history = msgspec.msgpack.Decoder(dict[str, list[bytes]]).decode


def shard_prefix(number: int) -> str:
    return f"shards/{number:03d}/"


def state_in(view: log.View) -> DurableState:
    """What a log amounts to."""
    state = DurableState()
    if view.snapshot is not None:
        body = _decode_snapshot(view.snapshot)
        state.live, state.unfiled, state.ended = body.live, body.unfiled, body.ended
    for segment in view.segments:
        for encoded in segment.records:
            state.apply(decode_record(encoded), encoded)
    return state


class Owner:
    """One take-over of one shard, until ``closed`` is set."""

    def __init__(self, host: Host, number: int) -> None:
        self.host = host
        self.system = host.system
        self.world = host.system.world
        self.number = number
        self.name = f"{host.name}/{number}"
        self.group = Group(self.name)
        self.outbox = SmallOutbox()
        self.machine = self.system.parts.machine(self.outbox, self.system.code)
        self.state = DurableState()
        self.tail: log.Tail
        self.closed = Signal(self.world)
        self.reason: Exception | None = None
        self._wake = Signal(self.world)
        self._timer_ms: float | None = None
        self._snapshotting = False
        self._snapshot_done: log.Snapshot | None = None
        self._expected: dict[Attempt, None] = {}
        self._attempts_to_attach = 0
        self._connection = NOT_CONNECTED
        self._proven = NOT_CONNECTED
        self._calls = 0
        self._collecting: Answer[Results] | None = None
        self._queue: list[StartStep | CancelStep] = []
        self._send = Signal(self.world)
        self._recorded = 0
        self._mark = 0
        self._marks: dict[int, tuple[Connection, int, list[Attempt]]] = {}

    # -- life ----------------------------------------------------------------------------------------------------------------

    def live(self) -> Process[None]:
        """Take the log over and start working."""
        incarnation = self.world.name("i")
        try:
            recovered = yield from steps(log.recover(shard_prefix(self.number), incarnation), self.system.store)
            self.tail = recovered.tail
            self.world.log(self.name, f"owns epoch {self.tail.epoch} as {incarnation} from slot {self.tail.next_number}")
            self._restore(recovered.view)
        except Exception as error:
            self.close(error)
            return
        for work in (self._commit_loop(), self._collect_loop(), self._send_loop()):
            self.world.spawn(self.group, self._guard(work))
        self.host.opened(self)
        self._touch()

    def close(self, reason: Exception) -> None:
        """Stop; what is durable is durable, the rest never was."""
        if self.group.alive:
            self.reason = reason
            self.world.log(self.name, f"closed: {type(reason).__name__}")
            self.world.kill(self.group)
            self.closed.set()

    def _guard(self, work: Process[None]) -> Process[None]:
        try:
            yield from work
        except Exception as error:
            self.close(error)

    def _restore(self, view: log.View) -> None:
        self.state = state_in(view)
        live = {execution: [decode_record(one) for one in records] for execution, records in self.state.live.items()}
        self.machine.restore(live, self.state.ended, self.now_ms())
        inline = self.machine.inline_steps()
        self._expected.update((one, None) for one in self.machine.running_steps() if one not in inline)
        for one in sorted(inline):
            self.machine.step_lost(one, self.now_ms())

    def now_ms(self) -> int:
        """The host's clock, which is not quite like that of others."""
        return EPOCH_MS + int(self.world.now_ms) + self.host.skew_ms

    # -- in ------------------------------------------------------------------------------------------------------------------

    def receive(self, token: tuple[str, int], message: Message) -> None:
        """A client's message."""
        self.machine.receive(token, message, self.now_ms())
        self._touch()

    def _touch(self) -> None:
        if self.outbox:
            self._wake.set()
        due_ms = self.machine.next_due_ms()
        if due_ms is None:
            return
        when_ms = self.world.now_ms + max(due_ms - self.now_ms(), 0)
        if self._timer_ms is None or self._timer_ms <= self.world.now_ms or when_ms < self._timer_ms:
            self._timer_ms = when_ms
            self.world.after(when_ms - self.world.now_ms, self.group, self._time_passed)

    def _time_passed(self) -> None:
        self._timer_ms = None
        self.machine.advance(self.now_ms())
        self._touch()

    # -- out -----------------------------------------------------------------------------------------------------------------

    def _commit_loop(self) -> Process[None]:
        while True:
            yield self._wake
            while self.outbox or self._unproven():
                yield from self.commit(self.outbox.close())
                self._snapshot_if_due()

    def commit(self, batch: Batch) -> Process[None]:
        """Records first, then effects."""
        if self.needs_write(batch):
            yield from self.write(batch)
        yield from self.release(batch.effects)

    def needs_write(self, batch: Batch) -> bool:
        """Whether effects have to wait for a segment, be it one without records that only proves who owns the log."""
        return bool(batch.records) or self._unproven() or self.tells_of_nothing(batch)

    def tells_of_nothing(self, batch: Batch) -> bool:
        """Whether an answer rests on there being no record."""
        return any(
            isinstance(one, Reply) and isinstance(one.answer, Refused) and one.answer.error == "ExecutionNotFound"
            for one in batch.effects
        )

    def _unproven(self) -> bool:
        return self._connection != NOT_CONNECTED and self.must_prove(self._connection, self._proven)

    def must_prove(self, connection: Connection, proven: Connection) -> bool:
        """Whether a write has to show first that this owner still is one, after it was connected."""
        return connection != proven

    def write(self, batch: Batch) -> Process[None]:
        """Make a batch durable, however long it takes. Raises Fenced."""
        connection = self._connection
        yield from self.make_durable(batch)
        self._proven = connection
        self._send.set()
        self.apply(batch)
        self.system.judge.acknowledge(batch.records, batch.encoded)

    def make_durable(self, batch: Batch) -> Process[None]:
        """Large values first, then the records that name them."""
        yield from self.write_values(batch)
        yield from self.write_records(batch)

    def write_values(self, batch: Batch) -> Process[None]:
        def write() -> Operation[None]:
            for hash, data in batch.blobs.items():
                with suppress(AlreadyExists):
                    yield Create(blob_key(Blob(hash, len(data))), data)

        yield from self._insist(write)

    def write_records(self, batch: Batch) -> Process[None]:
        self.tail = yield from self._insist(lambda: log.append(self.tail, batch.encoded))

    def _insist(self, begin: Callable[[], Operation[T]]) -> Process[T]:
        while True:
            try:
                return (yield from steps(begin(), self.system.store))
            except StoreUnavailable:
                yield 50

    def apply(self, batch: Batch) -> None:
        """What is durable becomes part of the state that snapshots are taken from."""
        for record, encoded in zip(batch.records, batch.encoded, strict=True):
            self.state.apply(record, encoded)

    def release(self, effects: list[Effect]) -> Process[None]:
        """Let effects go; it may end before each of them."""
        for effect in effects:
            if self.world.disturbed and self.world.random.random() < 0.3:
                yield None
            if isinstance(effect, Reply):
                self.host.answer(effect.token, effect.answer)
            elif isinstance(effect, Durable):
                self._on_record(effect.mark)
            elif isinstance(effect, StartStep) and effect.request.settings.inline:
                self.world.spawn(self.group, self._run_inline(effect))
            else:
                self._queue.append(effect)
                self._send.set()

    def _run_inline(self, start: StartStep) -> Process[None]:
        self.system.judge.attempt_starts(*attempt_of(start)[:3], False, self.tail.number)
        yield None
        result = self.system.execute(start)
        self.system.judge.attempt_ends(*attempt_of(start)[:3])
        self.machine.step_finished(result, self.now_ms())
        self._touch()

    # -- dispatcher ----------------------------------------------------------------------------------------------------------

    def _collect_loop(self) -> Process[None]:
        while True:
            expected = self.expected_now()
            while True:
                self._attempts_to_attach += 1
                connection = Connection(self.tail.epoch, self._attempts_to_attach)
                try:
                    lost = yield from self.system.attach(self, connection, expected).wait()
                    break
                except Disconnected:
                    yield self.world.random.random() * 600
                    expected = self.expected_again(expected)
            for attempt in lost:
                self._expected.pop(attempt, None)
                self.machine.step_lost(attempt, self.now_ms())
            self._connection, self._calls = connection, 0
            self._recorded = seen = 0
            self._touch()
            self._wake.set()
            self._send.set()
            try:
                while True:
                    collecting = self._collecting = self.system.collect(self, self._connection, self._recorded, seen)
                    results = yield from collecting.wait()
                    for number, result in results:
                        self.machine.step_finished(result, self.now_ms())
                        seen = max(seen, number)
                    taken = [attempt_of(one) for _, one in results]
                    self.taken(taken)
                    self._mark += 1
                    self._marks[self._mark] = (self._connection, seen, taken)
                    self.outbox.effect(Durable(self._mark))
                    self._touch()
            except Disconnected:
                self._connection = NOT_CONNECTED

    def expected_now(self) -> tuple[Attempt, ...]:
        """What the dispatcher should know of."""
        return tuple(self._expected)

    def expected_again(self, before: tuple[Attempt, ...]) -> tuple[Attempt, ...]:
        """The same, when an attempt to attach has failed."""
        return self.expected_now()

    def taken(self, attempts: list[Attempt]) -> None:
        """Results were handed to the machine, and are not on record yet: the dispatcher must go on holding them."""

    def _on_record(self, mark: int) -> None:
        connection, seen, taken = self._marks.pop(mark)
        for attempt in taken:
            self._expected.pop(attempt, None)
        if self.counts(connection):
            self._recorded = max(self._recorded, seen)

    def counts(self, connection: Connection) -> bool:
        """Whether numbers of results of that connection mean anything now."""
        return connection == self._connection

    def _send_loop(self) -> Process[None]:
        while True:
            yield self._send
            while self._queue and self.may_send():
                connection = self._connection
                effects, self._queue = self._queue, []
                starts = [one for one in effects if isinstance(one, StartStep)]
                stops = [attempt_of(one) for one in effects if isinstance(one, CancelStep)]
                self._expected.update((attempt_of(one), None) for one in starts)
                for attempt in stops:
                    self._expected.pop(attempt, None)
                self._calls += 1
                try:
                    yield from self.system.submit(self, connection, self._calls, starts, stops).wait()
                except Disconnected as error:
                    if self._connection == connection and self._collecting is not None:
                        self._connection = NOT_CONNECTED
                        self._collecting.fail(error)

    def may_send(self) -> bool:
        """Whether starts can go out now, rather than wait for a connection."""
        return self._connection != NOT_CONNECTED and not self._unproven()

    # -- snapshots -----------------------------------------------------------------------------------------------------------

    def _snapshot_if_due(self) -> None:
        if self._snapshot_done is not None:
            self.tail = self.tail.after_snapshot(self._snapshot_done)
            self._snapshot_done = None
        if self.tail.replay_bytes > self.system.snapshot_bytes and not self._snapshotting:
            self._snapshotting = True
            # The host's thread, not the owner's: it goes on when the shard is lost.
            self.world.spawn(self.host.group, self._snapshot())

    def _snapshot(self) -> Process[None]:
        at = self.tail
        unfiled = {execution: list(records) for execution, records in self.state.unfiled.items()}
        copy = DurableState()
        copy.live = {execution: list(records) for execution, records in self.state.live.items()}
        copy.unfiled, copy.ended = dict(unfiled), dict(self.state.ended)
        history = f"history/{self.number:03d}-{at.number:012d}-{at.incarnation}.parquet"

        def write() -> Operation[log.Snapshot]:
            if unfiled:
                with suppress(AlreadyExists):
                    yield Create(history, _encode(unfiled))
                copy.filed(unfiled, history)
            body = _encode(SnapshotBody(copy.live, copy.unfiled, copy.ended))
            return (yield from log.write_snapshot(at, body))

        try:
            self._snapshot_done = yield from steps(write(), self.system.store)
        except StoreUnavailable:
            self.world.happened["snapshot failed"] += 1
        else:
            self.world.happened["snapshot"] += 1
            self.state.filed(unfiled, history)
        self._snapshotting = False
