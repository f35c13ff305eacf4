"""What was under way when the process of a shard died: ``rayflow.core.crashes`` in a file of this machine.

The turn under way stands in a page of shared memory that belongs to a file, so noting it is a copy of some bytes, and the kernel
keeps it when the process dies, however it dies. It does not outlive the machine, and need not: a crash of the machine is nobody's
doing in here. A process that is stopped and replaced still holds the lock of its file; its follower keeps no journal rather than
a wrong one.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import mmap
import os
import time
from pathlib import Path

from rayflow.checkpoint.private import private_folder

_PAGE = 4096
_LONGEST = _PAGE - 2
_MOST_NAMES = 1000
INTENSITY = 5
INTENSITY_WINDOW_S = 30.0
"""More crashes than INTENSITY in so many seconds, and the shard stays closed for as long: restarting would only go in circles."""

_log = logging.getLogger("rayflow.host")


class CrashJournal:
    """The notes of one shard of one store on this machine. ``folder``: where, default is the user's own in the system's."""

    def __init__(self, store_id: str, shard: int, folder: Path | None = None) -> None:
        self._counts: dict[str, int] = {}
        self._crashed_s: list[float] = []
        self._page: mmap.mmap | None = None
        self._descriptor = -1
        try:
            base = folder or private_folder() / "crashes"
            self._file = base / f"{store_id}-{shard:03d}"
            self._history = self._file.with_suffix(".json")
            base.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._open()
        except BlockingIOError:  # a predecessor lives
            pass
        except OSError as error:  # without a journal everything works but what it is for
            _log.warning("shard %d keeps no note of what crashes its process: %s", shard, error)

    def _open(self) -> None:
        descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise
        os.ftruncate(descriptor, _PAGE)
        self._descriptor = descriptor
        self._page = mmap.mmap(descriptor, _PAGE)
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):  # no history yet, or half of one
            history = json.loads(self._history.read_text())
            self._counts, self._crashed_s = dict(history["counts"]), list(history["crashed_s"])
        length = int.from_bytes(self._page[:2], "little")
        if length:
            died_in = self._page[2 : 2 + length].decode("utf-8", "replace")
            self._counts[died_in] = self._counts.pop(died_in, 0) + 1
            while len(self._counts) > _MOST_NAMES:
                del self._counts[next(iter(self._counts))]
            self._crashed_s = [*self._crashed_s[-INTENSITY:], time.time()]
            self._save()
            self.end()

    def begin(self, name: str) -> None:
        page = self._page
        if page is not None:
            data = _cut(name)
            page[2 : 2 + len(data)] = data
            page[:2] = len(data).to_bytes(2, "little")  # last: half a note is none

    def end(self) -> None:
        if self._page is not None:
            self._page[:2] = b"\0\0"

    def count(self, name: str) -> int:
        return self._counts.get(_cut(name).decode("utf-8", "replace"), 0) if self._counts else 0

    def forget(self, name: str) -> None:
        if self._counts and self._counts.pop(_cut(name).decode("utf-8", "replace"), None) is not None:
            with contextlib.suppress(OSError):
                self._save()

    def pause_s(self) -> float:
        """How long the shard has to stay closed: 0, or what is left of the window in which it crashed too often."""
        if len(self._crashed_s) <= INTENSITY - 1:
            return 0.0
        return max(0.0, self._crashed_s[-INTENSITY] + INTENSITY_WINDOW_S - time.time())

    def close(self) -> None:
        """Give the file back. What was under way has ended, for this process is alive."""
        if self._page is not None:
            self.end()
            self._page.close()
            self._page = None
            os.close(self._descriptor)

    def _save(self) -> None:
        temporary = self._history.with_suffix(".new")
        temporary.write_text(json.dumps({"counts": self._counts, "crashed_s": self._crashed_s}))
        temporary.replace(self._history)


def _cut(name: str) -> bytes:
    """As much of it as the page has room for."""
    return name.encode("utf-8", "replace")[:_LONGEST]
