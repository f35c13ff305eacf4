"""A host and its clients: what one of them does, or is gone, is nothing to the others. The host that ships, in a simulated world.

Invariants: I21.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Hashable, Iterator
from typing import Any

import pytest

import rayflow
from rayflow.core import codec, limits
from rayflow.core.messages import (
    Accepted,
    Answer,
    AskOutcome,
    AwaitOutcome,
    Ended,
    Refused,
    StartExecution,
    Token,
    WorkflowMessage,
)
from rayflow.core.workflows import Workflows
from rayflow.runtime import session
from rayflow.runtime.session import Call, Request, Response
from rayflow.testing.log_simulation import Faults
from rayflow.testing.simulation_host import HostProcess, JudgedKeeper
from rayflow.testing.simulator import Parts, System

SESSION_S = 2.0


@rayflow.workflow
async def resting(ctx: rayflow.Context) -> str:
    await ctx.wait(20)
    return "rested"


class Town:
    """One host, and a world in which nothing goes wrong."""

    def __init__(self) -> None:
        self.begin(Parts(workload="workflows"))

    def begin(self, parts: Parts) -> None:
        """Anew, made of these parts."""
        for seed in itertools.count():
            self.system = System(seed, parts)
            if len(self.system.roles) == 1:
                break
            self.system.end()
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

    def answers(self, client: str, line: int, number: int, *requests: Request) -> dict[int, Answer]:
        """Of a call with these requests, and of polls until those that come at once have come; a second is enough for each."""
        found: dict[int, Answer] = {}
        calls = [self.send(client, line, number, *requests)]
        for _ in range(2):
            self.later(1.1)
            calls.append(self.send(client, line, 0))
        self.later(1.1)
        for call in calls:
            found |= {one.number: one.answer for one in session.decode_reply(call.result()).responses}
        return found

    def request(self, number: int, message: Any) -> Request:
        return Request(number, self.system.shard_of(message.execution), message)

    def start(self, number: int, execution: str) -> Request:
        no_arguments: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
        data, fingerprint = codec.encode_with_fingerprint(no_arguments)
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


class _Unjudged(JudgedKeeper):
    """Is allowed to lose its shard."""

    async def _after(self, reason: BaseException | None) -> None:
        await super(JudgedKeeper, self)._after(reason)


class _Faulty(Workflows):
    """Has a bug: it trips over one id."""

    def receive(self, token: Hashable, message: WorkflowMessage, now_ms: int) -> None:
        if message.execution == "poison":
            raise KeyError("of all things")
        super().receive(token, message, now_ms)


def test_a_request_that_a_shard_fails_over_is_told_so_and_all_others_are_answered(town: Town) -> None:
    town.system.end()
    town.begin(Parts(workload="workflows", machine=_Faulty, keeper=_Unjudged))
    answers: dict[int, Answer] = {}
    for number in range(1, 21, 2):
        bad, good = town.request(number, AskOutcome("poison")), town.start(number + 1, f"x{number}")
        answers |= town.answers("client", 1, (number + 1) // 2, bad, good)
    for number, answer in answers.items():
        if number % 2:
            assert isinstance(answer, Refused)
            assert "this request was not carried out" in answer.message
            assert "KeyError: 'of all things'" in answer.message
        else:
            assert isinstance(answer, Accepted), "it never had to wait for long"
    assert len(answers) == 20


def test_a_shard_that_there_is_not_is_told_to_that_request_alone(town: Town) -> None:
    answers = town.answers("client", 1, 1, town.start(1, "x"), Request(2, 77, AskOutcome("x")), town.request(3, AskOutcome("x")))
    refused = answers.pop(2)
    assert isinstance(refused, Refused)
    assert "and no 77" in refused.message
    assert [type(one) for _, one in sorted(answers.items())] == [Accepted, Accepted]


def test_an_answer_that_cannot_be_put_into_words_is_told_so_and_the_others_get_through(town: Town) -> None:
    hidden, asked = Refused("RayflowError", "\ud800"), town.request(2, AwaitOutcome("x"))
    town.send("client", 1, 1, town.start(1, "x"), asked)
    town.later(0.5)
    town.process.loop.call(town.process.host.answer, Token("client", 2, 0), hidden)
    answers = town.answers("client", 2, 1, town.request(3, AskOutcome("x")))
    assert isinstance(answers[1], Accepted) and isinstance(answers[3], Accepted)
    refused = answers[2]
    assert isinstance(refused, Refused)
    assert "the answer cannot be sent (UnicodeEncodeError" in refused.message
