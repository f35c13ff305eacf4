"""A client's calls to a host over a connection of their own: what calls of Ray's do, at a fraction of the cost.

A call of an actor takes half a millisecond and more, and waits for threads to hand over to each other; one is made for every batch
of messages (``rayflow.runtime.session``). So a host listens at a port of its node, and its clients learn the address by a call of
Ray's. Where they cannot connect, or where Ray is told to encrypt what it sends, calls go on through Ray: the same calls with the
same meaning.

A connection begins with both sides showing that they know the host's secret, which only those who may call its actor can ask for.
After that there are frames: length and number of a call, 0, and its data; the answer has the same number and says whether it is
one. A call may be lost with its connection, and then it was carried out or it was not.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import itertools
import logging
import os
import secrets
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import msgspec

CONNECT_S = 2.0
"""How long a client tries to connect before it calls through Ray, in seconds."""

_SILENCE_S = 5
_PROBES = 3
"""A machine that is gone says nothing: after so much silence the other side is asked this many times, so many seconds apart."""

_PROOF_BYTES = 16
_HEAD = struct.Struct("!IIB")
_MAX_BYTES = 2**30
_DONE, _FAILED = 0, 1

_log = logging.getLogger("rayflow.channel")


class ConnectionLost(Exception):
    """Whether the call was carried out is not known."""


class Address(msgspec.Struct, frozen=True, array_like=True):
    """Where a host listens. A client has to show ``asked``, and is shown ``shown``."""

    host: str
    port: int
    asked: bytes
    shown: bytes


class Route(Protocol):
    """A way to call a host."""

    async def call(self, data: bytes) -> bytes:
        """Have the host exchange ``data``. Raises ConnectionLost, or what is in ``rayflow.runtime.actors.UNREACHABLE``."""
        ...

    def close(self) -> None:
        """End it; what is under way is lost."""
        ...


async def reach(host: Any) -> Route:
    """A way to call the host with that actor handle: the best one that there is. Raises what calls of Ray's raise."""
    address = decode_address(await host.address.remote())
    if address is None:
        return _ThroughRay(host)
    channel = _Channel(address)
    try:
        async with asyncio.timeout(CONNECT_S):
            await asyncio.get_running_loop().create_connection(lambda: channel, address.host, address.port)
            await channel.connected
    except (OSError, ConnectionLost) as error:  # TimeoutError is an OSError
        channel.close()
        _log.warning(
            "cannot connect to the shards at %s:%d (%s): calls go through Ray, which is slower",
            address.host,
            address.port,
            str(error) or type(error).__name__,
        )
        return _ThroughRay(host)
    return channel


class Listener:
    """The host's side: has calls carried out by ``exchange``, any number at a time. Belongs to a loop."""

    def __init__(self, exchange: Callable[[bytes], Awaitable[bytes]]) -> None:
        self._exchange = exchange
        self._server: asyncio.Server | None = None
        self._connections: set[_Served] = set()
        self._closed = False

    async def open(self, host: str) -> Address | None:
        """Listen at a free port of this address of the machine. None: that is not possible, or Ray is told to encrypt."""
        if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
            return None
        asked, shown = secrets.token_bytes(_PROOF_BYTES), secrets.token_bytes(_PROOF_BYTES)
        try:
            self._server = await asyncio.get_running_loop().create_server(
                lambda: _Served(self._exchange, self._came, self._connections.discard, asked, shown), host, 0
            )
        except OSError as error:
            _log.warning("cannot listen at %s (%s): clients call through Ray, which is slower", host, error)
            return None
        if self._closed:  # meanwhile
            self._server.close()
            return None
        return Address(host, self._server.sockets[0].getsockname()[1], asked, shown)

    def close(self) -> None:
        """Listen no more, and end all connections."""
        self._closed = True
        if self._server is not None:
            self._server.close()
        for one in list(self._connections):
            one.close()

    def _came(self, connection: _Served) -> None:
        if self._closed:  # it was on its way
            connection.close()
        else:
            self._connections.add(connection)


class _ThroughRay:
    """Calls of the actor."""

    def __init__(self, host: Any) -> None:
        self._host = host

    async def call(self, data: bytes) -> bytes:
        return await self._host.exchange.remote(data)

    def close(self) -> None:
        """There is nothing to end."""


