"""Benchmarks run, at a size that says nothing of speed: one that broke unnoticed would be missed when it is needed.

Of those that share a form there is one for all: each takes a Ray of its own, and the types of all are checked.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines.video import sample
from tests.conftest import REPOSITORY

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long]


def bench(folder: Path, name: str, *arguments: str) -> list[dict[str, Any]]:
    """The lines that benchmarks print; what they leave in their folder for temporary files is Ray's own."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "TMPDIR": str(folder)}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, str(REPOSITORY / "scripts" / "bench.py"), name, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not list(folder.glob("rayflow-bench-*"))
    # between them Ray may tell of processes that were killed on purpose
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def test_the_encode_is_run_three_ways(tmp_path: Path) -> None:
    source = sample.make(tmp_path / "in.mkv", 12.0)
    (line,) = bench(tmp_path, "encode", "--input", str(source), "--preset", "ultrafast")
    assert (line["name"], line["source"], line["chunks"], line["rounds"]) == ("encode", "in.mkv", 2, 1)
    assert all(line[f"{way}_{what}_s"] > 0 for way in ("rayflow", "plain_ray", "one_ffmpeg") for what in ("wall", "cpu"))


def test_the_runtime_is_measured(tmp_path: Path) -> None:
    (line,) = bench(tmp_path, "w1", "--steps", "100", "--late-steps", "300")
    assert line["name"] == "w1"
    assert line["steps_s"] > 0
