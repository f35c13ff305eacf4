"""The actor that hosts shards: clients talk to it, it keeps its shards open and remembers what it owes whom.

A request that was delivered twice is handled once, an answer is kept until the client has confirmed it: see ``session``. If this
process dies all of that is gone, the client notices the new incarnation and sends again what is still open: requests are idempotent
by their execution's id.

Which shards are a host's it is told by the dispatcher, see ``placing``. Requests for others are not taken in; their client is told
where to send them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import threading
import time
from collections.abc import Hashable
from typing import Any, cast

import ray

from rayflow.checkpoint.identity import StoreIdentity, read_identity
from rayflow.checkpoint.opening import open_store
from rayflow.checkpoint.store import Store
from rayflow.core.messages import Answer, AwaitOutcome, Confirmed, Token
from rayflow.core.turns import Turns
from rayflow.errors import StoreUnavailable
from rayflow.runtime import placement, session
from rayflow.runtime.actors import UNREACHABLE, existing_actor
from rayflow.runtime.channel import Listener, encode_address
from rayflow.runtime.crash_journal import CrashJournal
from rayflow.runtime.draining import until_drained
from rayflow.runtime.keeper import Keeper
from rayflow.runtime.meter import ShardMeter, publish_for_ever
from rayflow.runtime.metrics import Names, Publisher
from rayflow.runtime.placement import Entered, Placement
from rayflow.runtime.project import code_version
from rayflow.runtime.session import Open, Reply, Session
from rayflow.runtime.shard import Shard
from rayflow.runtime.watchdog import Watchdog

_POST_AGAIN_S = 0.2
_STORE_AGAIN_S = 1.0
_ENTER_AGAIN_S = 0.2
_FORGET_CLIENT_S = 600.0

_log = logging.getLogger("rayflow.host")


class ShardHost:
    """A named, detached, ever restarting actor: the one at home, made by ``rayflow.runtime.cluster``, and those ``bound`` to nodes
    that are there for shards, made by ``rayflow.runtime.placing``."""

    async def __init__(self, store_url: str, dispatcher: str, name: str, bound: bool = False) -> None:
        self._name, self._bound = name, bound
        self._store = open_store(store_url)
        self._identity = await _identity(self._store)
        self._incarnation = secrets.token_hex(8)
        self._dispatcher = existing_actor(dispatcher)
        self._turns = Turns()
        Watchdog(self._turns, threading.get_ident()).start()
        self._clients: dict[str, Session] = {}
        self._peers: dict[str, Any] = {}
        self._placement: Placement | None = None
        self._placed = asyncio.Event()
        self._keepers: dict[int, Keeper] = {}
        self._meters: dict[int, ShardMeter] = {}
        self._publisher, self._steps = Publisher(store_url), Names()
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
        now = [(number, one.shard.statistics()) for number, one in sorted(self._keepers.items()) if one.shard is not None]
        if not now:
            return f"rayflow host of {self._store.url}"
        shards = ", ".join(f"shard {number} (epoch {one.epoch})" for number, one in now)
        executions, entities = sum(one.live for _, one in now), sum(one.entities for _, one in now)
        held = f"{executions} executions, {sum(one.steps for _, one in now)} steps running, {entities} entities active"
        return f"rayflow host of {self._store.url}: {shards}; {held}"

    # -- clients -------------------------------------------------------------------------------------------------------------

    async def exchange(self, data: bytes) -> bytes:
        """Take in a client's requests and return answers, see ``rayflow.runtime.session``: an encoded Call, an encoded Reply.

        Nothing is taken in where the client believes to talk to another incarnation: what it had sent there, it is to send here
        first, so that a shard gets everything in the order in which it was sent.
        """
        call = session.decode_call(data)
        if call.incarnation != self._incarnation:
            return session.encode(Reply(self._incarnation, []))
        await self._placed.wait()
        client = self._session(call.client)
        if not await client.turn(call):
            return session.encode(Reply(self._incarnation, []))
        self._deliver(client, client.take_in(call))
        responses = await client.answers(call)
        client.heard_s = time.monotonic()
        moved = [(shard, self._host_of(shard)) for shard in client.moved(call)]
        return session.encode(Reply(self._incarnation, responses, moved))

    async def address(self) -> bytes:
        """Where clients reach ``exchange`` at less cost: an encoded ``rayflow.runtime.channel.Address``, or an encoded None."""
        return encode_address(self._address)

    async def code(self) -> str:
        """The version of the code that this host and the steps of its shards run."""
        return code_version()

    async def view(self, number: int, execution: str) -> bytes:
        """An encoded ExecutionView, or an encoded None where the execution is not live in that shard."""
        await self._placed.wait()
        keeper = self._keepers.get(number)
        if keeper is None:
            name = self._host_of(number)
            return session.encode(None) if name == self._name else await (await self._peer(name)).view.remote(number, execution)
        return session.encode(None if keeper.shard is None else keeper.shard.view(execution))

    async def statistics(self) -> bytes:
        """Encoded ShardStatistics by number of the shard."""
        return session.encode({number: one.shard.statistics() for number, one in self._keepers.items() if one.shard is not None})

    def _session(self, client: str) -> Session:
        now_s = time.monotonic()
        found = self._clients.get(client)
        if found is None:
            for name, other in list(self._clients.items()):
                if now_s - other.heard_s > _FORGET_CLIENT_S:
                    del self._clients[name]
            found = self._clients[client] = Session()
        found.heard_s = now_s
        return found

    def _deliver(self, client: Session, requests: list[Open]) -> None:
        by_shard: dict[int, list[Open]] = {}
        for one in requests:
            by_shard.setdefault(one.request.shard, []).append(one)
        for number, group in by_shard.items():
            keeper = self._keepers.get(number)
            if keeper is None:
                client.drop(number)
            else:
                keeper.deliver(group)

    def answer(self, token: Hashable, answer: Answer) -> None:
        """See ``rayflow.runtime.keeper.Clients``."""
        if not isinstance(token, Token):
            waiting = cast("asyncio.Future[int]", token)
            if not waiting.done():
                waiting.set_result(cast("Confirmed", answer).number)
            return
        client = self._clients.get(token.sender)
        if client is not None:
            client.answer(token.number, answer)

    def open_requests(self, shard: int) -> list[Open]:
        """See ``rayflow.runtime.keeper.Clients``."""
        return [one for client in self._clients.values() for one in client.open.values() if one.request.shard == shard]

    # -- between shards ------------------------------------------------------------------------------------------------------

    def shard_of(self, instance: str) -> int:
        """See ``rayflow.runtime.shard.Peers``."""
        return self._identity.shard_of(instance)

    async def post(self, source: int, target: int, letters: list[tuple[int, bytes]]) -> int:
        """See ``rayflow.runtime.shard.Peers``. The other shard may be anywhere, and move meanwhile."""
        while True:
            name = self._host_of(target)
            if name == self._name:
                number = await self.letters(source, target, letters)
            else:
                try:
                    number = await (await self._peer(name)).letters.remote(source, target, letters)
                except (*UNREACHABLE, ValueError):  # it is gone, or not there yet
                    self._peers.pop(name, None)
                    number = None
            if number is not None:
                return number
            await asyncio.sleep(_POST_AGAIN_S)

    async def letters(self, source: int, target: int, letters: list[tuple[int, bytes]]) -> int | None:
        """``post`` to a shard of this host; None if that is not open, or was closed meanwhile."""
        keeper = self._keepers.get(target)
        if keeper is None:
            return None
        shard = keeper.shard
        if shard is None:
            keeper.want()
            return None
        confirmed: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        shard.letters_arrived(confirmed, source, letters)
        await asyncio.wait({confirmed, shard.closed}, return_when=asyncio.FIRST_COMPLETED)
        return confirmed.result() if confirmed.done() else None

    async def _peer(self, name: str) -> Any:
        """Another host's handle. Raises ValueError where there is none of that name."""
        found = self._peers.get(name)
        if found is None:
            found = self._peers[name] = await asyncio.to_thread(existing_actor, name)
        return found

    # -- shards --------------------------------------------------------------------------------------------------------------

    async def assign(self, data: bytes) -> None:
        """Have the shards of a Placement, encoded, and no others. Returns once those of other hosts are closed here."""
        placement_ = placement.decode_placement(data)
        if placement_.replaces(self._placement):
            await self._have(placement_)

    async def introduce(self) -> bytes:
        """An encoded Entered, for a dispatcher that has just begun."""
        return placement.encode(self._introduction())

    async def _enter(self) -> None:
        told = False
        while True:
            try:
                data = await self._dispatcher.enter.remote(placement.encode(self._introduction()))
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
        return Entered(self._name, node, code_version(), self._bound, tuple(self._keepers))

    async def _have(self, now: Placement) -> None:
        self._placement = now
        mine = now.shards_of(self._name)
        leaving = [self._keepers.pop(number) for number in set(self._keepers) - mine]
        for number in sorted(mine - set(self._keepers)):
            self._keepers[number] = self._keeper(number)
        for keeper in leaving:
            _log.warning("shard %d moves to %s", keeper.number, now.hosts[keeper.number])
            for client in self._clients.values():
                client.drop(keeper.number)
        self._placed.set()
        await asyncio.gather(*(keeper.leave() for keeper in leaving))

    def _keeper(self, number: int) -> Keeper:
        meter = self._meters.get(number)
        if meter is None:
            meter = self._meters[number] = ShardMeter(self._publisher, self._steps, number)
        journal = CrashJournal(self._identity.store_id, number)

        def make() -> Shard:
            return Shard(number, self._store, self._dispatcher, self.answer, self, self._turns, journal, meter)

        return Keeper(number, self._store.url, make, journal, meter, self)

    def _host_of(self, shard: int) -> str:
        return self._name if self._placement is None else self._placement.hosts[shard]

    async def _leave_when_drained(self) -> None:
        """Begin anew on another node, before this one goes: what is durable is durable, and clients send the rest again."""
        await until_drained()
        _log.warning("this node is being drained: its shards open again on another one")
        os._exit(1)

    def _take_levels(self) -> None:
        waiting = dict.fromkeys(self._keepers, 0)
        for client in self._clients.values():
            for one in client.open.values():
                if one.request.shard in waiting and not isinstance(one.request.message, AwaitOutcome):
                    waiting[one.request.shard] += 1
        for number, keeper in self._keepers.items():
            keeper.measure(waiting[number])


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
