"""Logs that an error has named stay, a few of them, when the Ray is gone whose they are; the others go with it."""

from __future__ import annotations

import os
from pathlib import Path

from rayflow.runtime import named_logs
from rayflow.runtime.named_logs import name_logs, remove


def test_named_logs_stay_without_the_rest_and_older_ones_make_room(tmp_path: Path) -> None:
    for number in range(named_logs._MOST_KEPT + 2):
        folder = _ray(tmp_path, f"{number}")
        logs = name_logs(str(folder))
        assert logs == str(folder / "session_1" / "logs")
        os.utime(folder / named_logs._MARK, (number, number))
        (folder / "lock").unlink()
        remove(str(folder))
        assert Path(logs, "old", "worker.out").read_text() == "said"
        assert {path.name for path in folder.rglob("*")} == {named_logs._MARK, "session_1", "logs", "old", "worker.out"}
    assert sorted(os.listdir(tmp_path)) == ["2", "3", "4", "5", "6"]


def test_logs_that_nobody_was_told_of_go(tmp_path: Path) -> None:
    folder = _ray(tmp_path, "a")
    remove(str(folder))
    assert os.listdir(tmp_path) == []


def test_a_ray_that_runs_keeps_its_logs_however_many_were_named_since(tmp_path: Path) -> None:
    running = _ray(tmp_path, "running")
    name_logs(str(running))
    os.utime(running / named_logs._MARK, (0, 0))
    for number in range(named_logs._MOST_KEPT + 1):
        folder = _ray(tmp_path, f"{number}")
        name_logs(str(folder))
        (folder / "lock").unlink()
        remove(str(folder))
    assert (running / "session_1" / "sockets" / "raylet").exists()


def test_where_there_are_no_logs_none_are_named(tmp_path: Path) -> None:
    assert name_logs(str(tmp_path / "never-made")) == name_logs(str(tmp_path)) == ""


def _ray(base: Path, name: str) -> Path:
    """A folder as a Ray leaves it."""
    folder = base / name
    for path in ("lock", "session_1/sockets/raylet", "session_1/logs/old/worker.out", "ports.json"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("said")
    (folder / "session_latest").symlink_to(folder / "session_1")
    return folder
