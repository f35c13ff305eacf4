"""A client's calls to a host over a connection of their own: what calls of Ray's do, at a fraction of the cost.

A call of an actor takes half a millisecond and more, and waits for threads to hand over to each other; one is made for every batch
of messages (``rayflow.runtime.session``). So a host listens at a port of its node, and its clients learn the address by a call of
Ray's. Where they cannot connect, calls go on through Ray, the same calls with the same meaning, while the client tries again now
and then. Where Ray is told to encrypt what it sends, these connections do so as well, with its certificates.

A connection begins with both sides showing that they know the host's secret, which only those who may call its actor can ask for.
Anybody may connect who reaches the port: until it has shown the secret, a connection costs a descriptor and some bytes, has
``PROOF_S`` for it, and gives way to others where there are many. After that there are frames: length and number of a call, 0, and
its data; the answer has the same number and says whether it is one. A call may be lost with its connection, and then it was carried
out or it was not.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import itertools
import logging
import random
import secrets
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import msgspec

from rayflow.runtime import certificates

CONNECT_S = 2.0
"""How long a client tries to connect before it calls through Ray, in seconds."""

AGAIN_S = 1.0
AGAIN_MOST_S = 60.0
"""When it tries again, in seconds: twice as long after each time."""

PROOF_S = 5.0
"""How long whoever connects may take to show the secret, in seconds."""

GUESTS = 128
"""Connections that have not shown it, at a time. One more ends the oldest: a client needs no longer than its network."""

_BACKLOG = 512
_ACCEPT_AGAIN_S = 0.1
"""How long nobody is let in where the machine does not allow it, in seconds: no descriptors, most likely."""

_SILENCE_S = 5
_PROBES = 3
"""A machine that is gone says nothing: after so much silence the other side is asked this many times, so many seconds apart."""

_PROOF_BYTES = 16
_HEAD = struct.Struct("!IIB")
_MAX_BYTES = 2**30
"""Of a frame's data: far more than anything that is sent (``rayflow.runtime.session``), and an end for what is not one of ours."""
_ERROR_CHARS = 10_000
_DONE, _FAILED = 0, 1

_log = logging.getLogger("rayflow.channel")


class RemoteError(RuntimeError):
    """The host could not carry out a call; it goes on."""


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
    try:
        return await _connected(address)
    except (OSError, ConnectionLost) as error:  # TimeoutError is an OSError
        _log.warning(
            "cannot connect to the shards at %s:%d (%s): calls go through Ray, which is slower, until that is possible",
            address.host,
            address.port,
            str(error) or type(error).__name__,
        )
        return _UntilConnected(host, address)


async def _connected(address: Address) -> _Channel:
    """Raises OSError or ConnectionLost."""
    channel = _Channel(address)
    try:
        async with asyncio.timeout(CONNECT_S):
            loop, tls = asyncio.get_running_loop(), certificates.client_side()
            await loop.create_connection(lambda: channel, address.host, address.port, ssl=tls)
            await channel.connected
    except BaseException:
        channel.close()
        raise
    return channel


