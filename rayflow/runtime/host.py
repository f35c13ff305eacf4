"""The actor that hosts shards: clients talk to it, it opens and reopens shards and remembers what it owes whom.

A request that was delivered twice is handled once, an answer is kept until the client has confirmed it: see ``session``. If this
process dies all of that is gone, the client notices the new incarnation and sends again what is still open: requests are idempotent
by their execution's id.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import secrets
import threading
import time
from collections.abc import Hashable
from typing import Any, cast

import ray

from rayflow.checkpoint.identity import StoreIdentity, read_identity
from rayflow.checkpoint.opening import open_store
from rayflow.checkpoint.store import Store
from rayflow.core.messages import Answer, AwaitOutcome, Confirmed, Refused, Token
from rayflow.core.turns import Turns
from rayflow.errors import Fenced, StoreUnavailable
from rayflow.runtime import session
from rayflow.runtime.crash_journal import INTENSITY, INTENSITY_WINDOW_S, CrashJournal
from rayflow.runtime.draining import until_drained
from rayflow.runtime.meter import ShardMeter, publish_for_ever
from rayflow.runtime.metrics import Names, Publisher
from rayflow.runtime.project import code_version
from rayflow.runtime.session import Open, Reply, Session
from rayflow.runtime.shard import Shard
from rayflow.runtime.task import NAMESPACE
from rayflow.runtime.watchdog import Watchdog

_POST_AGAIN_S = 0.2
_STORE_AGAIN_S = 1.0
_FORGET_CLIENT_S = 600.0
_REOPEN_LIMIT = 5
_REOPEN_WINDOW_S = 30.0

_log = logging.getLogger("rayflow.host")


class ShardHost:
    """Created as a named, detached, ever restarting actor by ``rayflow.runtime.cluster``."""

    async def __init__(self, store_url: str, shards: int, dispatcher: str) -> None:
        self._store = open_store(store_url)
        self._identity = await _identity(self._store)
        self._incarnation = secrets.token_hex(8)
        self._dispatcher: Any = ray.get_actor(dispatcher, namespace=NAMESPACE)
        self._turns = Turns()
        Watchdog(self._turns, threading.get_ident()).start()
        self._clients: dict[str, Session] = {}
        self._shards: dict[int, Shard] = {}
        self._broken: dict[int, str] = {}
        self._reopened_s: dict[int, list[float]] = {}
        publisher, steps = Publisher(store_url), Names()
        self._meters = [ShardMeter(publisher, steps, number) for number in range(shards)]
        self._publishing = asyncio.create_task(publish_for_ever(publisher, self._take_levels))
        self._wanted = [asyncio.Event() for _ in range(shards)]
        self._keepers = [asyncio.create_task(self._keep(number)) for number in range(shards)]
        self._leaving = asyncio.create_task(self._leave_when_drained())

    def __repr__(self) -> str:
        """What is held now. Ray asks when the actor has started, and puts that before the names of its calls: then it is short."""
        if not self._shards:
            return f"rayflow host of {self._store.url}"
        now = [(number, shard.statistics()) for number, shard in sorted(self._shards.items())]
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
        client = self._session(call.client)
        if not await client.turn(call):
            return session.encode(Reply(self._incarnation, []))
        self._deliver(client.take_in(call))
        responses = await client.answers(call)
        client.heard_s = time.monotonic()
        return session.encode(Reply(self._incarnation, responses))

    async def code(self) -> str:
        """The version of the code that this host and the steps of its shards run."""
        return code_version()

    async def view(self, number: int, execution: str) -> bytes:
        """An encoded ExecutionView, or an encoded None where the execution is not live in that shard."""
        shard = self._shards.get(number)
        return session.encode(None if shard is None else shard.view(execution))

    async def statistics(self) -> bytes:
        """Encoded ShardStatistics by number of the shard."""
        return session.encode({number: shard.statistics() for number, shard in self._shards.items()})

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

    def _deliver(self, requests: list[Open]) -> None:
        by_shard: dict[int, list[Open]] = {}
        for one in requests:
            by_shard.setdefault(one.request.shard, []).append(one)
        for number, group in by_shard.items():
            shard = self._shards.get(number)
            if number in self._broken:
                for one in group:
                    self._answer(one.token, Refused("StoreError", self._broken[number]))
            elif shard is not None:
                shard.receive([(one.token, one.request.message) for one in group])
            else:
                self._wanted[number].set()  # delivered when the shard is open

    def _answer(self, token: Hashable, answer: Answer) -> None:
        if not isinstance(token, Token):
            waiting = cast("asyncio.Future[int]", token)
            if not waiting.done():
                waiting.set_result(cast("Confirmed", answer).number)
            return
        client = self._clients.get(token.sender)
        if client is not None:
            client.answer(token.number, answer)

    # -- between shards ------------------------------------------------------------------------------------------------------

    def shard_of(self, instance: str) -> int:
        """See ``rayflow.runtime.shard.Peers``."""
        return self._identity.shard_of(instance)

    async def post(self, source: int, target: int, letters: list[tuple[int, bytes]]) -> int:
        """See ``rayflow.runtime.shard.Peers``."""
        while True:
            shard = self._shards.get(target)
            if shard is None:
                self._wanted[target].set()
                await asyncio.sleep(_POST_AGAIN_S)
                continue
            confirmed: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            shard.letters_arrived(confirmed, source, letters)
            await asyncio.wait({confirmed, shard.closed}, return_when=asyncio.FIRST_COMPLETED)
            if confirmed.done():
                return confirmed.result()

    # -- shards --------------------------------------------------------------------------------------------------------------

    async def _keep(self, number: int) -> None:
        """Keep a shard open: reopen it when it is lost, but not in a loop, and not against a successor without need."""
        journal = CrashJournal(self._identity.store_id, number)
        if (pause_s := journal.pause_s()) > 0:
            self._suspend(
                number, f"its process crashed {INTENSITY} times in {INTENSITY_WINDOW_S:.0f} s; it opens in {pause_s:.0f} s"
            )
            await asyncio.sleep(pause_s)
        while True:
            meter = self._meters[number]
            shard = Shard(number, self._store, self._dispatcher, self._answer, self, self._turns, journal, meter)
            try:
                await shard.open()
            except Exception as error:
                reason: BaseException = error
            else:
                self._shards[number] = shard
                self._broken.pop(number, None)
                shard.receive([(one.token, one.request.message) for one in self._open_requests(number)])
                reason = await shard.closed
                meter.counted(shard.levels())
                del self._shards[number]
            await shard.close()
            if isinstance(reason, Fenced):
                # Somebody else owns the shard now and works for its clients. Take it back only for a client of our own, and
                # late enough for two hosts that want the same shard to get some work done each.
                _log.warning("shard %d has a new owner: %s", number, reason)
                meter.fenced()
                await asyncio.sleep(random.uniform(2, 6))
                if not self._open_requests(number):
                    self._wanted[number].clear()
                    await self._wanted[number].wait()
                continue
            if isinstance(reason, StoreUnavailable):
                # That passes, and nobody gains from being refused meanwhile: who waits goes on waiting.
                _log.warning("shard %d is closed until the store answers again: %s", number, reason)
                meter.store_failed()
                await asyncio.sleep(_STORE_AGAIN_S)
                continue
            _log.error("shard %d stopped: %s", number, reason, exc_info=reason)
            meter.failed()
            await self._back_off(number, reason)

    async def _leave_when_drained(self) -> None:
        """Begin anew on another node, before this one goes: what is durable is durable, and clients send the rest again."""
        await until_drained()
        _log.warning("this node is being drained: its shards open again on another one")
        os._exit(1)

    async def _back_off(self, number: int, reason: BaseException) -> None:
        now_s = time.monotonic()
        recent = [at_s for at_s in self._reopened_s.get(number, []) if now_s - at_s < _REOPEN_WINDOW_S]
        self._reopened_s[number] = [*recent, now_s]
        if len(recent) + 1 < _REOPEN_LIMIT:
            await asyncio.sleep(0.1 * 2 ** len(recent))
            return
        self._suspend(number, f"{type(reason).__name__}: {reason}")
        await asyncio.sleep(_REOPEN_WINDOW_S)

    def _suspend(self, number: int, reason: str) -> None:
        """Tell all who ask, now and until the shard is open again."""
        self._broken[number] = f"shard {number} of {self._store.url} is suspended: {reason}"
        _log.error("%s", self._broken[number])
        self._deliver(self._open_requests(number))

    def _take_levels(self) -> None:
        waiting = [0] * len(self._meters)
        for client in self._clients.values():
            for one in client.open.values():
                if not isinstance(one.request.message, AwaitOutcome):
                    waiting[one.request.shard] += 1
        for number, meter in enumerate(self._meters):
            shard = self._shards.get(number)
            meter.levels(None if shard is None else shard.levels(), number in self._broken, waiting[number])

    def _open_requests(self, number: int) -> list[Open]:
        """What a shard has not answered, in the order in which each client sent it."""
        return [one for client in self._clients.values() for one in client.open.values() if one.request.shard == number]


async def _identity(store: Store) -> StoreIdentity:
    """What the store is. An actor that fails here is not started again, so one that does not answer is waited for."""
    while True:
        try:
            return await asyncio.get_running_loop().run_in_executor(None, read_identity, store)
        except StoreUnavailable as error:
            _log.warning("the store does not answer (%s); waiting for it", error)
            await asyncio.sleep(_STORE_AGAIN_S)
