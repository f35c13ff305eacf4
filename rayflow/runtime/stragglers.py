"""Which tasks take so much longer than others like them that a second run on another machine may well end sooner.

Machines differ, and some are slow for reasons of their own: a disk that fails, a neighbour, heat. MapReduce called the answer
backup tasks (Dean and Ghemawat, 2004, section 3.6), Spark speculation. What is late is decided as there: by the median of those
that have ended, once enough of them have.
"""

from __future__ import annotations

import statistics
from collections import deque

FACTOR = 2.0
"""How many medians a task must have run for."""

LEAD_S = 5.0
"""How much longer than the median it must have run at least, in seconds: a second run takes a moment to start, too."""

ENOUGH = 3
"""How many must have ended before any is late."""

_REMEMBERED = 50
_MAX_KINDS = 1000


class Stragglers:
    """What is known of tasks by kind: those of one kind should take about as long as each other. Pure."""

    def __init__(self) -> None:
        self._durations_s: dict[object, deque[float]] = {}

    def ended(self, kind: object, duration_s: float) -> None:
        """A task has done its work."""
        durations_s = self._durations_s.pop(kind, None) or deque[float](maxlen=_REMEMBERED)
        durations_s.append(duration_s)
        self._durations_s[kind] = durations_s
        if len(self._durations_s) > _MAX_KINDS:
            del self._durations_s[next(iter(self._durations_s))]

    def late_after_s(self, kind: object) -> float | None:
        """How long a task of that kind may run before it is late, in seconds; None: nobody can tell yet."""
        durations_s = self._durations_s.get(kind)
        if durations_s is None or len(durations_s) < ENOUGH:
            return None
        median_s = statistics.median(durations_s)
        return max(FACTOR * median_s, median_s + LEAD_S)
