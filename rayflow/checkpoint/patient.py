"""A store for who has work in hand: while the one behind it does not answer, it waits and tries again.

A step that has encoded for an hour should not lose that because the bucket is away for a minute when it wants to store the result.
So what steps see of a store waits for ``PATIENCE_S``, which is longer than buckets are away, and only then raises StoreUnavailable
as any store does: the attempt has then failed, and the next one may run where the store can be reached. A shard's owner has no use
for this: it knows what it writes, and waits for ever.

Only StoreUnavailable is waited out; what will not get better by itself is raised at once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from rayflow.checkpoint.store import ObjectInfo, Store
from rayflow.errors import StoreUnavailable

T = TypeVar("T")

PATIENCE_S = 600.0
"""How long one operation is tried again."""
_PAUSES_S = (0.2, 1.0, 2.0, 5.0)
_NAP_S = 0.1
"""In pieces of this a pause is slept, so that a cancelled step ends soon."""

_log = logging.getLogger("rayflow.store")


class PatientStore:
    """``store``, with every operation tried again while it is unavailable; ``on_wait`` is told why, before each pause.

    A create that was tried again may find its own object and raise AlreadyExists, as one on a bucket may anyway.
    """

    def __init__(
        self, store: Store, patience_s: float = PATIENCE_S, on_wait: Callable[[StoreUnavailable], None] | None = None
    ) -> None:
        self._store = store
        self._patience_s = patience_s
        self._on_wait = on_wait or _warn

    @property
    def url(self) -> str:
        """Of the store behind this one."""
        return self._store.url

    def create(self, key: str, data: bytes) -> None:
        """As ``Store.create``."""
        self._patiently(lambda: self._store.create(key, data))

    def get(self, key: str) -> bytes:
        """As ``Store.get``."""
        return self._patiently(lambda: self._store.get(key))

    def list(self, prefix: str, start_after: str = "") -> Iterator[ObjectInfo]:
        """As ``Store.list``; what was listed before the store went away is not listed again."""
        rest: Iterator[ObjectInfo] | None = None
        last = start_after

        def following() -> ObjectInfo | None:
            nonlocal rest
            rest = rest or self._store.list(prefix, last)
            try:
                return next(rest, None)
            except StoreUnavailable:
                rest = None
                raise

        while (info := self._patiently(following)) is not None:
            last = info.key
            yield info

    def delete(self, keys: Iterable[str]) -> None:
        """As ``Store.delete``."""
        doomed = list(keys)
        self._patiently(lambda: self._store.delete(doomed))

    def upload(self, key: str, path: Path) -> None:
        """As ``Store.upload``."""
        self._patiently(lambda: self._store.upload(key, path))

    def download(self, key: str, path: Path) -> None:
        """As ``Store.download``."""
        self._patiently(lambda: self._store.download(key, path))

    def local_path(self, key: str) -> Path | None:
        """As ``Store.local_path``."""
        return self._store.local_path(key)

    def _patiently(self, operation: Callable[[], T]) -> T:
        deadline_s = time.monotonic() + self._patience_s
        failures = 0
        while True:
            try:
                return operation()
            except StoreUnavailable as error:
                if time.monotonic() >= deadline_s:
                    raise
                self._on_wait(error)
                until_s = time.monotonic() + _PAUSES_S[min(failures, len(_PAUSES_S) - 1)]
                failures += 1
                while time.monotonic() < until_s:
                    time.sleep(_NAP_S)


def _warn(error: StoreUnavailable) -> None:
    _log.warning("the store does not answer (%s); waiting for it", error)
