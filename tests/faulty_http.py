"""An HTTP proxy with faults, in front of an S3 server: refused connections, 503, lost acknowledgements, slowness."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Any
from urllib.parse import urlsplit

SLOW_S = 0.5

_UNAVAILABLE = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Fault(StrEnum):
    """What happens to every request."""

    NONE = "none"
    REFUSE = "refuse"
    """Nobody listens: connections are refused, those there are break off."""
    UNAVAILABLE = "unavailable"
    """503, without having been carried out."""
    LOSE = "lose"
    """A PUT is carried out, and its connection is closed without an answer."""
    HANG = "hang"
    """A PUT is carried out and never answered."""
    SLOW = "slow"
    """Each takes ``SLOW_S`` longer."""


class FaultyProxy:
    """One address that stays the same while faults come and go. ``set`` may be called from any thread."""

    def __init__(self, upstream: str) -> None:
        parts = urlsplit(upstream)
        self._upstream = (str(parts.hostname), int(parts.port or 80))
        self._fault = Fault.NONE
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._port = 0
        self.hit = 0
        """How many requests met the fault that is set."""
        self._thread = threading.Thread(target=self._loop.run_forever, name="faulty-http", daemon=True)
        self._thread.start()
        self._do(self._listen())

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def set(self, fault: Fault) -> None:
        """From now on every request meets this fault."""
        self._do(self._set(fault))

    @contextmanager
    def during(self, fault: Fault) -> Iterator[None]:
        """In the block every request meets this fault."""
        self.set(fault)
        try:
            yield
        finally:
            self.set(Fault.NONE)

    def close(self) -> None:
        self.set(Fault.REFUSE)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def _set(self, fault: Fault) -> None:
        self._fault, self.hit = fault, 0
        if fault is Fault.REFUSE and self._server is not None:
            self._server.close()
            self._server = None
            for writer in list(self._open):
                writer.transport.abort()
        elif fault is not Fault.REFUSE and self._server is None:
            await self._listen()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await self._answer(reader, writer)
        finally:
            self._open.discard(writer)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request per connection: clients open another for the next."""
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines[1:])}
        body = await reader.readexactly(int(fields.get(b"content-length", b"0")))
        fault = self._fault
        match fault:
            case Fault.UNAVAILABLE:
                self.hit += 1
                writer.write(_UNAVAILABLE)
            case Fault.LOSE | Fault.HANG if head.startswith(b"PUT "):
                self.hit += 1
                await self._forward(lines, body)
                if fault is Fault.HANG:
                    await asyncio.sleep(3600)
            case _:
                if fault is Fault.SLOW:
                    self.hit += 1
                    await asyncio.sleep(SLOW_S)
                writer.write(await self._forward(lines, body))
        await writer.drain()

    async def _forward(self, lines: list[bytes], body: bytes) -> bytes:
        """The whole answer; the server closes the connection after it."""
        kept = [line for line in lines if line and not line.lower().startswith((b"connection:", b"expect:"))]
        reader, writer = await asyncio.open_connection(*self._upstream)
        try:
            writer.write(b"\r\n".join([*kept, b"Connection: close", b"", b""]) + body)
            await writer.drain()
            return await reader.read()
        finally:
            writer.close()


@contextmanager
def faulty_proxy(upstream: str) -> Iterator[FaultyProxy]:
    """A proxy that is gone at the end of the block."""
    proxy = FaultyProxy(upstream)
    try:
        yield proxy
    finally:
        proxy.close()
