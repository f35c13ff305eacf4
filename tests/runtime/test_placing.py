"""Shards go to nodes that are there for them, and from those that go; messages find them, each once and in order.

Invariants: I2, I21, I22.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

pytestmark = [pytest.mark.ray, pytest.mark.crash, pytest.mark.slow]


def test_shards_spread_over_labelled_nodes_and_move_when_nodes_come_and_go(tmp_path: Path) -> None:
    program = [sys.executable, "-m", "tests.runtime.spread_program", str(tmp_path / "store")]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(program, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert [line.removeprefix("now: ") for line in done.stdout.splitlines() if line.startswith("now: ")] == [
        "at home [4]",
        "one node is there for shards [4]",
        "two are [2, 2]",
        "a host and the dispatcher were killed [2, 2]",
        "one is being drained [4]",
        "none is there for shards any more [4]",
        "exact True",
    ]
