"""Shards are spread evenly over hosts, and stay where they are if they can."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from rayflow.runtime.placement import Placement, spread

NAMES = st.sampled_from("abcdefg")


@given(hosts=st.lists(NAMES, min_size=1, unique=True), now=st.lists(NAMES, max_size=40))
def test_every_host_has_as_many_shards_as_any_other_or_one_less(hosts: list[str], now: list[str]) -> None:
    held = Counter(spread(hosts, now))
    assert held.keys() <= set(hosts) and held.total() == len(now)
    assert max(held[name] for name in hosts) - min(held[name] for name in hosts) <= 1


@given(hosts=st.lists(NAMES, min_size=1, unique=True), now=st.lists(NAMES, max_size=40))
def test_no_more_shards_move_than_an_even_spread_needs(hosts: list[str], now: list[str]) -> None:
    moved = sum(before != after for before, after in zip(now, spread(hosts, now), strict=True))
    held = Counter(name for name in now if name in hosts)
    least, more = divmod(len(now), len(hosts))
    # What stays at best: everybody keeps up to the even share, and those with most, one more each while there are any left.
    stays = sum(min(held[name], least) for name in hosts) + min(more, sum(held[name] > least for name in hosts))
    assert moved == len(now) - stays


@given(hosts=st.lists(NAMES, min_size=1, unique=True), now=st.lists(NAMES, max_size=40))
def test_what_is_spread_evenly_is_left_alone(hosts: list[str], now: list[str]) -> None:
    placed = spread(hosts, now)
    assert spread(hosts, placed) == placed


def test_a_placement_replaces_older_ones_of_its_author_and_any_of_another() -> None:
    first, second = Placement("one", 1, ("a",)), Placement("one", 2, ("b",))
    assert second.replaces(first) and not first.replaces(second) and not second.replaces(second)
    assert first.replaces(None) and Placement("another", 1, ("a",)).replaces(second)
