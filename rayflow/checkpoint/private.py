"""A folder in the system's one for temporary files that is this user's alone.

The system's folder is everybody's: whoever makes ``rayflow-1000`` there first could put links into it that lead this user's writes
to other files, or read what is in them. So a folder that is somebody else's, or open to others, is refused.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import stat
import tempfile
from pathlib import Path

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def private_name(kind: str = "rayflow") -> str:
    """How the folder of that kind is called."""
    return f"{kind}-{os.geteuid()}"


def private_folder(kind: str = "rayflow", parent: str | None = None, *, instead: str = "a folder of yours") -> Path:
    """The folder, which is made if it is missing, below ``parent`` (default: the system's folder for temporary files).

    Raises PermissionError where it is not this user's alone, naming it and what to do; ``instead`` says what TMPDIR may be set to.
    Raises OSError where it cannot be made.
    """
    path = Path(parent or tempfile.gettempdir(), private_name(kind))
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    fault = _fault(path)
    if fault:
        raise PermissionError(
            f"{path} is to hold temporary files of {_user(os.geteuid())} alone, but {fault}: remove it, or have its owner do so, "
            f"or set TMPDIR to {instead}"
        )
    return path


def _fault(path: Path) -> str:
    """Why nothing may be put there; empty if there is no reason."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if path.is_symlink():
            return "it is a symbolic link"
        return f"it cannot be opened ({error.strerror})"
    try:
        found = os.fstat(descriptor)
        if found.st_uid != os.geteuid():
            return f"it belongs to {_user(found.st_uid)}"
        mode = stat.S_IMODE(found.st_mode)
        if mode & _OTHERS_WRITE:  # what is in it may be anybody's
            return f"others may write to it (mode {mode:04o})"
        if mode != 0o700:
            os.fchmod(descriptor, 0o700)
        return ""
    finally:
        os.close(descriptor)


def _user(uid: int) -> str:
    try:
        return f"user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"user {uid}"
