"""What is due when: a heap of which no more is kept than is still to come."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

_FEW = 64
"""So many entries that count no more are not worth tidying up."""


class Timers(Generic[K]):
    """Keys by due time; equal times in the order in which they were set. Keys are checked by whoever set them when they fire.

    ``name`` says of a key what it is the timer of, by default the key itself. There is one timer of each name: setting it again
    takes the place of the one before. What is replaced or cancelled leaves memory, though not at once: those that are left over
    are never more than those that count, and a few.
    """

    def __init__(self, name: Callable[[K], Hashable] | None = None) -> None:
        self._name = name
        self._heap: list[tuple[int, int, K]] = []
        self._current: dict[Hashable, tuple[int, int, K]] = {}
        self._count = 0

    def __len__(self) -> int:
        return len(self._current)

    @property
    def held(self) -> int:
        """How many are in memory, those that do not count any more included."""
        return len(self._heap)

    def set(self, due_ms: int, key: K) -> None:
        """Have ``key`` come up then, and not when it was to come up before."""
        name = key if self._name is None else self._name(key)
        before = self._current.get(name)
        if before is not None and before[0] == due_ms and before[2] == key:
            return
        self._count += 1
        entry = self._current[name] = (due_ms, self._count, key)
        heapq.heappush(self._heap, entry)
        if before is not None:
            self._tidy()

    def cancel(self, key: K) -> None:
        """Nothing of that name is to come up; there need not be anything."""
        if self._current.pop(key if self._name is None else self._name(key), None) is not None:
            self._tidy()

    def next_due_ms(self) -> int | None:
        """When ``pop_due`` next has something."""
        while self._heap and not self._counts(self._heap[0]):
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def due(self, now_ms: int) -> list[K]:
        """What ``pop_due`` would return now; in any order."""
        found: list[K] = []
        places = [0]  # of the heap: what is below an entry that is not due is not due either
        while places:
            place = places.pop()
            if place < len(self._heap) and self._heap[place][0] <= now_ms:
                if self._counts(self._heap[place]):
                    found.append(self._heap[place][2])
                places += (2 * place + 1, 2 * place + 2)
        return found

    def pop_due(self, now_ms: int) -> list[K]:
        """Remove and return the keys that are due."""
        due: list[K] = []
        while self._heap and self._heap[0][0] <= now_ms:
            entry = heapq.heappop(self._heap)
            if self._counts(entry):
                key = entry[2]
                del self._current[key if self._name is None else self._name(key)]
                due.append(key)
        return due

    def _counts(self, entry: tuple[int, int, K]) -> bool:
        key = entry[2]
        return self._current.get(key if self._name is None else self._name(key)) is entry

    def _tidy(self) -> None:
        if len(self._heap) > 2 * len(self._current) + _FEW:
            self._heap = list(self._current.values())
            heapq.heapify(self._heap)
