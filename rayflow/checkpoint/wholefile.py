"""Files that appear whole or not at all, and what the errors of the file system mean to whoever uses a store.

The order is always the same: data reaches the disk (fsync) before a name points to it, and the name reaches the disk
(fsync of the folder) before the call returns. A crash at any point leaves either no name or a complete file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

from rayflow.errors import InvalidInput, StoreError, StoreUnavailable, StoreUnsuitable

COPY_CHUNK_BYTES = 1 << 20

_ADVICE = {
    errno.ENOSPC: "there is no space left; free some, then resume",
    errno.EDQUOT: "the disk quota is used up; raise it or free some space, then resume",
    errno.EROFS: "the file system is mounted read-only; mount it writable or use another folder",
    errno.EACCES: "permission is refused; give this user the right to read and write there or use another folder",
    errno.EPERM: "the file system refuses the operation; a store needs to create, link and remove files",
    errno.ENOTSUP: "the file system does not support the operation; a store needs hard links and fsync",
    errno.EXDEV: "the folder spans two file systems; a store must lie on one",
}


def as_store_error(error: OSError, doing: str) -> StoreError | InvalidInput:
    """What ``error`` means, as an error to raise in its place; ``doing`` says what was tried on which file.

    No space, no permission, read-only or without hard links: StoreUnsuitable. Too long a path: InvalidInput.
    Everything else, such as an I/O error, a stale network handle or too many open files: StoreUnavailable, for it may
    pass.
    """
    code = error.errno or 0
    if code in _ADVICE:
        return StoreUnsuitable(f"{doing}: {_ADVICE[code]} ({os.strerror(code)})")
    if code == errno.ENAMETOOLONG:
        return InvalidInput(f"{doing}: the path is longer than the file system allows; use a folder nearer to the root")
    return StoreUnavailable(f"{doing}: {os.strerror(code) if code else error}")


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write every byte of ``data``: a single write may stop short, at 2 GiB at the latest."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def write_durably(path: str, data: bytes) -> None:
    """Create the new file ``path`` with ``data`` and bring it to the disk. Raises OSError; then a part of the file
    may be left.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        write_all(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)


def copy_durably(source: str, path: str) -> None:
    """Copy the file ``source`` to the new file ``path`` and bring it to the disk. Raises OSError."""
    with open(source, "rb") as reader, open(path, "xb", buffering=0) as writer:
        _copy_bytes(reader, writer.fileno())
        os.fsync(writer.fileno())


def fsync_file(path: str) -> None:
    """Bring the data of the existing file ``path`` to the disk. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def fsync_folder(path: str) -> None:
    """Bring the names in the folder ``path`` to the disk. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove_quietly(path: str) -> None:
    """Remove a temporary file. What stands in the way must not hide the outcome of the work it served."""
    with contextlib.suppress(OSError):
        os.unlink(path)


def place_chunks(path: Path, chunks: Iterable[bytes | memoryview]) -> None:
    """Put ``chunks``, one after the other, into the file ``path``, replacing what is there: complete or not at all.

    Errors of the file system are raised as by ``as_store_error``; errors of the iteration pass through, and nothing
    is left behind.
    """

    def fill(temporary: str) -> None:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            for chunk in chunks:
                write_all(fd, chunk)
            os.fsync(fd)
        finally:
            os.close(fd)

    _place(path, fill)


def place_copy(path: Path, source: str) -> None:
    """Put a copy of the file ``source`` into the file ``path``, replacing what is there: complete or not at all.

    A missing source is raised as FileNotFoundError; other errors of the file system as by ``as_store_error``.
    """
    os.stat(source)
    _place(path, lambda temporary: copy_durably(source, temporary))


def check_source(path: Path) -> None:
    """Raises InvalidInput unless ``path`` is a file that can be read, as the source of an upload must be."""
    if not path.is_file():
        raise InvalidInput(f"cannot store {path}: there is no such file")
    if not os.access(path, os.R_OK):
        raise InvalidInput(f"cannot store {path}: this user may not read it")


def _place(path: Path, fill: Callable[[str], None]) -> None:
    folder, name = os.path.split(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise InvalidInput(f"cannot write the file {path}: there is no folder {folder}; create it first")
    temporary = os.path.join(folder, f".{name[:100]}.{uuid.uuid4().hex}.part")
    try:
        fill(temporary)
        os.replace(temporary, path)
        fsync_folder(folder)
    except OSError as error:
        raise as_store_error(error, f"cannot write the file {path}") from error
    finally:
        remove_quietly(temporary)


def _copy_bytes(reader: BinaryIO, target: int) -> None:
    while chunk := reader.read(COPY_CHUNK_BYTES):
        write_all(target, chunk)
