"""A client's connection to a host: calls and answers find each other, and whatever happens to it, the client hears of it.

Invariants: I21.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

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


def test_where_ray_is_to_encrypt_nothing_is_sent_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "RAY_USE_TLS", "1")

    async def main() -> None:
        assert await Listener(echo).open(LOOPBACK) is None
        actor = actor_at(None)
        assert await (await reach(actor)).call(b"x") == b"x"
        assert actor.called_through_ray == 1

    asyncio.run(main())


def test_an_address_that_is_not_the_machine_s_is_not_listened_at(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        assert await Listener(echo).open("192.0.2.1") is None

    asyncio.run(main())
    assert "cannot listen at 192.0.2.1" in caplog.text
