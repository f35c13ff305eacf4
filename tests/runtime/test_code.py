"""Code by value, as of a notebook: what is kept of it does not grow with how often it changes."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator

import pytest

from rayflow.checkpoint.memory import MemoryStore
from rayflow.core import limits
from rayflow.core.records import Blob, Function
from rayflow.runtime import code
from rayflow.runtime.code import StoredCode


def made(number: int, padding: str = "") -> Callable[[], int]:
    return lambda: number + len(padding)


def test_functions_that_came_and_went_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code, "_KEPT", 20)
    stored = StoredCode(MemoryStore())
    alive: list[weakref.ref[object]] = []
    for number in range(200):
        function = made(number)
        described = stored.describe(function)
        assert stored.describe(function) is described
        loaded = stored.function(described)
        assert stored.function(described) is loaded
        assert loaded() == number
        alive += [weakref.ref(function), weakref.ref(loaded)]
        del function, loaded
    gc.collect()
    assert sum(one() is not None for one in alive) <= 2 * 2 * 20


class Reads(MemoryStore):
    """Counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def get(self, key: str) -> bytes:
        self.count += 1
        return super().get(key)


def test_large_code_is_fetched_once_though_other_blobs_have_pushed_it_out() -> None:
    store = Reads()
    stored = StoredCode(store)
    described = stored.describe(made(1, "x" * 100_000))
    assert isinstance(described, Function)
    assert isinstance(described.code, Blob)
    loaded = stored.function(described)
    with limits.using(blob_cache_bytes=200_000):
        for number in range(4):
            stored.keep(Blob(f"{number}", 100_000), bytes(100_000))
    assert stored.has(described.code), "using it does not wait"
    assert stored.function(described) is loaded
    assert store.count == 1


@pytest.fixture
def room_for_three() -> Iterator[None]:
    with limits.using(blob_cache_bytes=300):
        yield


@pytest.mark.usefixtures("room_for_three")
def test_a_blob_that_is_kept_twice_counts_once_and_the_one_used_last_stays() -> None:
    stored = StoredCode(MemoryStore())
    blobs = [Blob(str(number), 100) for number in range(4)]
    for _ in range(5):
        for blob in blobs[:3]:
            stored.keep(blob, bytes(100))
    assert all(stored.has(blob) for blob in blobs[:3])
    stored.fetch(blobs[0])
    stored.keep(blobs[3], bytes(100))
    assert [stored.has(blob) for blob in blobs] == [True, False, True, True]
