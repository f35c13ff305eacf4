"""What steps print and workflows log is shown by the program that waits for them, and by no other."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import ray

import rayflow
from rayflow.runtime.output import Line
from tests.conftest import REPOSITORY
from tests.runtime import talking

pytestmark = pytest.mark.ray

_ATTEMPT = re.compile(r" attempt \d+\)")
"""A step whose process was lost is tried again; that is nobody's business here."""

_PROGRAM = [sys.executable, "-m", "tests.runtime.talking"]


@pytest.mark.crash
def test_a_program_with_a_ray_of_its_own_shows_what_is_said_one_line_for_a_worker_that_died_and_keeps_the_logs_that_it_names(
    tmp_path: Path,
) -> None:
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as temporary:  # as short as Ray wants it
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "TMPDIR": temporary}
        environment.pop("RAY_ADDRESS", None)
        command = [*_PROGRAM, "dying", str(tmp_path / "store"), str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=100)
        assert done.stdout.startswith("hello\nsurvived\nexecution twice failed: ")
        logs = re.search(r"WorkerCrashedError: .* \(logs: (.*)\)\n$", done.stdout)
        assert done.stdout.count("\n") == 3 and logs is not None, done.stdout
        lines = done.stderr.splitlines()
        assert talking.expected("talk", "hello") <= set(lines)
        assert lines.count("(once dies#1 attempt 2) attempt 2") == 1
        died = [line for line in lines if "ended with its process" in line]
        assert [line.partition(" attempt ")[0] for line in died] == ["(once dies#1)", "(twice dies#1)", "(twice dies#1)"]
        assert len(lines) <= 9 + 1 + 3 + 3, "nothing else, but for what was printed just before a death"
        written = [path.read_text(errors="replace") for path in Path(logs[1]).rglob("worker-*.out")]
        assert sum("attempt 1\n" in text for text in written) == 1


def test_each_of_two_programs_on_a_ray_shows_what_it_waits_for(client: rayflow.Client, tmp_path: Path) -> None:
    shown: list[Line] = []
    with rayflow.connect(client.store.url, output=shown.append) as first:
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
        address = ray.get_runtime_context().gcs_address
        command = [*_PROGRAM, "joining", client.store.url, address]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as second:
            assert first.start(talking.talking, "mine", id="first").result(60) == "mine"
            out, err = second.communicate(timeout=60)
    assert out == "joined\n", err
    mine, others = talking.expected("first", "mine"), talking.expected("second", "joined")
    said = {_ATTEMPT.sub(")", line) for line in err.splitlines()}
    assert others <= said and not said & mine, err
    assert {_ATTEMPT.sub(")", str(line)) for line in shown} == mine
