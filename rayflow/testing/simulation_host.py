"""The processes that host shards in a simulated system: ``rayflow.runtime.hosting`` in a world in which everything goes wrong.

There are hosts of one or two names, as on a cluster with nodes for shards. Of each name there is one process at a time that counts,
and any number of earlier ones that stand still or do not know yet that they were replaced.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any

from rayflow.core.turns import Turns
from rayflow.errors import Damaged, Fenced, StoreUnavailable
from rayflow.runtime.code import StoredCode
from rayflow.runtime.hosting import Host, HostPorts, Kit, OtherHost
from rayflow.runtime.keeper import Keeper
from rayflow.runtime.lane import HostGone, HostUnreachable
from rayflow.runtime.placement import Placement
from rayflow.runtime.ports import Machines, ShardPorts
from rayflow.runtime.shard import Shard
from rayflow.testing.simulated_loop import ProcessLoop
from rayflow.testing.simulation_judge import DAMAGE, ERROR
from rayflow.testing.simulation_ports import BlockingBlobs, SimulatedInline, SimulatedLink, SimulatedMeter, SimulatedStorePort
from rayflow.testing.simulation_world import EPOCH_MS, Answer, Group

if TYPE_CHECKING:
    from rayflow.testing.simulator import System


class HostProcess:
    """One life of a process that hosts shards, under the name ``role``."""

    def __init__(self, system: System, role: str) -> None:
        self.system = system
        self.world = system.world
        self.role = role
        self.name = system.world.name("host")
        self.group = Group(self.name)
        self.loop = ProcessLoop(self.world, self.group, lambda what: system.judge.violated(ERROR, f"{self.name}: {what}"))
        self._skew_ms = system.world.random.randint(-system.skew_ms, system.skew_ms)
        self._dice = Random(system.world.random.getrandbits(64))
        self._turns = Turns()
        ports = HostPorts(role, self.name, "simulated:", system.shard_of, self._kit, self._other, self._dice, self.now_ms)
        self.host: Host = self.loop.call(system.parts.host, ports)
        self.host.keeper = type("Keeper", (system.parts.keeper,), {"system": system})
        self.assign(system.placement)

    def now_ms(self) -> int:
        """The clock of this process, which is not quite like that of others."""
        return EPOCH_MS + int(self.world.now_ms) + self._skew_ms

    def assign(self, placement: Placement) -> None:
        """It hears which shards are whose."""
        self.loop.start(self.host.assign(placement))

    def serve(self, work: Callable[[Host], Any], answer: Answer[Any]) -> None:
        """A call arrives; ``work`` is what the host does for it."""

        async def carry_out() -> None:
            answer.resolve(await work(self.host))

        self.loop.start(carry_out())

    async def _other(self, name: str) -> OtherHost:
        return _Other(self, name)

    def _kit(self, host: Host, number: int) -> Kit:
        system, parts, loop = self.system, self.system.parts, self.loop
        crashes = parts.crashes(self, number)
        meter = SimulatedMeter(system)

        def make() -> Shard:
            inlines: list[SimulatedInline] = []

            def inline(finished: Callable[..., None]) -> SimulatedInline:
                inlines.append(SimulatedInline(system, loop, finished))
                return inlines[0]

            ports = ShardPorts(
                store=SimulatedStorePort(system, loop),
                link=SimulatedLink(system, loop, number),
                inline=inline,
                answer=host.answer,
                peers=host,
                turns=self._turns,
                crashes=crashes,
                meter=meter,
                code=StoredCode(BlockingBlobs(system)),
                code_name="",
                now_ms=self.now_ms,
                monotonic_s=loop.time,
                dice=self._dice,
                machines=Machines(parts.outbox, parts.mail, parts.machine, parts.entities, parts.owner),
                tables=system.tables,
            )
            shard = parts.shard(number, ports)
            shard.snapshots = parts.snapshots
            inlines[0].known_slot = lambda: shard.last_slot
            return shard

        return Kit(make, crashes, meter)

    # -- fate ----------------------------------------------------------------------------------------------------------------

    def crash(self) -> None:
        """The process is gone, with all that it knew."""
        self.world.kill(self.group)

    def thaw(self) -> None:
        """It goes on, and does not know that it ever stood still."""
        if self.group.frozen:
            self.world.thaw(self.group)


class JudgedKeeper(Keeper):
    """Tells the judge why a shard was lost."""

    system: System

    async def _after(self, reason: BaseException | None) -> None:
        if isinstance(reason, Damaged):
            self.system.judge.violated(DAMAGE, str(reason))
        elif reason is not None and not isinstance(reason, (Fenced, StoreUnavailable)):
            self.system.judge.violated(ERROR, f"shard {self.number}: {reason!r}")
        await super()._after(reason)


class _Other:
    """A host of some name, as another host sees it: whichever there is now, at times one that was replaced."""

    def __init__(self, caller: HostProcess, name: str) -> None:
        self._caller = caller
        self._name = name

    async def letters(self, source: int, target: int, letters: list[tuple[int, bytes]]) -> int | None:
        world = self._caller.world
        if world.disturbed and world.random.random() < 0.2:
            world.happened["letters lost"] += 1
            raise HostUnreachable("lost on the way")
        return await self._call(lambda host: host.letters(source, target, letters))

    async def view(self, number: int, execution: str) -> bytes:
        return await self._call(lambda host: host.view(number, execution))

    async def _call(self, work: Callable[[Host], Any]) -> Any:
        caller = self._caller
        target = caller.system.find_host(self._name)
        if target is None:
            raise HostGone(self._name)
        return await caller.system.call_host(caller.loop, target, work)
