"""A client's line to a host that it does not know yet, or that has been replaced: whatever is open is sent again, and answered.

Invariants: I21.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from rayflow.core.messages import Answered, AwaitOutcome
from rayflow.runtime import session
from rayflow.runtime.courier import Courier
from rayflow.runtime.session import Reply, Session


class Host:
    """An actor's handle, without the process: takes calls in as ``rayflow.runtime.host`` does and answers all requests.

    Calls that are meant for another incarnation wait for ``introduced``.
    """

    incarnation = "this one"

    def __init__(self) -> None:
        self.session = Session()
        self.introduced = asyncio.Event()
        self.strangers = 0

    @property
    def exchange(self) -> Host:
        return self

    async def remote(self, data: bytes) -> bytes:
        call = session.decode_call(data)
        if call.incarnation != self.incarnation:
            self.strangers += 1
            await self.introduced.wait()
            return session.encode(Reply(self.incarnation, []))
        assert await self.session.turn(call)
        for one in self.session.take_in(call):
            self.session.answer(one.token.number, Answered(b""))
        return session.encode(Reply(self.incarnation, await self.session.answers(call)))


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture
def courier(host: Host) -> Iterator[Courier]:
    courier = Courier(lambda: host)
    yield courier
    courier.close()


def on_its_loop(courier: Courier, work: Coroutine[Any, Any, Any]) -> None:
    asyncio.run_coroutine_threadsafe(work, courier._loop).result(10)  # pyright: ignore[reportPrivateUsage]


async def until(holds: Callable[[], bool]) -> None:
    while not holds():
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_all_that_is_open_is_sent_to_another_incarnation_also_what_waits_for_a_call_to_return(
    host: Host, courier: Courier, count: int
) -> None:
    asked = []
    for number in range(count):
        asked.append(courier.ask(0, AwaitOutcome(str(number))))
        on_its_loop(courier, until(lambda: host.strangers == min(len(asked), 2)))  # no more calls are under way at a time
    on_its_loop(courier, asyncio.sleep(0.05))
    courier._loop.call_soon_threadsafe(host.introduced.set)  # pyright: ignore[reportPrivateUsage]
    assert [one.result(timeout=5) for one in asked] == [Answered(b"")] * count
