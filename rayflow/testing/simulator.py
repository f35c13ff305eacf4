"""The whole system in one thread, under a virtual clock, from one seed: what proves the guarantees.

Owners of shards, a dispatcher, clients and a store that behaves as badly as it may; processes crash and stall at every point, an
owner comes back after its successor has written, snapshotted and truncated, messages are lost, late, repeated and overtaken. The
machines, the log, and the shells around them are those that ship: shards, hosts, sessions, couriers and lanes run unchanged, on
loops and ports of a simulated world. Limits are so low that what is rare in real life is common: snapshots after a few records,
clients that are forgotten, executions and entities that leave memory, shards that move between hosts. Every run is judged by the
properties of ``simulation_judge``, and each rule that they rest on is shown to be needed by a variant without it: see
``simulation_variants``.

    python -m rayflow.testing.simulator 1000                 # a table: runs with violations, by variant and property
    python -m rayflow.testing.simulator --replay --first 17  # what happened in the run of that seed
"""

from __future__ import annotations

import logging
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import Any, TypeVar

from rayflow.checkpoint import log
from rayflow.checkpoint.blobs import blob_key
from rayflow.checkpoint.identity import shard_prefix
from rayflow.checkpoint.recovery import state_in
from rayflow.checkpoint.tables import read_histories
from rayflow.core import activations, codec, limits
from rayflow.core.code_reference import resolve
from rayflow.core.definitions import Workflow
from rayflow.core.entities import Entities
from rayflow.core.failures import describe_error
from rayflow.core.ledger import Disconnected, Ledger
from rayflow.core.mail import Mail
from rayflow.core.messages import CancelExecution, StartExecution, StepResult
from rayflow.core.outbox import Outbox, StartStep
from rayflow.core.owner import Owner
from rayflow.core.passing import joined
from rayflow.core.records import Blob, Cause, Finished, Function, Started, Status, Usage, digest
from rayflow.core.state import DurableState
from rayflow.core.workflows import Workflows
from rayflow.errors import Damaged, ExecutionFailed, NotFound
from rayflow.runtime.code import StoredCode
from rayflow.runtime.courier import Courier
from rayflow.runtime.hosting import Host
from rayflow.runtime.lane import HostUnreachable
from rayflow.runtime.placement import Placement
from rayflow.runtime.ports import Tables
from rayflow.runtime.shard import Shard
from rayflow.runtime.snapshots import Snapshots
from rayflow.testing.log_simulation import Faults, SimulatedStore, steps
from rayflow.testing.simulated_loop import ProcessLoop
from rayflow.testing.simulation_clients import ClientProcess, Refusable, Replacer, Starter
from rayflow.testing.simulation_correspondents import Auditor, Correspondent, Undertaker, correspond
from rayflow.testing.simulation_crashes import CrashNotes, Notes
from rayflow.testing.simulation_dispatcher import BLOB_OVER_BYTES, DispatcherProcess
from rayflow.testing.simulation_entity_judge import GRACE_MS
from rayflow.testing.simulation_host import HostProcess, JudgedKeeper
from rayflow.testing.simulation_judge import DAMAGE, LOST, OUTCOME, UNFINISHED, Judge
from rayflow.testing.simulation_ports import QUICK_TABLES, SimulatedBlobs, decode_history
from rayflow.testing.simulation_workload import ATTEMPT, draw, draw_with_entities
from rayflow.testing.simulation_world import EPOCH_MS, Answer, Group, Process, World
from rayflow.testing.virtual import run_workflow

T = TypeVar("T")

WORKLOADS = ("workflows", "workflows", "entities", "entities", "both")
"""What a run is made of, and how often."""

PARQUET_EVERY = 16
"""Every so-manieth seed writes its snapshots and histories as the runtime does."""

