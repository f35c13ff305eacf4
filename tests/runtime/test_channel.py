"""A client's connection to a host: calls and answers find each other, and whatever happens to it, the client hears of it.

Invariants: I21.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

import msgspec
import pytest

from rayflow.runtime import channel
from rayflow.runtime.channel import Address, ConnectionLost, Listener, reach
from tests.runtime.handles import Handle

LOOPBACK = "127.0.0.1"


def actor_at(address: Address | None) -> Handle:
    async def tell() -> Address | None:
        return address

    return Handle(echo, tell)


async def echo(data: bytes) -> bytes:
    return data


@asynccontextmanager
async def listening(exchange: Callable[[bytes], Awaitable[bytes]] = echo) -> AsyncIterator[tuple[Listener, Address]]:
    listener = Listener(exchange)
    address = await listener.open(LOOPBACK)
    assert address is not None
    try:
        yield listener, address
    finally:
        listener.close()


def test_answers_find_their_calls_whatever_their_order_and_size() -> None:
    async def later(data: bytes) -> bytes:
        await asyncio.sleep(0.02 if data[0] % 2 else 0)
        return data[::-1]

    async def main() -> None:
        async with listening(later) as (_, address):
            actor = actor_at(address)
            route = await reach(actor)
            sent = [
                bytes([number]) + secrets.token_bytes(size) for number, size in enumerate([0, 1, 3_000_000, 70_000, 7, 1_000_000])
            ]
            assert await asyncio.gather(*(route.call(one) for one in sent)) == [one[::-1] for one in sent]
            assert await route.call(b"x" * 5) == b"x" * 5
            assert not actor.called_through_ray
            route.close()

    asyncio.run(main())


def test_neither_side_waits_for_more_to_send_with_what_it_sends() -> None:
    async def main() -> None:
        async with listening() as (listener, address):
            route = await reach(actor_at(address))
            (served,) = listener._connections  # pyright: ignore[reportPrivateUsage]
            for end in (route, served):
                connection = end._transport.get_extra_info("socket")  # pyright: ignore
                assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            route.close()

    asyncio.run(main())


def test_a_call_under_way_when_the_connection_ends_is_lost_and_so_are_later_ones() -> None:
    async def main() -> None:
        begun = asyncio.Event()

        async def never(data: bytes) -> bytes:
            begun.set()
            await asyncio.Event().wait()
            return data

        async with listening(never) as (listener, address):
            route = await reach(actor_at(address))
            call = asyncio.ensure_future(route.call(b""))
            await begun.wait()
            listener.close()
            with pytest.raises(ConnectionLost):
                await asyncio.wait_for(call, 5)
            with pytest.raises(ConnectionLost):
                await route.call(b"")

    asyncio.run(main())


def test_a_call_is_carried_out_to_its_end_although_its_connection_ends() -> None:
    async def main() -> None:
        begun, go_on, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def slow(data: bytes) -> bytes:
            begun.set()
            await go_on.wait()
            ended.set()
            return data

        async with listening(slow) as (_, address):
            route = await reach(actor_at(address))
            call = asyncio.ensure_future(route.call(b""))
            await begun.wait()
            route.close()
            with pytest.raises(ConnectionLost):
                await call
            go_on.set()
            await asyncio.wait_for(ended.wait(), 5)

    asyncio.run(main())


def test_what_fails_at_the_host_is_told_and_the_connection_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    async def picky(data: bytes) -> bytes:
        if data == b"bad":
            raise ValueError("not this one")
        return data

    async def main() -> None:
        async with listening(picky) as (_, address):
            route = await reach(actor_at(address))
            with pytest.raises(RuntimeError, match="ValueError: not this one"):
                await route.call(b"bad")
            assert await route.call(b"good") == b"good"
            route.close()

    asyncio.run(main())
    assert "a call failed" in caplog.text


@pytest.mark.parametrize("wrong", ["asked", "shown"])
def test_neither_side_talks_to_one_that_does_not_know_the_secret(wrong: str, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        calls: list[bytes] = []

        async def note(data: bytes) -> bytes:
            calls.append(data)
            return data

        async with listening(note) as (_, address):
            actor = actor_at(msgspec.structs.replace(address, **{wrong: b"0123456789abcdef"}))
            route = await reach(actor)
            assert await route.call(b"x") == b"x"
            assert (actor.called_through_ray, calls) == (1, [])

    asyncio.run(main())
    assert "calls go through Ray" in caplog.text


async def stranger(address: Address, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(address.host, address.port)
    writer.write(data)
    try:
        return await asyncio.wait_for(reader.read(), 5)
    finally:
        writer.close()


def test_a_stranger_learns_nothing_and_is_cut_off() -> None:
    async def main() -> None:
        async with listening() as (_, address):
            assert await stranger(address, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n") == b""
            huge = address.asked + (2**31).to_bytes(4, "big") + bytes(5)
            assert await stranger(address, huge) == address.shown

    asyncio.run(main())


@asynccontextmanager
async def connected(address: Address, data: bytes = b"") -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(address.host, address.port)
    writer.write(data)
    try:
        yield reader, writer
    finally:
        writer.close()


@pytest.mark.parametrize("shown", [0, 15])
def test_who_does_not_show_the_secret_in_time_is_cut_off(shown: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "PROOF_S", 0.1)

    async def main() -> None:
        async with listening() as (_, address):
            route = await reach(actor_at(address))
            assert await stranger(address, address.asked[:shown]) == b""
            assert await route.call(b"x") == b"x", "who has shown it stays"
            route.close()

    asyncio.run(main())


def test_of_many_connections_that_say_nothing_the_oldest_are_ended_and_clients_go_on(caplog: pytest.LogCaptureFixture) -> None:
    many = channel.GUESTS + 30

    async def main() -> None:
        async with listening() as (_, address):
            actor = actor_at(address)
            before = await reach(actor)
            held = [await asyncio.open_connection(address.host, address.port) for _ in range(many)]
            for reader, _ in held[: many - channel.GUESTS]:
                assert await asyncio.wait_for(reader.read(), 2) == b""
            after = await reach(actor)
            assert (await before.call(b"x"), await after.call(b"y")) == (b"x", b"y")
            assert not actor.called_through_ray
            for route in (before, after):
                route.close()
            for _, writer in held:
                writer.close()

    asyncio.run(main())
    assert caplog.text.count("the oldest are ended") == 1


@contextmanager
def no_descriptors() -> Iterator[None]:
    """All that this process may have are in use."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(int(one) for one in os.listdir("/proc/self/fd")) + 8, hard))
    try:
        while True:
            try:
                used.append(os.dup(0))
            except OSError:
                break
        yield
    finally:
        for one in used:
            os.close(one)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_without_descriptors_clients_go_on_and_whoever_waits_is_let_in_later(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with listening() as (_, address):
            route = await reach(actor_at(address))
            with socket.socket() as waiting:
                waiting.setblocking(False)
                with no_descriptors():
                    await asyncio.get_running_loop().sock_connect(waiting, (address.host, address.port))
                    while "cannot take in connections" not in caplog.text:
                        assert await route.call(b"x") == b"x"
                    for _ in range(500):
                        await route.call(b"x")
                waiting.send(address.asked)
                assert await asyncio.get_running_loop().sock_recv(waiting, 100) == address.shown
            route.close()

    with caplog.at_level(logging.WARNING):
        asyncio.run(asyncio.wait_for(main(), 8))
    assert len(caplog.records) == 1, "said once, and not over and over again"


def test_of_a_client_that_does_not_read_no_more_calls_are_taken_in_than_fit_into_buffers() -> None:
    frames, size = 1000, 64 * 1024

    async def main() -> None:
        taken = 0

        async def count(data: bytes) -> bytes:
            nonlocal taken
            taken += 1
            return data

        async with listening(count) as (_, address), connected(address, address.asked) as (reader, writer):
            for number in range(frames):
                writer.write(channel._HEAD.pack(size, number, 0) + bytes(size))  # pyright: ignore[reportPrivateUsage]
            for _ in range(3000):
                await asyncio.sleep(0)  # a turn of the loop, on which both sides are
            assert 0 < taken < frames / 2
            await reader.readexactly(len(address.shown) + frames * (channel._HEAD.size + size))  # pyright: ignore[reportPrivateUsage]
            assert taken == frames, "all of it once it reads"

    asyncio.run(asyncio.wait_for(main(), 9))


def test_what_no_frame_can_carry_is_refused_at_once_and_the_connection_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "_MAX_BYTES", 1000)

    async def double(data: bytes) -> bytes:
        return data * 2

    async def main() -> None:
        async with listening(double) as (_, address):
            route = await reach(actor_at(address))
            with pytest.raises(ValueError, match="a call of 1001 bytes, and 1000 can be sent at most"):
                await asyncio.wait_for(route.call(bytes(1001)), 2)
            with pytest.raises(RuntimeError, match="the answer is 1400 bytes long, and 1000 can be sent at most"):
                await asyncio.wait_for(route.call(bytes(700)), 2)
            assert await route.call(bytes(500)) == bytes(1000)
            route.close()

    asyncio.run(main())


