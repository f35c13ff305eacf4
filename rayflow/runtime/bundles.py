"""Several attempts of a short step in one Ray task: for steps of milliseconds the task costs more than the step.

Nobody says in advance how long a step takes, so a few are started alone and watched while the rest is held back, for a second at
the most. A step whose attempts take longer than ``SHORT_MS`` is never bundled: it keeps a task, a place in the scheduler's queue
and a line in the dashboard of its own. In a bundle, attempts run one after the other in one process, and share its fate if it
crashes; so only first attempts are bundled, of steps that may run again and have no time-out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")

SHORT_MS = 10.0
BUNDLE_MS = 20.0
LARGEST = 100
PROBES = 16
HOLD_S = 1.0
_SAMPLES = 3


@dataclass(slots=True)
class _Kind(Generic[T]):
    samples: int = 0
    longest_ms: float = 0.0
    probing: int = 0
    given_up: bool = False
    held: list[T] = field(default_factory=list[T])


class Bundles(Generic[T]):
    """Decides which attempts go together. ``kind`` is whatever attempts must have in common to share a task."""

    def __init__(self) -> None:
        self._kinds: dict[object, _Kind[T]] = {}

    def offer(self, kind: object, items: Sequence[T], slots: int) -> list[list[T]]:
        """Attempts that are to start; returns the bundles that go now. ``slots``: attempts that the cluster runs at a time."""
        known = self._kinds.setdefault(kind, _Kind[T]())
        known.held.extend(items)
        return self._release(known, slots)

    def observed(self, kind: object, duration_ms: float, slots: int) -> list[list[T]]:
        """An attempt has ended; returns the bundles that go now."""
        known = self._kinds.setdefault(kind, _Kind[T]())
        known.samples += 1
        known.longest_ms = max(duration_ms, 0.9 * known.longest_ms)
        return self._release(known, slots) if known.held else []

    def holds(self, kind: object) -> bool:
        """Whether something is held back, to be released by ``observed`` or ``hurry``."""
        known = self._kinds.get(kind)
        return known is not None and bool(known.held)

    def hurry(self, kind: object, slots: int) -> list[list[T]]:
        """The time to hold something back is over; returns what goes now: everything."""
        known = self._kinds.setdefault(kind, _Kind[T]())
        known.given_up = True
        return self._release(known, slots)

    def _release(self, known: _Kind[T], slots: int) -> list[list[T]]:
        if known.samples < _SAMPLES and not known.given_up:
            free = max(PROBES - known.probing, 0)
            probes, known.held = known.held[:free], known.held[free:]
            known.probing += len(probes)
            return [[one] for one in probes]
        held, known.held = known.held, []
        size = self._size(known, len(held), slots)
        return [held[begin : begin + size] for begin in range(0, len(held), size)]

    def _size(self, known: _Kind[T], count: int, slots: int) -> int:
        if known.samples < _SAMPLES or known.longest_ms > SHORT_MS:
            return 1
        fitting = int(BUNDLE_MS / max(known.longest_ms, 0.2))
        fair = math.ceil(count / (2 * max(slots, 1)))  # nobody idles while others have a bundle to work through
        return max(1, min(fitting, fair, LARGEST))
