"""What a client's handle on an execution says and leaves behind, with the session and the machine that ship, and no cluster."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

import rayflow
from rayflow.core import codec, limits
from rayflow.core.messages import Accepted, AskOutcome, AwaitOutcome, Message, Refused, StopWaiting, Token
from rayflow.core.records import Stored
from rayflow.runtime import session
from rayflow.runtime.client import Client, Execution
from rayflow.runtime.courier_thread import CourierThread
from rayflow.runtime.pending import Pending, settle_all
from rayflow.runtime.session import Reply, Session
from tests.core.driver import Driver
from tests.runtime.handles import Handle

CLOSED = Refused("StoreError", "shard 0 is suspended: its process crashed 5 times in 30 s")


@rayflow.workflow
async def waiting(ctx: rayflow.Context) -> str:
    await ctx.wait(3600)
    return "woke"


class Host:
    """Hands what clients send to the machine of a shard, as ``rayflow.runtime.host`` does. ``replace``: another process follows.

    ``dying``: the next time that somebody stops waiting, it dies when it has said so, and not yet answered the wait itself.
    """

    def __init__(self) -> None:
        self.driver = Driver(waiting)
        self.dying = False
        self.replace()

    def replace(self) -> None:
        self.session = Session()
        self.incarnation = object.__repr__(self.session)
        self.driver.crash()

    async def exchange(self, data: bytes) -> bytes:
        call, current = session.decode_call(data), self.session
        if call.incarnation != self.incarnation or not await current.turn(call):
            return session.encode(Reply(self.incarnation, []))
        driver = self.driver
        for one in current.take_in(call):
            driver.machine.receive(one.token, cast("Any", one.request.message), driver.now_ms)
        driver.commit()
        for token in [one for one in driver.answers if isinstance(one, Token)]:
            for answer in driver.answers.pop(token):
                self.session.answer(token.number, answer)
        reply = Reply(self.incarnation, await current.answers(call))
        stops = {one.number for one in call.requests if isinstance(one.message, StopWaiting)}
        if self.dying and stops:
            self.dying = False
            self.replace()
            reply = Reply(reply.incarnation, [one for one in reply.responses if one.number in stops])
        return session.encode(reply)

    def watchers(self) -> int:
        entry, passive = self.driver.machine.executions.live.get("x"), self.driver.machine.executions.passive.get("x")
        return len(entry.watchers) if entry is not None else len(passive.watchers) if passive is not None else 0


class Program:
    """A client without a cluster. ``on_the_loop`` runs something where nothing else happens meanwhile, on either side."""

    def __init__(self, host: Host) -> None:
        self.courier = CourierThread("home", lambda: Handle(host.exchange), _no_other)
        self.client = cast("Client", self)

    def request(self, id: str, message: Message) -> Pending:
        return self.courier.ask(0, message)

    def concerned(self, execution: str) -> None:
        """Nothing that it prints is to be shown."""

    def decode(self, stored: Stored) -> Any:
        assert isinstance(stored, bytes)
        return codec.decode(stored)

    def on_the_loop(self, function: Callable[[], Any]) -> Any:
        async def call() -> Any:
            return function()

        return asyncio.run_coroutine_threadsafe(call(), self.courier.loop).result(10)

    def open(self) -> int:
        return len(self.courier._waiting)  # pyright: ignore[reportPrivateUsage]

    def settle(self, host: Host) -> None:
        """Return once everything that was sent has been answered, waits excepted; each look follows an answer from the host."""
        while True:
            self.courier.ask(0, AskOutcome("x")).result(10)
            if self.on_the_loop(
                lambda: (
                    all(isinstance(one.request.message, AwaitOutcome) for one in host.session.open.values())
                    and all(isinstance(one.message, AwaitOutcome) for one, _ in self.courier._waiting.values())
                )  # pyright: ignore[reportPrivateUsage]
            ):
                return


def _no_other(name: str) -> Any:
    raise ValueError(name)


@pytest.fixture
def host() -> Host:
    host = Host()
    host.driver.start(waiting)
    return host


@pytest.fixture
def program(host: Host) -> Iterator[Program]:
    program = Program(host)
    yield program
    program.courier.close()


def _is_done(program: Program) -> None:
    assert not Execution[Any](program.client, "x").done()


def _times_out(program: Program) -> None:
    with pytest.raises(TimeoutError, match=r"execution x has not ended after 0.01 s; it goes on: .* show x --steps"):
        Execution[Any](program.client, "x").result(0.01)


def _is_cancelled(program: Program) -> None:
    async def wait() -> None:
        async with asyncio.timeout(0.01):
            await Execution[Any](program.client, "x")

    with pytest.raises(TimeoutError):
        asyncio.run(wait())


def _is_dropped(program: Program) -> None:
    Execution[Any](program.client, "x", program.request("x", AwaitOutcome("x")))


@pytest.mark.parametrize("passive", [False, True])
@pytest.mark.parametrize("wait", [_is_done, _times_out, _is_cancelled, _is_dropped])
def test_a_wait_that_is_given_up_leaves_nothing_on_either_side(
    host: Host, program: Program, wait: Callable[[Program], None], passive: bool
) -> None:
    if passive:
        host.driver.crash()  # it comes back resting, as its time is an hour away
        assert host.driver.machine.passive_count == 1
    kept = Execution[Any](program.client, "x")
    with pytest.raises(TimeoutError):
        kept.result(0)
    for _ in range(5):
        wait(program)
    gc.collect()
    program.settle(host)
    assert (program.open(), program.on_the_loop(lambda: len(host.session.open)), program.on_the_loop(host.watchers)) == (1, 1, 1)
    program.on_the_loop(host.driver.settle)  # the hour passes
    program.courier.ask(0, AskOutcome("x")).result(10)  # brings the answer that is ready with its own
    assert kept.result(10) == "woke"


@pytest.mark.parametrize("dying", [False, True])
def test_a_wait_that_is_given_up_while_the_host_is_replaced_is_not_begun_again(host: Host, program: Program, dying: bool) -> None:
    kept, dropped = Execution[Any](program.client, "x"), Execution[Any](program.client, "x")
    for one in (kept, dropped):
        with pytest.raises(TimeoutError):
            one.result(0)
    program.settle(host)
    if dying:
        host.dying = True
    else:
        program.on_the_loop(host.replace)
    del dropped, one
    program.settle(host)
    assert (program.open(), program.on_the_loop(lambda: len(host.session.open)), program.on_the_loop(host.watchers)) == (1, 1, 1)


def test_waits_that_are_given_up_make_room_for_others(program: Program) -> None:
    with limits.using(client_requests=20):
        handles = [Execution[Any](program.client, "x", program.request("x", AwaitOutcome("x"))) for _ in range(20)]
        with pytest.raises(rayflow.Overloaded):
            Execution[Any](program.client, "x").result(0)
        handles.clear()
        program.on_the_loop(lambda: None)  # by then each has been withdrawn
        while program.open():  # until the host has said so
            program.on_the_loop(lambda: None)
        assert not Execution[Any](program.client, "x").done()


def test_who_stops_waiting_takes_only_its_own_wait_away() -> None:
    driver = Driver(waiting)
    driver.start(waiting)
    for token in (Token("a", 1, 0), Token("b", 1, 0), Token("a", 2, 0)):
        driver.machine.receive(token, AwaitOutcome("x"), driver.now_ms)
    driver.machine.receive(Token("a", 3, 0), StopWaiting("x", 1), driver.now_ms)
    driver.machine.receive(Token("a", 4, 0), StopWaiting("x", 1), driver.now_ms)  # it came again
    driver.machine.receive(Token("a", 5, 0), StopWaiting("nobody", 1), driver.now_ms)
    driver.commit()
    stopped = [Token("a", 1, 0), Token("a", 3, 0), Token("a", 4, 0)]
    assert {token: driver.answers.pop(token) for token in stopped} == {token: [Accepted("x", created=False)] for token in stopped}
    assert driver.answers.pop(Token("a", 5, 0)) == [Accepted("nobody", created=False)]
    driver.settle()
    assert [len(driver.answers[token]) for token in (Token("b", 1, 0), Token("a", 2, 0))] == [1, 1]


class Refusing:
    """A client that is answered what a test says."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)

    def request(self, id: str, message: Message) -> Pending:
        pending = Pending()
        settle_all([(pending, self.answers.pop(0))])
        return pending

    def concerned(self, execution: str) -> None:
        """Nothing that it prints is to be shown."""

    def decode(self, stored: Stored) -> Any:
        assert isinstance(stored, bytes)
        return codec.decode(stored)