def test_where_nothing_can_be_connected_to_calls_go_through_ray(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with listening() as (listener, address):
            listener.close()
            actor = actor_at(address)
            route = await reach(actor)
            assert await route.call(b"x") == b"x"
            assert actor.called_through_ray == 1

    with caplog.at_level(logging.WARNING):
        asyncio.run(main())
    assert "cannot connect to the shards at 127.0.0.1" in caplog.text


class Door:
    """A port before that of a listener. While it is shut, it ends what comes."""

    def __init__(self, behind: Address) -> None:
        self._behind = behind
        self.is_open = False
        self.turned_away = 0
        self.left = asyncio.Event()

    async def listen(self) -> tuple[asyncio.Server, Address]:
        server = await asyncio.start_server(self._came, LOOPBACK, 0)
        return server, msgspec.structs.replace(self._behind, port=server.sockets[0].getsockname()[1])

    async def _came(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.is_open:
            inner_reader, inner_writer = await asyncio.open_connection(self._behind.host, self._behind.port)
            await asyncio.gather(pipe(reader, inner_writer), pipe(inner_reader, writer))
            self.left.set()
        else:
            self.turned_away += 1
            writer.close()


async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(2**16):
            writer.write(data)
    writer.close()


def test_what_goes_through_ray_goes_over_a_connection_as_soon_as_there_can_be_one(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "AGAIN_S", 0.001)

    async def main() -> None:
        arrived = asyncio.Event()

        async def note(data: bytes) -> bytes:
            arrived.set()
            return data

        async with listening(note) as (_, address):
            door = Door(address)
            server, outside = await door.listen()
            actor = actor_at(outside)
            route = await reach(actor)
            while door.turned_away < 4:
                assert await route.call(b"x") == b"x"
                await asyncio.sleep(0)
            assert actor.called_through_ray and not arrived.is_set()
            door.is_open = True
            while not arrived.is_set():
                assert await route.call(b"y") == b"y"
                await asyncio.sleep(0)
            before = actor.called_through_ray
            assert await route.call(b"z") == b"z"
            assert actor.called_through_ray == before
            route.close()
            with pytest.raises(ConnectionLost):
                await route.call(b"")
            await door.left.wait()
            server.close()

    with caplog.at_level(logging.WARNING):
        asyncio.run(asyncio.wait_for(main(), 8))
    assert [one.message.partition(" ")[0] for one in caplog.records] == ["cannot", "connected"]


def test_a_port_that_takes_connections_and_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "CONNECT_S", 0.1)

    async def main() -> None:
        over = asyncio.Event()

        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await over.wait()
            writer.close()

        server = await asyncio.start_server(silent, LOOPBACK, 0)
        port = server.sockets[0].getsockname()[1]
        actor = actor_at(Address(LOOPBACK, port, bytes(16), bytes(16)))
        route = await reach(actor)
        assert await route.call(b"x") == b"x"
        assert actor.called_through_ray == 1
        over.set()
        server.close()

    asyncio.run(main())


def test_an_address_that_is_not_the_machine_s_is_not_listened_at(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        assert await Listener(echo).open("192.0.2.1") is None

    asyncio.run(main())
    assert "cannot listen at 192.0.2.1" in caplog.text
