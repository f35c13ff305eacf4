"""One shard at work: the pure machine between the log, the dispatcher and the clients.

The order of things is the whole point: records are written, then (and only then) the effects of the same batch go out. While a
segment is being written, the next batch gathers. A write whose outcome is unknown is repeated until it is known; a write that finds
another owner's segment drops everything in memory, and nothing of it has escaped.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Coroutine, Generator, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rayflow.checkpoint import log
from rayflow.checkpoint.blobs import blob_key, get_blob, put_blob
from rayflow.checkpoint.identity import shard_prefix
from rayflow.checkpoint.recovery import state_in
from rayflow.checkpoint.requests import run
from rayflow.checkpoint.store import Store
from rayflow.checkpoint.tables import history_key, unpacked_bytes, write_history, write_snapshot
from rayflow.core.crashes import Crashes
from rayflow.core.entities import Entities
from rayflow.core.ledger import Disconnected
from rayflow.core.mail import Mail
from rayflow.core.messages import Answer, ExecutionView, Message, StepResult, Token
from rayflow.core.outbox import Batch, Effect, Outbox, Reply, StartStep
from rayflow.core.owner import Owner, Parts
from rayflow.core.records import Blob
from rayflow.core.state import DurableState
from rayflow.core.turns import Turns
from rayflow.core.workflows import Workflows
from rayflow.errors import AlreadyExists, Fenced, NotFound, StoreError, StoreUnavailable, StoreUnsuitable
from rayflow.runtime.code import StoredCode
from rayflow.runtime.heap import give_back
from rayflow.runtime.inline import InlineRunner, step_start
from rayflow.runtime.link import DispatcherLink
from rayflow.runtime.meter import ShardLevels, ShardMeter
from rayflow.runtime.project import code_name
from rayflow.runtime.thread import Thread

SNAPSHOT_BYTES = 4 * 2**20
"""A snapshot is due once recovery would replay this much log, or as much as the last snapshot holds, unpacked, if that is more: so
writing all of the state again never costs more than writing what is new did."""

WATCH_S = 10.0
"""How long an owner without anything to write goes without looking whether it is still the owner, in seconds."""

_RECONNECT_S = 0.2
_RETRY_S = (0.05, 0.2, 1.0, 5.0)

_log = logging.getLogger("rayflow.shard")


@dataclass(frozen=True, slots=True)
class ShardStatistics:
    """What a shard did since it was opened."""

    epoch: int
    segments: int
    records: int
    bytes: int
    live: int
    store_error: str
    entities: int
    """In memory."""
    steps: int
    """Attempts that run, or whose result is not on record yet."""


class Peers(Protocol):
    """The other shards of the store."""

    def shard_of(self, instance: str) -> int:
        """The shard that an execution or entity belongs to."""
        ...

    async def post(self, source: int, target: int, letters: list[tuple[int, bytes]]) -> int:
        """Have another shard take letters in; returns up to which number it has them on record. Waits while it is not there."""
        ...


class Shard:
    """An owner of one shard. ``open`` takes the log over; ``closed`` is done when the shard was lost (Fenced) or broke."""

    def __init__(
        self,
        number: int,
        store: Store,
        dispatcher: Any,
        answer: Callable[[Hashable, Answer], None],
        peers: Peers,
        turns: Turns,
        crashes: Crashes,
        meter: ShardMeter,
    ) -> None:
        self.number = number
        self._store = store
        self._link = DispatcherLink(dispatcher, number)
        self._answer = answer
        self._peers = peers
        self._posting: dict[int, asyncio.Task[None]] = {}
        self._turns = turns
        self._crashes = crashes
        self._meter = meter
        self._code = StoredCode(store)
        self._owner: Owner
        self._writer = Thread(f"rayflow-log-{number}")
        self._inline = InlineRunner(store, self._inline_finished)
        self._wake = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._send = asyncio.Event()
        self._broken = asyncio.Event()
        self._tail: log.Tail
        self._snapshot_bytes = self._snapshot_unpacked_bytes = 0
        self._snapshotting: asyncio.Task[None] | None = None
        self._snapshot_done: log.Snapshot | None = None
        self._segments = self._records = self._bytes = 0
        self._store_error = ""
        self.closed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    # -- life ----------------------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Take the log over and bring every execution back. Raises StoreError (Damaged, StoreUnavailable)."""
        incarnation, began_s = secrets.token_hex(16), time.monotonic()
        recovered = await self._writer.call(lambda: run(log.recover(shard_prefix(self.number), incarnation), self._store))
        self._tail = recovered.tail
        state = state_in(recovered.view, shard_prefix(self.number))
        if recovered.view.snapshot is not None:
            self._snapshot_bytes = len(recovered.view.snapshot)
            self._snapshot_unpacked_bytes = unpacked_bytes(recovered.view.snapshot)
        outbox = Outbox()
        mail = Mail(outbox, self.number, self._peers.shard_of, state.mail)
        workflows = Workflows(outbox, self._code, mail, self._tail.epoch, self._turns, self._crashes, code_name())
        entities = Entities(outbox, self._code, mail, state.entities, self._turns, self._crashes)
        self._owner = Owner(self._tail.epoch, Parts(workflows, entities, mail), outbox, state)
        self._owner.restore(now_ms())
        self._meter.opened(time.monotonic() - began_s)
        loops = (self._commit_loop(), self._collect_loop(), self._send_loop(), self._watch_loop())
        self._tasks = [asyncio.create_task(self._guard(work)) for work in loops]
        self._release([])
        self._touch()
        if recovered.view.snapshot is not None:
            del recovered
            await self._writer.call(give_back)

    async def close(self) -> None:
        """Stop without giving the log up in any way that matters: what is durable is durable, the rest never was."""
        tasks = [*self._tasks, *self._posting.values()]
        for task in tasks:
            task.cancel()
        if self._timer is not None:
            self._timer.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._inline.close()
        self._writer.close()
        if self._tasks:
            self._owner.machine.close()

    async def _guard(self, work: Coroutine[Any, Any, None]) -> None:
        with self._or_close():
            await work

    @contextlib.contextmanager
    def _or_close(self) -> Generator[None]:
        """What fails in here leaves the memory in doubt: then it is dropped, and the log, which is right, is opened again."""
        try:
            yield
        except Exception as error:
            if not self.closed.done():
                self.closed.set_result(error)

    # -- in ------------------------------------------------------------------------------------------------------------------

    def receive(self, messages: Sequence[tuple[Token, Message]]) -> None:
        """Messages of clients, in order; their answers come through ``answer`` once they may."""
        with self._or_close():
            now = now_ms()
            for token, message in messages:
                self._owner.receive(token, message, now)
            self._touch()

    def view(self, execution: str) -> ExecutionView | None:
        """A live execution, for display."""
        with self._or_close():
            view = self._owner.machine.view(execution, now_ms())
            self._touch()
            return view
        return None

    def statistics(self) -> ShardStatistics:
        """Counters since the shard was opened."""
        return ShardStatistics(
            epoch=self._tail.epoch,
            segments=self._segments,
            records=self._records,
            bytes=self._bytes,
            live=self._owner.machine.live_count,
            store_error=self._store_error,
            entities=len(self._owner.entities.active),
            steps=self._owner.step_count,
        )

    def levels(self) -> ShardLevels:
        """What there is now, for metrics."""
        owner, executions, entities = self._owner, self._owner.machine.executions, self._owner.entities
        suspended = executions.suspended_count()
        return ShardLevels(
            epoch=self._tail.epoch,
            running=len(executions.live) - suspended,
            resting=len(executions.passive),
            suspended=suspended,
            replay_bytes=self._tail.replay_bytes,
            snapshot_bytes=self._snapshot_bytes,
            entities=len(owner.state.entities.rows),
            entities_active=len(entities.active),
            letters=owner.letters_count,
            dead_letters=len(owner.state.entities.dead),
            replays=executions.replays,
            rested=executions.passivations,
            turns=entities.turns_run,
            activations=entities.active.activations,
            passivations=entities.active.passivations,
        )

    def _inline_finished(self, results: list[StepResult]) -> None:
        with self._or_close():
            self._owner.step_finished(results, now_ms())
            self._touch()

    def _touch(self) -> None:
        """Something happened: have the commit loop look, and set the clock for the next timer."""
        if self._owner.has_work():
            self._wake.set()
        due_ms = self._owner.next_due_ms()
        if due_ms is None:
            return
        loop = asyncio.get_running_loop()
        when_s = loop.time() + max(due_ms - now_ms(), 0) / 1000
        if self._timer is None or self._timer.cancelled() or self._timer.when() <= loop.time() or when_s < self._timer.when():
            if self._timer is not None:
                self._timer.cancel()
            self._timer = loop.call_at(when_s, self._time_passed)

    def _time_passed(self) -> None:
        self._timer = None
        with self._or_close():
            self._owner.advance(now_ms())
            self._touch()

    # -- out -----------------------------------------------------------------------------------------------------------------

    async def _commit_loop(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._owner.has_work():
                commit = self._owner.next_commit()
                if commit.write:
                    await self._write(commit.batch)
                    self._owner.written(commit)
                    self._touch()  # reminders count from here on
                self._release(commit.batch.effects)
                self._snapshot_if_due()

    async def _watch_loop(self) -> None:
        """An owner that has nothing to write would not notice that it was replaced, and its clients would wait for ever.

        So it looks at the slot that it would write next: something there can only be a successor's.
        """
        while True:
            segments = self._segments
            await asyncio.sleep(WATCH_S)
            if self._segments == segments and self._owner.machine.live_count:
                key = log.slot_key(shard_prefix(self.number), self._tail.next_number)
                with contextlib.suppress(NotFound, StoreUnavailable, StoreUnsuitable):
                    await asyncio.get_running_loop().run_in_executor(None, self._store.get, key)
                    if self._segments == segments:
                        raise Fenced(f"{key} is taken: the shard has a new owner")

    async def _write(self, batch: Batch) -> None:
        """Make a batch durable, however long it takes. Raises Fenced."""
        failures, began_s = 0, time.monotonic()
        while True:
            try:
                before = self._tail.replay_bytes
                self._tail = await self._writer.call(lambda: self._write_blocking(batch))
                break
            except (StoreUnavailable, StoreUnsuitable) as error:
                # Not known, or not possible now: the same bytes again until it is. Nothing leaves the gate meanwhile.
                self._store_error = str(error)
                self._meter.store_failed()
                pause_s = _RETRY_S[min(failures, len(_RETRY_S) - 1)]
                failures += 1
                _log.warning("shard %d cannot write (%s); trying again in %.2f s", self.number, error, pause_s)
                await asyncio.sleep(pause_s)
        self._store_error = ""
        self._segments += 1
        self._records += len(batch.records)
        self._bytes += self._tail.replay_bytes - before
        self._meter.committed(batch.records, time.monotonic() - began_s, self._tail.replay_bytes - before)

    def _write_blocking(self, batch: Batch) -> log.Tail:
        for data in batch.blobs.values():
            put_blob(self._store, data)
        return run(log.append(self._tail, batch.encoded), self._store)

    def _release(self, effects: list[Effect]) -> None:
        inline: list[StartStep] = []
        for effect in effects:
            mine = self._owner.let_go(effect)
            if isinstance(mine, Reply):
                self._answer(mine.token, mine.answer)
            elif mine is not None:
                inline.append(mine)
        if inline:
            self._inline.submit([step_start(effect) for effect in inline])
        self._send.set()
        for shard in self._owner.addressees():
            if shard not in self._posting:
                self._posting[shard] = asyncio.create_task(self._guard(self._post(shard)))

    # -- other shards --------------------------------------------------------------------------------------------------------

    def letters_arrived(self, token: Hashable, source: int, letters: list[tuple[int, bytes]]) -> None:
        """Letters of another shard; the answer comes through ``answer``."""
        with self._or_close():
            self._owner.letters_arrived(token, source, letters, now_ms())
            self._touch()

    async def _post(self, shard: int) -> None:
        """Send what there is for another shard until all of it is confirmed."""
        try:
            while letters := self._owner.letters_for(shard):
                self._owner.letters_confirmed(shard, await self._peers.post(self.number, shard, letters))
                self._touch()
        finally:
            del self._posting[shard]

    # -- steps ---------------------------------------------------------------------------------------------------------------

    async def _send_loop(self) -> None:
        while True:
            await self._send.wait()
            self._send.clear()
            while (sending := self._owner.next_sending()) is not None:
                try:
                    await self._link.send(sending)
                except Disconnected:
                    if self._owner.disconnected(sending.connection):
                        self._broken.set()

    async def _collect_loop(self) -> None:
        """Fetch results from the dispatcher; on every new connection first find out which attempts it knows nothing of."""
        while True:
            connection = self._owner.next_connection()
            self._broken.clear()
            try:
                lost = await self._link.attach(connection, self._owner.expected())
                self._owner.attached(connection, lost, now_ms())
                self._touch()
                while True:
                    await self._collect()
            except Disconnected as error:
                _log.warning("shard %d is not connected to the dispatcher (%s); connecting again", self.number, error)
                self._owner.disconnected(connection)
                await asyncio.sleep(_RECONNECT_S)

    async def _collect(self) -> None:
        owner = self._owner
        call = asyncio.ensure_future(self._link.collect(owner.connection, owner.recorded, owner.seen))
        broken = asyncio.ensure_future(self._broken.wait())
        try:
            await asyncio.wait({call, broken}, return_when=asyncio.FIRST_COMPLETED)
            if self._broken.is_set():
                raise Disconnected("a call did not get through")
            collected = call.result()
        finally:
            broken.cancel()
            call.cancel()
        for progress in collected.progress:
            owner.machine.step_progress(progress)
        for _, result in collected.results:
            if isinstance(result.result, Blob) and not self._code.has(result.result):
                await self._prefetch(result.result)
        if collected.results:
            owner.collected(collected.results, now_ms())
            self._touch()

    async def _prefetch(self, blob: Blob) -> None:
        """Have a blob in memory before the machine, which does not wait, asks for it."""
        while True:
            try:
                data = await asyncio.get_running_loop().run_in_executor(None, get_blob, self._store, blob)
            except StoreUnavailable as error:
                _log.warning("shard %d cannot read %s (%s); trying again", self.number, blob_key(blob), error)
                await asyncio.sleep(_RETRY_S[-2])
            except StoreError:
                return  # the machine meets the same error and fails the step's receiver with it
            else:
                self._code.keep(blob, data)
                return

    # -- snapshots -----------------------------------------------------------------------------------------------------------

    def _snapshot_if_due(self) -> None:
        if self._snapshot_done is not None:  # taken in between two writes only: a write in flight returns a tail of its own
            self._tail = self._tail.after_snapshot(self._snapshot_done)
            self._snapshot_done = None
        due = self._tail.replay_bytes > max(SNAPSHOT_BYTES, self._snapshot_unpacked_bytes)
        if due and (self._snapshotting is None or self._snapshotting.done()) and self._snapshot_done is None:
            self._snapshotting = asyncio.create_task(self._guard(self._snapshot()))

    async def _snapshot(self) -> None:
        """Write the state as of the last durable segment, in another thread; commits go on."""
        loop = asyncio.get_running_loop()
        at = self._tail
        live = {execution: list(records) for execution, records in self._owner.state.live.items()}
        unfiled = {execution: list(records) for execution, records in self._owner.state.unfiled.items()}
        ended = dict(self._owner.state.ended)
        entities, mail = self._owner.state.entities.frozen(), self._owner.state.mail.frozen()

        def write() -> tuple[log.Snapshot, int, int, str]:
            state = DurableState()
            # A dict of its own: what is filed leaves it while ``unfiled`` is gone through.
            state.live, state.unfiled, state.ended, state.entities, state.mail = live, dict(unfiled), ended, entities, mail
            history = ""
            if unfiled:
                file = write_history(unfiled)
                history = history_key(self.number, at.number, file)
                with contextlib.suppress(AlreadyExists):  # the same content, after an earlier try
                    self._store.create(history, file)
                state.filed(unfiled, history)
            body = write_snapshot(state)
            return run(log.write_snapshot(at, body), self._store), len(body), unpacked_bytes(body), history

        try:
            snapshot, size_bytes, unpacked, history = await loop.run_in_executor(None, write)
        except (StoreUnavailable, StoreUnsuitable) as error:
            _log.warning("shard %d could not write a snapshot (%s); the next commit tries again", self.number, error)
            return
        self._snapshot_done = snapshot
        self._snapshot_bytes, self._snapshot_unpacked_bytes = size_bytes, unpacked
        self._meter.snapshot()
        self._owner.state.filed(unfiled, history)


def now_ms() -> int:
    """Milliseconds since 1970, UTC."""
    return time.time_ns() // 1_000_000
