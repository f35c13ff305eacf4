"""What a dispatcher has promised shards: attempts that run, and results that wait to be put on record.

Each shard has a ledger. Around it this wakes whoever waits for news of it, and passes on to those who work what the ledger lets
through. How work is done is theirs: tasks of Ray in ``rayflow.runtime.dispatcher``, a delay in the simulator.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

import msgspec

from rayflow.checkpoint.queues import WaitingSteps
from rayflow.core import limits
from rayflow.core.ledger import Connection, Disconnected, Ledger
from rayflow.core.messages import RUNNING, Attempt, StepProgress, StepResult, attempt_of
from rayflow.runtime.dispatching import Collected

S = TypeVar("S")


class _Shard:
    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.progress: dict[Attempt, StepProgress] = {}
        """The latest word of steps, as far as nobody has fetched it."""
        self.waiting: list[WaitingSteps] = []
        """For what no node has, as of the latest look; told once."""
        self.news = asyncio.Event()


class Assignments(Generic[S]):
    """Of all shards; ``S`` is what asks for an attempt, ``attempt`` tells for which. Belongs to one loop.

    ``start`` is given what is to be carried out, of the shard with that number; ``stop`` an attempt that runs and whose result
    nobody wants any more. The end of the others is told by ``finish``.
    """

    def __init__(
        self,
        attempt: Callable[[S], Attempt],
        start: Callable[[int, list[S]], Awaitable[None]],
        stop: Callable[[Attempt], None],
        ledger: Callable[[], Ledger] = Ledger,
    ) -> None:
        self._attempt = attempt
        self._start = start
        self._stop = stop
        self._ledger = ledger
        self._shards: dict[int, _Shard] = {}

    # -- shards --------------------------------------------------------------------------------------------------------------

    def attach(self, number: int, connection: Connection, expected: Sequence[Attempt]) -> list[Attempt]:
        """``Ledger.attach``; returns the attempts that are not known here. Raises Fenced, Disconnected."""
        shard = self._shards.setdefault(number, _Shard(self._ledger()))
        lost, stopped = shard.ledger.attach(connection, expected)
        self._stop_all(shard, stopped)
        shard.news.set()  # who waits for a shard that was here before is refused
        return lost

    async def submit(self, number: int, connection: Connection, call: int, wanted: Sequence[S], stops: Sequence[Attempt]) -> None:
        """``Ledger.submit``: start attempts, those already known excepted, and stop others. Raises Disconnected."""
        shard = self._known(number)
        fresh, stopped = shard.ledger.submit(connection, call, [self._attempt(one) for one in wanted], stops)
        self._stop_all(shard, stopped)
        await self._start(number, [wanted[index] for index in fresh])

    async def collect(self, number: int, connection: Connection, recorded: int, seen: int) -> Collected:
        """Wait for results after number ``seen``; those up to ``recorded`` are on record and dropped here.

        Returns after a while with nothing, too. Raises Disconnected.
        """
        shard = self._known(number)
        shard.ledger.recorded(connection, recorded, seen)
        if shard.ledger.count <= seen and not shard.progress and not shard.waiting:
            shard.news.clear()
            try:
                async with asyncio.timeout(limits.current().poll_s):
                    await shard.news.wait()
            except TimeoutError:
                pass
            shard.ledger.recorded(connection, recorded, seen)  # somebody else may have attached meanwhile
        progress = list(shard.progress.values())
        shard.progress.clear()
        waiting, shard.waiting = shard.waiting, []
        return Collected(shard.ledger.news(seen), progress, waiting)

    # -- those who work ------------------------------------------------------------------------------------------------------

    def is_running(self, number: int, attempt: Attempt) -> bool:
        """Whether somebody waits for the end of this attempt."""
        shard = self._shards.get(number)
        return shard is not None and attempt in shard.ledger.running

    def finish(self, number: int, result: StepResult) -> None:
        """An attempt is over; nothing happens where nobody waits for it."""
        shard = self._known(number)
        shard.progress.pop(attempt_of(result), None)
        if shard.ledger.finish(result):
            shard.news.set()

    def heard(self, number: int, word: StepProgress) -> None:
        """A running step says how far it is."""
        if self.is_running(number, attempt_of(word)):
            self._say(number, msgspec.structs.replace(word, state=RUNNING))

    def told(self, number: int, attempt: Attempt, state: str) -> None:
        """Have the shard know in which state an attempt is."""
        if self.is_running(number, attempt):
            said = self._shards[number].progress.get(attempt)
            execution, operation, count, run = attempt
            self._say(number, StepProgress(execution, operation, count, {} if said is None else said.fields, run, state))

    def wait(self, number: int, waiting: list[WaitingSteps]) -> None:
        """Have the shard know which of its steps wait for what no node has."""
        shard = self._known(number)
        shard.waiting = waiting
        shard.news.set()

    # -- for display ---------------------------------------------------------------------------------------------------------

    @property
    def running(self) -> int:
        """How many attempts run."""
        return sum(len(shard.ledger.running) for shard in self._shards.values())

    @property
    def held(self) -> int:
        """How many results are not on record yet."""
        return sum(len(shard.ledger.results) for shard in self._shards.values())

    def epochs(self) -> dict[int, int]:
        """The epochs of the shards that have attached, by their numbers."""
        return {number: shard.ledger.connection.epoch for number, shard in sorted(self._shards.items())}

    # -- small parts -----------------------------------------------------------------------------------------------------------

    def _known(self, number: int) -> _Shard:
        shard = self._shards.get(number)
        if shard is None:
            raise Disconnected("this dispatcher is a new one")
        return shard

    def _stop_all(self, shard: _Shard, attempts: list[Attempt]) -> None:
        for attempt in attempts:
            shard.progress.pop(attempt, None)
            self._stop(attempt)

    def _say(self, number: int, word: StepProgress) -> None:
        shard = self._shards[number]
        shard.progress[attempt_of(word)] = word
        shard.news.set()
