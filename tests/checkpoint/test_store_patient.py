"""A patient store waits while the one behind it does not answer, and raises what waiting does not mend."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rayflow.checkpoint.memory import MemoryStore
from rayflow.checkpoint.patient import PatientStore
from rayflow.checkpoint.store import ObjectInfo
from rayflow.errors import AlreadyExists, NotFound, StoreUnavailable
from rayflow.testing.faulty_store import FaultRates, FaultyStore


def test_what_is_unavailable_now_and_then_is_carried_out() -> None:
    faulty = FaultyStore(MemoryStore(), seed=3, rates=FaultRates(never_lands=0.2, unavailable=0.2))
    store = PatientStore(faulty, on_wait=lambda error: None)
    keys = [f"a/{number:02}" for number in range(12)]
    for key in keys:
        store.create(key, key.encode())
    assert [store.get(key) for key in keys] == [key.encode() for key in keys]
    assert [info.key for info in store.list("a/")] == keys
    store.delete(keys[:6])
    assert [info.key for info in store.list("a/")] == keys[6:]
    assert faulty.injected, "faults were met"


def test_a_listing_goes_on_where_it_broke_off() -> None:
    class BreaksOff(MemoryStore):
        broken = False

        def list(self, prefix: str, start_after: str = "") -> Iterator[ObjectInfo]:
            for info in super().list(prefix, start_after):
                if info.key.endswith("2") and not self.broken:
                    self.broken = True
                    raise StoreUnavailable("in the middle")
                yield info

    store = PatientStore(BreaksOff(), on_wait=lambda error: None)
    for number in range(5):
        store.create(f"a/{number}", b"")
    assert [info.key for info in store.list("a/")] == [f"a/{number}" for number in range(5)]


def test_what_waiting_does_not_mend_is_raised_at_once_and_patience_ends() -> None:
    inner = FaultyStore(MemoryStore(), seed=1)
    told: list[StoreUnavailable] = []
    store = PatientStore(inner, patience_s=0.3, on_wait=told.append)
    store.create("a", b"1")
    with pytest.raises(AlreadyExists):
        store.create("a", b"2")
    with pytest.raises(NotFound):
        store.get("b")
    assert told == []
    inner.make_unavailable(1_000)
    with pytest.raises(StoreUnavailable):
        store.get("a")
    assert told


def test_who_waits_is_served_once_the_store_answers() -> None:
    inner = FaultyStore(MemoryStore(), seed=1)
    told: list[StoreUnavailable] = []
    store = PatientStore(inner, on_wait=told.append)
    inner.create("a", b"1")
    inner.make_unavailable(3)
    assert store.get("a") == b"1"
    assert len(told) == 3