PATIENCE_MS = 180_000
"""Virtual time after the disturbance in which everything must come to its end."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What a system is made of, and what is done with it; variants replace some. ``workload``: one of WORKLOADS, "" for any."""

    shard: type[Shard] = Shard
    snapshots: type[Snapshots] = Snapshots
    keeper: type[JudgedKeeper] = JudgedKeeper
    courier: type[Courier] = Courier
    owner: type[Owner] = Owner
    ledger: type[Ledger] = Ledger
    machine: type[Workflows] = Workflows
    entities: type[Entities] = Entities
    mail: type[Mail] = Mail
    crashes: type[CrashNotes] = CrashNotes
    outbox: type[Outbox] = Outbox
    host: type[Host] = Host
    correspondent: type[Correspondent] = Correspondent
    workload: str = ""


class System:
    """One run."""

    def __init__(self, seed: int, parts: Parts, trace: Callable[[str], None] | None = None) -> None:
        self.world = World(seed, trace)
        self.random = self.world.random
        self.parts = parts
        self.judge = Judge(self.world)
        self.store = SimulatedStore(self.random, Faults(), self.judge.created)
        self.blobs = SimulatedBlobs(self.store.objects)
        self.code = self.judge.entities.traces.code = StoredCode(self.blobs)
        self.tables = Tables() if seed % PARQUET_EVERY == 0 else QUICK_TABLES
        self._dice = Random(f"entities of {seed}")
        """For what there is to do with entities; runs without are the same, whatever that is."""
        self.workload = parts.workload or self._dice.choice(WORKLOADS)
        self.shards = self.random.choice((1, 1, 2))
        if self.workload != "workflows":
            self.shards = self._dice.choice((1, 2, 2, 3))
        self._mishap_odds = self.random.choice((0.0, 0.0005, 0.002))
        self._crash_share = self.random.choice((0.0, 0.5, 1.0))
        self._calm_ms = self.random.choice((300, 900))
        self.skew_ms = min(500, limits.current().sender_window_ms // 30)
        """How far a clock may be off; two owners' may differ by a twelfth of the window, see ``rayflow.core.answers``."""
        self.clients: dict[str, ClientProcess] = {}
        self.accepted: dict[str, None] = {}
        self.cancelled: set[str] = set()
        """Executions that somebody asks to cancel."""
        self.awaited = 0
        """Outcomes that clients do not know yet."""
        self.crash_notes: defaultdict[int, Notes] = defaultdict(Notes)
        """By shard."""
        self.explosions: Counter[str] = Counter()
        """How often a message, or the code of a workflow, has killed a process, by its tag."""
        self.hosts: list[HostProcess] = []
        self.roles = self._dice.choice((("home",), ("home", "second")))
        """The names of hosts."""
        self._placements = 0
        self.placement = self._place()
        self.fate = Group("fate")
        self.dispatchers = [DispatcherProcess(self)]
        """The last one is the one that there is, if it lives."""
        self._orders: dict[tuple[str, str], tuple[Workflow[..., Any], tuple[Any, ...]]] = {}
        """What was ever asked for, by name and fingerprint of the arguments."""
        if self.workload != "entities":
            self._order()
        if self.workload != "workflows":
            self._order_entities()
        for role in self.roles:
            self.hosts.append(HostProcess(self, role))

    @property
    def dispatcher(self) -> DispatcherProcess:
        return self.dispatchers[-1]

    def shard_of(self, execution: str) -> int:
        return zlib.crc32(execution.encode()) % self.shards

    # -- what is done --------------------------------------------------------------------------------------------------------

    def _order(self) -> None:
        """Clients that start the same executions, use an id for something else or again, and do not know how to start."""
        messages = [self._start(self.world.name("e"), *draw(self.random)) for _ in range(self.random.randint(1, 4))]
        first = Starter(self, messages, 200)
        Starter(self, [message for message in messages if self.random.random() < 0.7], 3000)
        if self.random.random() < 0.2:
            unwanted = CancelExecution(self.random.choice(messages).execution, "not wanted any more")
            self.cancelled.add(unwanted.execution)
            first.ask_within(2000, unwanted)
        stolen = self.random.choice(messages)
        workflow, args = self._ordered(stolen.workflow, stolen.fingerprint)
        impostor = self._start(stolen.execution, workflow, tuple(9 for _ in args))
        self.world.after(self.random.random() * 4000, self.fate, lambda: self._pretend(impostor))
        if self.random.random() < 0.4:
            execution = self.world.name("e")
            Replacer(self, self._start(execution, *draw(self.random)), self._start(execution, *draw(self.random)))
        if self.random.random() < 0.2:
            workflow, args = draw(self.random)
            unfit = self._start(self.world.name("e"), workflow, (*args, "one too many"))
            self.judge.unfit.append(unfit)
            Refusable(self, unfit, 4000)

    def _order_entities(self) -> None:
        """Clients that write to entities, and workflows that do."""
        addresses = correspond(self, self._dice)
        count = self._dice.choice((0, 1, 2, 3))
        if not count:
            return
        messages = [self._start(self.world.name("e"), *draw_with_entities(self._dice, addresses)) for _ in range(count)]
        starter = Starter(self, messages, self._dice.choice((200, 2000)))
        if self._dice.random() < 0.2:
            unwanted = CancelExecution(self._dice.choice(messages).execution, "not wanted any more")
            self.cancelled.add(unwanted.execution)
            starter.ask_within(2000, unwanted)
        if self._dice.random() < 0.2:
            execution = self.world.name("e")
            first, second = (self._start(execution, *draw_with_entities(self._dice, addresses)) for _ in range(2))
            Replacer(self, first, second)

    def _start(self, execution: str, workflow: Workflow[..., Any], args: tuple[Any, ...]) -> StartExecution:
        no_kwargs: dict[str, Any] = {}
        data, fingerprint = codec.encode_with_fingerprint((args, no_kwargs))
        function = self.code.describe(workflow)
        self._orders[function.name, fingerprint] = (workflow, args)
        return StartExecution(execution, function, workflow.version, data, fingerprint, self.random.getrandbits(63))

    def _ordered(self, workflow: Function, fingerprint: str) -> tuple[Workflow[..., Any], tuple[Any, ...]]:
        return self._orders[workflow.name, fingerprint]

    def _pretend(self, impostor: StartExecution) -> None:
        if impostor.execution in self.accepted:
            Refusable(self, impostor, 200)
        elif self.world.disturbed:
            self.world.after(500, self.fate, lambda: self._pretend(impostor))

    def execute(self, start: StartStep) -> StepResult:
        """Run a step's function."""
        attempt = (start.execution, start.request.operation, start.attempt)
        function: Any = resolve(start.request.function.name)
        args, kwargs = joined(start.arguments, start.shared, start.passed, self.code.decode)
        usage = Usage(EPOCH_MS + int(self.world.now_ms), EPOCH_MS + int(self.world.now_ms))
        token = ATTEMPT.set(start.attempt)
        try:
            data = codec.encode(function(*args, **kwargs))
        except Exception as error:
            failure = describe_error(error)
            return StepResult(*attempt, cause=Cause.ERROR, failure=failure, usage=usage, run=start.run)
        finally:
            ATTEMPT.reset(token)
        if len(data) > BLOB_OVER_BYTES:
            blob = Blob(digest(data), len(data))
            self.store.objects.setdefault(blob_key(blob), data)  # the worker has written it, and never lists it
            return StepResult(*attempt, result=blob, usage=usage, run=start.run)
        return StepResult(*attempt, result=data, usage=usage, run=start.run)

    # -- hosts ---------------------------------------------------------------------------------------------------------------

    def find_host(self, role: str) -> HostProcess | None:
        """A host of that name as somebody finds it: now and then one that was replaced."""
        hosts = [host for host in self.hosts if host.role == role and host.group.alive]
        if not hosts:
            return None
        return self.random.choice(hosts) if self.world.disturbed and self.random.random() < 0.3 else hosts[-1]

    async def call_host(self, loop: ProcessLoop, target: HostProcess, work: Callable[[Host], Any], *, once: bool = False) -> Any:
        """Have a host do something, see ``World.call``. Raises HostUnreachable, also where it does not answer for long."""
        world = self.world
        answer: Answer[Any] = world.call(loop.group, target.group, lambda reply: target.serve(work, reply), once=once)
        patience_ms = 1000 * limits.current().poll_s + 1000 + world.random.choice((3000, 30_000)) * world.random.random()
        if world.disturbed:  # else nothing ends a connection to a host that lives, however long it takes to answer
            world.after(patience_ms, loop.group, lambda: answer.fail(Disconnected("no answer for long")))
        try:
            return await loop.future_of(answer)
        except Disconnected as error:
            raise HostUnreachable(str(error)) from error

    def is_newest(self, host: HostProcess) -> bool:
        """Whether this is the process that counts of those with its name."""
        return next(one for one in reversed(self.hosts) if one.role == host.role) is host

    def _place(self) -> Placement:
        self._placements += 1
        return Placement("placing", self._placements, tuple(self._dice.choice(self.roles) for _ in range(self.shards)))

    def _move_shards(self) -> None:
        self.world.happened["shards moved"] += 1
        self.placement = placement = self._place()
        self.world.log("world", f"shards are at {placement.hosts}")
        for host in self.hosts:
            if host.group.alive:
                self.world.send(host.group, lambda host=host: host.assign(placement))

    # -- what goes wrong -----------------------------------------------------------------------------------------------------

    def _mishap(self, group: Group) -> None:
        """Something happens to the host or dispatcher whose step is next, right there."""
        if group is self.dispatcher.group:
            if self.random.random() < self._crash_share:
                self.crash_dispatcher()
            else:
                self._stall("dispatcher", group)
            return
        host = next((one for one in self.hosts if one.group is group), None)
        if host is None:
            return
        if self.random.random() < self._crash_share:
            self.crash(host)
        else:
            self.stall(host)

    def crash(self, host: HostProcess) -> None:
        self.world.happened["host crashed"] += 1
        self.world.log(host.name, "CRASHES")
        host.crash()
        if self.is_newest(host):
            self.world.after(self.random.random() * 800, self.fate, lambda: self.replace(host.role))

    def stall(self, host: HostProcess) -> None:
        self.world.happened["host stalled"] += 1
        self.world.log(host.name, "STALLS")
        host.group.frozen = True
        if self.is_newest(host):
            self.world.after(self.random.random() * 800, self.fate, lambda: self.replace(host.role))

        def thaw() -> None:
            if host.group.alive:
                self.world.log(host.name, "GOES ON")
                host.thaw()
                if self.world.disturbed and self.random.random() < 0.4:
                    self.crash_dispatcher()

        self.world.after(self.random.choice((300, 2000, 8000)) * self.random.random(), self.fate, thaw)

    def replace(self, role: str) -> None:
        self.hosts.append(HostProcess(self, role))
        self.world.log(self.hosts[-1].name, "starts")

    def crash_dispatcher(self) -> None:
        self.world.happened["dispatcher crashed"] += 1
        self.world.log(self.dispatcher.group.name, "CRASHES")
        self.world.kill(self.dispatcher.group)
        self.world.after(self.random.random() * 500, self.fate, self._replace_dispatcher)

    def _replace_dispatcher(self) -> None:
        if not self.dispatcher.group.alive:
            self.dispatchers.append(DispatcherProcess(self))
            self.world.log(self.dispatcher.group.name, "starts")

    def _stall(self, what: str, group: Group) -> None:
        self.world.happened[f"{what} stalled"] += 1
        self.world.log(group.name, "STALLS")
        group.frozen = True

        def thaw() -> None:
            self.world.log(group.name, "GOES ON")
            self.world.thaw(group)

        self.world.after(self.random.choice((300, 8000)) * self.random.random(), self.fate, thaw)

    def _living(self) -> list[HostProcess]:
        return [host for host in self.hosts if host.group.alive and not host.group.frozen]

    def _disturb(self) -> Process[None]:
        while True:
            yield self.random.expovariate(1 / self._calm_ms)
            living = self._living()
            match self.random.randrange(9):
                case 0:
                    self.crash_dispatcher()
                    if self.random.random() < 0.4:
                        yield self.random.random() * 200
                        if living := self._living():  # which may have what they could not send
                            self.stall(self.random.choice(living))
                case 1 if living:
                    self.stall(self.random.choice(living))
                case 2:
                    self.world.happened["everything crashed"] += 1
                    for host in self.hosts:
                        if host.group.alive:
                            self.crash(host)
                    self.crash_dispatcher()
                case 3:
                    self.world.happened["store unavailable"] += 1
                    self.store.faults = Faults(0.2, 0.4, 0.2, 0.1)
                    yield self.random.random() * 1500
                    self.store.faults = Faults()
                case 4 if living:
                    self.world.happened["rival started"] += 1
                    self.replace(self.random.choice(self.roles))
                case 5 if len(self.roles) > 1:
                    self._move_shards()
                case 6:
                    process = self.random.choice([*self.clients.values(), self.dispatcher])
                    self._stall("dispatcher" if process is self.dispatcher else "client", process.group)
                case _:
                    self.store.land_one()

    # -- a run ---------------------------------------------------------------------------------------------------------------

    def run(self) -> Counter[str]:
        """All of it; returns the violations."""
        world = self.world
        world.mishap, world.mishap_odds = self._mishap, self._mishap_odds
        troubles = Group("troubles")
        world.spawn(troubles, self._disturb())
        world.run(self.random.choice((1500, 4000, 9000)), self._is_finished)
        world.log("world", "the disturbance ends")
        world.kill(troubles)
        world.disturbed = False
        self.store.faults = Faults(0, 0, 0, 0)
        self.store.land_all()
        for process in (*self.hosts, *self.clients.values(), self.dispatcher):
            if process.group.frozen:
                world.thaw(process.group)
        world.run(world.now_ms + 3000, lambda: False)
        for host in self.hosts:
            if not self.is_newest(host):
                host.crash()
            else:
                host.assign(self.placement)  # whoever was not reached when it was sent asks for it
        corresponds = any(isinstance(one, Correspondent) for one in self.clients.values())
        if corresponds:
            Auditor(self).look()
        world.run(world.now_ms + PATIENCE_MS, self._is_finished)
        if corresponds:
            Undertaker(self).look()
            world.run(world.now_ms + PATIENCE_MS, self._is_finished)
            world.run(world.now_ms + 2 * GRACE_MS, lambda: False)  # what comes twice may come late
            world.run(world.now_ms + PATIENCE_MS, self._is_finished)
        self._judge_the_end()
        return self.judge.violations

    def end(self) -> None:
        """Drop what the processes still have under way."""
        for process in (*self.hosts, *self.clients.values(), *self.dispatchers):
            process.loop.end()

    def _is_finished(self) -> bool:
        return not self.awaited and not self.judge.entities.traces.expected

    def _judge_the_end(self) -> None:
        judge = self.judge
        for client in self.clients.values():
            for what in client.missing():
                judge.violated(UNFINISHED, f"{client.name} does not learn {what}")
        for fates in judge.fates.values():
            for fate in fates:
                if fate.finished is not None:
                    self._judge_outcome(fate.started, fate.finished)
        found: dict[str, list[bytes]] = {}
        states: dict[int, DurableState] = {}
        try:
            for number in range(self.shards):
                prefix = shard_prefix(number)
                view = _finish(steps(log.read(prefix), self.store))
                state = states[number] = state_in(view, prefix, self.tables.read_snapshot)
                found.update(state.live)
                found.update(state.unfiled)
                for summary in state.ended.values():
                    if summary.history:
                        found[summary.execution] = self._history(summary.history)[summary.execution]
        except Damaged as error:
            judge.violated(DAMAGE, str(error))
        except KeyError as error:
            judge.violated(LOST, f"a record of {error} is found, but not what it rests on")
        judge.compare(found)
        judge.entities.finish(states)

    def _history(self, key: str) -> dict[str, list[bytes]]:
        data = self.store.objects[key]
        return decode_history(data) if self.tables is QUICK_TABLES else read_histories(data, key)

    def _judge_outcome(self, started: Started, finished: Finished) -> None:
        if finished.status is Status.CANCELLED and started.execution in self.cancelled:
            return
        try:
            value = None if finished.result is None else self.code.decode(finished.result)
        except NotFound as error:
            self.judge.violated(LOST, f"the result of {started.execution} is {error}, which is not there")
            return
        expected = undisturbed(*self._ordered(started.workflow, started.fingerprint))
        failure = None if finished.failure is None else (finished.failure.type, finished.failure.message)
        if (str(finished.status), value, failure) != expected:
            self.judge.violated(OUTCOME, f"{started.execution}: {finished} instead of {expected}")


def _finish(work: Generator[Any, None, T]) -> T:
    while True:
        try:
            next(work)
        except StopIteration as stop:
            return stop.value


_outcomes: dict[tuple[str, tuple[Any, ...]], tuple[str, Any, tuple[str, str] | None]] = {}


def undisturbed(workflow: Workflow[..., Any], args: tuple[Any, ...]) -> tuple[str, Any, tuple[str, str] | None]:
    """How an execution ends where nothing goes wrong: status, result, type and message of the failure."""
    key = (workflow.name, args)
    if key not in _outcomes:
        try:
            _outcomes[key] = ("completed", run_workflow(workflow, *args), None)
        except ExecutionFailed as error:
            _, _, message = str(error).partition("\n")[0].rpartition(f"{error.error_type}: ")
            _outcomes[key] = ("failed", None, (error.error_type, message))
    return _outcomes[key]


def run(seed: int, parts: Parts | None = None, trace: Callable[[str], None] | None = None) -> System:
    """The run of one seed, with its violations in ``judge.violations``."""
    with _limits(Random(f"limits of {seed}")):
        system = System(seed, parts or Parts(), trace)
        try:
            system.run()
        finally:
            system.end()
        return system


@contextmanager
def _limits(dice: Random) -> Generator[None]:
    """Limits of the core so low that a run meets them, and its log of what entities cannot handle switched off."""
    usual = limits.Limits()
    low = {
        "entity_idle_ms": dice.choice((300, usual.entity_idle_ms)),
        "entity_bytes": dice.choice((activations.ACTIVE_BYTES, usual.entity_bytes)),
        "events_per_state": dice.choice((2, 5, usual.events_per_state)),
        "letters_at_once": dice.choice((1, 3, usual.letters_at_once)),
        "execution_idle_ms": 20,
        "executions": 1,
        "inline_bytes": BLOB_OVER_BYTES,
        "snapshot_bytes": dice.choice((1, 8_000, 25_000)),
        "poll_s": 1.5,
        "session_s": dice.choice((2.0, usual.session_s)),
        "sender_window_ms": dice.choice((2000, usual.sender_window_ms)),
        "owner_look_s": dice.choice((0.5, usual.owner_look_s)),
        "call_bytes": dice.choice((1, 400, usual.call_bytes)),
        "reply_bytes": dice.choice((1, 400, usual.reply_bytes)),
    }
    loggers = [logging.getLogger(name) for name in ("rayflow.entity", "rayflow.shard", "rayflow.host")]
    disabled = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        with limits.using(**low):
            yield
    finally:
        for logger, before in zip(loggers, disabled, strict=True):
            logger.disabled = before


if __name__ == "__main__":
    # The variants are made of the classes of the module as others import it, not of this copy of it.
    from rayflow.testing.simulation_report import main

    raise SystemExit(main())
