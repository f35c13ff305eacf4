"""Keeps one shard open on a host, for as long as the shard is the host's.

A shard that was lost or broke is opened again, but not in a loop, and not against a successor without need. What clients want of it
meanwhile waits with the host, and is refused only while the shard is suspended.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Hashable
from random import Random
from typing import Protocol

from rayflow.core.messages import Answer, Refused, Token
from rayflow.errors import Fenced, StoreUnavailable
from rayflow.runtime.crash_journal import INTENSITY, INTENSITY_WINDOW_S
from rayflow.runtime.ports import Journal, Meter
from rayflow.runtime.session import Open
from rayflow.runtime.shard import Shard

_STORE_AGAIN_S = 1.0
_REOPEN_LIMIT = 5
_REOPEN_WINDOW_S = 30.0

_AFTER_POISON_S = 0.1

_log = logging.getLogger("rayflow.host")


class Clients(Protocol):
    """Those whom the host serves."""

    def open_requests(self, shard: int) -> list[Open]:
        """What a shard has not answered, in the order in which each client sent it."""
        ...

    def answer(self, token: Hashable, answer: Answer) -> None:
        """Tell one of them."""
        ...


class _Poison(Exception):
    """A request broke the shard."""

    def __init__(self, token: Token, error: str, cause: BaseException) -> None:
        super().__init__(error)
        self.token = token
        self.__cause__ = cause


class Keeper:
    """Opens shard ``number``, which ``make`` makes anew each time, and works for ``clients`` until ``leave``.

    ``shard`` is there while it is open; ``suspended`` says why it is not, for all who ask, or is empty.
    """

    def __init__(
        self,
        number: int,
        store_url: str,
        make: Callable[[], Shard],
        journal: Journal,
        meter: Meter,
        clients: Clients,
        dice: Random,
    ) -> None:
        self.number = number
        self.shard: Shard | None = None
        self.suspended = ""
        self.meter = meter
        self._store_url = store_url
        self._make = make
        self._journal = journal
        self._clients = clients
        self._dice = dice
        self._reopened_s: list[float] = []
        self._wanted = asyncio.Event()
        self._left = asyncio.Event()
        self._work = asyncio.create_task(self._keep())

    def deliver(self, requests: list[Open]) -> None:
        """New requests of a client. Where the shard is not open they are taken in when it is."""
        if self.suspended:
            for one in requests:
                self._clients.answer(one.token, Refused("StoreError", self.suspended))
        elif self.shard is not None:
            self.shard.receive([(one.token, one.request.message) for one in requests])
        else:
            self.want()

    def want(self) -> None:
        """Somebody needs the shard: if it was lost to another owner, take it back."""
        self._wanted.set()

    def measure(self, waiting: int) -> None:
        """Tell the metrics what there is, and how many messages wait."""
        self.meter.levels(None if self.shard is None else self.shard.levels(), bool(self.suspended), waiting)

    async def leave(self) -> None:
        """Close the shard, which is another host's from now on. Once this returns, nothing here claims or writes it any more."""
        self._left.set()
        await self._work
        self._journal.close()
        self.meter.levels(None, suspended=False, mailbox=0)

    async def _keep(self) -> None:
        if (pause_s := self._journal.pause_s()) > 0:
            self._suspend(f"its process crashed {INTENSITY} times in {INTENSITY_WINDOW_S:.0f} s; it opens in {pause_s:.0f} s")
            await self._pause(pause_s)
        while not self._left.is_set():
            await self._after(await self._hold())

    async def _hold(self) -> BaseException | None:
        """Have the shard open as long as that goes well; returns why it ended, None if it was left."""
        try:
            shard = self._make()
        except Exception as error:  # no thread can be started, for example
            return error
        try:
            try:
                await shard.open()
            except Exception as error:
                return error
            self.shard, self.suspended = shard, ""
            shard.receive([(one.token, one.request.message) for one in self._clients.open_requests(self.number)])
            left = asyncio.ensure_future(self._left.wait())
            await asyncio.wait({shard.closed, left}, return_when=asyncio.FIRST_COMPLETED)
            left.cancel()
            self.shard = None
            self.meter.counted(shard.levels())
            if self._left.is_set():
                if not shard.closed.done():  # those who wait for it must not wait on
                    shard.closed.set_result(Fenced("the shard has moved to another host"))
                return None
            if shard.failed_over is not None:
                return _Poison(*shard.failed_over, cause=shard.closed.result())
            return shard.closed.result()
        finally:
            await shard.close()

    async def _after(self, reason: BaseException | None) -> None:
        if reason is None:
            return
        if isinstance(reason, Fenced):
            # Somebody else owns the shard now and works for its clients. Take it back only for a client of our own, and late
            # enough for two hosts that want the same shard to get some work done each.
            _log.warning("shard %d has a new owner: %s", self.number, reason)
            self.meter.fenced()
            await self._pause(self._dice.uniform(2, 6))
            if not self._clients.open_requests(self.number):
                self._wanted.clear()
                await self._until_wanted()
            return
        if isinstance(reason, StoreUnavailable):
            # That passes, and nobody gains from being refused meanwhile: who waits goes on waiting.
            _log.warning("shard %d is closed until the store answers again: %s", self.number, reason)
            self.meter.store_failed()
            await self._pause(_STORE_AGAIN_S)
            return
        _log.error("shard %d stopped: %s", self.number, reason, exc_info=reason)
        self.meter.failed()
        if isinstance(reason, _Poison):
            # Whoever asked is told, so that it does not come again: nobody else has to be kept waiting for it.
            text = (
                f"this request was not carried out: shard {self.number} of {self._store_url} failed over it ({reason}) and was "
                f"opened again. All others go on. It is a fault of rayflow's own; the log of the host has more of it"
            )
            self._clients.answer(reason.token, Refused("RayflowError", text))
            await self._pause(_AFTER_POISON_S)
            return
        await self._back_off(reason)

    async def _back_off(self, reason: BaseException) -> None:
        now_s = asyncio.get_running_loop().time()
        recent = [at_s for at_s in self._reopened_s if now_s - at_s < _REOPEN_WINDOW_S]
        self._reopened_s = [*recent, now_s]
        if len(recent) + 1 < _REOPEN_LIMIT:
            await self._pause(0.1 * 2 ** len(recent))
            return
        self._suspend(f"{type(reason).__name__}: {reason}")
        await self._pause(_REOPEN_WINDOW_S)

    def _suspend(self, reason: str) -> None:
        """Tell all who ask, now and until the shard is open again."""
        self.suspended = f"shard {self.number} of {self._store_url} is suspended: {reason}"
        _log.error("%s", self.suspended)
        self.deliver(self._clients.open_requests(self.number))

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._left.wait()
        except TimeoutError:
            pass

    async def _until_wanted(self) -> None:
        waits = [asyncio.ensure_future(event.wait()) for event in (self._wanted, self._left)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for one in waits:
            one.cancel()
