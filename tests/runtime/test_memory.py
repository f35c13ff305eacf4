"""A node whose memory runs out: the step that takes it goes, and says so; the supervisors and the other steps stay.

Invariants: I13, I14.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

# It needs the machine for itself: what others take meanwhile would be the hungry step's.
pytestmark = [pytest.mark.ray, pytest.mark.crash, pytest.mark.long]


@pytest.mark.skipif(sys.platform != "linux", reason="Ray watches the memory on Linux only")
def test_a_hungry_step_fails_for_memory_after_its_attempts_and_takes_neither_supervisors_nor_other_steps_with_it(
    tmp_path: Path,
) -> None:
    program = [sys.executable, "-m", "tests.runtime.memory_program", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(program, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    if done.stdout == "too little memory\n":
        pytest.skip("too little memory is free on this machine")
    failed, *rest = done.stdout.splitlines()
    assert re.fullmatch(
        r"failed: execution eating failed: StepLost: hungry#1 failed after 2 attempts: OutOfMemoryError: Ray ended its process, "
        r"which had [\d.]+ GB, because node [\d.]+ was running out of memory \([\d.]+ of [\d.]+ GB in use\): have it use less, "
        r"or say how much it needs \(memory=, in bytes\), so that Ray runs fewer at a time",
        failed,
    ), failed
    assert rest == [
        "supervisors are the same: True",
        "other: ['2', 'a'] after 1 attempt",
        "attempts: 2 {'hungry#1': 2} ['crash', 'crash']",
    ]
