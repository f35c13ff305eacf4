"""A client's calls to one host: batches what is sent, fetches answers, and repeats what may have been lost.

What the calls mean to the host is in ``rayflow.runtime.session``; they bring answers back, so a client that is answered quickly
makes one call for many requests and no other. Two calls with requests are under way at most: while one waits for the store, the
next one travels, and what gathers meanwhile goes with the one after.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec

from rayflow.core.messages import Refused
from rayflow.runtime import session
from rayflow.runtime.session import Call, Request, Response

CALLS = 2
"""With requests, under way at a time."""
_RETRY_S = 0.2

ENOUGH = 128
"""Requests in a call whose own cost does not matter any more."""

_GATHER_S = 0.001
"""Who has just got several answers is likely to send as many requests: how long to wait for them, as long as some come."""
_GATHER_LIMIT_S = 0.005


class HostUnreachable(Exception):
    """The host did not answer: it is dead, or not to be reached now. It may have got the call."""


class HostGone(HostUnreachable):
    """There is no host of that name."""


class CallFailed(Exception):
    """The host did not understand a call, or failed over it; it goes on."""


class HostLink(Protocol):
    """A way to one host. Calls raise HostUnreachable, or HostGone where there is no such host; ``exchange`` CallFailed, too."""

    async def reach(self) -> None:
        """Find the host, if it is not known where it is: what is sent then leaves at once."""
        ...

    async def exchange(self, data: bytes) -> bytes:
        """An encoded Call, an encoded Reply, see ``rayflow.runtime.session``."""
        ...

    async def call(self, method: str, *args: Any) -> Any:
        """Call the host directly, for what may be lost."""
        ...

    def forget(self) -> None:
        """It could not be reached: look for it anew."""
        ...


class Requests(Protocol):
    """What a client has under way, over all lanes."""

    client: str
    clock_ms: Callable[[], int]

    def next_line(self) -> int:
        """A number that no line of this client has had: higher than those."""
        ...

    def take_unsent(self, lane: Lane) -> tuple[list[Request], int]:
        """What one call of that lane is to carry now, in order, and up to which number everything has been answered."""
        ...

    def send_again(self, lane: Lane) -> None:
        """Let all that is open and goes by that lane be unsent, in order."""
        ...

    def is_waiting(self, lane: Lane) -> bool:
        """Whether anything that goes by that lane is open."""
        ...

    def answered(self, responses: list[Response]) -> None:
        """Answers have come."""
        ...

    def warned(self, warnings: list[str]) -> None:
        """The host has something to say to the people who wait."""
        ...

    def moved(self, lane: Lane, moved: Sequence[tuple[int, str]]) -> None:
        """The lane's host does not have these shards; the names are of those that do."""
        ...

    def lost(self, lane: Lane) -> bool:
        """The lane's host cannot be reached. True: what goes by it does so no more, and the lane is closed."""
        ...


