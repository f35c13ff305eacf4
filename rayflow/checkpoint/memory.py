"""A store in the memory of one process: for tests, simulation and trying things out. Complete, but nothing outlives
the process.
"""

from __future__ import annotations

import threading
import uuid
import weakref
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator
from pathlib import Path

from rayflow.checkpoint.keys import check_key, check_prefix
from rayflow.checkpoint.store import ObjectInfo
from rayflow.checkpoint.wholefile import check_source, place_chunks
from rayflow.errors import AlreadyExists, InvalidInput, NotFound

_stores: weakref.WeakValueDictionary[str, MemoryStore] = weakref.WeakValueDictionary()
_stores_lock = threading.RLock()


class MemoryStore:
    """Objects in a dictionary. Safe to share between threads.

    ``name`` is the one under which ``MemoryStore.named`` finds the store again in this process; by default it has a
    unique one.
    """

    def __init__(self, name: str | None = None) -> None:
        if name is not None:
            check_key(name)
        self._name = name or uuid.uuid4().hex
        self._lock = threading.Lock()
        self._objects: dict[str, bytes] = {}
        self._keys: list[str] = []
        with _stores_lock:
            _stores[self._name] = self

    @classmethod
    def named(cls, name: str) -> MemoryStore:
        """The latest store of that name in this process: the same one as long as anybody holds it, else a new, empty
        one.
        """
        with _stores_lock:
            return _stores.get(name) or cls(name)

    def __repr__(self) -> str:
        return f"MemoryStore({self.url!r}, objects={len(self._keys)})"

    @property
    def url(self) -> str:
        """``memory://`` and the name, which is good in this process only."""
        return f"memory://{self._name}"

    def create(self, key: str, data: bytes) -> None:
        """As ``Store.create``. Like a folder it refuses a key below or above another one, with InvalidInput."""
        check_key(key)
        with self._lock:
            if key in self._objects:
                raise AlreadyExists(f"{key} is already in {self.url}")
            self._insert(key, bytes(data))

    def get(self, key: str) -> bytes:
        """As ``Store.get``."""
        check_key(key)
        with self._lock:
            data = self._objects.get(key)
        if data is None:
            raise NotFound(f"no object {key} in {self.url}")
        return data

    def list(self, prefix: str, start_after: str = "") -> Iterator[ObjectInfo]:
        """As ``Store.list``: what was there at the time of the call."""
        check_prefix(prefix)
        check_prefix(start_after)
        with self._lock:
            first = max(bisect_left(self._keys, prefix), bisect_right(self._keys, start_after))
            found: list[ObjectInfo] = []
            for key in self._keys[first:]:
                if not key.startswith(prefix):
                    break
                found.append(ObjectInfo(key, len(self._objects[key])))
        return iter(found)

    def delete(self, keys: Iterable[str]) -> None:
        """As ``Store.delete``."""
        keys = list(keys)
        for key in keys:
            check_key(key)
        with self._lock:
            for key in keys:
                if self._objects.pop(key, None) is not None:
                    del self._keys[bisect_left(self._keys, key)]

    def upload(self, key: str, path: Path) -> None:
        """As ``Store.upload``; here the whole file is held in memory, as every object is. A taken key is replaced."""
        check_key(key)
        check_source(path)
        data = path.read_bytes()
        with self._lock:
            self._insert(key, data)

    def download(self, key: str, path: Path) -> None:
        """As ``Store.download``."""
        place_chunks(path, [self.get(key)])

    def local_path(self, key: str) -> None:
        """None: there are no files."""
        check_key(key)

    def _insert(self, key: str, data: bytes) -> None:
        if key not in self._objects:
            below = bisect_left(self._keys, key + "/")
            if below < len(self._keys) and self._keys[below].startswith(key + "/"):
                raise InvalidInput(f"cannot create {key} in {self.url}: other keys lie below it, as in a folder")
            folder = key
            while folder := folder.rpartition("/")[0]:
                if folder in self._objects:
                    raise InvalidInput(f"cannot create {key} in {self.url}: {folder} is an object, so it cannot be a folder")
            insort(self._keys, key)
        self._objects[key] = data
