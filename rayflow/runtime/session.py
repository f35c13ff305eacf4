"""What a host owes one client: requests come in order, each is handled once, and answers are kept until they are confirmed.

A call costs a millisecond of CPU time, a request in it some microseconds. So a call that carries requests brings answers back: it
stays until its own requests are answered, or until other answers have waited for long enough, or for ``HOLD_S``. A client with
nothing to send but open requests polls.

Calls of one client may overtake each other, requests must not: the calls that carry some are numbered and wait for their turn. A
client that does not know what became of a call begins a new *line*: it numbers its calls anew and sends again what is open. From
then on calls of older lines, which may still arrive, count for nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from rayflow.core import limits
from rayflow.core.messages import Answer, Message, Refused, Token

HOLD_S = 0.02
"""How long a call that carries requests waits for their answers, in seconds. Its client may send two such calls at a time."""

GRACE_S = 0.002
"""How long answers wait for others to travel with."""

LARGEST_BYTES = 2**28
"""Of a request or an answer. One that is larger is refused: no way to a host carries everything, and what no way carries would be
sent again for ever."""

_MEASURED_TOGETHER = 64


class Request(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A message on its way to a shard, under a number that is the client's own.

    ``asked_ms``: when it was asked for, by the client's clock, which has no meaning for others.
    """

    number: int
    shard: int
    message: Message
    asked_ms: int = 0


