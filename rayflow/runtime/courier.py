"""A client's line to the shards' host: batches what is sent, fetches answers, and repeats what may have been lost.

One thread with an event loop of its own. What the calls mean to the host is in ``rayflow.runtime.session``; they bring answers
back, so a client that is answered quickly makes one call for many requests and no other. Two calls with requests are under way at
most: while one waits for the store, the next one travels, and what gathers meanwhile goes with the one after.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading
from collections.abc import Callable
from typing import Any

from ray.exceptions import RayActorError

from rayflow.core.messages import Message
from rayflow.errors import Overloaded, RayflowError
from rayflow.runtime import session
from rayflow.runtime.pending import Pending, settle_all
from rayflow.runtime.session import Call, Request, Response

WINDOW = 100_000
"""Requests under way at a time; one more is refused with Overloaded."""

_CALLS = 2
_RETRY_S = 0.2

_GATHER_S = 0.001
"""Who has just got several answers is likely to send several requests: how long to wait for more of them, as long as some come."""
_GATHER_LIMIT_S = 0.005


class Courier:
    """Thread-safe. ``find_host`` returns the host's actor handle and is asked again whenever the host cannot be reached."""

    def __init__(self, find_host: Callable[[], Any]) -> None:
        self._find_host = find_host
        self._client = secrets.token_hex(8)
        self._number = 0
        self._lock = threading.Lock()
        self._waiting: dict[int, tuple[Request, Pending]] = {}
        self._unsent: list[Request] = []
        self._broken: RayflowError | None = None
        self._loop = asyncio.new_event_loop()
        # All below belongs to the loop.
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._slots = asyncio.Semaphore(_CALLS)
        self._incarnation = ""
        self._line = 1
        self._calls = 0
        self._sending = 0
        self._confirmed: list[int] = []
        self._answered = 0
        self._answered_s = 0.0
        self._host: Any = None
        self._retry_s = 0.0
        self._thread = threading.Thread(target=self._work, name="rayflow-client", daemon=True)
        self._thread.start()

    def ask(self, shard: int, message: Message) -> Pending:
        """Send ``message`` to a shard; returns its answer to come. Raises Overloaded beyond the window."""
        pending = Pending()
        with self._lock:
            if self._broken is not None:
                raise self._broken
            if len(self._waiting) >= WINDOW:
                raise Overloaded(f"{WINDOW} requests are under way already; wait for some of them", retry_after_s=1.0)
            self._number += 1
            request = Request(self._number, shard, message)
            self._waiting[request.number] = (request, pending)
            idle = not self._unsent
            self._unsent.append(request)
        if idle:
            self._loop.call_soon_threadsafe(self._wake.set)
        return pending

    @property
    def crowded(self) -> bool:
        """Whether half of the window is used: the rest is for what cannot be put off."""
        return len(self._waiting) > WINDOW // 2

    def call(self, method: str, *args: Any) -> Any:
        """Call the host directly, for what may be lost: views and statistics. Blocks."""
        return asyncio.run_coroutine_threadsafe(self._call(method, *args), self._loop).result()

    def close(self) -> None:
        """Stop; what is still open is not answered any more."""
        self.fail(RayflowError("the client was closed; what it had started goes on"))
        self._thread.join(timeout=5)

    def fail(self, error: RayflowError) -> None:
        """Stop, and tell all who wait, now or later, why."""
        self._fail(error)
        with contextlib.suppress(RuntimeError):  # stopped already
            self._loop.call_soon_threadsafe(self._stop)

    def _stop(self) -> None:
        for task in asyncio.all_tasks(self._loop):
            task.cancel()

    def _work(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._run())
        except asyncio.CancelledError:
            pass
        except ExceptionGroup as group:
            error = group.exceptions[0]
            self._fail(RayflowError(f"the connection to the shards broke ({type(error).__name__}: {error}); connect again"))
        finally:
            self._loop.close()

    def _fail(self, error: RayflowError) -> None:
        """Nobody will answer any more: tell all who wait."""
        with self._lock:
            self._broken = self._broken or error
            waiting, self._waiting = list(self._waiting.values()), {}
        settle_all((pending, error) for _, pending in waiting)

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._send_loop(group))
            group.create_task(self._poll_loop())

    # -- calls ---------------------------------------------------------------------------------------------------------------

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
            with self._lock:
                requests, self._unsent = self._unsent, []
                # A sender says what it has heard once per call: it holds for every request in it.
                heard = next(iter(self._waiting), self._number + 1) - 1
            if not requests:
                slots.release()
                continue
            self._calls += 1
            self._sending += 1
            group.create_task(self._send(self._make_call(self._calls, heard, requests), slots))

    async def _gather(self) -> None:
        now_s = self._loop.time()
        until_s = self._answered_s + _GATHER_LIMIT_S
        before = 0
        while self._answered > 1 and now_s < until_s and before < len(self._unsent) < self._answered:
            before = len(self._unsent)
            await asyncio.sleep(_GATHER_S)
            now_s = self._loop.time()

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
            while self._waiting and not self._sending:
                await self._exchange(self._make_call(0, 0, []))

    def _make_call(self, number: int, heard: int, requests: list[Request]) -> Call:
        confirmed, self._confirmed = self._confirmed, []
        return Call(self._client, self._incarnation, self._line, number, heard, confirmed, requests)

    async def _exchange(self, call: Call) -> None:
        try:
            reply = session.decode_reply(await self._call_once("exchange", session.encode(call)))
        except RayActorError:  # dead or not reachable: it may have got the call, and may not
            if call.line == self._line:
                self._host = None
                self._retry_s = self._loop.time() + _RETRY_S
                self._begin_line("")
            return
        self._answer(reply.responses)
        if call.line == self._line and reply.incarnation != self._incarnation:
            # It knows nothing of what is open and has taken in nothing.
            self._begin_line(reply.incarnation)

    def _begin_line(self, incarnation: str) -> None:
        """Send all that is open, in order."""
        self._incarnation = incarnation
        self._line += 1
        self._calls = 0
        self._slots = asyncio.Semaphore(_CALLS)  # calls of the older line may hang
        with self._lock:
            self._unsent = [request for request, _ in self._waiting.values()]
        self._wake.set()

    async def _call(self, method: str, *args: Any) -> Any:
        while True:
            try:
                return await self._call_once(method, *args)
            except RayActorError:
                self._host = None
                await asyncio.sleep(_RETRY_S)

    async def _call_once(self, method: str, *args: Any) -> Any:
        pause_s = self._retry_s - self._loop.time()
        if pause_s > 0:
            await asyncio.sleep(pause_s)
        if self._host is None:
            self._host = await self._loop.run_in_executor(None, self._find_host)
        return await getattr(self._host, method).remote(*args)

    # -- answers -------------------------------------------------------------------------------------------------------------

    def _answer(self, responses: list[Response]) -> None:
        if not responses:
            return
        with self._lock:
            answered = [(self._waiting.pop(one.number, None), one.answer) for one in responses]
        self._confirmed.extend(one.number for one in responses)
        settle_all((entry[1], answer) for entry, answer in answered if entry is not None)
        self._answered, self._answered_s = len(responses), self._loop.time()
