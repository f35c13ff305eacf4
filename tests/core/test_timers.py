"""Timers: order, and that what is replaced or cancelled leaves memory."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rayflow.core.timers import Timers

_STEPS = st.lists(st.tuples(st.sampled_from(["set", "cancel", "pop"]), st.integers(0, 4), st.integers(0, 6)), max_size=40)


@given(_STEPS)
def test_timers_fire_by_time_and_then_by_the_order_in_which_they_were_set_for_it(steps: list[tuple[str, int, int]]) -> None:
    timers: Timers[int] = Timers()
    current: dict[int, int] = {}  # in the order in which they were set
    for what, key, due_ms in steps:
        if what == "set":
            timers.set(due_ms, key)
            if current.get(key) != due_ms:
                current.pop(key, None)
                current[key] = due_ms
        elif what == "cancel":
            timers.cancel(key)
            current.pop(key, None)
        else:
            due = [one for one in sorted(current, key=lambda one: current[one]) if current[one] <= due_ms]
            assert timers.pop_due(due_ms) == due
            for one in due:
                del current[one]
        assert timers.next_due_ms() == min(current.values(), default=None)
        assert len(timers) == len(current)


def test_timers_that_are_set_again_or_cancelled_do_not_gather() -> None:
    timers: Timers[tuple[str, int]] = Timers(lambda key: key[0])
    most = 0
    for number in range(10_000):
        timers.set(10**9 + number, ("one", number))
        timers.set(10**9 + number, (f"other {number}", number))
        timers.cancel((f"other {number}", 0))
        most = max(most, timers.held)
    assert len(timers) == 1
    assert most < 100
    assert timers.pop_due(10**10) == [("one", 9999)]
    assert timers.held == 0
