"""A client's line to the shards' host: batches what is sent, fetches answers, and repeats what may have been lost.

One thread with an event loop of its own. At most one call carries requests at a time; what gathers meanwhile goes with the next.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import msgspec
from ray.exceptions import RayActorError

from rayflow.core.messages import Answer, Message
from rayflow.errors import Overloaded, RayflowError
from rayflow.runtime.host import Request, Response

WINDOW = 100_000
"""Requests under way at a time; one more is refused with Overloaded."""

_RETRY_S = 0.2

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Response]).decode


class Courier:
    """Thread-safe. ``find_host`` returns the host's actor handle and is asked again whenever the host cannot be reached."""

    def __init__(self, find_host: Callable[[], Any]) -> None:
        self._find_host = find_host
        self._client = secrets.token_hex(8)
        self._number = 0
        self._lock = threading.Lock()
        self._waiting: dict[int, tuple[Request, Future[Answer]]] = {}
        self._unsent: list[Request] = []
        self._confirmed: list[int] = []
        self._incarnation = ""
        self._broken: RayflowError | None = None
        self._loop = asyncio.new_event_loop()
        self._wake = asyncio.Event()
        self._polling = asyncio.Event()
        self._host: Any = None
        self._thread = threading.Thread(target=self._work, name="rayflow-client", daemon=True)
        self._thread.start()

    def ask(self, shard: int, message: Message) -> Future[Answer]:
        """Send ``message`` to a shard; the future is done when the answer is here. Raises Overloaded beyond the window."""
        future: Future[Answer] = Future()
        with self._lock:
            if self._broken is not None:
                raise self._broken
            if len(self._waiting) >= WINDOW:
                raise Overloaded(f"{WINDOW} requests are under way already; wait for some of them", retry_after_s=1.0)
            self._number += 1
            request = Request(self._number, shard, message)
            self._waiting[request.number] = (request, future)
            idle = not self._unsent
            self._unsent.append(request)
        if idle:
            self._loop.call_soon_threadsafe(self._wake.set)
        return future

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
        except Exception as error:
            self._fail(RayflowError(f"the connection to the shards broke ({type(error).__name__}: {error}); connect again"))
        finally:
            self._loop.close()

    def _fail(self, error: RayflowError) -> None:
        """Nobody will answer any more: tell all who wait."""
        with self._lock:
            self._broken = self._broken or error
            waiting, self._waiting = list(self._waiting.values()), {}
        for _, future in waiting:
            if future.set_running_or_notify_cancel():
                future.set_exception(error)

    async def _run(self) -> None:
        await asyncio.gather(self._send_loop(), self._receive_loop())

    async def _send_loop(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            with self._lock:
                requests, self._unsent = self._unsent, []
                # A sender says what it has heard once per call: it holds for every request in it.
                heard = next(iter(self._waiting), self._number + 1) - 1
            if requests:
                self._polling.set()
                self._heard(await self._call("send", self._client, self._incarnation, heard, _encode(requests)))

    async def _receive_loop(self) -> None:
        while True:
            await self._polling.wait()
            confirmed, self._confirmed = self._confirmed, []
            incarnation, data = await self._call("receive", self._client, self._incarnation, confirmed)
            self._heard(incarnation)
            for response in _decode(data):
                self._confirmed.append(response.number)
                with self._lock:
                    entry = self._waiting.pop(response.number, None)
                if entry is not None and entry[1].set_running_or_notify_cancel():
                    entry[1].set_result(response.answer)
            if not self._waiting and not self._confirmed:
                self._polling.clear()

    def _heard(self, incarnation: str) -> None:
        """A host that is not the one before knows nothing of what is open and has taken in nothing new: send all, in order."""
        if incarnation == self._incarnation:
            return
        self._incarnation = incarnation
        with self._lock:
            self._unsent = [request for request, _ in self._waiting.values()]
        self._wake.set()

    async def _call(self, method: str, *args: Any) -> Any:
        while True:
            try:
                if self._host is None:
                    self._host = await self._loop.run_in_executor(None, self._find_host)
                return await getattr(self._host, method).remote(*args)
            except RayActorError:  # dead or not reachable: it may have got the call, and may not
                self._host = None
                await asyncio.sleep(_RETRY_S)
