"""Whose code runs now: a slot that a thread can look at from outside.

Turns are short by contract. One that is not holds up everything else that runs in its thread, and nothing in there could tell.
"""

from __future__ import annotations

from typing import Protocol


class Titled(Protocol):
    """What has turns."""

    @property
    def title(self) -> str:
        """What it is, for people."""
        ...


class Turns:
    """For all machines of one thread. ``count`` is a number of the turn: two looks that find the same one found the same turn."""

    __slots__ = ("count", "running")

    def __init__(self) -> None:
        self.count = 0
        self.running: Titled | None = None

    def begin(self, running: Titled) -> None:
        """Code of this runs from now on."""
        self.count += 1
        self.running = running

    def end(self) -> None:
        """It has given way."""
        self.running = None
