"""The faulty store: which faults it injects, that they follow from the seed, and that without any it is a proper
store.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rayflow.checkpoint.memory import MemoryStore
from rayflow.checkpoint.opening import probe
from rayflow.errors import AlreadyExists, InvalidInput, NotFound, StoreUnavailable
from rayflow.testing.faulty_store import Fault, FaultRates, FaultyStore, InjectedFault


def outcomes(store: FaultyStore, keys: list[str]) -> dict[str, bool]:
    def succeeds(key: str) -> bool:
        try:
            store.create(key, b"x")
        except StoreUnavailable:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        return dict(zip(keys, pool.map(succeeds, keys), strict=True))


def test_without_faults_it_is_the_store_it_wraps(tmp_path: Path) -> None:
    store = FaultyStore(MemoryStore())
    probe(store)
    store.create("a", b"x")
    store.download("a", tmp_path / "a")
    store.upload("b", tmp_path / "a")
    assert store.get("b") == b"x"
    assert [found.key for found in store.list("")] == ["a", "b"]
    assert store.injected == ()


def test_a_lost_acknowledgement_leaves_the_object_written() -> None:
    store = FaultyStore(MemoryStore(), rates=FaultRates(lost_ack=1))
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="lost_ack"):
            store.create("a", b"x")
    assert store.get("a") == b"x"


def test_a_write_that_never_lands_leaves_nothing(tmp_path: Path) -> None:
    store = FaultyStore(MemoryStore(), rates=FaultRates(never_lands=1))
    (tmp_path / "file").touch()
    with pytest.raises(StoreUnavailable):
        store.create("a", b"x")
    with pytest.raises(StoreUnavailable):
        store.upload("b", tmp_path / "file")
    assert list(store.list("")) == []


def test_a_late_write_appears_after_the_caller_has_looked() -> None:
    store = FaultyStore(MemoryStore(), late_by_calls=3)
    store.fail_next_create(Fault.LANDS_LATE)
    with pytest.raises(StoreUnavailable):
        store.create("a", b"late")
    for _ in range(2):
        with pytest.raises(NotFound):
            store.get("a")
    assert store.get("a") == b"late"
    with pytest.raises(AlreadyExists):
        store.create("a", b"second")


def test_a_late_write_that_finds_the_key_taken_changes_nothing() -> None:
    store = FaultyStore(MemoryStore())
    store.fail_next_create(Fault.LANDS_LATE)
    with pytest.raises(StoreUnavailable):
        store.create("a", b"late")
    store.create("a", b"second")
    store.land_late_writes()
    assert store.get("a") == b"second"


def test_an_outage_lasts_as_many_calls_as_asked_for() -> None:
    store = FaultyStore(MemoryStore())
    store.make_unavailable(3)
    with pytest.raises(StoreUnavailable):
        store.create("a", b"x")
    with pytest.raises(StoreUnavailable):
        store.list("")
    with pytest.raises(StoreUnavailable):
        store.delete(["a"])
    store.create("a", b"x")
    assert store.injected[0] == InjectedFault(1, "create", "a", Fault.UNAVAILABLE)
    assert len(store.injected) == 3


def test_a_slow_call_pauses_on_the_given_clock_and_is_carried_out() -> None:
    pauses: list[float] = []
    store = FaultyStore(MemoryStore(), rates=FaultRates(slow=1), slow_s=2.5, sleep=pauses.append)
    store.create("a", b"x")
    assert store.get("a") == b"x"
    assert pauses == [2.5, 2.5]


def test_faults_follow_from_the_seed_whatever_the_threads_do() -> None:
    keys = [f"log/{number}" for number in range(200)]
    rates = FaultRates(lost_ack=0.2, never_lands=0.2, lands_late=0.1)
    first = outcomes(FaultyStore(MemoryStore(), seed=1, rates=rates), keys)
    again = outcomes(FaultyStore(MemoryStore(), seed=1, rates=rates), list(reversed(keys)))
    other = outcomes(FaultyStore(MemoryStore(), seed=2, rates=rates), keys)
    assert first == again
    assert first != other
    assert 60 < sum(first.values()) < 140


def test_a_repeated_call_is_drawn_anew() -> None:
    store = FaultyStore(MemoryStore(), seed=3, rates=FaultRates(never_lands=0.5))
    for _ in range(50):
        try:
            store.create("a", b"x")
            return
        except StoreUnavailable:
            continue
    pytest.fail("a retry must have a chance of its own")


def test_impossible_rates_are_refused() -> None:
    for make in (lambda: FaultRates(lost_ack=1.5), lambda: FaultRates(slow=-1), lambda: FaultRates(0.5, 0.5, 0.5)):
        with pytest.raises(InvalidInput):
            make()
