"""A Ray of this process's own, on this machine: where its files are, and that two of them do not work on one store.

Safety does not depend on any of it (the log is fenced); it spares the user what two owners that fence each other would cost, and
leaves nothing behind: when the process ends, however it ends, the kernel gives both locks back, a reaper ends what is left of its
Ray, and the next start sweeps the files. Only logs that an error has named stay to be read.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import select
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import cast

import ray

from rayflow.checkpoint.private import private_folder, private_name
from rayflow.checkpoint.scratch import Scratch
from rayflow.errors import RayUnavailable
from rayflow.runtime.named_logs import name_logs, remove
from rayflow.runtime.quiet import quiet_ray
from rayflow.runtime.reaper import Reaper

OBJECT_STORE_BYTES = 200 * 2**20
"""Results travel as references into the store, so Ray's object store holds little."""

_LONGEST_BASE = 24
"""Ray's sockets have paths of some 80 characters below this folder, and the system allows 107."""


class LocalRay:
    """Start Ray here, once no other process of this user works on the same store with a Ray of its own."""

    def __init__(self, store_id: str, num_cpus: int | None, dashboard: bool, on_wait: Callable[[str], None]) -> None:
        base = _base()
        for name in ("ray._private.authentication", "ray"):
            logging.getLogger(name).setLevel(logging.ERROR)
        with contextlib.ExitStack() as ending:
            ending.callback(os.close, _lock(base / f"store-{store_id}.lock", on_wait))
            self._scratch = Scratch(str(base), secrets.token_hex(3), remove)
            if sys.platform == "linux":  # elsewhere Ray has a reaper of its own, and there is no /proc to find processes in
                ending.callback(Reaper(self._scratch.folder, os.path.dirname(ray.__file__)).close)
            ending.enter_context(quiet_ray())
            ending.callback(cast("Callable[[], None]", ray.shutdown))
            try:
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
            except Exception as error:
                logs = name_logs(self._scratch.folder)
                if not logs:
                    raise
                reason = str(error).strip().partition("\n")[0]
                raise RayUnavailable(
                    f"Ray did not start on this machine ({type(error).__name__}: {reason}; logs: {logs})"
                ) from error
            self._end = ending.pop_all()
        self._processes = _own_ray_processes()
        self._ending = False

    def watch(self, lost: Callable[[RayUnavailable], None]) -> None:
        """Call ``lost`` as soon as a process that this Ray cannot do without has ended: calls to it would hang."""
        if self._processes:
            threading.Thread(target=self._watch, args=(lost,), name="rayflow-ray-watch", daemon=True).start()

    def _watch(self, lost: Callable[[RayUnavailable], None]) -> None:
        poll = select.poll()
        for descriptor in self._processes:
            poll.register(descriptor, select.POLLIN)
        poll.poll()
        if not self._ending:
            logs = name_logs(self._scratch.folder)
            lost(
                RayUnavailable(f"Ray ended on this machine (killed, or out of memory; logs: {logs}); what is finished is on record")
            )

    def shutdown(self) -> None:
        """End this Ray and let the next process have the store."""
        self._ending = True
        self._end.close()


def _base() -> Path:
    longest = _LONGEST_BASE - len(f"/{private_name()}")
    parent = tempfile.gettempdir()
    instead = f"a folder of yours whose path has at most {longest} characters"
    return private_folder(parent=parent if len(parent) <= longest else "/tmp", instead=instead)


def _own_ray_processes() -> list[int]:
    """Descriptors (pidfd) of the raylet and the GCS server that this process has started; readable once they have ended.

    Empty where the system has no such descriptors (macOS): there a Ray that died is noticed by the first call that fails.
    """
    found: list[int] = []
    if not hasattr(os, "pidfd_open"):
        return found
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # ended in this moment
            pid, _, rest = status.read_text().partition(" (")
            name, _, fields = rest.rpartition(") ")
            if name in ("raylet", "gcs_server") and int(fields.split()[1]) == os.getpid():
                found.append(os.pidfd_open(int(pid)))
    return found


def _lock(path: Path, on_wait: Callable[[str], None]) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(descriptor, 20, 0).decode(errors="replace").strip()
        on_wait(f"process {owner} works on the same store with a Ray of its own; waiting for it to end")
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    return descriptor
