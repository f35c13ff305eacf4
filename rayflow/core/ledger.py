"""What a dispatcher knows of one shard: which attempts run, and which results wait to be put on record.

Pure: told of calls and ends, it says what to start and what to stop. The actor that owns the Ray tasks and the dispatcher of the
simulator drive the same code.

Each *connection* of a shard's owner is named by its epoch and a count within it. What belongs to an older one, or comes to a
dispatcher that does not know it, is refused: a message that comes late can start nothing that an attach has declared lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rayflow.core.messages import Attempt, StepResult, attempt_of
from rayflow.errors import Fenced


class Disconnected(Exception):
    """The dispatcher does not know this connection (any more), or cannot be reached: attach again."""


class Connection(NamedTuple):
    """One try of one owner to attach; a later one is greater."""

    epoch: int
    number: int


NOT_CONNECTED = Connection(0, 0)


class Ledger:
    """Of one shard; lost with the dispatcher's process."""

    def __init__(self) -> None:
        self.connection = NOT_CONNECTED
        self.calls = 0
        self.running: dict[Attempt, None] = {}
        self.results: dict[int, StepResult] = {}
        self.finished: dict[Attempt, int] = {}
        self.count = 0

    def attach(self, connection: Connection, expected: Iterable[Attempt]) -> tuple[list[Attempt], list[Attempt]]:
        """Open a connection; returns the expected attempts that are not known here, and those to be stopped.

        Raises Fenced if a later epoch has attached, Disconnected if a later try of the same has.
        """
        if not self.may_attach(connection):
            if connection.epoch < self.connection.epoch:
                raise Fenced(f"epoch {connection.epoch} is over, epoch {self.connection.epoch} has attached")
            raise Disconnected("a later connection is there")
        self.connection, self.calls = connection, 0
        wanted = dict.fromkeys(expected)
        stopped = [one for one in self.running if one not in wanted]
        for attempt in stopped:
            del self.running[attempt]
        for attempt in [one for one in self.finished if one not in wanted]:
            self.drop(attempt)
        return [one for one in wanted if not self.is_known(one)], stopped

    def submit(
        self, connection: Connection, call: int, starts: Sequence[Attempt], stops: Sequence[Attempt]
    ) -> tuple[list[int], list[Attempt]]:
        """Returns the indexes of the starts that are to be carried out, and the attempts to be stopped, which are others.

        What is to start and to stop in the same call never starts. ``call`` counts within the connection: one that was handled
        before changes nothing. Raises Disconnected.
        """
        self._check(connection)
        if not self.is_new(call):
            return [], []
        self.calls = call
        unwanted = dict.fromkeys(stops)
        stopped = [one for one in unwanted if one in self.running]
        for attempt in stopped:
            del self.running[attempt]
        for attempt in unwanted:
            if attempt in self.finished:
                self.drop(attempt)
        fresh: list[int] = []
        for index, attempt in enumerate(starts):
            if attempt not in unwanted and not self.is_known(attempt):
                self.running[attempt] = None
                fresh.append(index)
        return fresh, stopped

    def recorded(self, connection: Connection, recorded: int, seen: int) -> None:
        """The owner has the results up to ``recorded`` on record and has got those up to ``seen``. Raises Disconnected."""
        self._check(connection)
        for attempt, number in list(self.finished.items()):
            if number > self.droppable(recorded, seen):
                break
            self.drop(attempt)

    def news(self, seen: int) -> list[tuple[int, StepResult]]:
        """The results after number ``seen``."""
        return [(number, result) for number, result in self.results.items() if number > seen]

    def finish(self, result: StepResult) -> bool:
        """An attempt has ended; False if nobody waits for it."""
        attempt = attempt_of(result)
        if attempt not in self.running:
            return False
        del self.running[attempt]
        self.count += 1
        self.results[self.count] = result
        self.finished[attempt] = self.count
        return True

    def drop(self, attempt: Attempt) -> None:
        """Forget a result."""
        del self.results[self.finished.pop(attempt)]

    # -- rules ---------------------------------------------------------------------------------------------------------------

    def _check(self, connection: Connection) -> None:
        if not self.is_connected(connection):
            raise Disconnected(f"{connection} is not {self.connection}")

    def may_attach(self, connection: Connection) -> bool:
        """Whether this is not an older owner, or an older try of the same."""
        return connection > self.connection

    def is_connected(self, connection: Connection) -> bool:
        """Whether a call of this connection counts."""
        return connection == self.connection

    def is_new(self, call: int) -> bool:
        """Whether this call of the connection was not carried out before."""
        return call > self.calls

    def is_known(self, attempt: Attempt) -> bool:
        """Whether the attempt was started already."""
        return attempt in self.running or attempt in self.finished

    def droppable(self, recorded: int, seen: int) -> int:
        """Up to which number results need not be held any more."""
        return recorded
