"""A client's line to a host that it does not know yet, or that has been replaced: whatever is open is sent again, and answered.

So it is where shards move from host to host, whatever hosts believe of each other meanwhile.

Invariants: I21.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine, Iterator
from itertools import count
from random import Random
from typing import Any

import pytest
from ray.exceptions import RayActorError, RayTaskError

from rayflow.core import limits
from rayflow.core.messages import Answered, AwaitOutcome, CancelExecution, Refused
from rayflow.errors import InvalidInput
from rayflow.runtime import channel, session
from rayflow.runtime.channel import Address, Listener
from rayflow.runtime.courier import Courier
from rayflow.runtime.courier_thread import CourierThread
from rayflow.runtime.pending import Pending
from rayflow.runtime.session import Reply, Request, Response, Session
from tests.runtime.handles import Handle


class Host:
    """Takes calls in as ``rayflow.runtime.host`` does and answers all requests.

    Calls that are meant for another incarnation wait for ``introduced``.
    """

    incarnation = "this one"

    def __init__(self) -> None:
        self.session = Session()
        self.introduced = asyncio.Event()
        self.strangers = 0

    async def exchange(self, data: bytes) -> bytes:
        call = session.decode_call(data)
        if call.incarnation != self.incarnation:
            self.strangers += 1
            await self.introduced.wait()
            return session.encode(Reply(self.incarnation, []))
        assert await self.session.turn(call)
        for one in self.session.take_in(call):
            self.session.answer(one.token.number, Answered(b""))
        return session.encode(Reply(self.incarnation, await self.session.answers(call)))


def no_other(name: str) -> Any:
    raise ValueError(name)


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture
def courier(host: Host) -> Iterator[CourierThread]:
    courier = CourierThread("home", lambda: Handle(host.exchange), no_other)
    yield courier
    courier.close()


def on_its_loop(courier: CourierThread, work: Coroutine[Any, Any, Any]) -> None:
    asyncio.run_coroutine_threadsafe(work, courier.loop).result(10)  # pyright: ignore[reportPrivateUsage]


async def until(holds: Callable[[], bool]) -> None:
    while not holds():
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("requests", [1, 2, 3, 4])
def test_all_that_is_open_is_sent_to_another_incarnation_also_what_waits_for_a_call_to_return(
    host: Host, courier: CourierThread, requests: int
) -> None:
    asked = []
    for number in range(requests):
        asked.append(courier.ask(0, AwaitOutcome(str(number))))
        on_its_loop(courier, until(lambda: host.strangers == min(len(asked), 2)))  # no more calls are under way at a time
    on_its_loop(courier, asyncio.sleep(0.05))
    courier.loop.call_soon_threadsafe(host.introduced.set)  # pyright: ignore[reportPrivateUsage]
    assert [one.result(timeout=5) for one in asked] == [Answered(b"")] * requests


class Answering:
    """A way to a host whose replies the test gives."""

    def __init__(self) -> None:
        self.calls: list[tuple[session.Call, asyncio.Future[Reply]]] = []

    async def reach(self) -> None: ...

    async def exchange(self, data: bytes) -> bytes:
        self.calls.append((session.decode_call(data), asyncio.get_running_loop().create_future()))
        return session.encode(await self.calls[-1][1])

    async def call(self, method: str, *args: Any) -> Any:
        raise NotImplementedError

    def forget(self) -> None: ...


def test_what_is_answered_while_it_waits_to_be_sent_again_is_not_sent_again() -> None:
    """I21: one that was refused would be handled after all, and its sender says that it has the answer."""

    async def run() -> None:
        link = Answering()
        courier = Courier("home", lambda name: link, asyncio.get_running_loop())
        running = asyncio.ensure_future(courier.run())
        refused = courier.ask(0, AwaitOutcome("1"))
        await until(lambda: len(link.calls) == 1)
        other = courier.ask(0, AwaitOutcome("2"))
        await until(lambda: len(link.calls) == 2)
        (first, reply), (_, answer) = link.calls
        reply.set_result(Reply("another incarnation", []))  # to which all that is open goes
        answer.set_result(Reply(first.incarnation, [Response(1, Refused("Overloaded", "later"))]))
        await until(lambda: len(link.calls) == 3)
        assert [one.number for one in link.calls[2][0].requests] == [2]
        assert refused.done() and not other.done()
        running.cancel()

    asyncio.run(run())


def test_answers_and_requests_of_more_bytes_than_a_frame_has_get_through_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """I21: what is too much for one call would be lost with its connection, and sent again for ever."""
    monkeypatch.setattr(channel, "_MAX_BYTES", 2**18)
    count, size = 60, 10_000

    class Gathering(Host):
        """Answers all at once, and only then."""

        def __init__(self) -> None:
            super().__init__()
            self.introduced.set()
            self.held: list[int] = []
            self.listener = Listener(self.exchange)

        async def address(self) -> Address | None:
            return await self.listener.open("127.0.0.1")

        async def exchange(self, data: bytes) -> bytes:
            call = session.decode_call(data)
            if call.incarnation != self.incarnation:
                return await super().exchange(data)
            if await self.session.turn(call):
                self.held += [one.token.number for one in self.session.take_in(call)]
                if len(self.held) == count:
                    for number in self.held:
                        self.session.answer(number, Answered(bytes(size)))
            return session.encode(Reply(self.incarnation, await self.session.answers(call)))

    host = Gathering()
    with limits.using(call_bytes=2**17, reply_bytes=2**17):
        courier = CourierThread("home", lambda: Handle(host.exchange, host.address), no_other)
        asked = [courier.ask(0, CancelExecution("x", "y" * size)) for _ in range(count)]
        assert [one.result(timeout=5) for one in asked] == [Answered(bytes(size))] * count
        assert host.held == list(range(1, count + 1)), "in order, and once"
        courier.loop.call_soon_threadsafe(host.listener.close)
        courier.close()


def test_a_message_that_no_call_can_carry_is_refused_at_once_and_the_others_go_on(
    host: Host, courier: CourierThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "LARGEST_BYTES", 1000)
    courier.loop.call_soon_threadsafe(host.introduced.set)
    before = courier.ask(0, AwaitOutcome("before"))
    with pytest.raises(InvalidInput, match=r"a message of 10\d\d bytes, and at most 1000 can be sent"):
        courier.ask(0, CancelExecution("x", "y" * 1000))
    after = courier.ask(0, AwaitOutcome("after"))
    assert [one.result(timeout=5) for one in (before, after)] == [Answered(b"")] * 2


@pytest.mark.parametrize("way", ["a connection", "Ray"])
def test_a_call_that_the_host_fails_over_is_told_to_whoever_sent_it_and_the_others_go_on(way: str) -> None:
    class Failing(Host):
        """Does not understand a request to cancel."""

        def __init__(self) -> None:
            super().__init__()
            self.introduced.set()
            self.listener = Listener(self.exchange)

        async def address(self) -> Address | None:
            return await self.listener.open("127.0.0.1")

        async def through_ray(self, data: bytes) -> bytes:
            try:
                return await self.exchange(data)
            except ValueError as error:
                raise RayTaskError("exchange", "", error) from error

        async def exchange(self, data: bytes) -> bytes:
            if any(isinstance(one.message, CancelExecution) for one in session.decode_call(data).requests):
                raise ValueError("what is that?")
            return await super().exchange(data)

    host = Failing()
    courier = CourierThread("home", lambda: Handle(host.through_ray, host.address if way != "Ray" else None), no_other)
    for _ in range(3):
        assert courier.ask(0, AwaitOutcome("x")).result(timeout=5) == Answered(b"")
        refused = courier.ask(0, CancelExecution("x", "")).result(timeout=5)
        assert isinstance(refused, Refused)
        assert re.fullmatch(
            r"whether this was done is not known: the shards' process could not carry out a call: (ValueError: )?what is that\?\. "
            r"What else this program has asked for goes on",
            refused.message,
        )
    courier.loop.call_soon_threadsafe(host.listener.close)
    courier.close()


def test_a_request_that_is_sent_again_says_how_old_it_is_whatever_took_so_long() -> None:
    """I21: by that a shard that does not know it tells a first message from one whose answer was dropped."""
    clock_ms = [5000]
    ages_ms: list[list[int]] = []

    class Late(Host):
        async def exchange(self, data: bytes) -> bytes:
            call = session.decode_call(data)
            ages_ms.append([call.now_ms - one.asked_ms for one in call.requests])
            if call.incarnation != self.incarnation:
                clock_ms[0] += 3_600_000
            return await super().exchange(data)

    host = Late()
    host.introduced.set()

    def find() -> Handle:
        clock_ms[0] += 60_000
        return Handle(host.exchange)

    courier = CourierThread("home", find, no_other)
    courier.clock_ms = lambda: clock_ms[0]
    try:
        assert courier.ask(0, AwaitOutcome("a")).result(timeout=5) == Answered(b"")
    finally:
        courier.close()
    assert [one for one in ages_ms if one] == [[60_000], [3_660_000]]


class Town:
    """Hosts that shards move between. What is taken in by the owner of a shard is on record; others may believe to own it longer.

    ``record`` are the numbers that were taken in, by shard. ``listening``: its hosts have ports, else they are called through Ray.
    """

    def __init__(self, random: Random, shards: int, names: list[str], *, listening: bool) -> None:
        self.random = random
        self.listening = listening
        self.shards = shards
        self.incarnations = count()
        self.hosts = {name: Member(self, name) for name in names}
        self.owner = [names[0]] * shards
        self.record: dict[int, list[int]] = {shard: [] for shard in range(shards)}

    def find(self, name: str) -> Handle:
        host = self.hosts[name]
        if host.died.is_set():
            raise ValueError(name)
        return Handle(host.exchange, host.address)

    def take_in(self, request: Request) -> None:
        """By the owner of its shard, which knows what it has handled before."""
        if request.number not in self.record[request.shard]:
            self.record[request.shard].append(request.number)

    def disturb(self) -> None:
        """A shard moves, a host learns of it, or a host ends and begins anew."""
        name = self.random.choice([name for name, host in self.hosts.items() if not host.died.is_set()])
        self.hosts[name].belief = list(self.owner)
        if self.random.random() < 0.5:
            self.owner[self.random.randrange(self.shards)] = name
        elif self.random.random() < 0.3:
            self.hosts[name].died.set()
            self.hosts[name].hang_up()
            if name == "home" or self.random.random() < 0.5:
                self.hosts[name] = Member(self, name)
            self.owner = ["home" if self.hosts[one].died.is_set() else one for one in self.owner]

    def hang_up(self) -> None:
        """End all connections."""
        for host in self.hosts.values():
            host.hang_up()

    def settle(self) -> None:
        """Everybody knows the truth from now on."""
        for host in self.hosts.values():
            host.belief = list(self.owner)


class Member:
    """A host in the town: takes calls in as ``rayflow.runtime.host`` does, and dies with some of them."""

    def __init__(self, town: Town, name: str) -> None:
        self.town, self.name = town, name
        self.incarnation = f"{name} {next(town.incarnations)}"
        self.belief = list(town.owner) if hasattr(town, "owner") else ["home"] * town.shards
        self.sessions: dict[str, Session] = {}
        self.died = asyncio.Event()
        self.listener: Listener | None = None

    async def address(self) -> Address | None:
        if self.died.is_set():
            raise RayActorError
        if not self.town.listening:
            return None
        self.hang_up()
        self.listener = Listener(self.exchange_or_hang_up)
        return await self.listener.open("127.0.0.1")

    async def exchange_or_hang_up(self, data: bytes) -> bytes:
        """A process that dies ends its connections."""
        try:
            return await self.exchange(data)
        except RayActorError:
            self.hang_up()
            return b""

    def hang_up(self) -> None:
        if self.listener is not None:
            self.listener.close()

    async def exchange(self, data: bytes) -> bytes:
        call = session.decode_call(data)
        await asyncio.sleep(self.town.random.random() * 0.003)
        if self.died.is_set():
            raise RayActorError
        if call.incarnation != self.incarnation:
            return session.encode(Reply(self.incarnation, []))
        client = self.sessions.setdefault(call.client, Session())
        if not await client.turn(call):
            return session.encode(Reply(self.incarnation, []))
        client.take_in(call)
        if any(self.belief[one.request.shard] == self.name != self.town.owner[one.request.shard] for one in client.open.values()):
            await asyncio.sleep(0.001)  # it learns from its own write that it is not the owner
            self.belief = list(self.town.owner)
        for one in list(client.open.values()):
            if self.belief[one.request.shard] == self.name == self.town.owner[one.request.shard]:
                self.town.take_in(one.request)
                client.answer(one.request.number, Answered(b""))
            else:
                client.drop(one.request.shard)
        answers, died = asyncio.ensure_future(client.answers(call)), asyncio.ensure_future(self.died.wait())
        await asyncio.wait({answers, died}, return_when=asyncio.FIRST_COMPLETED)
        died.cancel()
        if self.died.is_set():
            answers.cancel()
            raise RayActorError
        responses = answers.result()
        moved = [(shard, self.belief[shard]) for shard in client.moved(call)]
        if self.town.random.random() < 0.1:
            raise RayActorError
        return session.encode(Reply(self.incarnation, responses, moved))


@pytest.mark.parametrize("listening", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_what_is_sent_to_a_shard_arrives_in_order_and_is_answered_wherever_the_shard_moves_meanwhile(
    seed: int, listening: bool
) -> None:
    random = Random(seed)
    town = Town(random, shards=3, names=["home", "east", "west"], listening=listening)
    courier = CourierThread("home", lambda: town.find("home"), town.find)
    try:
        asked: list[Pending] = []
        for _ in range(60):
            asked.extend(courier.ask(random.randrange(3), AwaitOutcome("x")) for _ in range(random.randrange(8)))
            on_its_loop(courier, asyncio.sleep(random.random() * 0.01))
            courier.loop.call_soon_threadsafe(town.disturb)  # pyright: ignore[reportPrivateUsage]
        courier.loop.call_soon_threadsafe(town.settle)  # pyright: ignore[reportPrivateUsage]
        assert [one.result(timeout=20) for one in asked] == [Answered(b"")] * len(asked)
    finally:
        courier.loop.call_soon_threadsafe(town.hang_up)  # pyright: ignore[reportPrivateUsage]
        courier.close()
    assert sorted(number for numbers in town.record.values() for number in numbers) == list(range(1, len(asked) + 1))
    for numbers in town.record.values():
        assert numbers == sorted(numbers)
