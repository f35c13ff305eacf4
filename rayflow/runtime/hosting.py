"""What hosts shards: it keeps its shards open, takes in what clients send and remembers what it owes whom.

A request that was delivered twice is handled once, an answer is kept until the client has confirmed it: see ``session``. If this
process dies all of that is gone, the client notices the new incarnation and sends again what is still open: requests are idempotent
by their execution's id.

Which shards are a host's it is told by the dispatcher, see ``placing``. Requests for others are not taken in; their client is told
where to send them. ``rayflow.runtime.host`` is the actor around it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol, cast

from rayflow.checkpoint.queues import WaitingSteps
from rayflow.core import limits
from rayflow.core.messages import Answer, AwaitOutcome, Confirmed, Message, Refused, StopWaiting, Token
from rayflow.runtime import session
from rayflow.runtime.keeper import Keeper
from rayflow.runtime.lane import HostUnreachable
from rayflow.runtime.placement import Placement
from rayflow.runtime.ports import Journal, Meter
from rayflow.runtime.session import Open, Reply, Session
from rayflow.runtime.shard import Shard

_POST_AGAIN_S = 0.2

_NOBODY = Token("", 0, 0)
"""Asks for what nobody is told the outcome of."""

_log = logging.getLogger("rayflow.host")


class OtherHost(Protocol):
    """Another host. Both raise HostUnreachable."""

    async def letters(self, source: int, target: int, letters: list[tuple[int, bytes]]) -> int | None:
        """See ``Host.letters``."""
        ...

    async def view(self, number: int, execution: str) -> bytes:
        """See ``Host.view``."""
        ...


@dataclass(frozen=True, slots=True)
class Kit:
    """What a host needs for one shard: ``make`` makes it anew each time that it is opened."""

    make: Callable[[], Shard]
    journal: Journal
    meter: Meter


@dataclass(frozen=True, slots=True)
class HostPorts:
    """What a host reaches. ``kit`` is asked once for each shard that the host gets; ``now_ms`` is its shards' clock."""

    name: str
    incarnation: str
    store_url: str
    shard_of: Callable[[str], int]
    kit: Callable[[Host, int], Kit]
    other: Callable[[str], Awaitable[OtherHost]]
    dice: Random
    now_ms: Callable[[], int]