class Response(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The answer to the request with that number."""

    number: int
    answer: Answer


class Call(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A call of a client: the ``call``-th with requests of its ``line``, or a poll if there are none.

    ``incarnation`` is that of the host that the client believes to talk to. All requests up to ``heard`` are answered for the
    client; ``confirmed`` are the numbers of the answers that have arrived since the call before. ``begun``: the client has had a
    reply on this line, so the host has known it. ``now_ms``: when the call left, by the client's clock; so the host can
    tell how old the requests are.
    """

    client: str
    incarnation: str
    line: int
    call: int
    heard: int
    confirmed: list[int]
    requests: list[Request]
    begun: bool = False
    now_ms: int = 0


class Reply(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a call returns. From another incarnation than that of the call: nothing of it was taken in.

    ``moved``: shards with open requests that are not this host's, each with the name of the host that has them. Their requests are
    to be sent there. ``renew``: the host does not remember this client and has taken in nothing of the call; the client is to begin
    a new line.
    """

    incarnation: str
    responses: list[Response]
    moved: list[tuple[int, str]] = []
    renew: bool = False
    warnings: list[str] = []
    """For the people who wait, in words."""


class _Waiter:
    """A call that waits for answers. ``missing``: how many of its own requests are not answered."""

    __slots__ = ("future", "missing")

    def __init__(self, missing: int) -> None:
        self.missing = missing
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def wake(self) -> None:
        if not self.future.done():
            self.future.set_result(None)


@dataclass(slots=True)
class Open:
    """A request that is not answered."""

    token: Token
    request: Request
    waiter: _Waiter | None = None


class Session:
    """One client. Belongs to one loop; ``answer`` must be called on it."""

    def __init__(self) -> None:
        self.open: dict[int, Open] = {}
        self.heard_s = 0.0
        """When its client was last heard of."""
        self.calls_under_way = 0
        self._answers: dict[int, Response] = {}
        self._ready: list[Response] = []
        """Answers that no call of this line has returned."""
        self._line = self._calls = 0
        self._turns: dict[int, asyncio.Future[None]] = {}
        self._sending: list[_Waiter] = []
        self._polling: list[_Waiter] = []
        self._grace: asyncio.TimerHandle | None = None
        self._warnings: list[str] = []
        self._warned: set[str] = set()
        self._moved: set[int] = set()
        self._gone: set[int] = set()
        """Shards that were dropped. What else comes for them in this line is dropped as well, though they may be back by then: what
        came before it goes another way, and must come first."""

    def has_forgotten(self, call: Call) -> bool:
        """Whether the call is of a line that was used and is not known here: its client was silent for too long."""
        return call.begun and call.line > self._line

    async def turn(self, call: Call) -> bool:
        """Wait until all earlier calls of the line have been taken in; False: the line is over. ``take_in`` must follow at once."""
        self._begin(call.line)
        if call.line == self._line and call.requests and call.call > self._calls + 1:
            turn = self._turns[call.call] = asyncio.get_running_loop().create_future()
            await turn
        return call.line == self._line

    def take_in(self, call: Call, arrived_ms: int = 0) -> list[Open]:
        """Confirmations, and requests; returns those that are new, in order. ``arrived_ms``: when the call came, 0: just now."""
        for number in call.confirmed:
            self._answers.pop(number, None)
        new: list[Open] = []
        for request in call.requests:
            if request.number not in self.open and request.number not in self._answers:
                if request.shard in self._gone:
                    self._moved.add(request.shard)
                    continue
                sent_ms = arrived_ms and arrived_ms - (call.now_ms - request.asked_ms)
                one = self.open[request.number] = Open(Token(call.client, request.number, call.heard, sent_ms), request)
                new.append(one)
        if call.requests:
            self._calls = max(self._calls, call.call)
            following = self._turns.pop(self._calls + 1, None)
            if following is not None:
                following.set_result(None)
        return new

    def answer(self, number: int, answer: Answer) -> None:
        """The answer to a request; to none that is open: it is dropped."""
        one = self.open.pop(number, None)
        if one is None:
            return
        response = self._answers[number] = Response(number, answer)
        self._ready.append(response)
        waiter = one.waiter
        if waiter is not None:
            waiter.missing -= 1
            if not waiter.missing:
                waiter.wake()
                return
        self._some_ready()

    async def answers(self, call: Call) -> list[Response]:
        """Wait for what the call can return."""
        mine = [one for request in call.requests if (one := self.open.get(request.number)) is not None]
        if call.requests:
            waiter, waiting, longest_s = _Waiter(len(mine)), self._sending, HOLD_S
            for one in mine:
                one.waiter = waiter
        else:
            waiter, waiting, longest_s = _Waiter(0 if self._warnings else 1), self._polling, limits.current().poll_s
        if waiter.missing:
            waiting.append(waiter)
            self._some_ready()
            timer = asyncio.get_running_loop().call_later(longest_s, waiter.wake)
            try:
                await waiter.future
            finally:
                timer.cancel()
                waiting.remove(waiter)
                for one in mine:
                    if one.waiter is waiter:
                        one.waiter = None
        return self._take(call.line)

    def drop(self, shard: int) -> None:
        """The shard is not this host's: forget what is open of it, and let the client know."""
        gone = [one for one in self.open.values() if one.request.shard == shard]
        for one in gone:
            del self.open[one.request.number]
        if gone:
            self._moved.add(shard)
            self._gone.add(shard)
            _wake([*self._sending, *self._polling])

    def moved(self, call: Call) -> set[int]:
        """Shards that were dropped, each told once: a client that does not hear of it sends all that is open again."""
        if call.line != self._line:
            return set()
        moved, self._moved = self._moved, set()
        return moved

    def warn(self, text: str) -> None:
        """Have the client know, once."""
        if text not in self._warned:
            self._warned.add(text)
            self._warnings.append(text)
            _wake(self._polling[:1])

    def warnings(self) -> list[str]:
        """What the client is to know, each told once."""
        warnings, self._warnings = self._warnings, []
        return warnings

    def _take(self, line: int) -> list[Response]:
        if line != self._line:  # its client does not listen any more
            return []
        try:
            fit = fitting(self._ready, limits.current().reply_bytes)
        except (ValueError, TypeError):
            self._ready = [self._encodable(one) for one in self._ready]
            fit = fitting(self._ready, limits.current().reply_bytes)
        taken, self._ready = self._ready[:fit], self._ready[fit:]
        if fit == 1:
            taken = [self._sendable(taken[0])]
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None
        if self._ready:
            self._some_ready()
        return taken

    def _encodable(self, response: Response) -> Response:
        """The answer, or that it cannot be told: the others get through in any case."""
        try:
            encode(response)
        except (ValueError, TypeError) as error:
            text = f"what was asked for was done, but the answer cannot be sent ({type(error).__name__}: {error})"
            return self._replaced(response, text)
        return response

    def _sendable(self, response: Response) -> Response:
        """The answer, or that there is no way to send it."""
        size = len(encode(response))
        if size > LARGEST_BYTES:
            text = (
                f"what was asked for was done, but the answer has {size} bytes and at most {LARGEST_BYTES} can be sent: "
                f"have it return less, or put it into a file or an object and return the name of that"
            )
            return self._replaced(response, text)
        return response

    def _replaced(self, response: Response, text: str) -> Response:
        response = Response(response.number, Refused("RayflowError", text))
        if response.number in self._answers:
            self._answers[response.number] = response
        return response

    def _begin(self, line: int) -> None:
        """Calls of a new line are numbered from 1, and get the answers that may have been lost with an older one."""
        if line <= self._line:
            return
        self._line, self._calls = line, 0
        self._moved.clear()
        self._gone.clear()
        self._warned.clear()
        self._ready = list(self._answers.values())
        for turn in self._turns.values():
            turn.set_result(None)
        self._turns.clear()
        _wake([*self._sending, *self._polling])

    def _some_ready(self) -> None:
        """See to it that somebody takes what is ready."""
        if not self._ready or self._grace is not None:
            return
        if self._sending:
            self._grace = asyncio.get_running_loop().call_later(GRACE_S, self._waited)
        else:
            _wake(self._polling[:1])

    def _waited(self) -> None:
        self._grace = None
        if self._ready:
            _wake((self._sending or self._polling)[:1])


def fitting(items: Sequence[Request] | Sequence[Response], limit_bytes: int) -> int:
    """How many of them, from the first one on, come to ``limit_bytes`` at most; the first one does in any case."""
    room, fit = limit_bytes, 0
    for start in range(0, len(items), _MEASURED_TOGETHER):
        group = items[start : start + _MEASURED_TOGETHER]
        size = len(encode(group))
        if size > room:
            for one in group:
                room -= len(encode(one))
                if room < 0:
                    break
                fit += 1
            return max(fit, 1)
        room -= size
        fit += len(group)
    return fit


def _wake(waiters: Iterable[_Waiter]) -> None:
    for waiter in waiters:
        waiter.wake()


encode = msgspec.msgpack.Encoder().encode
decode_call = msgspec.msgpack.Decoder(Call).decode
decode_reply = msgspec.msgpack.Decoder(Reply).decode
