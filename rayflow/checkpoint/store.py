"""The one seam between rayflow and storage: flat keys, whole objects, create-if-absent.

Everything durable goes through this protocol, so a new kind of store needs only these methods and must pass
``tests/checkpoint/test_store_conformance.py``. All methods block and may be called from any thread.

Keys are ``/``-separated, relative, made of ``[A-Za-z0-9._=-]`` parts, none of them ``.`` or ``..``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One object in a listing."""

    key: str
    size_bytes: int


class Store(Protocol):
    """A folder or a bucket. What a method has returned from is durable (fsynced, or acknowledged by the bucket)."""

    @property
    def url(self) -> str:
        """Where this store is, in the form ``open_store`` takes; without credentials."""
        ...

    def create(self, key: str, data: bytes) -> None:
        """Write ``data`` under ``key`` if nothing is there: of many racers exactly one wins, and no reader sees a part.

        Raises AlreadyExists when the key is taken, StoreUnavailable when it is not known whether the write happened.
        """
        ...

    def get(self, key: str) -> bytes:
        """The whole object. Raises NotFound."""
        ...

    def list(self, prefix: str, start_after: str = "") -> Iterator[ObjectInfo]:
        """Objects whose key starts with ``prefix`` and sorts after ``start_after``, in ascending order of the key."""
        ...

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects; those that are not there are no error."""
        ...

    def upload(self, key: str, path: Path) -> None:
        """Store the file at ``path`` under ``key``, complete or not at all, without holding it in memory.

        The caller names keys uniquely: whether a taken key is replaced is not defined.
        """
        ...

    def download(self, key: str, path: Path) -> None:
        """Write the object to the local file ``path``, complete or not at all. Raises NotFound."""
        ...

    def local_path(self, key: str) -> Path | None:
        """The file that holds the object where this store is a local folder, else None. For reading only."""
        ...