class Listener:
    """The host's side: has calls carried out by ``exchange``, any number at a time. Belongs to a loop."""

    def __init__(self, exchange: Callable[[bytes], Awaitable[bytes]]) -> None:
        self._exchange = exchange
        self._socket: socket.socket | None = None
        self._tls: ssl.SSLContext | None = None
        self._asked, self._shown = secrets.token_bytes(_PROOF_BYTES), secrets.token_bytes(_PROOF_BYTES)
        self._guests: dict[asyncio.Task[None], None] = {}
        """Who has not shown the secret yet, in the order of coming."""
        self._connections: set[_Served] = set()
        self._crowded = self._exhausted = False
        self._closed = False

    async def open(self, host: str) -> Address | None:
        """Listen at a free port of this address of the machine. None: that is not possible."""
        try:
            self._tls = certificates.server_side()
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._socket = socket.create_server((host, 0), family=family, backlog=_BACKLOG)
        except OSError as error:
            _log.warning("cannot listen at %s (%s): clients call through Ray, which is slower", host, error)
            return None
        self._socket.setblocking(False)
        self._listen()
        return Address(host, self._socket.getsockname()[1], self._asked, self._shown)

    def close(self) -> None:
        """Listen no more, and end all connections."""
        self._closed = True
        listening, self._socket = self._socket, None
        if listening is not None:
            asyncio.get_running_loop().remove_reader(listening)
            listening.close()
        while self._guests:
            self._end_oldest_guest()
        for one in list(self._connections):
            one.close()

    # asyncio's own servers know no limit of connections, and neither whom they could end where descriptors run out.

    def _listen(self) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().add_reader(self._socket, self._accept)

    def _accept(self) -> None:
        """Let one in, if there still is one."""
        assert self._socket is not None
        try:
            connection, _ = self._socket.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:
            self._pause(error)
            return
        self._exhausted = False
        connection.setblocking(False)
        if len(self._guests) >= GUESTS:
            if not self._crowded:
                _log.warning("%d connections at once that do not say who they are: from now on the oldest are ended", GUESTS)
            self._crowded = True
            self._end_oldest_guest()
        guest = asyncio.get_running_loop().create_task(self._welcome(connection))
        self._guests[guest] = None
        guest.add_done_callback(lambda guest: self._guests.pop(guest, None))

    def _pause(self, error: OSError) -> None:
        """The machine lets nobody in. Who waits at the port would have this asked over and over again."""
        assert self._socket is not None
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._socket)
        loop.call_later(_ACCEPT_AGAIN_S, self._listen)
        if self._guests:
            self._end_oldest_guest()
        if not self._exhausted:
            _log.warning("cannot take in connections (%s): trying again; clients may call through Ray, which is slower", error)
        self._exhausted = True

    def _end_oldest_guest(self) -> None:
        guest = next(iter(self._guests))
        del self._guests[guest]
        asyncio.get_running_loop().call_soon(guest.cancel)  # not before it has begun, which makes the socket its own

    async def _welcome(self, connection: socket.socket) -> None:
        served = _Served(self._exchange, self._proven, self._connections.discard, self._asked, self._shown)
        limit_s = PROOF_S if self._tls else None
        try:
            async with asyncio.timeout(PROOF_S):
                await asyncio.get_running_loop().connect_accepted_socket(
                    lambda: served, connection, ssl=self._tls, ssl_handshake_timeout=limit_s
                )
                await served.settled.wait()
        except OSError as error:  # it is too slow, or does not speak TLS, or shows no certificate that counts
            _log.debug("a stranger was turned away: %s", error or type(error).__name__)
        finally:
            if served not in self._connections:
                served.close()

    def _proven(self, connection: _Served) -> None:
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


