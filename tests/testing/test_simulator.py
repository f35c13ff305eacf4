"""The guarantees, on random runs of the whole system; and that each rule that they rest on is needed.

``RAYFLOW_SEEDS`` sets the number of runs, by default 1500; three in five have entities, letters, locks and dead letters.

Invariants: I1 to I14, I17, I20, I21, I22, I24 to I27.
"""

from __future__ import annotations

import logging
import os

import pytest

from rayflow.testing.simulation_judge import PROPERTIES
from rayflow.testing.simulation_report import main
from rayflow.testing.simulation_variants import VARIANTS, Variant
from rayflow.testing.simulator import run

SEEDS = int(os.environ.get("RAYFLOW_SEEDS", "1500"))
PARTS = 4
SEEDS_PER_VARIANT = 800

MUST_HAPPEN = (
    "host crashed",
    "host stalled",
    "dispatcher crashed",
    "dispatcher stalled",
    "everything crashed",
    "store unavailable",
    "rival started",
    "fenced",
    "snapshot",
    "client stalled",
    "shards moved",
    "write failed",
    "call repeated",
    "call given up",
    "forgotten",
    "started again",
    "letters lost",
    "rested",
    "locked",
    "message waits for a lock",
    "explosion",
    "explosion of a workflow",
    "suspended",
    "dead letter",
    "dead letter thrown away",
)


@pytest.mark.timeout(120 + SEEDS // 10)
@pytest.mark.parametrize("part", range(PARTS))
def test_no_run_violates_a_property(part: int) -> None:
    happened: dict[str, int] = {}
    for seed in range(part, SEEDS, PARTS):
        system = run(seed)
        assert not system.judge.violations, f"python -m rayflow.testing.simulator --replay --first {seed}"
        for what, count in system.world.happened.items():
            happened[what] = happened.get(what, 0) + count
    rare = {what: happened.get(what, 0) for what in MUST_HAPPEN if happened.get(what, 0) < SEEDS // PARTS // 20}
    assert not rare, f"the runs hardly test anything: {rare}"


def test_a_seed_is_one_run() -> None:
    for seed in range(5):
        first: list[str] = []
        second: list[str] = []
        run(seed, trace=first.append)
        run(seed, trace=second.append)
        assert first == second


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: f"{variant.invariant}: {variant.title}")
def test_without_a_rule_runs_do_harm(variant: Variant) -> None:
    missing = set(variant.harm)
    logging.getLogger("rayflow.workflow").disabled = True
    try:
        with variant.active() as parts:
            for seed in range(variant.first_seed, variant.first_seed + SEEDS_PER_VARIANT):
                missing.difference_update(run(seed, parts).judge.violations)
                if not missing:
                    break
    finally:
        logging.getLogger("rayflow.workflow").disabled = False
    assert not missing, f"{SEEDS_PER_VARIANT} runs"


def test_every_property_is_violated_by_some_variant() -> None:
    harms = {harm for variant in VARIANTS for harm in variant.harm}
    assert harms == set(PROPERTIES)


def test_the_table_names_what_was_found_and_where(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["3", "--variant", "as it is"]) == 0
    assert "NO VIOLATION" in capsys.readouterr().out
    assert main(["3", "--variant", "effects leave"]) == 0
    assert "an attempt starts that is not on record (first in seed 0)" in capsys.readouterr().out
    assert main(["--replay", "--first", "2"]) == 0
    assert "the disturbance ends" in capsys.readouterr().out
