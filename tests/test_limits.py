from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

HANGING = """
import subprocess, threading, pytest

@pytest.fixture
def never_cleaned_up():
    yield
    threading.Event().wait()

def test_that_waits_for_a_process():
    with subprocess.Popen(["sleep", "10"]) as process:  # which is waited for on the way out, too
        process.wait()

def test_that_fails_and_hangs_in_cleaning_up(never_cleaned_up):
    assert False

def test_that_works():
    pass
"""


@pytest.mark.parametrize("workers", [0, 1])
def test_a_test_that_hangs_fails_by_name_and_the_others_go_on(tmp_path: Path, workers: int) -> None:
    (tmp_path / "test_hanging.py").write_text(HANGING)
    options = ["-c", REPOSITORY / "pyproject.toml", "-p", "tests.conftest", "-p", "no:cacheprovider", "-o", "timeout=1", "-rA"]
    command = [sys.executable, "-m", "pytest", *options, "-n", str(workers), tmp_path / "test_hanging.py"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stderr
    summary = done.stdout.partition("short test summary info")[2]
    assert sorted((line.split()[0], line.split()[1].rpartition("::")[2]) for line in summary.splitlines() if "::" in line) == [
        ("ERROR", "test_that_fails_and_hangs_in_cleaning_up"),
        ("FAILED", "test_that_fails_and_hangs_in_cleaning_up"),
        ("FAILED", "test_that_waits_for_a_process"),
        ("PASSED", "test_that_works"),
    ]
