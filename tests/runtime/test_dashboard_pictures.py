"""The script that makes the pictures of docs/dashboard.md takes one that shows a store's actors by their names."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_a_picture_is_taken_of_the_page_that_names_host_and_dispatcher(tmp_path: Path) -> None:
    if not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))):
        pytest.skip("no Chromium: apt-get install chromium")
    script = [sys.executable, "scripts/dashboard_screenshots.py", "--only", "actors", "--seconds", "15"]
    environment = {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [*script, "--output", str(tmp_path)], cwd=REPOSITORY, env={**os.environ, **environment}, capture_output=True, text=True,
        timeout=150,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    said = re.search(r"shows rayflow-shards-(\w{16}), rayflow-dispatcher-(\w{16}), rayflow host of file://", done.stdout)
    assert said is not None and said[1] == said[2], done.stdout
    (picture,) = tmp_path.iterdir()
    png = picture.read_bytes()
    assert png.startswith(b"\x89PNG\r\n\x1a\n") and len(png) > 20_000, "more than an empty page"
    assert struct.unpack(">II", png[16:24]) == (1360, 560)


def test_the_page_shows_pictures_that_are_there_and_small() -> None:
    folder = REPOSITORY / "docs"
    shown = re.findall(r"!\[[^\]]+\]\((\S+\.png)\)", (folder / "dashboard.md").read_text())
    sizes = {name: (folder / name).stat().st_size for name in shown}
    assert 0 < len(sizes) <= 5 and max(sizes.values()) < 200_000
    assert {path.name for path in (folder / "images").glob("dashboard-*.png")} == {Path(name).name for name in shown}
