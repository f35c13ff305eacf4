"""An owner of a shard in a simulated system: ``rayflow.runtime.shard`` with every wait made visible.

The order of things is that of ``rayflow.core.owner``, which this drives. A snapshot is written beside a write and takes effect
between two of them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TypeVar

import msgspec

from rayflow.checkpoint import log
from rayflow.checkpoint.blobs import blob_key
from rayflow.checkpoint.identity import shard_prefix
from rayflow.checkpoint.requests import Create, Operation
from rayflow.core.entity_state import Kept
from rayflow.core.ledger import Disconnected
from rayflow.core.mail import KeptMail
from rayflow.core.messages import Message, Token, attempt_of
from rayflow.core.outbox import Batch, Effect, Reply, StartStep
from rayflow.core.owner import Commit, Owner, Parts
from rayflow.core.records import Blob, Summary
from rayflow.core.state import DurableState
from rayflow.errors import AlreadyExists, StoreUnavailable
from rayflow.testing.log_simulation import steps
from rayflow.testing.simulation_dispatcher import Results
from rayflow.testing.simulation_world import EPOCH_MS, Answer, Group, Process, Signal

if TYPE_CHECKING:
    from rayflow.testing.simulation_host import Host

T = TypeVar("T")


class SnapshotBody(msgspec.Struct, array_like=True):
    """A snapshot in a simulation: what the Parquet file holds, in a form that is quick to write."""

    live: dict[str, list[bytes]]
    unfiled: dict[str, list[bytes]]
    ended: dict[str, Summary]
    kept: list[Kept | KeptMail]


_encode = msgspec.msgpack.Encoder().encode
_decode_snapshot = msgspec.msgpack.Decoder(SnapshotBody).decode
decode_history = msgspec.msgpack.Decoder(dict[str, list[bytes]]).decode


def state_in(view: log.View) -> DurableState:
    """What a log amounts to."""
    state = DurableState()
    if view.snapshot is not None:
        body = _decode_snapshot(view.snapshot)
        state.live, state.unfiled, state.ended = body.live, body.unfiled, body.ended
        for kept in body.kept:
            if isinstance(kept, KeptMail):
                state.mail.restore(kept)
            else:
                state.entities.restore(kept)
    for segment in view.segments:
        state.extend(segment.records)
    return state


class Shard:
    """One take-over of one shard, until ``closed`` is set."""

    def __init__(self, host: Host, number: int) -> None:
        self.host = host
        self.system = host.system
        self.world = host.system.world
        self.number = number
        self.name = f"{host.name}/{number}"
        self.group = Group(self.name)
        self.owner: Owner
        self.tail: log.Tail
        self.closed = Signal(self.world)
        self.reason: Exception | None = None
        self._wake = Signal(self.world)
        self._send = Signal(self.world)
        self._timer_ms: float | None = None
        self._collecting: Answer[Results] | None = None
        self._posting: dict[int, None] = {}
        self._arriving: list[Answer[int]] = []
        self._snapshotting = False
        self._snapshot_done: log.Snapshot | None = None

    # -- life ----------------------------------------------------------------------------------------------------------------

    def live(self) -> Process[None]:
        """Take the log over and start working."""
        incarnation = self.world.name("i")
        try:
            recovered = yield from steps(log.recover(shard_prefix(self.number), incarnation), self.system.store)
            self.tail = recovered.tail
            self.world.log(self.name, f"owns epoch {self.tail.epoch} as {incarnation} from slot {self.tail.next_number}")
            parts, code = self.system.parts, self.system.code
            outbox = parts.outbox()
            state = state_in(recovered.view)
            mail = parts.mail(outbox, self.number, self.system.shard_of, state.mail)
            machine = parts.machine(outbox, code, mail, self.tail.epoch)
            entities = parts.entities(outbox, code, mail, state.entities, crashes=parts.crashes(self))
            self.owner = parts.owner(self.tail.epoch, Parts(machine, entities, mail), outbox, state)
            self.owner.restore(self.now_ms())
        except Exception as error:
            self.close(error)
            return
        for work in (self._commit_loop(), self._collect_loop(), self._send_loop()):
            self.world.spawn(self.group, self._guard(work))
        self.host.opened(self)
        self._post_letters()
        self._touch()

    def close(self, reason: Exception) -> None:
        """Stop; what is durable is durable, the rest never was."""
        if self.group.alive:
            self.reason = reason
            self.world.log(self.name, f"closed: {type(reason).__name__}")
            self.world.kill(self.group)
            for confirmed in self._arriving:
                confirmed.fail(Disconnected(f"{self.name} is closed"))
            self.closed.set()

    def _guard(self, work: Process[None]) -> Process[None]:
        with self._or_close():
            yield from work

    @contextmanager
    def _or_close(self) -> Generator[None]:
        try:
            yield
        except Exception as error:
            self.close(error)

    def now_ms(self) -> int:
        """The host's clock, which is not quite like that of others."""
        return EPOCH_MS + int(self.world.now_ms) + self.host.skew_ms

    # -- in ------------------------------------------------------------------------------------------------------------------

    def receive(self, token: Token, message: Message) -> None:
        """A client's message."""
        with self._or_close():
            self.owner.receive(token, message, self.now_ms())
            self._touch()

    def letters_arrived(self, token: Answer[int], source: int, letters: list[tuple[int, bytes]]) -> None:
        """Letters of another shard; ``token`` gets up to which number they are on record, or fails."""
        if not self.group.alive:
            token.fail(Disconnected(f"{self.name} is closed"))
            return
        self._arriving.append(token)
        with self._or_close():
            self.owner.letters_arrived(token, source, letters, self.now_ms())
            self._touch()

    def _touch(self) -> None:
        if self.owner.has_work():
            self._wake.set()
        due_ms = self.owner.next_due_ms()
        if due_ms is None:
            return
        when_ms = self.world.now_ms + max(due_ms - self.now_ms(), 0)
        if self._timer_ms is None or self._timer_ms <= self.world.now_ms or when_ms < self._timer_ms:
            self._timer_ms = when_ms
            self.world.after(when_ms - self.world.now_ms, self.group, self._time_passed)

    def _time_passed(self) -> None:
        self._timer_ms = None
        with self._or_close():
            self.owner.advance(self.now_ms())
            self.world.happened["rested"] += self.owner.machine.passive_count > 0
            self._touch()

    # -- out -----------------------------------------------------------------------------------------------------------------

    def _commit_loop(self) -> Process[None]:
        while True:
            yield self._wake
            while self.owner.has_work():
                yield from self.commit(self.owner.next_commit())
                self._snapshot_if_due()

    def commit(self, commit: Commit) -> Process[None]:
        """Records first, then effects."""
        yield from self.write(commit)
        yield from self.release(commit.batch.effects)

    def write(self, commit: Commit) -> Process[None]:
        """Make a commit durable, if it is to be written, however long it takes. Raises Fenced."""
        if commit.write:
            yield from self.make_durable(commit.batch)
            self.owner.written(commit)
            self._touch()
            self.system.judge.acknowledge(commit.batch.records, commit.batch.encoded)
            self._send.set()

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

    def release(self, effects: list[Effect]) -> Process[None]:
        """Let effects go; it may end before each of them."""
        for effect in effects:
            if self.world.disturbed and self.world.random.random() < 0.3:
                yield None
            mine = self.owner.let_go(effect)
            if isinstance(mine, Reply):
                self.host.answer(mine.token, mine.answer)
            elif mine is not None:
                self.world.spawn(self.group, self._run_inline(mine))
            self._send.set()
        self._post_letters()

    # -- other shards --------------------------------------------------------------------------------------------------------

    def _post_letters(self) -> None:
        for shard in self.owner.addressees():
            if shard not in self._posting:
                self._posting[shard] = None
                self.world.spawn(self.group, self._guard(self._post(shard)))

    def _post(self, shard: int) -> Process[None]:
        """Send what there is for another shard until all of it is confirmed."""
        while letters := self.owner.letters_for(shard):
            number = yield from self.host.post(self.number, shard, letters)
            self.owner.letters_confirmed(shard, number)
            self._touch()
        del self._posting[shard]

    # -- steps ---------------------------------------------------------------------------------------------------------------

    def _run_inline(self, start: StartStep) -> Process[None]:
        self.system.judge.attempt_starts(attempt_of(start), False, self.tail.number)
        yield None
        result = self.system.execute(start)
        self.system.judge.attempt_ends(attempt_of(start))
        self.owner.step_finished([result], self.now_ms())
        self._touch()

    def _collect_loop(self) -> Process[None]:
        owner = self.owner
        while True:
            connection = owner.next_connection()
            try:
                lost = yield from self.system.attach(self, connection, owner.expected()).wait()
                owner.attached(connection, lost, self.now_ms())
                self._touch()
                self._send.set()
                while True:
                    self._collecting = self.system.collect(self, owner.connection, owner.recorded, owner.seen)
                    results = yield from self._collecting.wait()
                    owner.collected(results, self.now_ms())
                    self._touch()
            except Disconnected:
                owner.disconnected(connection)
                yield self.world.random.random() * 600

    def _send_loop(self) -> Process[None]:
        while True:
            yield self._send
            while (sending := self.owner.next_sending()) is not None:
                try:
                    yield from self.system.submit(self, sending).wait()
                except Disconnected as error:
                    if self.owner.disconnected(sending.connection) and self._collecting is not None:
                        self._collecting.fail(error)

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
        unfiled = {execution: list(records) for execution, records in self.owner.state.unfiled.items()}
        copy = DurableState()
        copy.live = {execution: list(records) for execution, records in self.owner.state.live.items()}
        copy.unfiled, copy.ended = dict(unfiled), dict(self.owner.state.ended)
        copy.entities, copy.mail = self.owner.state.entities.frozen(), self.owner.state.mail.frozen()
        history = f"history/{self.number:03d}-{at.number:012d}-{at.incarnation}.parquet"

        def write() -> Operation[log.Snapshot]:
            if unfiled:
                with suppress(AlreadyExists):
                    yield Create(history, _encode(unfiled))
                copy.filed(unfiled, history)
            body = _encode(SnapshotBody(copy.live, copy.unfiled, copy.ended, self.kept(copy)))
            return (yield from log.write_snapshot(at, body))

        try:
            self._snapshot_done = yield from steps(write(), self.system.store)
        except StoreUnavailable:
            self.world.happened["snapshot failed"] += 1
        else:
            self.world.happened["snapshot"] += 1
            self.owner.state.filed(unfiled, history)
        self._snapshotting = False

    def kept(self, state: DurableState) -> list[Kept | KeptMail]:
        """What a snapshot has of entities and letters."""
        return [*state.entities.kept(), *state.mail.kept()]
