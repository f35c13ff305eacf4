"""The actor around ``rayflow.runtime.hosting``: how a host reaches clients, other hosts, its dispatcher and the store."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import threading
import time
from collections.abc import Callable
from typing import Any, cast

import ray

from rayflow.checkpoint.identity import StoreIdentity, read_identity
from rayflow.checkpoint.opening import open_store
from rayflow.checkpoint.store import Store
from rayflow.core.turns import Turns
from rayflow.errors import StoreUnavailable
from rayflow.runtime import placement, session
from rayflow.runtime.actors import UNREACHABLE, existing_actor
from rayflow.runtime.channel import Listener, encode_address
from rayflow.runtime.code import StoredCode
from rayflow.runtime.crash_journal import CrashJournal
from rayflow.runtime.draining import until_drained
from rayflow.runtime.heap import give_back
from rayflow.runtime.hosting import Host, HostPorts, Kit, OtherHost
from rayflow.runtime.inline import InlineRunner
from rayflow.runtime.lane import HostGone, HostUnreachable
from rayflow.runtime.link import DispatcherLink
from rayflow.runtime.meter import ShardMeter, publish_for_ever
from rayflow.runtime.metrics import Names, Publisher
from rayflow.runtime.output import Mouth, capture, log_workflows
from rayflow.runtime.placement import Entered
from rayflow.runtime.ports import ShardPorts, token
from rayflow.runtime.project import code_name, code_version
from rayflow.runtime.shard import Shard
from rayflow.runtime.store_port import ThreadedStore
from rayflow.runtime.supervisors import LastingDispatcher
from rayflow.runtime.watchdog import Watchdog
from rayflow.runtime.worker import speaker

_STORE_AGAIN_S = 1.0
_ENTER_AGAIN_S = 0.2
_SAY_EVERY_S = 0.05

_log = logging.getLogger("rayflow.host")


class _Other:
    """Another host's actor. ``gone`` is called when it cannot be reached."""

    def __init__(self, actor: Any, gone: Callable[[], object]) -> None:
        self._actor = actor
        self._gone = gone

    async def letters(self, source: int, target: int, letters: list[tuple[int, bytes]]) -> int | None:
        return await self._call(self._actor.letters.remote(source, target, letters))

    async def view(self, number: int, execution: str) -> bytes:
        return await self._call(self._actor.view.remote(number, execution))

    async def _call(self, reference: Any) -> Any:
        try:
            return await reference
        except UNREACHABLE as error:
            self._gone()
            raise HostUnreachable(str(error)) from error


