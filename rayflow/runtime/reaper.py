"""A small process that outlives the one that started a Ray, and ends what is left of that Ray then.

The kernel ends Ray's servers with their parent, and the workers end with the servers. Ray's two agents do not: they notice that
their raylet died, and wait a minute for a GCS server that died as well to take note of it; no setting of Ray's shortens that.

``python -I -S reaper.py FOLDER PACKAGE PARENT``: wait until stdin is closed, which the kernel sees to however the parent ends;
then kill every process of the Ray whose files are in FOLDER and whose code is in PACKAGE. Run by path, with the standard library
alone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

_LONGEST_S = 10.0
_PAUSE_S = 0.05


class Reaper:
    """Ends the Ray with its files in ``folder`` when this process has ended or ``close`` is called. ``package``: Ray's code."""

    def __init__(self, folder: str, package: str) -> None:
        # A session of its own, so that no signal of a terminal reaches it.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, folder, package, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def close(self) -> None:
        """Kill what is left; returns once it is gone."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def _main(folder: str, package: str, parent: int) -> None:
    while os.read(0, 1024):
        pass
    deadline_s = time.monotonic() + _LONGEST_S
    # Again and again: a raylet that was about to end may have started another process.
    while time.monotonic() < deadline_s and _kill_all(f"{folder}/".encode(), f"{package}/".encode(), {parent, os.getpid()}):
        time.sleep(_PAUSE_S)


def _kill_all(folder: bytes, package: bytes, spared: set[int]) -> int:
    """Kill what runs; returns how many there were."""
    count = 0
    for pid in _processes():
        with contextlib.suppress(OSError):  # ended in this moment
            descriptor = os.pidfd_open(pid)  # first of all: from here on the number cannot become another process's
            try:
                if pid not in spared and _belongs(Path("/proc", str(pid)), folder, package):
                    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                    count += 1
            finally:
                os.close(descriptor)
    return count


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _belongs(process: Path, folder: bytes, package: bytes) -> bool:
    """Whether a process is one of that Ray: by its command line until it gives itself a title, by its open log files after that."""
    command = (process / "cmdline").read_bytes()
    if command.startswith(b"ray::"):
        return any(os.fsencode(path).startswith(folder) for path in _open_files(process))
    return package in command and folder in command


def _open_files(process: Path) -> Iterator[str]:
    for name in os.listdir(process / "fd"):
        with contextlib.suppress(OSError):  # closed in this moment
            yield os.readlink(process / "fd" / name)


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
