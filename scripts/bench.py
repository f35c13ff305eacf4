"""Benchmarks: one line of JSON per result, with the machine that it was measured on.

    PYTHONPATH=. python scripts/bench.py NAME [options]      PYTHONPATH is not needed where rayflow is installed

Each benchmark starts a Ray of its own and a store on the disk of $TMPDIR, and removes both. What is to be compared is measured
in the same run, as a ratio: absolute numbers depend on the machine and on what else it does, see ``load_before``. Workers find
the benchmarks' own modules because Ray gives them the folder of the driver's script.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, cast

import bench_cluster
import bench_entities
import bench_evaluation
import bench_evaluation_counter
import bench_memory
import bench_runtime
import bench_video
import msgspec
from bench_machine import Machine, cpu_model
from bench_report import write_section


def measured(name: str, benchmark: Callable[[], Any], page: Path | None) -> None:
    """Run a benchmark and print its line; write the evaluation's into ``page``."""
    date = f"{datetime.now(UTC):%Y-%m-%d %H:%M}"
    machine = Machine(cpu_model(), os.cpu_count() or 1, os.getloadavg()[0], 0.0)
    with redirect_stdout(sys.stderr):  # where Ray says what its workers do, too: a line of JSON stays a line of its own
        result = benchmark()
    machine = replace(machine, load_after=os.getloadavg()[0])
    line = {"name": name, "date": date, "machine": asdict(machine), **asdict(result)}
    print(msgspec.json.encode(_rounded(line)).decode(), flush=True)
    if page is not None and isinstance(result, bench_evaluation.Evaluation | bench_evaluation_counter.CounterEvaluation):
        write_section(page, result, machine, date)


def _rounded(value: Any) -> Any:
    """Four significant digits: more than any of these measurements repeats."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return [_rounded(one) for one in cast("list[Any]", value)]
    return value


def main() -> None:
    """Parse the command line and run what it names."""
    names = ["limit", "w1", "w2", "w3", "w4", "w5", "w6", "w7", "encode", "evaluation", "evaluation-counter", "nodes", "takeover"]
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("name", choices=[*names, "all"])
    parser.add_argument("--steps", type=int, default=3_000, help="of w1 and w5")
    parser.add_argument("--late-steps", type=int, default=10_000, help="of the long workflow of w1")
    parser.add_argument("--items", type=int, default=2_000, help="of w2")
    parser.add_argument("--workflows", type=int, default=1_000, help="of w3")
    parser.add_argument("--asleep", type=int, default=100_000, help="entities and workflows of w7")
    parser.add_argument("--input", help="video of encode; default: 40 s of 720p are made")
    parser.add_argument("--preset", default="medium", help="of x264, of encode")
    parser.add_argument("--rounds", type=int, default=1, help="of w4, encode, evaluation and takeover")
    parser.add_argument(
        "--lengths", type=int, nargs="+", metavar="SECONDS", help="of the films of evaluation (default: as published)"
    )
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the tables of evaluation into this Markdown page")
    options = parser.parse_args()
    benchmarks: list[Callable[[], Any]] = [
        bench_runtime.limit,
        partial(bench_runtime.w1, options.steps, options.late_steps),
        partial(bench_runtime.w2, options.items),
        partial(bench_runtime.w3, options.workflows),
        partial(bench_entities.w4, options.rounds),
        partial(bench_runtime.w5, options.steps),
        bench_runtime.w6,
        partial(bench_memory.w7, options.asleep),
        partial(bench_video.encode_three_ways, options.input, options.preset, options.rounds),
        partial(bench_evaluation.evaluate, options.rounds, options.lengths or tuple(bench_evaluation.PUBLISHED)),
        bench_evaluation_counter.evaluate,
        bench_cluster.nodes,
        partial(bench_cluster.takeover, options.rounds),
    ]
    for name, benchmark in zip(names, benchmarks, strict=True):
        everywhere = options.name == "all" and name not in ("nodes", "takeover")  # which take root
        if options.name == name or everywhere or name.startswith(f"{options.name}-"):
            measured(name, benchmark, options.write)


if __name__ == "__main__":
    main()