class Host:
    """One life of a host."""

    def __init__(self, ports: HostPorts) -> None:
        self.keeper = Keeper
        self.name = ports.name
        self.keepers: dict[int, Keeper] = {}
        self._ports = ports
        self._incarnation = ports.incarnation
        self._clients: dict[str, Session] = {}
        self._placement: Placement | None = None
        self._placed = asyncio.Event()

    # -- clients -------------------------------------------------------------------------------------------------------------

    async def exchange(self, data: bytes) -> bytes:
        """Take in a client's requests and return answers, see ``rayflow.runtime.session``: an encoded Call, an encoded Reply.

        Nothing is taken in where the client believes to talk to another incarnation: what it had sent there, it is to send here
        first, so that a shard gets everything in the order in which it was sent. The same where it was silent for so long that it
        is not remembered.
        """
        call, arrived_ms = session.decode_call(data), self._ports.now_ms()
        if call.incarnation != self._incarnation:
            return session.encode(Reply(self._incarnation, []))
        await self._placed.wait()
        client = self._session(call.client)
        if client.has_forgotten(call):
            return session.encode(Reply(self._incarnation, [], renew=True))
        client.calls_under_way += 1
        try:
            if not await client.turn(call):
                return session.encode(Reply(self._incarnation, []))
            self._deliver(client, client.take_in(call, arrived_ms))
            responses = await client.answers(call)
        finally:
            client.calls_under_way -= 1
            client.heard_s = asyncio.get_running_loop().time()
        moved = [(shard, self.host_of(shard)) for shard in client.moved(call)]
        return session.encode(Reply(self._incarnation, responses, moved, warnings=client.warnings()))

    async def view(self, number: int, execution: str) -> bytes:
        """An encoded ExecutionView, or an encoded None where the execution is not live in that shard. Raises HostUnreachable."""
        await self._placed.wait()
        keeper = self.keepers.get(number)
        if keeper is None:
            name = self.host_of(number)
            return session.encode(None) if name == self.name else await (await self._ports.other(name)).view(number, execution)
        return session.encode(None if keeper.shard is None else await keeper.shard.view(execution))

    def steps_waiting(self, steps: Sequence[WaitingSteps]) -> None:
        """See ``rayflow.runtime.ports.Peers``."""
        for client in self._clients.values():
            messages = [one.request.message for one in client.open.values()]
            awaited = {message.execution for message in messages if isinstance(message, AwaitOutcome)}
            for some in steps:
                if some.execution in awaited:
                    client.warn(f"execution {some.execution} waits: {some.name} {some.why}")

    def _session(self, client: str) -> Session:
        now_s = asyncio.get_running_loop().time()
        found = self._clients.get(client)
        if found is None:
            for name, other in list(self._clients.items()):
                if not other.calls_under_way and now_s - other.heard_s > limits.current().session_s:
                    self._forget(name)
            found = self._clients[client] = Session()
        found.heard_s = now_s
        return found

    def _forget(self, name: str) -> None:
        """A client is gone, and does not wait for ends any more. What else it has sent is handled, and nobody hears of it."""
        gone, stops = self._clients.pop(name), defaultdict[int, list[tuple[Token, Message]]](list)
        for number, one in gone.open.items():
            if isinstance(one.request.message, AwaitOutcome):
                stops[one.request.shard].append((_NOBODY, StopWaiting(one.request.message.execution, number, gone=name)))
        for shard, messages in stops.items():
            keeper = self.keepers.get(shard)
            if keeper is not None and keeper.shard is not None:
                keeper.shard.receive(messages)

    def _deliver(self, client: Session, requests: list[Open]) -> None:
        by_shard: dict[int, list[Open]] = {}
        for one in requests:
            by_shard.setdefault(one.request.shard, []).append(one)
        for number, group in by_shard.items():
            keeper = self.keepers.get(number)
            if self._placement is not None and not 0 <= number < len(self._placement.hosts):
                refused = Refused(
                    "InvalidInput", f"{self._ports.store_url} has {len(self._placement.hosts)} shards, and no {number}"
                )
                for one in group:
                    client.answer(one.request.number, refused)
            elif keeper is None:
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

    def waiting(self) -> dict[int, int]:
        """How many messages of clients each shard of this host has not answered; who waits for an end does not count."""
        waiting = dict.fromkeys(self.keepers, 0)
        for client in self._clients.values():
            for one in client.open.values():
                if one.request.shard in waiting and not isinstance(one.request.message, AwaitOutcome):
                    waiting[one.request.shard] += 1
        return waiting

    # -- between shards ------------------------------------------------------------------------------------------------------

    def shard_of(self, instance: str) -> int:
        """See ``rayflow.runtime.ports.Peers``."""
        return self._ports.shard_of(instance)

    async def post(self, source: int, target: int, letters: list[tuple[int, bytes]]) -> int:
        """See ``rayflow.runtime.ports.Peers``. The other shard may be anywhere, and move meanwhile."""
        while True:
            name = self.host_of(target)
            try:
                where = self if name == self.name else await self._ports.other(name)
                number = await where.letters(source, target, letters)
            except HostUnreachable:  # or it is not there yet
                number = None
            if number is not None:
                return number
            await asyncio.sleep(_POST_AGAIN_S)

    async def letters(self, source: int, target: int, letters: list[tuple[int, bytes]]) -> int | None:
        """``post`` to a shard of this host; None if that is not open, or was closed meanwhile."""
        keeper = self.keepers.get(target)
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

    # -- shards --------------------------------------------------------------------------------------------------------------

    async def assign(self, now: Placement) -> None:
        """Have the shards that are this host's there, and no others. Returns once those of other hosts are closed here."""
        if not now.replaces(self._placement):
            return
        self._placement = now
        mine = now.shards_of(self.name)
        leaving = [self.keepers.pop(number) for number in set(self.keepers) - mine]
        for number in sorted(mine - set(self.keepers)):
            kit = self._ports.kit(self, number)
            self.keepers[number] = self.keeper(
                number, self._ports.store_url, kit.make, kit.journal, kit.meter, self, self._ports.dice
            )
        for keeper in leaving:
            _log.warning("shard %d moves to %s", keeper.number, now.hosts[keeper.number])
            for client in self._clients.values():
                client.drop(keeper.number)
        self._placed.set()
        await asyncio.gather(*(keeper.leave() for keeper in leaving))

    def host_of(self, shard: int) -> str:
        """The name of the host that has a shard, as far as this one knows."""
        return self.name if self._placement is None else self._placement.hosts[shard]
