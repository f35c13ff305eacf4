from __future__ import annotations

from random import Random

import pytest

from rayflow.checkpoint.requests import Create, Delete, List, Operation, Request
from rayflow.errors import AlreadyExists, StoreUnavailable
from rayflow.testing.log_simulation import NO_FAULTS, Faults, SimulatedStore, Steps, steps


def one(request: Request) -> Operation[object]:
    return (yield request)


def finish(work: Steps[object]) -> object:
    while True:
        try:
            next(work)
        except StopIteration as stop:
            return stop.value


def store_with(faults: Faults) -> tuple[SimulatedStore, list[str]]:
    created: list[str] = []
    return SimulatedStore(Random(1), faults, lambda key, data: created.append(key)), created


@pytest.mark.parametrize(
    ("faults", "at_once", "later"),
    [
        (Faults(lost_ack=1, refused=0, late=0, twice=0), True, True),
        (Faults(lost_ack=0, refused=1, late=0, twice=0), False, False),
        (Faults(lost_ack=0, refused=0, late=1, twice=0), False, True),
    ],
)
def test_a_write_that_fails_may_have_happened_or_happen_later(faults: Faults, at_once: bool, later: bool) -> None:
    store, created = store_with(faults)
    with pytest.raises(StoreUnavailable):
        finish(steps(one(Create("a", b"1")), store))
    assert ("a" in store.objects, len(created)) == (at_once, int(at_once))
    store.land_all()
    assert ("a" in store.objects, len(created)) == (later, int(later))


def test_a_write_may_happen_again_long_after() -> None:
    store, created = store_with(Faults(lost_ack=0, refused=0, late=0, twice=1))
    finish(steps(one(Create("a", b"1")), store))
    with pytest.raises(AlreadyExists):
        finish(steps(one(Create("a", b"2")), store))
    store.faults = NO_FAULTS
    finish(steps(one(Delete(("a",))), store))
    assert "a" not in store.objects
    store.land_one()
    store.land_one()
    assert len(created) == 2


def test_a_listing_is_no_picture_of_one_moment() -> None:
    store, _ = store_with(NO_FAULTS)
    for number in range(6):
        finish(steps(one(Create(f"a/{number}", b"")), store))
    listing = steps(one(List("a/")), store)
    next(listing)
    next(listing)
    finish(steps(one(Delete(("a/0", "a/4"))), store))
    listed = finish(listing)
    assert isinstance(listed, tuple)
    assert [info.key for info in listed] == ["a/0", "a/1", "a/2", "a/3", "a/5"]


def test_the_same_seed_gives_the_same_run() -> None:
    def outcome(seed: int) -> list[str]:
        store = SimulatedStore(Random(seed), Faults(0.2, 0.2, 0.2, 0.2), lambda key, data: None)
        for number in range(50):
            try:
                finish(steps(one(Create(f"{number:02}", b"")), store))
            except StoreUnavailable:
                store.land_one()
        return list(store.objects)

    assert outcome(7) == outcome(7) != outcome(8)
