"""A task is late by the median of those like it, once enough of them have ended."""

from __future__ import annotations

from rayflow.runtime.stragglers import ENOUGH, Stragglers


def test_nothing_is_late_before_enough_have_ended() -> None:
    stragglers = Stragglers()
    for _ in range(ENOUGH - 1):
        stragglers.ended("encode", 30.0)
    assert stragglers.late_after_s("encode") is None
    stragglers.ended("encode", 30.0)
    assert stragglers.late_after_s("encode") == 60.0
    assert stragglers.late_after_s("join") is None


def test_a_short_step_is_not_late_for_a_moment() -> None:
    stragglers = Stragglers()
    for duration_s in (0.1, 0.1, 0.2):
        stragglers.ended("probe", duration_s)
    assert stragglers.late_after_s("probe") == 5.1


def test_one_that_took_long_itself_makes_no_other_late_or_early() -> None:
    stragglers = Stragglers()
    for duration_s in (30.0, 31.0, 3000.0, 29.0, 30.0):
        stragglers.ended("encode", duration_s)
    assert stragglers.late_after_s("encode") == 60.0


def test_kinds_that_are_long_gone_are_forgotten() -> None:
    stragglers = Stragglers()
    for kind in range(2000):
        for _ in range(ENOUGH):
            stragglers.ended(kind, 1.0)
    assert stragglers.late_after_s(0) is None and stragglers.late_after_s(1999) == 6.0
