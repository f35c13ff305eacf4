"""A counter: the smallest actor. Identity is its name, state a value and a version; messages are increment, decrement and get."""

from __future__ import annotations

from dataclasses import dataclass

import rayflow


@dataclass(slots=True)
class CounterState:
    """``version`` counts the changes of ``value``."""

    value: int = 0
    version: int = 0


class Counter(rayflow.Entity[CounterState]):
    """Counts."""

    @rayflow.operation
    def increment(self, by: int = 1) -> int:
        """Add ``by`` and return the new value."""
        self.state.value += by
        self.state.version += 1
        return self.state.value

    @rayflow.operation
    def decrement(self, by: int = 1) -> int:
        """Take ``by`` away and return the new value."""
        self.state.value -= by
        self.state.version += 1
        return self.state.value

    @rayflow.query
    def get(self) -> CounterState:
        """Value and version."""
        return self.state
