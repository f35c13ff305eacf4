"""What is left of a Ray is ended by its reaper, and nothing else is (I23)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rayflow.runtime.reaper import Reaper
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")

_OWNER = """\
import sys, time
from rayflow.runtime.reaper import Reaper
reaper = Reaper(*sys.argv[1:])
print("started")
time.sleep(60)
"""


@pytest.fixture
def sleepers() -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """Processes by what they are; none outlives the test."""
    made: dict[str, subprocess.Popen[bytes]] = {}
    yield made
    for process in made.values():
        with process:
            process.kill()


def test_closing_a_reaper_ends_the_processes_of_its_ray_and_no_others(
    tmp_path: Path, sleepers: dict[str, subprocess.Popen[bytes]]
) -> None:
    _start_sleepers(tmp_path, sleepers)
    Reaper(str(tmp_path / "mine"), str(tmp_path / "ray")).close()
    assert _ended(sleepers) == {"server", "agent"}


def test_a_reaper_does_its_work_when_its_process_is_killed(tmp_path: Path, sleepers: dict[str, subprocess.Popen[bytes]]) -> None:
    _start_sleepers(tmp_path, sleepers)
    command = [sys.executable, "-u", "-c", _OWNER, str(tmp_path / "mine"), str(tmp_path / "ray")]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, process_group=0, env=environment) as owner:
        assert owner.stdout is not None
        owner.stdout.readline()
        os.killpg(owner.pid, signal.SIGKILL)
    for name in ("server", "agent"):
        sleepers[name].wait(20)
    assert _ended(sleepers) == {"server", "agent"}


def _start_sleepers(tmp_path: Path, sleepers: dict[str, subprocess.Popen[bytes]]) -> None:
    """Stand-ins for a server of Ray's that names its folder, and an agent with a title that only has a log file open there; and
    for those that must be spared: whoever reads the logs, another Ray's processes, a step's child with its output in a log."""
    code = tmp_path / "ray"
    for name in ("mine", "mine-too"):
        (tmp_path / name).mkdir()
    for kind, arguments, log in (
        ("server", [f"{code}/server", f"--log_dir={tmp_path}/mine/logs"], None),
        ("agent", ["ray::Agent"], tmp_path / "mine" / "agent.log"),
        ("reader", ["tail", f"{tmp_path}/mine/agent.log"], None),
        ("other server", [f"{code}/server", f"--log_dir={tmp_path}/mine-too/logs"], None),
        ("other agent", ["ray::Agent"], tmp_path / "mine-too" / "agent.log"),
        ("child", ["ffmpeg"], tmp_path / "mine" / "worker.log"),
    ):
        with open(log or os.devnull, "wb") as output:
            # A shell that waits for its input, under another name.
            command = [arguments[0], "-c", "read word", *arguments]
            sleepers[kind] = subprocess.Popen(command, executable="/bin/sh", stdin=subprocess.PIPE, stdout=output)


def _ended(sleepers: dict[str, subprocess.Popen[bytes]]) -> set[str]:
    """Which were killed."""
    return {name for name, process in sleepers.items() if process.poll() == -signal.SIGKILL}
