"""What was used lately, and no more than that."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Recent(Generic[K, V]):
    """A dict that forgets: it holds the last ``limit`` keys that were used, and at most as many before those.

    Two generations, so that what is found costs one look, or little more: what was not used while a generation filled is dropped.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._recent: dict[K, V] = {}
        self._older: dict[K, V] = {}

    def __len__(self) -> int:
        return len(self._recent.keys() | self._older.keys())

    def get(self, key: K) -> V | None:
        """What was put there, if it is still known."""
        found = self._recent.get(key)
        if found is None and (found := self._older.get(key)) is not None:
            self.put(key, found)
        return found

    def put(self, key: K, value: V) -> V:
        """Returns ``value``."""
        if len(self._recent) >= self._limit:
            self._older, self._recent = self._recent, {}
        self._recent[key] = value
        return value
