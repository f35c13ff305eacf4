"""A host and its clients: what one of them does, or is gone, is nothing to the others. The host that ships, in a simulated world.

Invariants: I21.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

import rayflow
from rayflow.core import codec, limits
from rayflow.core.messages import AwaitOutcome, Ended, StartExecution
from rayflow.runtime import session
from rayflow.runtime.session import Call, Request, Response
from rayflow.testing.log_simulation import Faults
from rayflow.testing.simulation_host import HostProcess
from rayflow.testing.simulator import Parts, System

SESSION_S = 2.0


@rayflow.workflow
async def resting(ctx: rayflow.Context) -> str:
    await ctx.wait(20)
    return "rested"


class Town:
    """One host, and a world in which nothing goes wrong."""

    def __init__(self) -> None:
        self.system = next(one for one in (System(seed, Parts(workload="workflows")) for seed in range(50)) if len(one.roles) == 1)
        self.world = self.system.world
        self.world.disturbed = False
        self.system.store.faults = Faults(0, 0, 0, 0)
        self.process: HostProcess = self.system.hosts[0]
        self.later(1)

    def later(self, seconds: float) -> None:
        until_ms = self.world.now_ms + 1000 * seconds
        self.world.run(until_ms, lambda: False)
        self.world.now_ms = until_ms

    def send(self, client: str, line: int, number: int, *requests: Request, begun: bool = False) -> asyncio.Task[bytes]:
        call = Call(client, self.process.name, line, number, 0, [], list(requests), begun)
        return self.process.loop.start(self.process.host.exchange(session.encode(call)))

    def request(self, number: int, message: Any) -> Request:
        return Request(number, self.system.shard_of(message.execution), message)

    def start(self, number: int, execution: str) -> Request:
        data, fingerprint = codec.encode_with_fingerprint(((), {}))
        function = self.system.code.describe(resting)
        return self.request(number, StartExecution(execution, function, resting.version, data, fingerprint, number))

    def watchers(self, execution: str) -> list[tuple[str, int]]:
        shard = self.process.host.keepers[self.system.shard_of(execution)].shard
        assert shard is not None
        memory = shard._owner.machine.executions  # pyright: ignore[reportPrivateUsage]
        there = memory.live.get(execution) or memory.passive.get(execution)
        return [] if there is None else [token[:2] for token in there.watchers]  # type: ignore[misc]


@pytest.fixture
def town() -> Iterator[Town]:
    with limits.using(session_s=SESSION_S, poll_s=1.0):
        town = Town()
        yield town
        assert not town.system.judge.violations
        town.system.end()


def test_who_is_forgotten_waits_for_no_end_any_more_and_who_comes_back_waits_once(town: Town) -> None:
    waits = town.request(2, AwaitOutcome("x"))
    town.send("early", 1, 1, town.start(1, "x"), waits)
    town.later(0.5)
    assert town.watchers("x") == [("early", 2)]
    town.later(SESSION_S)
    town.send("late", 1, 1, town.request(1, AwaitOutcome("x")))
    stale = town.send("early", 1, 2, begun=True)
    again = town.send("early", 2, 1, waits)
    town.later(0.5)
    assert session.decode_reply(stale.result()).renew, "it is not known any more"
    assert session.decode_reply(again.result()).responses == [], "nothing that was meant for the one that is gone"
    assert sorted(town.watchers("x")) == [("early", 2), ("late", 1)]
    found: list[Response] = []
    while not found:
        poll = town.send("early", 2, 0)
        town.later(1.1)
        found = session.decode_reply(poll.result()).responses
    assert isinstance(found[0].answer, Ended)