class _UntilConnected(_ThroughRay):
    """Calls of the actor until there is a connection, and over that from then on."""

    def __init__(self, host: Any, address: Address) -> None:
        super().__init__(host)
        self._channel: _Channel | None = None
        self._trying = asyncio.get_running_loop().create_task(self._try_again(address))

    async def call(self, data: bytes) -> bytes:
        if self._channel is not None:
            return await self._channel.call(data)
        return await super().call(data)

    def close(self) -> None:
        self._trying.cancel()
        if self._channel is not None:
            self._channel.close()

    async def _try_again(self, address: Address) -> None:
        pause_s = AGAIN_S
        while self._channel is None:
            await asyncio.sleep(pause_s * random.uniform(0.5, 1))  # many clients may have lost the same host
            pause_s = min(2 * pause_s, AGAIN_MOST_S)
            with contextlib.suppress(OSError, ConnectionLost):
                self._channel = await _connected(address)
        _log.warning("connected to the shards at %s:%d now", address.host, address.port)


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
        _set_options(transport.get_extra_info("socket"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._data.clear()

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
                _log.warning("a connection was ended: its other side announces %d bytes at once, which is nothing of ours", length)
                self.close()
                return
            if end - at < _HEAD.size + length:
                break
            at += _HEAD.size + length
            self.received(number, kind, bytes(memoryview(self._data)[at - length : at]))
        del self._data[:at]

    def send(self, number: int, kind: int, data: bytes) -> None:
        """A frame to the other side, of no more than ``_MAX_BYTES``."""
        self.write(b"".join((_HEAD.pack(len(data), number, kind), data)))

    def write(self, data: bytes) -> None:
        """Bytes to the other side; where the connection has ended they are lost."""
        if self._transport is not None:
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
    """A client at the host. ``settled`` is set once it has shown the secret, or is gone."""

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
        self.settled = asyncio.Event()

    def connection_lost(self, exc: Exception | None) -> None:
        # Calls that are under way come to their end, as calls of Ray's would: to stop one half-way would be a state of its own.
        super().connection_lost(exc)
        self._went(self)
        self.settled.set()

    def pause_writing(self) -> None:
        """The client does not read what it is answered: it is to ask for no more, for all of that is in memory."""
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """It does again."""
        if self._transport is not None:
            self._transport.resume_reading()

    def proven(self) -> None:
        self._came(self)
        self.settled.set()
        self.write(self._shown)

    def received(self, number: int, kind: int, data: bytes) -> None:
        call = asyncio.get_running_loop().create_task(self._carry_out(number, data))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)

    async def _carry_out(self, number: int, data: bytes) -> None:
        try:
            kind, answer = _DONE, await self._exchange(data)
            if len(answer) > _MAX_BYTES:
                raise ValueError(f"the answer is {len(answer)} bytes long, and {_MAX_BYTES} can be sent at most")
        except Exception as error:
            _log.exception("a call failed")
            kind, answer = _FAILED, f"{type(error).__name__}: {error}"[:_ERROR_CHARS].encode(errors="replace")
        self.send(number, kind, answer)


class _Channel(_Frames):
    """A client's end. ``connected`` is done once the host has shown that it is the one at ``address``."""

    def __init__(self, address: Address) -> None:
        super().__init__(address.shown)
        self._address = address
        self._numbers = itertools.count(1)
        self._calls: dict[int, asyncio.Future[bytes]] = {}
        self.connected: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def call(self, data: bytes) -> bytes:
        if self._transport is None:
            raise ConnectionLost("the connection to the shards has ended")
        if len(data) > _MAX_BYTES:
            raise ValueError(f"a call of {len(data)} bytes, and {_MAX_BYTES} can be sent at most")
        number = next(self._numbers) % 2**32
        answer = self._calls[number] = asyncio.get_running_loop().create_future()
        self.send(number, 0, data)
        try:
            return await answer
        finally:
            self._calls.pop(number, None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        certificate = transport.get_extra_info("peercert")
        if certificate is None or certificates.is_for(certificate, self._address.host):
            self.write(self._address.asked)
        else:
            self.connected.set_exception(ConnectionLost(f"its certificate is not for {self._address.host}"))
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
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
            answer.set_exception(RemoteError(f"the shards' process could not carry out a call: {data.decode()}"))


def _set_options(connection: socket.socket) -> None:
    """Send at once, as asyncio does it only with sockets that it has accepted itself, and have the kernel end a connection whose
    other side is gone without a word. It knows not all of these everywhere."""
    lost_ms = (_PROBES + 1) * _SILENCE_S * 1000
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_NODELAY", 1),
        ("TCP_KEEPIDLE", _SILENCE_S),
        ("TCP_KEEPINTVL", _SILENCE_S),
        ("TCP_KEEPCNT", _PROBES),
        ("TCP_USER_TIMEOUT", lost_ms),
    ):
        with contextlib.suppress(AttributeError, OSError):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


encode_address = msgspec.msgpack.Encoder().encode
decode_address = msgspec.msgpack.Decoder(Address | None).decode
