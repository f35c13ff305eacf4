"""Time, processes and a network that exist only as numbers: what a whole system runs on in a simulation.

Everything happens in one thread, in the order of a virtual clock, and all chance comes from one seed: the same seed is the same
run. A *process* is a generator. It yields where it would wait: a number of milliseconds, a ``Signal``, or None for the short while
that a request or a thread takes. It belongs to a ``Group``, the part of a machine that crashes and stalls together; a group that is
frozen goes on later with everything that was waiting for it, which is what makes a zombie.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Generator
from random import Random
from typing import Any, ClassVar, Generic, TypeAlias, TypeVar, cast

from rayflow.core.ledger import Disconnected

T = TypeVar("T")

Process: TypeAlias = "Generator[float | Signal | None, None, T]"

EPOCH_MS = 1_700_000_000_000
"""What the clocks show when a run begins."""

_REQUEST_WEIGHT = 6
"""A request to a store is so much more likely to be where something befalls a process than a turn of its loop: there are fewer."""


class Group:
    """Processes that share their fate."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.frozen = False
        self.backlog: list[Callable[[], None]] = []
        self.calls: dict[Answer[Any], None] = {}


class Signal:
    """Like ``asyncio.Event``, but whoever waited for it also resets it."""

    __slots__ = ("_waiting", "is_set", "world")

    def __init__(self, world: World) -> None:
        self.world = world
        self.is_set = False
        self._waiting: tuple[Group, Process[Any]] | None = None

    def set(self) -> None:
        if self._waiting is not None:
            group, process = self._waiting
            self._waiting = None
            self.world.resume(group, process, 0)
        else:
            self.is_set = True

    def park(self, group: Group, process: Process[Any]) -> None:
        """Have ``process`` go on when the signal is set, or now if it is."""
        if self.is_set:
            self.is_set = False
            self.world.resume(group, process, 0)
        else:
            self._waiting = (group, process)


class Answer(Generic[T]):
    """What will become of a call. ``on_done`` is called once, when that is known."""

    __slots__ = ("_signal", "_value", "done", "error", "on_done")

    def __init__(self, world: World) -> None:
        self.done = False
        self.on_done: Callable[[], None] | None = None
        self.error: Exception | None = None
        self._value: T | None = None
        self._signal = Signal(world)

    @property
    def value(self) -> T:
        """What it was resolved with; to be asked once it is ``done`` without an ``error``."""
        return cast("T", self._value)

    def resolve(self, value: T) -> None:
        self._finish(value, None)

    def fail(self, error: Exception) -> None:
        self._finish(None, error)

    def take(self, other: Answer[T]) -> None:
        """Become what ``other`` became."""
        self._finish(other._value, other.error)

    def _finish(self, value: T | None, error: Exception | None) -> None:
        if self.done:
            return
        self.done, self._value, self.error = True, value, error
        self._signal.set()
        if self.on_done is not None:
            self.on_done()

    def wait(self) -> Process[T]:
        """Yields until it is known; returns the value or raises the error."""
        while not self.done:
            yield self._signal
        if self.error is not None:
            raise self.error
        return self.value


