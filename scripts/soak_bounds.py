"""Whether a soak stays within bounds: memory and open files of its servers, bytes and objects of its store."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from soak_trouble import below, open_files, resident_bytes

from rayflow.testing.soak_books import Request
from rayflow.testing.soak_checker import Violation

BASE_BYTES = 256 * 2**20
BYTES_PER_REQUEST = 10_000
FILES = 300
LOG_TIMES = 6
"""Log per shard, against the limit at which a snapshot is due: some is written meanwhile."""

MEMORY = "memory grows without bound"
DESCRIPTORS = "open files grow without bound"
STORE = "the store grows without bound"


@dataclass(slots=True)
class Bounds:
    """The most that was seen. ``log_bytes``: of one shard."""

    host_bytes: int = 0
    dispatcher_bytes: int = 0
    files: int = 0
    log_bytes: int = 0
    snapshots: int = 0
    snapshot_bytes: int = 0
    final: Counter[str] = field(default_factory=Counter[str])

    def measure(self, roots: list[int], store: Path) -> None:
        """Look now."""
        for process in below(roots):
            if process.role == "host":
                self.host_bytes = max(self.host_bytes, resident_bytes(process.pid))
            elif process.role == "dispatcher":
                self.dispatcher_bytes = max(self.dispatcher_bytes, resident_bytes(process.pid))
            if process.role in ("host", "dispatcher"):
                self.files = max(self.files, open_files(process.pid))
        for shard in store.glob("shards/*"):
            self.log_bytes = max(self.log_bytes, bytes_in(shard / "log"))
            snapshots = [size for _, size in _files(shard / "snapshots")]
            self.snapshots = max(self.snapshots, len(snapshots))
            self.snapshot_bytes = max(self.snapshot_bytes, *snapshots, 0)

    def check(self, store: Path, requests: Sequence[Request], limit: int) -> list[Violation]:
        """What went beyond."""
        self.final["history files"] = len(_files(store / "history"))
        self.final["bytes"] = bytes_in(store)
        self.final["blobs"] = len(_files(store / "blobs"))
        found: list[Violation] = []
        most = BASE_BYTES + BYTES_PER_REQUEST * len(requests)
        for role, count in (("host", self.host_bytes), ("dispatcher", self.dispatcher_bytes)):
            if count > most:
                found.append(Violation(MEMORY, f"the {role} took {count:,} bytes, after {len(requests):,} requests"))
        if self.files > FILES:
            found.append(Violation(DESCRIPTORS, f"{self.files} in a host or dispatcher"))
        log_most = LOG_TIMES * max(limit, 2 * self.snapshot_bytes)
        if self.log_bytes > log_most:
            found.append(Violation(STORE, f"the log of a shard had {self.log_bytes:,} bytes; snapshots {self.snapshot_bytes:,}"))
        if self.snapshots > 4:
            found.append(Violation(STORE, f"{self.snapshots} snapshots of one shard"))
        starts = sum(one.asks == "start" for one in requests)
        if self.final["history files"] > starts + 10:
            found.append(Violation(STORE, f"{self.final['history files']} history files of {starts} executions"))
        return found

    def lines(self) -> list[str]:
        """For people."""
        return [
            f"{self.host_bytes:>13,}  bytes of memory of the host, {self.dispatcher_bytes:,} of the dispatcher, at most",
            f"{self.files:>13,}  open files of one of them, at most",
            f"{self.log_bytes:>13,}  bytes of log of a shard, {self.snapshots} snapshots of {self.snapshot_bytes:,} bytes, at most",
            f"{self.final['bytes']:>13,}  bytes of the store in the end, {self.final['blobs']:,} blobs, "
            f"{self.final['history files']:,} history files",
        ]


def _files(folder: Path) -> list[tuple[str, int]]:
    found: list[tuple[str, int]] = []
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                found.append((name, os.stat(os.path.join(path, name)).st_size))
            except OSError:  # truncated meanwhile
                continue
    return found


def bytes_in(folder: Path) -> int:
    """Of all files below."""
    return sum(size for _, size in _files(folder))
