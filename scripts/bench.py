"""Benchmarks: one line of JSON per result, with the machine that it was measured on.

    PYTHONPATH=. python scripts/bench.py NAME [options]      PYTHONPATH is not needed where rayflow is installed

Each benchmark starts a Ray of its own and a store on the disk of $TMPDIR, and removes both. What is to be compared is measured
in the same run, as a ratio: absolute numbers depend on the machine and on what else it does, see ``load_before``.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import bench_runtime as runtime
import msgspec
from bench_machine import Machine, cpu_model, rounded


def measured(name: str, benchmark: Callable[[], Any]) -> None:
    """Run a benchmark and print its line."""
    load = os.getloadavg()[0]
    numbers = asdict(benchmark())
    machine = Machine(cpu_model(), os.cpu_count() or 1, load, os.getloadavg()[0])
    line = {"name": name, "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M}", "machine": asdict(machine)}
    line |= {key: rounded(value) if isinstance(value, float) else value for key, value in numbers.items()}
    print(msgspec.json.encode(line).decode(), flush=True)


def main() -> None:
    """Parse the command line and run what it names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("name", choices=["limit", "w1", "w2", "w3", "w5", "w6", "all"])
    parser.add_argument("--steps", type=int, default=3_000, help="of w1 and w5")
    parser.add_argument("--late-steps", type=int, default=10_000, help="of the long workflow of w1")
    parser.add_argument("--items", type=int, default=2_000, help="of w2")
    parser.add_argument("--workflows", type=int, default=1_000, help="of w3")
    options = parser.parse_args()
    benchmarks: dict[str, Callable[[], Any]] = {
        "limit": runtime.limit,
        "w1": lambda: runtime.w1(options.steps, options.late_steps),
        "w2": lambda: runtime.w2(options.items),
        "w3": lambda: runtime.w3(options.workflows),
        "w5": lambda: runtime.w5(options.steps),
        "w6": runtime.w6,
    }
    for name, benchmark in benchmarks.items():
        if options.name in (name, "all"):
            measured(name, benchmark)


if __name__ == "__main__":
    main()