class ShardHost:
    """A named, detached actor: the one at home, made by ``rayflow.runtime.cluster``, and those ``bound`` to nodes
    that are there for shards, made by ``rayflow.runtime.placing``."""

    async def __init__(self, store_url: str, name: str, bound: bool = False) -> None:
        self._name, self._bound = name, bound
        self._store = open_store(store_url)
        self._identity = await _identity(self._store)
        self._dice = random.SystemRandom()
        self._dispatcher = LastingDispatcher(self._identity, store_url)
        self._mouth = Mouth(self._say, 0.0, _SAY_EVERY_S)
        log_workflows(self._mouth)
        capture(speaker, self._mouth)
        self._turns = Turns()
        Watchdog(self._turns, threading.get_ident()).start()
        self._others: dict[str, OtherHost] = {}
        self._meters: dict[int, ShardMeter] = {}
        self._publisher, self._steps = Publisher(store_url), Names()
        incarnation, shard_of = token(self._dice), self._identity.shard_of
        self._host = Host(HostPorts(name, incarnation, store_url, shard_of, self._kit, self._other, self._dice, _now_ms))
        self._listener = Listener(self.exchange)
        self._address = await self._listener.open(cast("str", cast("Any", ray).util.get_node_ip_address()))
        self._tasks = [
            asyncio.create_task(publish_for_ever(self._publisher, self._take_levels)),
            asyncio.create_task(self._enter()),
        ]
        if not bound:
            self._tasks.append(asyncio.create_task(self._leave_when_drained()))

    def __repr__(self) -> str:
        """What is held now. Ray asks when the actor has started, and puts that before the names of its calls: then it is short."""
        now = [(number, one.shard.statistics()) for number, one in sorted(self._host.keepers.items()) if one.shard is not None]
        if not now:
            return f"rayflow host of {self._store.url}"
        shards = ", ".join(f"shard {number} (epoch {one.epoch})" for number, one in now)
        executions, entities = sum(one.live for _, one in now), sum(one.entities for _, one in now)
        held = f"{executions} executions, {sum(one.steps for _, one in now)} steps running, {entities} entities active"
        return f"rayflow host of {self._store.url}: {shards}; {held}"

    # -- clients -------------------------------------------------------------------------------------------------------------

    async def exchange(self, data: bytes) -> bytes:
        """See ``Host``."""
        reply = await self._host.exchange(data)
        self._mouth.flush()  # what was said on the way to these answers is not to come after them
        return reply

    async def address(self) -> bytes:
        """Where clients reach ``exchange`` at less cost: an encoded ``rayflow.runtime.channel.Address``, or an encoded None."""
        return encode_address(self._address)

    async def code(self) -> str:
        """The version of the code that this host and the steps of its shards run."""
        return code_version()

    async def view(self, number: int, execution: str) -> bytes:
        """See ``Host``."""
        return await self._host.view(number, execution)

    async def letters(self, source: int, target: int, letters: list[tuple[int, bytes]]) -> int | None:
        """See ``Host``."""
        return await self._host.letters(source, target, letters)

    async def statistics(self) -> bytes:
        """Encoded ShardStatistics by number of the shard."""
        return session.encode(
            {number: one.shard.statistics() for number, one in self._host.keepers.items() if one.shard is not None}
        )

    def _say(self, lines: bytes) -> None:
        self._dispatcher.tell("said", lines)

    # -- shards --------------------------------------------------------------------------------------------------------------

    async def _other(self, name: str) -> OtherHost:
        """Another host. Raises HostGone where there is none of that name."""
        found = self._others.get(name)
        if found is None:
            try:
                actor = await asyncio.to_thread(existing_actor, name)
            except ValueError as error:
                raise HostGone(name) from error
            found = self._others[name] = _Other(actor, lambda: self._others.pop(name, None))
        return found

    async def assign(self, data: bytes) -> None:
        """Have the shards of a Placement, encoded, and no others. Returns once those of other hosts are closed here."""
        await self._host.assign(placement.decode_placement(data))

    async def introduce(self) -> bytes:
        """An encoded Entered, for a dispatcher that has just begun."""
        return placement.encode(self._introduction())

    async def _enter(self) -> None:
        told = False
        while True:
            try:
                data = await self._dispatcher.call("enter", placement.encode(self._introduction()))
            except UNREACHABLE as error:
                if not told:
                    _log.warning("the dispatcher does not say which shards are to be here (%s); asking again", _first_line(error))
                told = True
                await asyncio.sleep(_ENTER_AGAIN_S)
            else:
                await self.assign(data)
                return

    def _introduction(self) -> Entered:
        node = ray.get_runtime_context().get_node_id()
        return Entered(self._name, node, code_version(), self._bound, tuple(self._host.keepers))

    def _kit(self, host: Host, number: int) -> Kit:
        meter = self._meters.get(number)
        if meter is None:
            meter = self._meters[number] = ShardMeter(self._publisher, self._steps, number)
        journal = CrashJournal(self._identity.store_id, number)

        def make() -> Shard:
            return Shard(
                number,
                ShardPorts(
                    store=ThreadedStore(self._store, f"rayflow-log-{number}"),
                    link=DispatcherLink(self._dispatcher, number),
                    inline=lambda finished: InlineRunner(self._store, finished),
                    answer=host.answer,
                    peers=host,
                    turns=self._turns,
                    crashes=journal,
                    meter=meter,
                    code=StoredCode(self._store),
                    code_name=code_name(),
                    now_ms=_now_ms,
                    monotonic_s=time.monotonic,
                    dice=self._dice,
                    after_recovery=give_back,
                ),
            )

        return Kit(make, journal, meter)

    async def _leave_when_drained(self) -> None:
        """Begin anew on another node, before this one goes: what is durable is durable, and clients send the rest again."""
        await until_drained()
        _log.warning("this node is being drained: its shards open again on another one")
        os._exit(1)

    def _take_levels(self) -> None:
        waiting = self._host.waiting()
        for number, keeper in self._host.keepers.items():
            keeper.measure(waiting[number])


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


async def _identity(store: Store) -> StoreIdentity:
    """What the store is. An actor that fails here is not started again, so one that does not answer is waited for."""
    while True:
        try:
            return await asyncio.get_running_loop().run_in_executor(None, read_identity, store)
        except StoreUnavailable as error:
            _log.warning("the store does not answer (%s); waiting for it", error)
            await asyncio.sleep(_STORE_AGAIN_S)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
