"""A private folder for half-written files, on the same file system as the store, which is swept when its owner has
died.

Every open store that writes has its own folder ``<root>/.~tmp/<unique>/`` and holds an advisory lock (flock) on the
file ``lock`` in it. The kernel drops the lock when the process dies, however it dies, so whoever gets the lock knows
that the folder is abandoned and may remove it: no clock, no process id that another container or host could not
interpret.

Nothing depends on the sweep being right. Where locks do not reach across hosts, it may take a living writer's file
away; that writer's link then fails before anything has become visible, and it starts again in a new folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import shutil
import uuid
import weakref
from collections.abc import Callable

FOLDER = ".~tmp"
"""The folder under a store's root that holds all scratch folders. ``~`` is not in the alphabet of keys, so no key can
name it.
"""

_LOCK = "lock"


class Scratch:
    """One private folder for temporary files; gone with the process, or with this object. Raises OSError where it
    cannot be made. ``name`` must be unique; default: a long random one. ``remove`` is what is done to this folder in
    the end, and to those that others left.
    """

    def __init__(self, root: str, name: str | None = None, remove: Callable[[str], None] | None = None) -> None:
        base = os.path.join(root, FOLDER)
        remove = remove or _remove
        os.makedirs(base, exist_ok=True)
        _sweep(base, remove)
        self._folder = os.path.join(base, name or uuid.uuid4().hex)
        os.mkdir(self._folder)
        self._lock_fd = os.open(os.path.join(self._folder, _LOCK), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        # Without locks (some network file systems) the folder merely looks abandoned, which is harmless.
        with contextlib.suppress(OSError):
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._counter = itertools.count()
        weakref.finalize(self, _release, self._folder, self._lock_fd, os.getpid(), remove)

    @property
    def folder(self) -> str:
        """The folder itself."""
        return self._folder

    def new_path(self) -> str:
        """A path that no other caller gets, in any thread or forked child."""
        return f"{self._folder}/{os.getpid()}-{next(self._counter)}"


def _remove(folder: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _sweep(base: str, remove: Callable[[str], None]) -> None:
    with os.scandir(base) as entries:
        folders = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    for folder in folders:
        # Any error means that somebody else is making, using or removing this folder.
        with contextlib.suppress(OSError):
            fd = os.open(os.path.join(folder, _LOCK), os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove(folder)
            finally:
                os.close(fd)


def _release(folder: str, lock_fd: int, owner_pid: int, remove: Callable[[str], None]) -> None:
    # A forked child has a copy of the object, but the folder is still its parent's.
    if os.getpid() == owner_pid:
        remove(folder)
    with contextlib.suppress(OSError):
        os.close(lock_fd)
