"""A store's operations in threads: one for a shard's log, in order, and those of the loop's executor for all else."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from rayflow.checkpoint.requests import Operation, run
from rayflow.checkpoint.store import Store
from rayflow.runtime.thread import Thread

T = TypeVar("T")


class ThreadedStore:
    """See ``rayflow.runtime.ports.StorePort``. Belongs to the loop that it was created on; ``name`` is that of the thread."""

    def __init__(self, store: Store, name: str) -> None:
        self.url = store.url
        self._store = store
        self._thread = Thread(name)

    def write(self, operation: Operation[T]) -> Awaitable[T]:
        return self._thread.call(lambda: run(operation, self._store))

    def run(self, operation: Operation[T]) -> Awaitable[T]:
        return asyncio.get_running_loop().run_in_executor(None, run, operation, self._store)

    def close(self) -> None:
        self._thread.close()
