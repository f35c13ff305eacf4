"""One shard at work: the pure machine between the log, the dispatcher and the clients.

The order of things is the whole point: records are written, then (and only then) the effects of the same batch go out. While a
segment is being written, the next batch gathers. A write whose outcome is unknown is repeated until it is known; a write that finds
another owner's segment drops everything in memory, and nothing of it has escaped.

All that it reaches is in ``rayflow.runtime.ports``: the same shard runs on a cluster, in the simulator and in tests of workflows.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Generator, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from rayflow.checkpoint import log
from rayflow.checkpoint.blobs import write_blob
from rayflow.checkpoint.identity import shard_prefix
from rayflow.checkpoint.recovery import state_in
from rayflow.checkpoint.requests import Get, Operation
from rayflow.core import limits
from rayflow.core.ledger import Connection, Disconnected
from rayflow.core.messages import Attempt, ExecutionView, Message, StepResult, Token
from rayflow.core.outbox import Batch, Effect, Reply, StartStep
from rayflow.core.owner import Commit, Owner, Parts
from rayflow.core.records import Blob
from rayflow.core.state import DurableState
from rayflow.errors import Fenced, NotFound, StoreUnavailable, StoreUnsuitable
from rayflow.runtime.intake import Intake
from rayflow.runtime.ports import ShardLevels, ShardPorts, token
from rayflow.runtime.snapshots import Snapshots

T = TypeVar("T")

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


class Shard:
    """An owner of one shard. ``open`` takes the log over; ``closed`` is done when the shard was lost (Fenced) or broke."""

    def __init__(self, number: int, ports: ShardPorts) -> None:
        self.snapshots = Snapshots
        self.number = number
        self._ports = ports
        self._store = ports.store
        self._prefix = shard_prefix(number)
        self._owner: Owner
        self._intake = Intake(number, ports, self._touch)
        self._reading: asyncio.Task[None] | None = None
        self._inline = ports.inline(self._inline_finished)
        self._wake = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._advancing = False
        """Whether what is due has its place in the intake."""
        self._tasks: list[asyncio.Task[None]] = []
        self._posting: dict[int, asyncio.Task[None]] = {}
        self._send = asyncio.Event()
        self._broken = asyncio.Event()
        self._tail: log.Tail
        self._snapshots: Snapshots
        self._snapshotting: asyncio.Task[None] | None = None
        self._committing = False
        self._asked: set[Hashable] = set()
        """The messages of clients that are not answered."""
        self._segments = self._records = self._bytes = 0
        self._store_error = ""
        self._asker: Token | None = None
        """Whose request is being handled."""
        self.failed_over: tuple[Token, str] | None = None
        """The request, and the error, that broke it; none where it was not a request's fault."""
        self.closed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    # -- life ----------------------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Take the log over and bring every execution back. Raises StoreError (Damaged, StoreUnavailable)."""
        ports, began_s = self._ports, self._ports.monotonic_s()
        self._tail, state = await self._store.write(self._take_over(token(ports.dice)))
        machines = ports.machines
        outbox = machines.outbox()
        mail = machines.mail(outbox, self.number, ports.peers.shard_of, state.mail)
        code, epoch = ports.code, self._tail.epoch
        workflows = machines.workflows(outbox, code, mail, epoch, ports.turns, ports.crashes, ports.code_name)
        entities = machines.entities(outbox, code, mail, state.entities, ports.turns, ports.crashes)
        intake = self._intake
        self._owner = intake.owner = machines.owner(epoch, Parts(workflows, entities, mail, intake.at_hand), outbox, state)
        for reads in self._owner.restoring(ports.now_ms()):
            intake.let_go()
            if wanted := {blob.hash: blob for blob in reads if not intake.at_hand(blob)}:
                await intake.read(list(wanted.values()))
        intake.let_go()
        ports.meter.opened(ports.monotonic_s() - began_s)
        loops = (self._commit_loop, self._collect_loop, self._send_loop, self._watch_loop)
        self._tasks = [asyncio.create_task(self._guard(work)) for work in loops]
        self._release([])
        self._touch()

    def _take_over(self, incarnation: str) -> Operation[tuple[log.Tail, DurableState]]:
        recovered = yield from log.recover(self._prefix, incarnation)
        state = state_in(recovered.view, self._prefix, self._ports.tables.read_snapshot)
        self._snapshots = self.snapshots(self.number, self._ports, state, recovered.view)
        tail, large = recovered.tail, recovered.view.snapshot is not None
        del recovered
        if large:
            self._ports.after_recovery()
        return tail, state

    async def close(self) -> None:
        """Stop without giving the log up in any way that matters: what is durable is durable, the rest never was."""
        tasks = [*self._tasks, *self._posting.values(), *filter(None, (self._reading, self._snapshotting))]
        for task in tasks:
            task.cancel()
        if self._timer is not None:
            self._timer.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._inline.close()
        self._store.close()
        self.drop()

    def drop(self) -> None:
        """End the code of all executions that are in memory."""
        if self._tasks:
            self._owner.machine.close()

    async def _guard(self, work: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
        with self._or_close():
            await work(*args)

    @contextlib.contextmanager
    def _or_close(self) -> Generator[None]:
        """What fails in here leaves the memory in doubt: then it is dropped, and the log, which is right, is opened again.

        Nothing of it is committed any more: what has gathered may be the half of something.
        """
        try:
            yield
        except Exception as error:
            if not self.closed.done():
                if self._asker is not None and not isinstance(error, StoreUnavailable):  # which is nobody's fault
                    self.failed_over = (self._asker, f"{type(error).__name__}: {error}")
                self.closed.set_result(error)

    # -- in ------------------------------------------------------------------------------------------------------------------

    def receive(self, messages: Sequence[tuple[Token, Message]]) -> None:
        """Messages of clients, in order; their answers come through ``answer`` once they may."""
        if self.closed.done():
            return  # what was not answered comes again
        owner, intake = self._owner, self._intake
        self._asked.update(_name(token) for token, _ in messages)
        with self._or_close():
            now_ms = self._ports.now_ms()
            for token, message in messages:
                self._asker = token
                if intake.busy or owner.wanted(message):
                    intake.put(partial(self._wanted, token, message), partial(self._receive, token, message))
                else:
                    owner.receive(token, message, now_ms)
            self._asker = None
            self._changed()

    def _wanted(self, token: Token, message: Message) -> Sequence[Blob]:
        self._asker = token
        wanted = self._owner.wanted(message)
        self._asker = None
        return wanted

    def _receive(self, token: Token, message: Message) -> None:
        self._asker = token
        self._owner.receive(token, message, self._ports.now_ms())
        self._asker = None

    async def view(self, execution: str) -> ExecutionView | None:
        """A live execution, for display."""
        look = self._happen(partial(self._owner.wanted_to_view, execution), partial(self._look, execution))
        await asyncio.wait({look, self.closed}, return_when=asyncio.FIRST_COMPLETED)
        return look.result() if look.done() else None

    def _look(self, execution: str) -> ExecutionView | None:
        return self._owner.machine.view(execution, self._ports.now_ms())

    def _happen(self, wanted: Callable[[], Sequence[Blob]], happen: Callable[[], T]) -> asyncio.Future[T]:
        """Have something happen, once what it is going to read is in memory; never, where the shard is closed before."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        if not self.closed.done():
            with self._or_close():
                self._intake.take(wanted, lambda: future.set_result(happen()))
                self._changed()
        return future

    @property
    def idle(self) -> bool:
        """Whether nothing will happen before somebody asks for something: all is durable, no step runs, nothing is due."""
        owner = self._owner
        waits = owner.has_work() or owner.next_due_ms() is not None or bool(owner.machine.running_steps())
        return not (self._committing or self._snapshots.busy or self._intake.busy or waits)

    @property
    def last_slot(self) -> int:
        """The number of the last slot of the log that is known to be durable."""
        return self._tail.number

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
            snapshot_bytes=self._snapshots.size_bytes,
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
        self._happen(
            partial(self._owner.wanted_by_results, results), lambda: self._owner.step_finished(results, self._ports.now_ms())
        )

    def _changed(self) -> None:
        """Something happened, or waits for values that have to be read."""
        self._touch()
        if self._intake.busy and (self._reading is None or self._reading.done()):
            self._reading = asyncio.create_task(self._guard(self._intake.work))

    def _touch(self) -> None:
        """Something happened: have the commit loop look, and set the clock for the next timer."""
        if self._owner.has_work():
            self._wake.set()
        due_ms = self._owner.next_due_ms()
        if due_ms is None or self._advancing:
            return
        loop = asyncio.get_running_loop()
        when_s = loop.time() + max(due_ms - self._ports.now_ms(), 0) / 1000
        if self._timer is None or when_s < self._timer.when() > loop.time():  # what is due comes up, and is not put off again
            if self._timer is not None:
                self._timer.cancel()
            self._timer = loop.call_at(when_s, self._time_passed)

    def _time_passed(self) -> None:
        """What is due by the time that its turn comes is fixed then: while its values are read more becomes due, on and on."""
        self._timer, self._advancing = None, True
        now_ms = 0

        def wanted() -> list[Blob]:
            nonlocal now_ms
            now_ms = now_ms or self._ports.now_ms()
            return self._owner.wanted_when_due(now_ms)

        def happen() -> None:
            self._advancing = False
            self._owner.advance(now_ms or self._ports.now_ms())

        self._happen(wanted, happen)

    # -- out -----------------------------------------------------------------------------------------------------------------

    async def _commit_loop(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._owner.has_work() and self._may_commit():
                self._committing = True
                await self._commit(self._owner.next_commit())
                self._committing = False
                self._tail = self._snapshots.taken_in(self._tail)
                if self._snapshots.due(self._tail):
                    self._snapshotting = asyncio.create_task(self._guard(self._snapshots.write, lambda: self._tail))

    def _may_commit(self) -> bool:
        """Whether what has gathered is whole: after an error it may be the half of something."""
        return not self.closed.done()

    async def _commit(self, commit: Commit) -> None:
        """Records first, then effects."""
        await self._make_durable(commit)
        self._release(commit.batch.effects)

    async def _make_durable(self, commit: Commit) -> None:
        if commit.write:
            await self._write(commit.batch)
            self._owner.written(commit)
            self._touch()  # reminders count from here on

    async def _watch_loop(self) -> None:
        """An owner that has nothing to write would not notice that it was replaced, and its clients would wait for ever.

        So it looks at the slot that it would write next: something there can only be a successor's.
        """
        while True:
            segments = self._segments
            await asyncio.sleep(limits.current().owner_look_s)
            if self._segments == segments and (self._owner.machine.live_count or self._asked):
                key = log.slot_key(self._prefix, self._tail.next_number)
                with contextlib.suppress(NotFound, StoreUnavailable, StoreUnsuitable):
                    await self._store.run(_get(key))
                    if self._segments == segments:
                        raise Fenced(f"{key} is taken: the shard has a new owner")

    async def _write(self, batch: Batch) -> None:
        """Make a batch durable, however long it takes. Raises Fenced."""
        ports, failures, began_s = self._ports, 0, self._ports.monotonic_s()
        while True:
            try:
                before = self._tail.replay_bytes
                self._tail = await self._store.write(self._writing(batch))
                break
            except (StoreUnavailable, StoreUnsuitable) as error:
                # Not known, or not possible now: the same bytes again until it is. Nothing leaves the gate meanwhile.
                self._store_error = str(error)
                ports.meter.store_failed()
                pause_s = _RETRY_S[min(failures, len(_RETRY_S) - 1)]
                failures += 1
                _log.warning("shard %d cannot write (%s); trying again in %.2f s", self.number, error, pause_s)
                await asyncio.sleep(pause_s)
        self._store_error = ""
        self._segments += 1
        self._records += len(batch.records)
        self._bytes += self._tail.replay_bytes - before
        self._snapshots.committed(len(batch.records))
        ports.meter.committed(batch, ports.monotonic_s() - began_s, self._tail.replay_bytes - before)

    def _writing(self, batch: Batch) -> Operation[log.Tail]:
        """Large values first, then the records that name them."""
        yield from self._write_values(batch)
        return (yield from self._write_records(batch))

    def _write_values(self, batch: Batch) -> Operation[None]:
        for data in batch.blobs.values():
            yield from write_blob(data)

    def _write_records(self, batch: Batch) -> Operation[log.Tail]:
        return (yield from log.append(self._tail, batch.encoded))

    def _release(self, effects: list[Effect]) -> None:
        inline: list[StartStep] = []
        for effect in effects:
            mine = self._owner.let_go(effect)
            if isinstance(mine, Reply):
                self._asked.discard(_name(mine.token))
                self._ports.answer(mine.token, mine.answer)
            elif mine is not None:
                inline.append(mine)
        if inline:
            self._inline.submit(inline)
        self._send.set()
        for shard in self._owner.addressees():
            if shard not in self._posting:
                self._posting[shard] = asyncio.create_task(self._guard(self._post, shard))

    # -- other shards --------------------------------------------------------------------------------------------------------

    def letters_arrived(self, token: Hashable, source: int, letters: list[tuple[int, bytes]]) -> None:
        """Letters of another shard; the answer comes through ``answer``."""
        self._happen(
            partial(self._owner.wanted_by_letters, source, letters),
            lambda: self._owner.letters_arrived(token, source, letters, self._ports.now_ms()),
        )

    async def _post(self, shard: int) -> None:
        """Send what there is for another shard until all of it is confirmed."""
        try:
            while letters := self._owner.letters_for(shard):
                self._owner.letters_confirmed(shard, await self._ports.peers.post(self.number, shard, letters))
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
                    await self._ports.link.send(sending)
                except Disconnected:
                    if self._owner.disconnected(sending.connection):
                        self._broken.set()

    async def _collect_loop(self) -> None:
        """Fetch results from the dispatcher; on every new connection first find out which attempts it knows nothing of."""
        while True:
            connection = self._owner.next_connection()
            self._broken.clear()
            try:
                lost = await self._ports.link.attach(connection, self._owner.expected())
                await self._happen(list, partial(self._attached, connection, lost))
                while True:
                    await self._collect()
            except Disconnected as error:
                _log.warning("shard %d is not connected to the dispatcher (%s); connecting again", self.number, error)
                self._owner.disconnected(connection)
                await asyncio.sleep(_RECONNECT_S)

    def _attached(self, connection: Connection, lost: list[Attempt]) -> None:
        self._owner.attached(connection, lost, self._ports.now_ms())

    async def _collect(self) -> None:
        owner = self._owner
        call = asyncio.ensure_future(self._ports.link.collect(owner.connection, owner.recorded, owner.seen))
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
        if collected.waiting:
            self._ports.peers.steps_waiting(collected.waiting)
        results = collected.results
        if results:
            wanted = partial(owner.wanted_by_results, [result for _, result in results])
            await self._happen(wanted, lambda: owner.collected(results, self._ports.now_ms()))


def _name(token: Hashable) -> Hashable:
    """The same where a message comes again."""
    return token[:2] if isinstance(token, Token) else token


def _get(key: str) -> Operation[bytes]:
    return (yield Get(key))
