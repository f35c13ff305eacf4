"""A store in a folder of a local or network file system.

An object is a file under the root at the path that its key spells. Create-if-absent is ``link``: it fails if the name
is taken, on every POSIX file system including NFS, and it makes a file visible only after all its data is on the
disk. The order of a create:

1. write the data to a file in the scratch folder, fsync it;
2. link it to its final name (the one atomic step, where racers are told apart);
3. fsync the folder, after every folder above that this process has not yet brought to the disk;
4. remove the scratch name.

A crash before 2 leaves nothing to be seen, a crash after 2 leaves a complete object that may or may not survive a
power cut: exactly what StoreUnavailable says. A create that finds the name taken fsyncs the folder too before it says
so, since its caller will act on what it reads there.

A key cannot be the folder of another key: ``a`` and ``a/b`` exclude each other. Folders are never removed, so that
the knowledge which of them are on the disk can be kept. Nothing is written, not even the root, before the first
write.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from rayflow.checkpoint.keys import check_key, check_prefix, is_key
from rayflow.checkpoint.scratch import Scratch
from rayflow.checkpoint.store import ObjectInfo
from rayflow.checkpoint.wholefile import (
    as_store_error,
    check_source,
    copy_durably,
    fsync_file,
    fsync_folder,
    place_copy,
    remove_quietly,
    write_durably,
)
from rayflow.errors import AlreadyExists, InvalidInput, NotFound, StoreUnavailable

_MAX_TRIES = 5
"""How often a write starts anew after its scratch file or its folder was taken away; once is already rare."""

_MAX_KNOWN_FOLDERS = 10_000

_CANNOT_LINK = {errno.EXDEV, errno.EMLINK, errno.EPERM, errno.EACCES, errno.ENOTSUP}
"""Reasons why a source file cannot be linked into the store although it can be copied: another file system, another
owner.
"""


class LocalStore:
    """Objects as files under ``root``, which is created on the first write. Threads, processes and hosts may share
    the folder.

    Raises InvalidInput if ``root``, or what should be a folder above it, is a file.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self._root = os.path.abspath(os.path.expanduser(root))
        existing = self._root
        while not os.path.lexists(existing):
            existing = os.path.dirname(existing)
        if not os.path.isdir(existing):
            raise InvalidInput(f"cannot keep a store in {self._root}: {existing} is a file; name a folder, existing or new")
        self._lock = threading.Lock()
        self._scratch: Scratch | None = None
        self._known_folders: set[str] = set()

    def __repr__(self) -> str:
        return f"LocalStore({self._root!r})"

    @property
    def url(self) -> str:
        """``file://`` and the absolute path of the root."""
        return Path(self._root).as_uri()

    def create(self, key: str, data: bytes) -> None:
        """As ``Store.create``. Also raises StoreUnsuitable when the disk is full, read-only or not permitted to
        write.
        """
        check_key(key)
        path = self._path(key)
        try:
            if os.path.lexists(path):
                raise self._taken(key, path)
            self._publish(key, path, lambda temporary: write_durably(temporary, data), os.link)
        except FileExistsError:
            raise self._taken(key, path) from None
        except OSError as error:
            raise self._failed(error, f"cannot create {key} in {self._root}") from error

    def get(self, key: str) -> bytes:
        """As ``Store.get``."""
        check_key(key)
        try:
            with open(self._path(key), "rb", buffering=0) as file:
                return file.readall()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise self._missing(key) from None
        except OSError as error:
            raise as_store_error(error, f"cannot read {key} in {self._root}") from error

    def list(self, prefix: str, start_after: str = "") -> Iterator[ObjectInfo]:
        """As ``Store.list``. A folder is read when the iteration reaches it; what changes meanwhile may or may not
        show.
        """
        check_prefix(prefix)
        check_prefix(start_after)
        return self._walk(prefix.rpartition("/")[0], prefix, start_after)

    def delete(self, keys: Iterable[str]) -> None:
        """As ``Store.delete``. The folders stay, empty or not."""
        keys = list(keys)
        for key in keys:
            check_key(key)
        touched: set[str] = set()
        try:
            for key in keys:
                path = self._path(key)
                try:
                    os.unlink(path)
                except (FileNotFoundError, NotADirectoryError):
                    continue
                touched.add(os.path.dirname(path))
            for folder in touched:
                fsync_folder(folder)
        except OSError as error:
            raise as_store_error(error, f"cannot delete from {self._root}") from error

    def upload(self, key: str, path: Path) -> None:
        """As ``Store.upload``. A taken key is replaced. The source stays where it is.

        On the same file system the object is a hard link to the source, at no cost in space or time; the source must
        not be changed afterwards (replacing it by another file is fine). Elsewhere it is a copy. Raises InvalidInput
        if there is no file at ``path``.
        """
        check_key(key)
        check_source(path)
        source = os.path.realpath(path)
        try:
            self._publish(key, self._path(key), lambda temporary: _link_or_copy(source, temporary), os.replace)
        except IsADirectoryError:
            raise self._taken(key, self._path(key)) from None
        except OSError as error:
            raise self._failed(error, f"cannot store {path} as {key} in {self._root}") from error

    def download(self, key: str, path: Path) -> None:
        """As ``Store.download``. A copy, never a link: writing to it must not reach the object."""
        check_key(key)
        source = self._path(key)
        if not os.path.isfile(source):
            raise self._missing(key)
        try:
            place_copy(path, source)
        except FileNotFoundError:
            raise self._missing(key) from None

    def local_path(self, key: str) -> Path:
        """The file of the object, there or not. For reading only: whoever writes to it damages the store."""
        check_key(key)
        return Path(self._path(key))

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}"

    def _publish(self, key: str, path: str, fill: Callable[[str], None], put_in_place: Callable[[str, str], None]) -> None:
        """Fill a scratch file, give it its name in one atomic step, bring the name to the disk. Raises OSError and
        StoreUnavailable.
        """
        folder = os.path.dirname(path)
        for _ in range(_MAX_TRIES):
            scratch: Scratch | None = None
            try:
                # Holding the scratch folder in a variable keeps it from being removed when another thread gives it up.
                scratch = self._open_scratch()
                temporary = scratch.new_path()
                try:
                    fill(temporary)
                    self._ensure_folder(folder)
                    put_in_place(temporary, path)
                    try:
                        fsync_folder(folder)
                    except OSError as error:
                        raise StoreUnavailable(
                            f"{key} is in {self._root}, but it is not known whether it survives a power cut: "
                            f"{error.strerror}; read it back"
                        ) from error
                finally:
                    remove_quietly(temporary)
            except FileNotFoundError:
                self._forget_folders(scratch)
            else:
                return
        raise StoreUnavailable(
            f"cannot create {key}: folders keep vanishing from {self._root}; is something else deleting in there?"
        )

    def _open_scratch(self) -> Scratch:
        with self._lock:
            if self._scratch is None:
                self._ensure_root()
                self._scratch = Scratch(self._root)
            return self._scratch

    def _ensure_root(self) -> None:
        """Create the root and what is missing above it, each folder's name brought to the disk."""
        missing: list[str] = []
        folder = self._root
        while not os.path.isdir(folder):
            missing.append(folder)
            folder = os.path.dirname(folder)
        for folder in reversed(missing):
            os.makedirs(folder, exist_ok=True)
            fsync_folder(os.path.dirname(folder))

    def _ensure_folder(self, folder: str) -> None:
        """Make sure that ``folder``, at or under the root, is there and its name on the disk, whoever created it."""
        if folder in self._known_folders or folder == self._root:
            return
        parent = os.path.dirname(folder)
        self._ensure_folder(parent)
        try:
            os.mkdir(folder)
        except FileExistsError:
            if not os.path.isdir(folder):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), folder) from None
        fsync_folder(parent)
        with self._lock:
            if len(self._known_folders) >= _MAX_KNOWN_FOLDERS:
                self._known_folders.clear()
            self._known_folders.add(folder)

    def _forget_folders(self, scratch: Scratch | None) -> None:
        with self._lock:
            self._known_folders.clear()
            if self._scratch is scratch:
                self._scratch = None

    def _walk(self, folder: str, prefix: str, start_after: str) -> Iterator[ObjectInfo]:
        try:
            with os.scandir(self._path(folder) if folder else self._root) as entries:
                # A folder stands for the keys below it, so it takes the place in the order that its slash gives it.
                found = sorted((entry.name + "/" if entry.is_dir() else entry.name, entry) for entry in entries)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise as_store_error(error, f"cannot list {folder or 'the root'} in {self._root}") from error
        for name, entry in found:
            key = f"{folder}/{name}" if folder else name
            if name.endswith("/"):
                below = key.startswith(prefix) or prefix.startswith(key)
                # Every key below sorts before start_after unless the folder sorts after it or is one of its own
                # folders.
                if below and (key > start_after or start_after.startswith(key)) and is_key(key[:-1]):
                    yield from self._walk(key[:-1], prefix, start_after)
            elif key.startswith(prefix) and key > start_after and is_key(key):
                try:
                    size_bytes = entry.stat().st_size
                except FileNotFoundError:
                    continue
                except OSError as error:
                    raise as_store_error(error, f"cannot list {key} in {self._root}") from error
                yield ObjectInfo(key, size_bytes)

    def _taken(self, key: str, path: str) -> AlreadyExists | InvalidInput:
        if os.path.isdir(path):
            return InvalidInput(f"cannot create {key} in {self._root}: other keys lie below it, and a file cannot also be a folder")
        try:
            fsync_folder(os.path.dirname(path))
        except OSError as error:
            raise as_store_error(error, f"{key} is taken in {self._root}, but its folder cannot be brought to the disk") from error
        return AlreadyExists(f"{key} is already in {self._root}")

    def _missing(self, key: str) -> NotFound:
        return NotFound(f"no object {key} in {self._root}")

    def _failed(self, error: OSError, doing: str) -> Exception:
        if isinstance(error, NotADirectoryError):
            return InvalidInput(f"{doing}: a part of its key is a file already, and a file cannot also be a folder")
        return as_store_error(error, doing)


def _link_or_copy(source: str, temporary: str) -> None:
    try:
        fsync_file(source)
        os.link(source, temporary)
    except OSError as error:
        if error.errno not in _CANNOT_LINK:
            raise
        copy_durably(source, temporary)
