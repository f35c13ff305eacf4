"""A client's line to the shards: which host has which shard, what is open, what is answered.

To begin with everything goes to the host at home, which knows who has what; requests for
a shard that is elsewhere then take another lane, those that are open first and in order: so a shard gets everything in the order in
which it was sent. Where a host is gone, its shards are asked for at home again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import threading
from collections.abc import Callable, Sequence
from functools import partial

from rayflow.core import limits
from rayflow.core.messages import AwaitOutcome, Message, StopWaiting
from rayflow.errors import InvalidInput, Overloaded, RayflowError
from rayflow.runtime import session
from rayflow.runtime.lane import CALLS, HostLink, Lane
from rayflow.runtime.pending import Pending, settle_all
from rayflow.runtime.session import Request, Response

_log = logging.getLogger("rayflow")

_ENOUGH_FOR_A_CALL = 256
_MOST_IN_A_CALL = 4096
"""Of much that is open, a call carries a part: while the host works on it, the client can make the next one."""

_SETTLED_S = 1.0
"""A shard that has moved more than once in this time is said to be where it is not, by a host that does not know better yet."""


class Courier:
    """All but ``ask`` belongs to ``loop``, on which ``run`` must run; ``ask`` may be called in any thread.

    ``home`` is the name of the host at home; ``link`` makes a way to the host of a name. ``clock_ms`` is a clock that never goes
    back, and goes on while the machine sleeps: that of ``loop`` where there is none.
    """

    def __init__(
        self,
        home: str,
        link: Callable[[str], HostLink],
        loop: asyncio.AbstractEventLoop,
        client: str = "",
        clock_ms: Callable[[], int] | None = None,
    ) -> None:
        self.client = client or secrets.token_hex(8)
        self.loop = loop
        self.clock_ms = clock_ms or (lambda: round(loop.time() * 1000))
        self._link = link
        self._number = 0
        self._line = 0
        self._lock = threading.Lock()
        self._waiting: dict[int, tuple[Request, Pending]] = {}
        self._broken: RayflowError | None = None
        self.home = Lane(home, link(home), self)
        self._lane_of: dict[int, Lane] = {}
        """Of shards that are not at home."""
        # All below belongs to the loop.
        self._lanes: dict[str, tuple[Lane, asyncio.Task[None]]] = {}
        self._group: asyncio.TaskGroup
        self._moved_s: dict[int, float] = {}

    def ask(self, shard: int, message: Message) -> Pending:
        """Send ``message`` to a shard; returns its answer to come.

        Raises Overloaded beyond the window, and InvalidInput where the message is too large to be sent.
        """
        size = len(session.encode(message))
        if size > session.LARGEST_BYTES:
            raise InvalidInput(
                f"a message of {size} bytes, and at most {session.LARGEST_BYTES} can be sent: "
                f"put what is large into a file or an object and send the name of that"
            )
        with self._lock:
            if self._broken is not None:
                raise self._broken
            if len(self._waiting) >= (most := limits.current().client_requests):
                raise Overloaded(f"{most} requests are under way already; wait for some of them", retry_after_s=1.0)
            pending, lane, waiting = self._open(shard, message)
        if waiting == 1 or waiting == lane.enough:
            self.loop.call_soon_threadsafe(lane.wake)
        return pending

    def _open(self, shard: int, message: Message) -> tuple[Pending, Lane, int]:
        """With the lock held: let a request be the next to be sent. Returns how many now wait for that with it."""
        self._number += 1
        request = Request(self._number, shard, message, self.clock_ms())
        pending = Pending(partial(self._abandoned, request.number) if isinstance(message, AwaitOutcome) else None)
        self._waiting[request.number] = (request, pending)
        lane = self._lane_of.get(shard, self.home)
        lane.unsent.append(request)
        return pending, lane, len(lane.unsent)

    def _abandoned(self, number: int) -> None:
        """Takes no lock: this thread may have it, and be interrupted to collect garbage."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self.loop.call_soon_threadsafe(self._withdraw, number)

    def _withdraw(self, number: int) -> None:
        """Give up the wait for the end of an execution. From now on it is the host's alone, and the host is told until it answers;
        so this request may go beyond the window, which it makes room in."""
        with self._lock:
            request, _ = self._waiting.pop(number, (None, None))
            if request is None or not isinstance(request.message, AwaitOutcome):
                return  # it was answered meanwhile
            _, lane, _ = self._open(request.shard, StopWaiting(request.message.execution, number))
        lane.wake()

    @property
    def crowded(self) -> bool:
        """Whether half of the window is used: the rest is for what cannot be put off."""
        return len(self._waiting) > limits.current().client_requests // 2

    def refuse(self, error: RayflowError) -> None:
        """Nobody will answer any more: tell all who wait, and all who ask from now on."""
        with self._lock:
            self._broken = self._broken or error
            waiting, self._waiting = list(self._waiting.values()), {}
        settle_all((pending, error) for _, pending in waiting)

    async def run(self) -> None:
        """Send and receive until cancelled."""
        async with asyncio.TaskGroup() as self._group:
            self._group.create_task(self.home.run())

    # -- see ``rayflow.runtime.lane.Requests`` -------------------------------------------------------------------------------

    def next_line(self) -> int:
        self._line += 1
        return self._line

    def take_unsent(self, lane: Lane) -> tuple[list[Request], int]:
        with self._lock:
            limit = min(_MOST_IN_A_CALL, max(_ENOUGH_FOR_A_CALL, (len(self._waiting) + 1) // CALLS))
            limit = session.fitting(lane.unsent[:limit], limits.current().call_bytes)
            requests, lane.unsent = lane.unsent[:limit], lane.unsent[limit:]
            # What was answered since it was to be sent again must not be: one that was refused would be handled after all.
            requests = [one for one in requests if one.number in self._waiting]
            # A sender says what it has heard once per call: it holds for every request in it.
            return requests, next(iter(self._waiting), self._number + 1) - 1

    def send_again(self, lane: Lane) -> None:
        with self._lock:
            lane.unsent = [one for one, _ in self._waiting.values() if self._lane_of.get(one.shard, self.home) is lane]

    def is_waiting(self, lane: Lane) -> bool:
        if not self._lane_of:
            return bool(self._waiting)
        with self._lock:
            return any(self._lane_of.get(one.shard, self.home) is lane for one, _ in self._waiting.values())

    def answered(self, responses: list[Response]) -> None:
        waiting = self._waiting  # whoever adds to it meanwhile is not held up
        answered = [(waiting.pop(one.number, None), one.answer) for one in responses]
        settle_all([(entry[1], answer) for entry, answer in answered if entry is not None])

    def warned(self, warnings: list[str]) -> None:
        for warning in warnings:
            _log.warning("%s", warning)

    def moved(self, lane: Lane, moved: Sequence[tuple[int, str]]) -> None:
        now_s = self.loop.time()
        for shard, name in moved:
            if self._lane_of.get(shard, self.home) is lane:
                target = self._lane(name)
                if target is lane or now_s - self._moved_s.get(shard, -_SETTLED_S) < _SETTLED_S:
                    target.pause()
                self._moved_s[shard] = now_s
                self._move({shard}, lane, target)

    def lost(self, lane: Lane) -> bool:
        if lane is self.home:
            return False
        _, work = self._lanes.pop(lane.name)
        self.home.pause()
        self._move({shard for shard, other in self._lane_of.items() if other is lane}, lane, self.home)
        self.loop.call_soon(work.cancel)
        return True

    def _lane(self, name: str) -> Lane:
        if name == self.home.name:
            return self.home
        if name not in self._lanes:
            lane = Lane(name, self._link(name), self)
            self._lanes[name] = (lane, self._group.create_task(lane.run()))
        return self._lanes[name][0]

    def _move(self, shards: set[int], lane: Lane, target: Lane) -> None:
        """Have all that is open of these shards sent by another lane, before anything that follows."""
        with self._lock:
            for shard in shards:
                if target is self.home:
                    self._lane_of.pop(shard, None)
                else:
                    self._lane_of[shard] = target
            lane.unsent = [one for one in lane.unsent if one.shard not in shards]
            others = [one for one in target.unsent if one.shard not in shards]
            theirs = [one for one, _ in self._waiting.values() if one.shard in shards]
            target.unsent = sorted([*others, *theirs], key=lambda one: one.number)
        target.wake()
