"""The checker of counters' histories: it accepts what can have happened in some order, and nothing else."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayflow.testing.linearizability import Observed, violations


def possible(calls: Sequence[Observed]) -> bool:
    """By the definition: whether some order of the calls agrees with time and with a counter. Messages are all different."""
    return any(_counts(order) and _agrees_with_time(order) for order in itertools.permutations(calls))


def _counts(order: Sequence[Observed]) -> bool:
    value = 0
    for call in order:
        value += call.message is not None
        if call.value != value:
            return False
    return True


def _agrees_with_time(order: Sequence[Observed]) -> bool:
    return all(after.answered_s >= before.invoked_s for before, after in itertools.combinations(order, 2))


def history(seed: int, count: int = 300) -> list[Observed]:
    """What 8 clients of a counter that is right may see: the answers are those at a moment between sending and answer."""
    chance = random.Random(seed)
    begun = sorted((chance.uniform(0, count), index) for index in range(count))
    spans = [(at, at + chance.uniform(0, 8), index) for at, index in begun]
    moments = sorted((chance.uniform(start, end), start, end, index) for start, end, index in spans)
    value, calls = 0, list[Observed]()
    for _, start, end, index in moments:
        is_get = chance.random() < 0.2
        value += not is_get
        calls.append(Observed(None if is_get else f"m{index}", value, start, end))
        if not is_get and chance.random() < 0.1:  # sent again, later or at once
            again = chance.uniform(start, end + 5)
            calls.append(Observed(f"m{index}", value, again, max(end, again) + chance.uniform(0, 5)))
    chance.shuffle(calls)
    return calls


@pytest.mark.parametrize("seed", range(20))
def test_a_history_of_a_counter_that_is_right_is_accepted(seed: int) -> None:
    assert violations(history(seed)) == []


calls = st.builds(
    lambda is_get, value, start, length: (is_get, value, start, start + length),
    st.booleans(),
    st.integers(0, 4),
    st.integers(0, 6),
    st.integers(0, 4),
)


@settings(max_examples=1500, deadline=None)
@given(st.lists(calls, max_size=5))
def test_it_says_the_same_as_a_search_through_all_orders(drawn: list[tuple[bool, int, int, int]]) -> None:
    observed = [Observed(None if is_get else f"m{index}", *rest) for index, (is_get, *rest) in enumerate(drawn)]
    assert (violations(observed) == []) == possible(observed)


def pick(calls: list[Observed], *, get: bool) -> int:
    """The place of a call in the middle of a history."""
    wanted = sorted((call.value, index) for index, call in enumerate(calls) if (call.message is None) == get)
    return wanted[len(wanted) // 2][1]


@pytest.mark.parametrize("seed", range(5))
def test_an_update_that_is_lost_is_found(seed: int) -> None:
    """Two increments read the same value: everybody after them is one short."""
    calls = history(seed)
    lost = calls[pick(calls, get=False)].value
    seen = [replace(call, value=call.value - 1) if call.value > lost else call for call in calls]
    assert any(one.startswith("an update was lost") for one in violations(seen))


@pytest.mark.parametrize("seed", range(5))
def test_a_message_that_is_applied_twice_is_found(seed: int) -> None:
    calls = history(seed)
    twice = calls[pick(calls, get=False)]
    seen = [replace(call, value=call.value + 1) if call.value > twice.value else call for call in calls]
    again = Observed(twice.message, twice.value + 1, twice.answered_s, twice.answered_s + 1)
    assert any(one.startswith("applied twice") for one in violations([*seen, again]))
    assert any(one.startswith("out of range") for one in violations(seen)), "also if nobody saw the second answer"


@pytest.mark.parametrize("seed", range(5))
def test_a_stale_read_is_found(seed: int) -> None:
    calls = history(seed)
    index = pick(calls, get=True)
    missed = max((call for call in calls if call.message and call.answered_s < calls[index].invoked_s), key=lambda one: one.value)
    calls[index] = replace(calls[index], value=missed.value - 1)
    assert any(one.startswith("out of order") for one in violations(calls))


@pytest.mark.parametrize("seed", range(5))
def test_a_read_of_what_was_never_acknowledged_is_found(seed: int) -> None:
    calls = history(seed)
    index = pick(calls, get=True)
    begun = {call.message for call in calls if call.invoked_s <= calls[index].answered_s}
    calls[index] = replace(calls[index], value=min(call.value for call in calls if call.message not in begun))
    assert any(one.startswith("out of order") for one in violations(calls))


@pytest.mark.parametrize("seed", range(5))
def test_an_order_against_time_is_found(seed: int) -> None:
    """Two increments, one after the other, with the answers of each other."""
    calls = [call for call in history(seed) if call.message is not None]
    first = min(calls, key=lambda one: one.answered_s)
    second = max(calls, key=lambda one: one.invoked_s)
    swapped = {first.message: second.value, second.message: first.value}
    seen = [replace(call, value=swapped.get(call.message, call.value)) for call in calls]
    assert any(one.startswith("out of order") for one in violations(seen))


def test_it_names_the_calls() -> None:
    calls = [Observed("a", 1, 0.0, 1.0), Observed(None, 0, 2.0, 3.0)]
    assert violations(calls) == [
        "out of order: increment 'a' (answered 1, 0.000000 s to 1.000000 s) was over before a get (answered 0, 2.000000 s to "
        "3.000000 s) began, but comes after it by the answers"
    ]
