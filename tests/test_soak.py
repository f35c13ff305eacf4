"""A soak finds what is planted: each fault breaks one rule, in all processes of the soak's Rays."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY

pytestmark = [pytest.mark.ray, pytest.mark.crash, pytest.mark.slow, pytest.mark.long]


def soak(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "scripts" / "soak.py"), "--seed", "1", *arguments]
    return subprocess.run(command, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, timeout=400)


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        ("lost", "an acknowledged effect is lost"),
        ("doubled", "an effect counts twice"),
        ("reordered", "a history is not linearizable"),
        ("hanging", "an execution does not end"),
        ("memory", "memory grows without bound"),
        ("store", "the store grows without bound"),
    ],
)
def test_a_soak_finds_what_is_planted(plant: str, words: str) -> None:
    done = soak("--minutes", "0.5", "--plant", plant)
    assert done.returncode == 1 and words in done.stdout, done.stdout + done.stderr
