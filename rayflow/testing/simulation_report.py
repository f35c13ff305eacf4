"""The table of the simulator: in how many runs each variant violates which property."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections import Counter
from collections.abc import Sequence

from rayflow.testing.simulation_variants import THE_SYSTEM, VARIANTS, Variant
from rayflow.testing.simulator import run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and print; 0 where the system violates nothing and each variant does the harm that it must do."""
    parser = argparse.ArgumentParser(prog="python -m rayflow.testing.simulator", description=__doc__)
    parser.add_argument("seeds", nargs="?", type=int, default=1000, help="runs of the system and of each variant")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="the first seed")
    parser.add_argument("--variant", default="", metavar="TITLE", help="only variants with this in their title")
    parser.add_argument("--replay", action="store_true", help="print what happened in the run of the first seed")
    options = parser.parse_args(arguments)
    logging.getLogger("rayflow.workflow").setLevel(logging.CRITICAL)
    chosen = [variant for variant in (THE_SYSTEM, *VARIANTS) if options.variant in variant.title]
    if options.replay:
        for variant in chosen[:1]:
            with variant.active() as parts:
                run(options.first, parts, print)
        return 0
    return max((_tabulate(variant, range(options.first, options.first + options.seeds)) for variant in chosen), default=2)


def _tabulate(variant: Variant, seeds: range) -> int:
    runs: Counter[str] = Counter()
    firsts: dict[str, int] = {}
    began_s = time.process_time()
    with variant.active() as parts:
        for seed in seeds:
            for violated in run(seed, parts).judge.violations:
                runs[violated] += 1
                firsts.setdefault(violated, seed)
    per_second = len(seeds) / (time.process_time() - began_s)
    missing = [harm for harm in variant.harm if not runs[harm]]
    unexpected = bool(runs) and not variant.harm
    print(
        f"{variant.invariant:4}{variant.title}: {len(seeds)} runs, {per_second:.0f} per second of CPU"
        + (", NO VIOLATION" if not runs else "")
    )
    for violated, count in runs.most_common():
        print(f"  {count:6}  {violated} (first in seed {firsts[violated]})")
    for harm in missing:
        print(f"  MISSING {harm}: more runs are needed to see it")
    sys.stdout.flush()
    return 1 if missing or unexpected else 0
