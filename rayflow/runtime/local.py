"""A Ray of this process's own, on this machine: where its files are, and that two of them do not work on one store.

Safety does not depend on any of it (the log is fenced); it spares the user what two owners that fence each other would cost, and
leaves nothing behind: the kernel gives both locks back when the process ends, however it ends, and the next start sweeps.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path

import ray

from rayflow.checkpoint.scratch import Scratch

OBJECT_STORE_BYTES = 200 * 2**20
"""Results travel as references into the store, so Ray's object store holds little."""

_LONGEST_BASE = 24
"""Ray's sockets have paths of some 80 characters below this folder, and the system allows 107."""


class LocalRay:
    """Start Ray here, once no other process of this user works on the same store with a Ray of its own."""

    def __init__(self, store_id: str, num_cpus: int | None, dashboard: bool, on_wait: Callable[[str], None]) -> None:
        base = _base()
        self._lock = _lock(base / f"store-{store_id}.lock", on_wait)
        self._scratch = Scratch(str(base), secrets.token_hex(3))
        for name in ("ray._private.authentication", "ray"):
            logging.getLogger(name).setLevel(logging.ERROR)
        ray.init(
            address="local",
            namespace="rayflow",
            num_cpus=num_cpus,
            include_dashboard=dashboard,
            object_store_memory=OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=self._scratch.folder,
        )

    def shutdown(self) -> None:
        """End this Ray and let the next process have the store."""
        ray.shutdown()
        os.close(self._lock)


def _base() -> Path:
    base = Path(tempfile.gettempdir(), f"rayflow-{os.getuid()}")
    if len(str(base)) > _LONGEST_BASE:
        base = Path("/tmp", f"rayflow-{os.getuid()}")
    base.mkdir(mode=0o700, exist_ok=True)
    return base


def _lock(path: Path, on_wait: Callable[[str], None]) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(descriptor, 20, 0).decode(errors="replace").strip()
        on_wait(f"process {owner} works on the same store with a Ray of its own; waiting for it to end")
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    return descriptor
