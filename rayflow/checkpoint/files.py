"""Files too large for memory, such as chunks of video, kept in the store and referred to by key, size and hash.

A ``File`` says nothing about where the store is: it travels between steps and machines and lasts as long as the
object. Whoever stores a file chooses its key, unique to the attempt that made it, so that an attempt given up for
dead cannot touch what its successor wrote.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from rayflow.checkpoint.keys import check_key
from rayflow.checkpoint.store import Store
from rayflow.core.records import digest
from rayflow.errors import Damaged, InvalidInput, NotFound


@dataclass(frozen=True, slots=True)
class File:
    """A file in a store. ``hash`` is the SHA-256 of the content, in hexadecimal, as ``sha256sum`` prints it."""

    key: str
    size_bytes: int
    hash: str


def name_part(text: str, also: str = "") -> str:
    """``text`` as part of a key; ``also`` are characters to keep."""
    kept = "-_=" + also
    return "".join(char if (char.isascii() and char.isalnum()) or char in kept else "." for char in text)[:250]


def prefix_of(execution: str) -> str:
    """Where the steps of an execution keep files in the store: what keys of theirs begin with."""
    return f"files/{name_part(execution)[:150]}-{digest(execution.encode())[:12]}/"


def put_file(store: Store, key: str, path: str | os.PathLike[str]) -> File:
    """Store the file at ``path`` under ``key``, which must be unique to this attempt. When this returns, it is durable.

    The source stays in place. A store in a folder of the same file system shares its data with it (a hard link), so
    it must not be changed afterwards; removing or replacing it is fine.

    Raises:
        InvalidInput: there is no such file, the key cannot be one, or the file changed while it was being stored.
        StoreError: the store failed; repeat with the same key.
    """
    check_key(key)
    source = Path(path)
    try:
        before = source.stat()
        digest = _hash(source)
        store.upload(key, source)
        after = source.stat()
    except FileNotFoundError:
        raise InvalidInput(f"cannot store {source}: there is no such file") from None
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise InvalidInput(f"{source} changed while it was being stored as {key}; store it after its writer has finished")
    return File(key, before.st_size, digest)


def fetch_file(store: Store, file: File, directory: str | os.PathLike[str]) -> Path:
    """A local path to read the file from: the store's own file where the store is a folder, else a download into
    ``directory``.

    In a folder the size is checked, which costs nothing; ``verify_file`` checks the content. A download is always
    checked in full. It is named by hash and key, keeping the suffix; one that is there already is checked and used
    again. ``directory`` must exist. Never write to the file that is returned.

    Raises:
        Damaged: size or hash are not those that were stored.
        NotFound: the store holds no such object.
        StoreError: the store, or the local disk, failed.
    """
    stored = store.local_path(file.key)
    if stored is not None:
        try:
            size_bytes = stored.stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            raise NotFound(f"no object {file.key} in {store.url}") from None
        _check_size(file, size_bytes, f"{file.key} in {store.url}")
        return stored
    target = Path(directory, f"{file.hash[:16]}-{file.key.rpartition('/')[2][-200:]}")
    if target.is_file() and target.stat().st_size == file.size_bytes and _hash(target) == file.hash:
        return target
    store.download(file.key, target)
    try:
        verify_file(file, target)
    except Damaged:
        target.unlink(missing_ok=True)
        raise
    return target


def verify_file(file: File, path: str | os.PathLike[str]) -> None:
    """Read the file at ``path`` in full. Raises Damaged if it is not what was stored as ``file``, by size or by
    hash.
    """
    _check_size(file, os.stat(path).st_size, f"{file.key}, read from {path},")
    if _hash(Path(path)) != file.hash:
        raise Damaged(f"{file.key}, read from {path}, is not the content that was stored: its hash differs; produce it anew")


def _check_size(file: File, size_bytes: int, where: str) -> None:
    if size_bytes != file.size_bytes:
        raise Damaged(f"{where} has {size_bytes} bytes instead of {file.size_bytes}; produce it anew")


def _hash(path: Path) -> str:
    with open(path, "rb", buffering=0) as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