class World:
    """The clock and the dice. ``disturbed`` says whether anything goes wrong at all; ``trace`` gets a line for all that happens."""

    max_events: ClassVar[float] = 200_000
    """A hundred times what a run needs: more is a loop in which no time passes."""

    def __init__(self, seed: int, trace: Callable[[str], None] | None = None) -> None:
        self.random = Random(seed)
        self.now_ms = 0.0
        self.disturbed = True
        self.happened: Counter[str] = Counter()
        self.mishap: Callable[[Group], None] = lambda group: None
        self.mishap_odds = 0.0
        self._trace = trace
        self._events: list[tuple[float, int, Group, Callable[[], None]]] = []
        self._count = 0
        self._names = 0

    def name(self, kind: str) -> str:
        """A name that nobody else has."""
        self._names += 1
        return f"{kind}{self._names}"

    def log(self, who: str, what: str) -> None:
        """Note what happened, for whoever replays this seed."""
        if self._trace is not None:
            self._trace(f"{self.now_ms:9.1f} ms  {who:<14} {what}")

    @property
    def tracing(self) -> bool:
        return self._trace is not None

    # -- events --------------------------------------------------------------------------------------------------------------

    def after(self, delay_ms: float, group: Group, action: Callable[[], None]) -> None:
        """Do ``action`` later, if the group lives then."""
        self._count += 1
        heapq.heappush(self._events, (self.now_ms + delay_ms, self._count, group, action))

    def run(self, until_ms: float, finished: Callable[[], bool]) -> None:
        """Go on until nothing is left to do, the time has come, or ``finished()``; or at ``max_events``, in vain."""
        events = self._events
        while events and events[0][0] <= until_ms and self._count < self.max_events and not finished():
            due_ms, _, group, action = heapq.heappop(events)
            self.now_ms = max(self.now_ms, due_ms)
            if group.frozen:
                group.backlog.append(action)
            elif group.alive:
                action()

    def thaw(self, group: Group) -> None:
        """Let a frozen group go on with all that gathered."""
        group.frozen = False
        backlog, group.backlog = group.backlog, []
        for action in backlog:
            self.after(self.random.random() * 5, group, action)

    # -- processes -----------------------------------------------------------------------------------------------------------

    def spawn(self, group: Group, process: Process[None], delay_ms: float = 0) -> None:
        self.resume(group, process, delay_ms)

    def resume(self, group: Group, process: Process[Any], delay_ms: float) -> None:
        self.after(delay_ms, group, lambda: self._step(group, process))

    def _step(self, group: Group, process: Process[Any]) -> None:
        if self.strikes(group, _REQUEST_WEIGHT):
            if group.frozen:
                group.backlog.append(lambda: self._step(group, process))
            return
        try:
            waited = next(process)
        except StopIteration:
            return
        if waited is None:
            self.resume(group, process, self.pause_ms())
        elif isinstance(waited, Signal):
            waited.park(group, process)
        else:
            self.resume(group, process, waited)

    def strikes(self, group: Group, weight: float = 1) -> bool:
        """Whether something befalls a group at this very point, so that it does not go on, or not now."""
        self._count += 1
        if not self.disturbed or not self.mishap_odds or self.random.random() >= weight * self.mishap_odds:
            return False
        self.mishap(group)
        return group.frozen or not group.alive

    def pause_ms(self) -> float:
        """How long a request, a thread or a message takes: short as a rule, long at times."""
        dice = self.random.random()
        return dice * 6 if dice < 0.97 or not self.disturbed else dice * 1000

    # -- network -------------------------------------------------------------------------------------------------------------

    def send(self, group: Group, action: Callable[[], None]) -> None:
        """A message to ``group``: late, lost, repeated and overtaken by others."""
        if self.disturbed:
            dice = self.random.random()
            if dice < 0.03:
                self.happened["message lost"] += 1
                return
            if dice < 0.08:
                self.happened["message repeated"] += 1
                self.after(self.random.random() * 3000, group, action)
        self.after(self.pause_ms(), group, action)

    def call(self, caller: Group, callee: Group, action: Callable[[Answer[T]], None], *, once: bool = False) -> Answer[T]:
        """Have ``action`` done by ``callee``, which resolves the Answer that it is given; the caller gets that, or Disconnected.

        A callee that is dead, or dies before it has answered, shows as Disconnected, too. Calls overtake each other. One may be
        carried out twice, and the second answer go nowhere, unless it is ``once`` at most: as over a connection, or as calls of
        actors are where Ray does not repeat them.
        """
        answer: Answer[T] = Answer(self)
        reply: Answer[T] = Answer(self)
        repeated: Answer[T] = Answer(self)

        def lost() -> None:
            answer.fail(Disconnected("no answer"))

        def send(delay_ms: float, action: Callable[[], None]) -> None:
            self.after(delay_ms, callee, action)

        dice = self.random.random() if self.disturbed else 1.0
        if not callee.alive or dice < 0.01:
            self.after(self.pause_ms(), caller, lost)
        elif dice < 0.02:
            self.happened["call given up"] += 1
            send(self.random.random() * 2000, lambda: action(reply))
            self.after(self.pause_ms(), caller, lost)
        else:
            callee.calls[reply] = None

            def answered() -> None:
                callee.calls.pop(reply, None)
                self.after(self.pause_ms(), caller, lambda: answer.take(reply))

            reply.on_done = answered
            send(self.pause_ms(), lambda: action(reply))
            if dice < 0.05 and not once:
                self.happened["call repeated"] += 1
                send(self.random.random() * 2000, lambda: action(repeated))
        return answer

    def kill(self, group: Group) -> None:
        """End everything in ``group``; who waits for an answer of it learns that there will be none."""
        group.alive = False
        group.backlog.clear()
        for reply in list(group.calls):
            reply.fail(Disconnected(f"{group.name} is gone"))
