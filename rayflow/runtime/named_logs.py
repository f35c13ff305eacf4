"""The logs of a Ray of a program's own go with it, unless an error has named them to somebody: then they stay to be read."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

import ray

from rayflow.checkpoint.private import private_name
from rayflow.checkpoint.scratch import FOLDER

_MARK = "logs-were-named"
_MOST_KEPT = 5


def name_logs(folder: str) -> str:
    """Where the logs are of the Ray with its files in ``folder``; they are kept from now on. Empty if there are none."""
    try:
        logs = Path(folder, "session_latest", "logs").resolve(strict=True)
        Path(folder, _MARK).touch()
    except OSError:
        return ""
    return str(logs)


def name_own_logs() -> str:
    """The same of the Ray that this process belongs to; empty if that is not one of a program's own."""
    folder = Path(ray.get_runtime_context().get_temp_dir())
    own = folder.parent.name == FOLDER and folder.parent.parent.name == private_name()
    return name_logs(str(folder)) if own else ""


def remove(folder: str) -> None:
    """Remove the folder of a Ray that has ended; its logs stay if they were named, and older ones go that are too many by that."""
    if not Path(folder, _MARK).exists():
        shutil.rmtree(folder, ignore_errors=True)
        return
    for path in [*Path(folder).glob("session_*/*"), *Path(folder).iterdir()]:
        if path.is_dir() and not path.is_symlink():
            if path.name != "logs" and not (path / "logs").is_dir():
                shutil.rmtree(path, ignore_errors=True)
        elif path.name != _MARK:
            with contextlib.suppress(OSError):
                path.unlink()
    kept = sorted(Path(folder).parent.glob(f"*/{_MARK}"), key=os.path.getmtime, reverse=True)
    for mark in kept[_MOST_KEPT:]:
        if not (mark.parent / "lock").exists():  # that Ray lives
            shutil.rmtree(mark.parent, ignore_errors=True)
