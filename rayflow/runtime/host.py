"""The actor that hosts shards: clients talk to it, it opens and reopens shards and remembers what it owes whom.

A client sends requests with numbers of its own and fetches answers by long poll. A request that was delivered twice is handled
once; an answer is kept until the client has confirmed it. If this process dies all of that is gone, the client notices the new
incarnation and sends again what is still open: requests are idempotent by their execution's id.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import threading
import time
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec
import ray

from rayflow.checkpoint.identity import read_identity
from rayflow.checkpoint.opening import open_store
from rayflow.core.messages import Answer, Confirmed, Message, Refused, Token
from rayflow.core.turns import Turns
from rayflow.errors import Fenced
from rayflow.runtime.crash_journal import INTENSITY, INTENSITY_WINDOW_S, CrashJournal
from rayflow.runtime.project import code_version
from rayflow.runtime.shard import Shard
from rayflow.runtime.task import NAMESPACE
from rayflow.runtime.watchdog import Watchdog

_POLL_S = 20.0
_POST_AGAIN_S = 0.2
_FORGET_CLIENT_S = 600.0
_REOPEN_LIMIT = 5
_REOPEN_WINDOW_S = 30.0

_log = logging.getLogger("rayflow.host")


class Request(msgspec.Struct, frozen=True, array_like=True):
    """A message on its way to a shard, under a number that is the client's own."""

    number: int
    shard: int
    message: Message


class Response(msgspec.Struct, frozen=True, array_like=True):
    """The answer to the request with that number."""

    number: int
    answer: Answer


@dataclass(slots=True)
class _Client:
    open: dict[int, tuple[Token, Request]] = field(default_factory=dict[int, "tuple[Token, Request]"])
    answers: dict[int, Response] = field(default_factory=dict[int, Response])
    news: asyncio.Event = field(default_factory=asyncio.Event)
    heard_s: float = 0.0


_encode = msgspec.msgpack.Encoder().encode
_decode_requests = msgspec.msgpack.Decoder(list[Request]).decode
_NO_ANSWERS = _encode([])


class ShardHost:
    """Created as a named, detached, ever restarting actor by ``rayflow.runtime.cluster``."""

    async def __init__(self, store_url: str, shards: int, dispatcher: str) -> None:
        self._store = open_store(store_url)
        self._identity = read_identity(self._store)
        self._incarnation = secrets.token_hex(8)
        self._dispatcher: Any = ray.get_actor(dispatcher, namespace=NAMESPACE)
        self._turns = Turns()
        Watchdog(self._turns, threading.get_ident()).start()
        self._clients: dict[str, _Client] = {}
        self._shards: dict[int, Shard] = {}
        self._broken: dict[int, str] = {}
        self._reopened_s: dict[int, list[float]] = {}
        self._wanted = [asyncio.Event() for _ in range(shards)]
        self._keepers = [asyncio.create_task(self._keep(number)) for number in range(shards)]

    def __repr__(self) -> str:
        live = sum(shard.statistics().live for shard in self._shards.values())
        return f"rayflow shards {sorted(self._shards)} of {self._store.url} ({live} executions live)"

    # -- clients -------------------------------------------------------------------------------------------------------------

    async def send(self, client: str, incarnation: str, heard: int, requests: bytes) -> str:
        """Take in requests; returns this host's incarnation. Answers come through ``receive``.

        Nothing is taken in where the client believes to talk to another incarnation: what it had sent there, it is to send here
        first, so that a shard gets everything in the order in which it was sent.
        """
        if incarnation != self._incarnation:
            return self._incarnation
        session = self._session(client)
        for request in _decode_requests(requests):
            if request.number in session.open or request.number in session.answers:
                continue
            token = Token(client, request.number, heard)
            session.open[request.number] = (token, request)
            self._deliver(token, request)
        return self._incarnation

    async def receive(self, client: str, incarnation: str, confirmed: list[int]) -> tuple[str, bytes]:
        """Drop confirmed answers, wait for others; returns the incarnation and the answers not confirmed yet.

        A client of another incarnation is told so at once: it waits for answers to what this one has not been asked.
        """
        if incarnation != self._incarnation:
            return self._incarnation, _NO_ANSWERS
        session = self._session(client)
        for number in confirmed:
            session.answers.pop(number, None)
        if not session.answers:
            session.news.clear()
            try:
                async with asyncio.timeout(_POLL_S):
                    await session.news.wait()
            except TimeoutError:
                pass
        session.heard_s = time.monotonic()
        return self._incarnation, _encode(list(session.answers.values()))

    async def code(self) -> str:
        """The version of the code that this host and the steps of its shards run."""
        return code_version()

    async def view(self, number: int, execution: str) -> bytes:
        """An encoded ExecutionView, or an encoded None where the execution is not live in that shard."""
        shard = self._shards.get(number)
        return _encode(None if shard is None else shard.view(execution))

    async def statistics(self) -> bytes:
        """Encoded ShardStatistics by number of the shard."""
        return _encode({number: shard.statistics() for number, shard in self._shards.items()})

    def _session(self, client: str) -> _Client:
        now_s = time.monotonic()
        session = self._clients.get(client)
        if session is None:
            for name, other in list(self._clients.items()):
                if now_s - other.heard_s > _FORGET_CLIENT_S:
                    del self._clients[name]
            session = self._clients[client] = _Client()
        session.heard_s = now_s
        return session

    def _deliver(self, token: Token, request: Request) -> None:
        broken = self._broken.get(request.shard)
        shard = self._shards.get(request.shard)
        if broken is not None:
            self._answer(token, Refused("StoreError", broken))
        elif shard is not None:
            shard.receive(token, request.message)
        else:
            self._wanted[request.shard].set()  # delivered when the shard is open

    def _answer(self, token: Hashable, answer: Answer) -> None:
        if not isinstance(token, Token):
            waiting = cast("asyncio.Future[int]", token)
            if not waiting.done():
                waiting.set_result(cast("Confirmed", answer).number)
            return
        client, number, _ = token
        session = self._clients.get(client)
        if session is not None and session.open.pop(number, None) is not None:
            session.answers[number] = Response(number, answer)
            session.news.set()

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
            shard = Shard(number, self._store, self._dispatcher, self._answer, self, self._turns, journal)
            try:
                await shard.open()
            except Exception as error:
                reason: BaseException = error
            else:
                self._shards[number] = shard
                self._broken.pop(number, None)
                for token, request in self._open_requests(number):
                    shard.receive(token, request.message)
                reason = await shard.closed
                del self._shards[number]
            await shard.close()
            if isinstance(reason, Fenced):
                # Somebody else owns the shard now and works for its clients. Take it back only for a client of our own, and
                # late enough for two hosts that want the same shard to get some work done each.
                _log.warning("shard %d has a new owner: %s", number, reason)
                await asyncio.sleep(random.uniform(2, 6))
                if not self._open_requests(number):
                    self._wanted[number].clear()
                    await self._wanted[number].wait()
                continue
            _log.error("shard %d stopped: %s", number, reason, exc_info=reason)
            await self._back_off(number, reason)

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
        for token, request in self._open_requests(number):
            self._deliver(token, request)

    def _open_requests(self, number: int) -> list[tuple[Token, Request]]:
        """What a shard has not answered, in the order in which each client sent it."""
        return [one for session in self._clients.values() for one in session.open.values() if one[1].shard == number]
