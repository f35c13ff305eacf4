"""A Ray of a program's own: what was interrupted goes on by itself, and its files are where nobody else has a hand in."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from rayflow.checkpoint.private import private_name
from rayflow.checkpoint.scratch import FOLDER
from rayflow.errors import RayUnavailable
from rayflow.runtime.cluster import RayOptions, start_or_join
from tests.conftest import REPOSITORY
from tests.runtime import flows
from tests.runtime.conftest import eventually

_NOBODY = 65534

_STARTS = """
import sys, time
import rayflow
from tests.runtime import flows

with rayflow.connect(sys.argv[1], num_cpus=1) as client:
    client.start(flows.sleeping_then_marking, 0.5, sys.argv[2], id="one")
    print("started", flush=True)
    time.sleep(60)
"""

_ONLY_CONNECTS = """
import sys
import rayflow

with rayflow.connect(sys.argv[1], num_cpus=1) as client:
    print("connected", flush=True)
    sys.stdin.read()  # until it is known to have gone on
    client.get("one").result()
"""


@pytest.mark.ray
@pytest.mark.crash
@pytest.mark.slow
def test_connecting_alone_has_what_was_interrupted_go_on_and_shows_it_and_no_file_of_either_ray_is_left(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as temporary:  # as short as Ray wants it
        with _program(_STARTS, temporary, str(tmp_path / "store"), str(tmp_path)) as first:
            assert first.stdout is not None and first.stdout.readline() == "started\n"
            first.kill()
        assert len(_files_of_rays(temporary)) == 1, "what is left of a killed program's is for the next one"
        with _program(_ONLY_CONNECTS, temporary, str(tmp_path / "store")) as second:
            assert second.stdout is not None and second.stdout.readline() == "connected\n"
            eventually(lambda: len(flows.marks(tmp_path, "woken")) == 1, "the timer fires and the step after it runs")
            _, err = second.communicate(timeout=30)
        assert err == "(one mark#1) marking woken\n"
        assert _files_of_rays(temporary) == []


def test_a_folder_of_another_users_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can make another user's folder")
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as shared:  # as short as Ray wants it
        monkeypatch.setattr(tempfile, "tempdir", shared)
        folder = Path(shared, private_name())
        folder.mkdir(mode=0o700)
        os.chown(folder, _NOBODY, _NOBODY)
        with pytest.raises(RayUnavailable, match=f"{folder} .*belongs to user nobody: remove it.*at most [0-9]+ characters"):
            start_or_join(RayOptions(address="local"), "store")
        assert os.listdir(folder) == []


def _files_of_rays(temporary: str) -> list[str]:
    return os.listdir(Path(temporary, private_name(), FOLDER))


def _program(source: str, temporary: str, *arguments: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "TMPDIR": temporary}
    environment.pop("RAY_ADDRESS", None)
    return subprocess.Popen(
        [sys.executable, "-c", source, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
