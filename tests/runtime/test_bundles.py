"""Bundling short steps: never before it is known that they are short, never so that somebody idles."""

from __future__ import annotations

from rayflow.runtime.bundles import BUNDLE_MS, LARGEST, PROBES, SHORT_MS, Bundles

SLOTS = 2


def known(duration_ms: float) -> Bundles[int]:
    bundles: Bundles[int] = Bundles()
    for _ in range(3):
        bundles.observed("kind", duration_ms, SLOTS)
    return bundles


def test_of_an_unknown_step_a_few_start_alone_and_the_rest_is_held_until_they_are_known_to_be_short() -> None:
    bundles: Bundles[int] = Bundles()
    assert bundles.offer("kind", range(1000), SLOTS) == [[index] for index in range(PROBES)]
    assert bundles.holds("kind")
    assert bundles.observed("kind", 1.0, SLOTS) == bundles.observed("kind", 1.0, SLOTS) == []
    released = bundles.observed("kind", 1.0, SLOTS)
    assert [one for bundle in released for one in bundle] == list(range(PROBES, 1000))
    assert max(map(len, released)) == BUNDLE_MS / 1.0 and not bundles.holds("kind")


def test_steps_that_take_long_are_never_bundled() -> None:
    assert known(SHORT_MS * 1.1).offer("kind", range(1000), SLOTS) == [[index] for index in range(1000)]


def test_one_long_attempt_among_short_ones_ends_the_bundling() -> None:
    bundles = known(0.1)
    bundles.observed("kind", 500.0, SLOTS)
    assert bundles.offer("kind", range(100), SLOTS) == [[index] for index in range(100)]


def test_what_is_held_goes_alone_when_its_time_is_over() -> None:
    bundles: Bundles[int] = Bundles()
    bundles.offer("kind", range(100), SLOTS)
    assert bundles.hurry("kind", SLOTS) == [[index] for index in range(PROBES, 100)]
    assert bundles.offer("kind", [1, 2], SLOTS) == [[1], [2]], "and nothing is held again"


def test_no_slot_idles_while_another_works_through_a_bundle() -> None:
    assert known(0.1).offer("kind", range(8), SLOTS) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert known(0.1).offer("kind", range(3), slots=64) == [[0], [1], [2]]


def test_bundles_are_bounded() -> None:
    assert max(map(len, known(0.0).offer("kind", range(10_000), SLOTS))) == LARGEST


def test_kinds_are_kept_apart() -> None:
    assert known(0.1).offer("other kind", range(20), SLOTS) == [[index] for index in range(PROBES)]