class _Frames(asyncio.Protocol):
    """Frames both ways; what comes begins with ``expected``, and what else comes ends the connection."""

    def __init__(self, expected: bytes) -> None:
        self._transport: asyncio.Transport | None = None
        self._expected = expected
        self._proven = False
        self._data = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        _notice_silence(transport.get_extra_info("socket"))

    def data_received(self, data: bytes) -> None:
        self._data += data
        if not self._proven:
            if len(self._data) < _PROOF_BYTES:
                return
            if not hmac.compare_digest(bytes(self._data[:_PROOF_BYTES]), self._expected):
                self.close()
                return
            del self._data[:_PROOF_BYTES]
            self._proven = True
            self.proven()
        at, end = 0, len(self._data)
        while end - at >= _HEAD.size:
            length, number, kind = _HEAD.unpack_from(self._data, at)
            if length > _MAX_BYTES:
                self.close()
                return
            if end - at < _HEAD.size + length:
                break
            at += _HEAD.size + length
            self.received(number, kind, bytes(memoryview(self._data)[at - length : at]))
        del self._data[:at]

    def send(self, number: int, kind: int, data: bytes) -> None:
        """A frame to the other side."""
        self.write(b"".join((_HEAD.pack(len(data), number, kind), data)))

    def write(self, data: bytes) -> None:
        """Bytes to the other side; where the connection has ended they are lost."""
        assert self._transport is not None, "nothing is sent before there is a connection"
        self._transport.write(data)

    def close(self) -> None:
        """End the connection, where there is one."""
        if self._transport is not None:
            self._transport.abort()

    def proven(self) -> None:
        """The other side has shown that it knows the secret."""
        raise NotImplementedError

    def received(self, number: int, kind: int, data: bytes) -> None:
        """A frame from the other side."""
        raise NotImplementedError


class _Served(_Frames):
    """A client at the host."""

    def __init__(
        self,
        exchange: Callable[[bytes], Awaitable[bytes]],
        came: Callable[[_Served], None],
        went: Callable[[_Served], None],
        expected: bytes,
        shown: bytes,
    ) -> None:
        super().__init__(expected)
        self._exchange = exchange
        self._came, self._went = came, went
        self._shown = shown
        self._calls: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._came(self)

    def connection_lost(self, exc: Exception | None) -> None:
        # Calls that are under way come to their end, as calls of Ray's would: to stop one half-way would be a state of its own.
        self._went(self)

    def proven(self) -> None:
        self.write(self._shown)

    def received(self, number: int, kind: int, data: bytes) -> None:
        call = asyncio.get_running_loop().create_task(self._carry_out(number, data))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)

    async def _carry_out(self, number: int, data: bytes) -> None:
        try:
            kind, answer = _DONE, await self._exchange(data)
        except Exception as error:
            _log.exception("a call failed")
            kind, answer = _FAILED, f"{type(error).__name__}: {error}".encode()
        self.send(number, kind, answer)


class _Channel(_Frames):
    """A client's end. ``connected`` is done once the host has shown that it is the one at ``address``."""

    def __init__(self, address: Address) -> None:
        super().__init__(address.shown)
        self._asked = address.asked
        self._numbers = itertools.count(1)
        self._calls: dict[int, asyncio.Future[bytes]] = {}
        self._lost = False
        self.connected: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def call(self, data: bytes) -> bytes:
        if self._lost:
            raise ConnectionLost("the connection to the shards has ended")
        number = next(self._numbers) % 2**32
        answer = self._calls[number] = asyncio.get_running_loop().create_future()
        self.send(number, 0, data)
        try:
            return await answer
        finally:
            self._calls.pop(number, None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.write(self._asked)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        error = ConnectionLost(f"the connection to the shards has ended ({exc or 'closed'})")
        for one in (self.connected, *self._calls.values()):
            if not one.done():
                one.set_exception(error)

    def proven(self) -> None:
        if not self.connected.done():
            self.connected.set_result(None)

    def received(self, number: int, kind: int, data: bytes) -> None:
        answer = self._calls.get(number)
        if answer is None or answer.done():
            return
        if kind == _DONE:
            answer.set_result(data)
        else:
            answer.set_exception(RuntimeError(f"the shards' process could not carry out a call: {data.decode()}"))


def _notice_silence(connection: socket.socket) -> None:
    """Have the kernel end a connection whose other side is gone without a word. It knows not all of these everywhere."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    lost_ms = (_PROBES + 1) * _SILENCE_S * 1000
    for name, value in (
        ("TCP_KEEPIDLE", _SILENCE_S),
        ("TCP_KEEPINTVL", _SILENCE_S),
        ("TCP_KEEPCNT", _PROBES),
        ("TCP_USER_TIMEOUT", lost_ms),
    ):
        with contextlib.suppress(AttributeError, OSError):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


encode_address = msgspec.msgpack.Encoder().encode
decode_address = msgspec.msgpack.Decoder(Address | None).decode