class Lane:
    """The calls to the host named ``name``. Belongs to the loop on which ``run`` runs; only ``unsent`` belongs to ``requests``."""

    def __init__(self, name: str, link: HostLink, requests: Requests) -> None:
        self.name = name
        self.unsent: list[Request] = []
        self._link = link
        self._requests = requests
        self._loop: asyncio.AbstractEventLoop
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self.enough = 0
        """How many unsent requests are waited for; 0: ``wake`` is called for the first one."""
        self._gathered = asyncio.Event()
        self._slots = asyncio.Semaphore(CALLS)
        self._incarnation = ""
        self._line = requests.next_line()
        self._calls = 0
        self._begun = False
        """Whether the host has replied on this line."""
        self._sending = 0
        self._confirmed: list[int] = []
        self._answered = 0
        self._answered_s = 0.0
        self._retry_s = 0.0
        self._closed = False

    def wake(self) -> None:
        """There is something to send, or enough of it."""
        self._wake.set()
        self._gathered.set()

    def pause(self) -> None:
        """Begin no call for a moment."""
        self._retry_s = asyncio.get_running_loop().time() + _RETRY_S

    async def run(self) -> None:
        """Send, and ask for answers, until cancelled."""
        self._loop = asyncio.get_running_loop()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._send_loop(group))
                group.create_task(self._poll_loop())
        finally:
            self._link.forget()

    async def call(self, method: str, *args: Any) -> Any:
        """Call the host directly, for what may be lost."""
        while True:
            try:
                return await self._link.call(method, *args)
            except HostUnreachable:
                self._link.forget()
                await asyncio.sleep(_RETRY_S)

    async def _send_loop(self, group: asyncio.TaskGroup) -> None:
        while True:
            await self._wake.wait()
            await self._gather()
            slots = self._slots
            await slots.acquire()
            if slots is not self._slots:  # a new line began meanwhile, and all that is open waits to be sent on that
                slots.release()
                continue
            self._wake.clear()
            requests, heard = self._requests.take_unsent(self)
            if self.unsent:
                self._wake.set()
            if not requests:
                slots.release()
                continue
            self._calls += 1
            self._sending += 1
            group.create_task(self._send(self._make_call(self._calls, heard, requests), slots))

    async def _gather(self) -> None:
        until_s = self._answered_s + _GATHER_LIMIT_S
        wanted, before = min(self._answered, ENOUGH), 0
        while before < len(self.unsent) < wanted and self._loop.time() < until_s:
            before = len(self.unsent)
            self._gathered.clear()
            self.enough = wanted
            if len(self.unsent) < wanted:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_GATHER_S):
                        await self._gathered.wait()
        self.enough = 0

    async def _send(self, call: Call, slots: asyncio.Semaphore) -> None:
        try:
            await self._exchange(call)
        finally:
            slots.release()
            self._sending -= 1
            self._idle.set()

    async def _poll_loop(self) -> None:
        """Ask for answers while there is nothing to send."""
        while True:
            await self._idle.wait()
            self._idle.clear()
            while not self._closed and not self._sending and self._requests.is_waiting(self):
                await self._exchange(self._make_call(0, 0, []))

    def _make_call(self, number: int, heard: int, requests: list[Request]) -> Call:
        confirmed, self._confirmed = self._confirmed, []
        return Call(self._requests.client, self._incarnation, self._line, number, heard, confirmed, requests, self._begun)

    async def _exchange(self, call: Call) -> None:
        try:
            pause_s = self._retry_s - self._loop.time()
            if pause_s > 0:
                await asyncio.sleep(pause_s)
            await self._link.reach()  # however long that takes
            sent = msgspec.structs.replace(call, now_ms=self._requests.clock_ms())
            reply = session.decode_reply(await self._link.exchange(session.encode(sent)))
        except HostUnreachable:  # it may have got the call, and may not
            if call.line == self._line and not self._closed:
                self._link.forget()
                self._closed = self._requests.lost(self)
                if not self._closed:
                    self.pause()
                    self._begin_line("")
            return
        except CallFailed as error:
            if not call.requests:
                raise  # so would the next one be
            text = f"whether this was done is not known: {error}. What else this program has asked for goes on"
            self._requests.answered([Response(one.number, Refused("RayflowError", text)) for one in call.requests])
            if call.line == self._line and not self._closed:
                self._begin_line(self._incarnation)
            return
        self._answer(reply.responses)
        if reply.warnings:
            self._requests.warned(reply.warnings)
        if self._closed or call.line != self._line:
            return
        if reply.incarnation != self._incarnation or reply.renew:
            # It knows nothing of what is open and has taken in nothing.
            self._begin_line(reply.incarnation)
        elif reply.moved:
            self._requests.moved(self, reply.moved)
            self._begin_line(self._incarnation)  # on this one the host takes in nothing more for them
        else:
            self._begun = True

    def _begin_line(self, incarnation: str) -> None:
        """Send all that is open, in order."""
        self._incarnation = incarnation
        self._line = self._requests.next_line()
        self._calls, self._begun = 0, False
        self._slots = asyncio.Semaphore(CALLS)  # calls of the older line may hang
        self._requests.send_again(self)
        self._wake.set()

    def _answer(self, responses: list[Response]) -> None:
        if responses:
            self._confirmed.extend(one.number for one in responses)
            self._requests.answered(responses)
            self._answered, self._answered_s = len(responses), self._loop.time()