@pytest.mark.parametrize("ask", [Execution.cancel, Execution.forget, Execution.resume, Execution.result, Execution.done])
def test_what_is_refused_is_raised(ask: Callable[[Execution[Any]], object]) -> None:
    with pytest.raises(rayflow.StoreError, match="shard 0 is suspended"):
        ask(Execution(cast("Client", Refusing(CLOSED)), "x"))


def test_a_refusal_is_not_the_answer_for_ever(host: Host) -> None:
    host.driver.settle()
    ended = host.driver.ended()
    refusing = Refusing(CLOSED, CLOSED, ended)
    execution = Execution[str](cast("Client", refusing), "x", refusing.request("x", AwaitOutcome("x")))
    with pytest.raises(rayflow.StoreError):  # said just now: what was said before is not asked for any more
        execution.result()
    assert execution.result() == "woke" == execution.result()
    assert execution.done() and refusing.answers == []


def test_whether_one_has_ended_is_told_truly_at_the_first_time_of_asking(host: Host, program: Program) -> None:
    assert not Execution[Any](program.client, "x").done()
    program.on_the_loop(host.driver.settle)
    execution = Execution[Any](program.client, "x")
    assert execution.done() and execution.result(0) == "woke"
    with pytest.raises(rayflow.ExecutionNotFound):
        Execution[Any](program.client, "nobody").done()
