"""What a host owes a client: requests in order and once, answers until they are confirmed, and few calls.

Invariants: I21.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from rayflow.core import limits
from rayflow.core.messages import Answered, AwaitOutcome, Refused
from rayflow.runtime import session
from rayflow.runtime.session import Call, Request, Session

NEVER_S = 3600.0


def on_a_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def run() -> None:
        asyncio.run(asyncio.wait_for(test(), 10))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


class Host:
    """A session, and what its shards have been given."""

    def __init__(self) -> None:
        self.session = Session()
        self.given: list[int] = []

    async def exchange(self, call: Call) -> list[int]:
        """What the host does with a call; the numbers of the answers that it returns."""
        if not await self.session.turn(call):
            return []
        self.given.extend(one.token.number for one in self.session.take_in(call))
        return [one.number for one in await self.session.answers(call)]

    def send(self, number: int, *requests: int, line: int = 1, confirmed: tuple[int, ...] = ()) -> asyncio.Task[list[int]]:
        made = [Request(one, 0, AwaitOutcome(str(one))) for one in requests]
        return asyncio.create_task(self.exchange(Call("client", "host", line, number, 0, list(confirmed), made)))

    def poll(self, *, line: int = 1) -> asyncio.Task[list[int]]:
        return self.send(0, line=line)

    def answer(self, *numbers: int) -> None:
        for number in numbers:
            self.session.answer(number, Answered(b""))


async def settled() -> None:
    """All that can go on without time passing has done so."""
    for _ in range(10):
        await asyncio.sleep(0)


@on_a_loop
async def test_a_call_returns_with_all_its_answers_as_soon_as_the_last_one_is_there() -> None:
    host = Host()
    call = host.send(1, 1, 2, 3)
    await settled()
    host.answer(1, 3)
    await settled()
    assert not call.done()
    host.answer(2)
    assert await call == [1, 3, 2]


@on_a_loop
async def test_a_call_does_not_wait_for_ever_for_the_answers_to_its_requests() -> None:
    host = Host()
    assert await host.send(1, 1, 2) == [], "they take longer"
    slow = host.send(2, 3)
    await settled()
    host.answer(1, 2)
    assert await slow == [1, 2], "others wait for a moment only"
    poll = host.poll()
    await settled()
    host.answer(3)
    assert await poll == [3]


def test_answers_go_with_a_call_that_carries_requests_rather_than_end_a_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "HOLD_S", NEVER_S)

    @on_a_loop
    async def scenario() -> None:
        host = Host()
        assert not (first := host.send(1, 1)).done()
        await settled()
        poll = host.poll()
        await settled()
        host.answer(1)
        assert await first == [1]
        await settled()
        assert not poll.done()
        second = host.send(2, 2, 3)
        await settled()
        host.answer(2)
        assert await second == [2]
        host.answer(3)
        assert await poll == [3]

    scenario()


@on_a_loop
async def test_requests_are_taken_in_order_though_calls_overtake_each_other() -> None:
    host = Host()
    calls = [host.send(3, 5, 6), host.send(2, 3, 4)]
    await settled()
    assert host.given == []
    calls.append(host.send(1, 1, 2))
    await settled()
    assert host.given == [1, 2, 3, 4, 5, 6]
    host.answer(*host.given)
    returned = await asyncio.gather(*calls)
    assert sorted(number for numbers in returned for number in numbers) == host.given


@on_a_loop
async def test_what_is_sent_again_is_handled_once_and_answered_again_until_that_is_confirmed() -> None:
    host = Host()
    lost = host.send(1, 1, 2)
    await settled()
    host.answer(1, 2)
    assert await lost == [1, 2], "and the client does not get it"
    again = host.send(1, 1, 2, 3, line=2)
    await settled()
    assert host.given == [1, 2, 3]
    host.answer(3)
    assert sorted(await again) == [1, 2, 3]
    last = host.send(2, 4, line=2, confirmed=(1, 2, 3))
    await settled()
    host.answer(4)
    assert await last == [4]
    renewed = host.send(1, 5, line=3)
    await settled()
    host.answer(5)
    assert sorted(await renewed) == [4, 5]


@on_a_loop
async def test_calls_of_an_older_line_count_for_nothing() -> None:
    host = Host()
    waiting, out_of_turn = host.send(1, 1), host.send(3, 3)
    await settled()
    renewed = host.send(1, 1, 2, line=2)
    assert (await waiting, await out_of_turn) == ([], [])
    assert await host.send(2, 2, 3) == [], "it was on its way for long"
    assert host.given == [1, 2]
    host.answer(1, 2)
    assert await renewed == [1, 2]


def test_a_line_renewed_while_its_calls_wait_loses_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOLD_S", "GRACE_S"):
        monkeypatch.setattr(session, name, NEVER_S)

    @on_a_loop
    async def scenario() -> None:
        host = Host()
        old = host.send(1, 1, 2)
        await settled()
        host.answer(1)
        renewed = host.send(1, 1, 2, line=2)
        await settled()
        assert await old == []
        host.answer(2)
        assert sorted(await renewed) == [1, 2]

    scenario()


@on_a_loop
async def test_calls_of_a_new_line_are_in_order_too() -> None:
    host = Host()
    host.send(1, 1)
    host.send(2, 2)
    await settled()
    second, first = host.send(2, 4, line=2), host.send(1, 1, 2, 3, line=2)
    await settled()
    assert host.given == [1, 2, 3, 4]
    host.answer(1, 2, 3, 4)
    assert sorted(await first + await second) == [1, 2, 3, 4]


def test_a_request_is_as_old_for_the_shard_as_it_is_for_its_client_whose_clock_shows_another_time() -> None:
    session, hour_ms = Session(), 3_600_000
    requests = [Request(1, 0, AwaitOutcome("old"), 7), Request(2, 0, AwaitOutcome("new"), 7 + hour_ms)]
    old, new = session.take_in(Call("client", "host", 1, 1, 0, [], requests, now_ms=7 + hour_ms), 10**12)
    assert old.token.sent_ms == 10**12 - hour_ms
    assert new.token.sent_ms == 10**12


@on_a_loop
async def test_that_a_shard_is_elsewhere_is_told_at_once_and_to_the_line_that_counts() -> None:
    session = Session()
    old, new = (Call("client", "host", line, 1, 0, [], [Request(1, 0, AwaitOutcome("one"))]) for line in (1, 2))
    assert await session.turn(old)
    session.take_in(old)
    waiting = asyncio.create_task(session.answers(old))
    await settled()
    assert await session.turn(new)
    assert [one.token.number for one in session.take_in(new)] == [], "it is open already"
    session.drop(0)
    assert await waiting == []
    assert session.moved(old) == set(), "its client does not listen any more"
    assert session.moved(new) == {0}
    assert session.moved(new) == set(), "told once"
    assert not session.open


def test_what_follows_on_a_line_for_a_shard_that_was_dropped_is_dropped_too_until_a_new_line_begins() -> None:
    """I21: the shard may be back by then, but what was dropped before goes another way, and must not come after this."""

    def call(line: int, number: int, *requests: int) -> Call:
        return Call("client", "host", line, number, 0, [], [Request(one, 0, AwaitOutcome(str(one))) for one in requests])

    async def main() -> None:
        session = Session()
        assert await session.turn(call(1, 1, 1))
        assert len(session.take_in(call(1, 1, 1))) == 1
        session.drop(0)
        assert session.moved(call(1, 1, 1)) == {0}
        assert await session.turn(call(1, 2, 2))
        assert session.take_in(call(1, 2, 2)) == []
        assert session.moved(call(1, 2, 2)) == {0}, "who did not hear it the first time hears it now"
        assert await session.turn(call(2, 1, 1, 2))
        assert [one.request.number for one in session.take_in(call(2, 1, 1, 2))] == [1, 2]

    asyncio.run(main())


def test_what_a_call_returns_is_bounded_by_bytes_and_one_answer_that_is_larger_gets_through_alone() -> None:
    sizes = [30, 30, 30, 500, 10, 60, 60, 101, 10]

    @on_a_loop
    async def scenario() -> None:
        host = Host()
        first = host.send(1, *range(len(sizes)))
        await settled()
        for number, size in enumerate(sizes):
            host.session.answer(number, Answered(bytes(size)))
        returned = [await first]
        while sum(len(one) for one in returned) < len(sizes):
            returned.append(await host.poll())
        assert returned == [[0, 1], [2], [3], [4], [5], [6], [7], [8]]

    with limits.using(reply_bytes=90):
        scenario()


def test_what_is_left_of_many_answers_goes_with_the_next_call_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "HOLD_S", NEVER_S)

    @on_a_loop
    async def scenario() -> None:
        host = Host()
        first, second = host.send(1, 1, 2, 3), host.send(2, 4)
        await settled()
        host.answer(1, 2, 3)
        assert (await first, await second) == ([1, 2], [3])
        host.answer(4)
        assert await host.poll() == [4]

    with limits.using(reply_bytes=40):
        scenario()


def test_an_answer_that_no_reply_can_carry_is_told_to_whoever_asked_and_the_others_get_theirs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session, "LARGEST_BYTES", 1000)

    @on_a_loop
    async def scenario() -> None:
        one = Session()
        for line in (1, 2):  # also where it is sent again
            call = Call("client", "host", line, 1, 0, [], [Request(number, 0, AwaitOutcome("x")) for number in (1, 2, 3)])
            assert await one.turn(call)
            for opened in one.take_in(call):
                one.answer(opened.token.number, Answered(bytes(1001 if opened.token.number == 2 else 10)))
            answers = {}
            for _ in range(3):
                answers |= {response.number: response.answer for response in await one.answers(call)}
            assert answers.pop(1) == answers.pop(3) == Answered(bytes(10))
            refused = answers.pop(2)
            assert isinstance(refused, Refused) and not answers
            assert "was done, but the answer has 10" in refused.message and "at most 1000 can be sent" in refused.message

    with limits.using(reply_bytes=100):
        scenario()


@on_a_loop
async def test_a_warning_ends_a_poll_and_is_said_once_to_each_line() -> None:
    host = Host()
    sent = host.send(1, 1)
    poll = host.poll()
    await settled()
    host.session.warn("no GPU")
    assert await poll == [] and host.session.warnings() == ["no GPU"]
    host.session.warn("no GPU")
    assert host.session.warnings() == []
    host.session.warn("no disk")
    assert await host.poll() == [], "it does not wait where there is something to say"
    assert host.session.warnings() == ["no disk"]
    again = host.poll(line=2)
    await settled()
    host.session.warn("no GPU")
    assert await again == [] and host.session.warnings() == ["no GPU"], "the answer that said it may have been lost"
    host.answer(1)
    await sent
