"""Which messages have killed the process that handled them.

A message that is not durable yet comes again after a crash, and would crash the next process as well. So what is under way is noted
somewhere that outlives the process; whoever follows finds the note. Noting happens with every turn and must cost next to nothing.
"""

from __future__ import annotations

from typing import Protocol

MAX_CRASHES = 3
"""A message that was under way in so many crashes is not tried again: it becomes a dead letter."""


class Crashes(Protocol):
    """The notes of one shard."""

    def begin(self, message: str) -> None:
        """A turn begins with this message."""
        ...

    def end(self) -> None:
        """It has ended, with the process alive."""
        ...

    def count(self, message: str) -> int:
        """In how many crashes this message was under way."""
        ...

    def forget(self, message: str) -> None:
        """Somebody wants it tried again."""
        ...


class NoCrashes:
    """Where nothing outlives the process."""

    def begin(self, message: str) -> None:
        pass

    def end(self) -> None:
        pass

    def count(self, message: str) -> int:
        return 0

    def forget(self, message: str) -> None:
        pass
