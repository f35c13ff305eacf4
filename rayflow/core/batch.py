"""What ``ctx.map`` returns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class ItemResult(Generic[R]):
    """One item of a map: either ``value`` counts, or ``error`` is set."""

    key: str
    value: R | None
    error: Exception | None


@dataclass(frozen=True, slots=True)
class BatchResult(Generic[R]):
    """The results of a map, in the order of its items; an item that failed did not stop the others."""

    items: tuple[ItemResult[R], ...]

    def results(self) -> list[R]:
        """The values in the order of the items. Raises the error of the first item that failed."""
        for item in self.items:
            if item.error is not None:
                raise item.error
        return [cast("R", item.value) for item in self.items]

    def failed(self) -> list[ItemResult[R]]:
        """The items that failed."""
        return [item for item in self.items if item.error is not None]

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[ItemResult[R]]:
        return iter(self.items)
