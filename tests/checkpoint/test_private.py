"""The folder for temporary files is the user's alone: what others made, may write to or lead elsewhere is refused by name."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from rayflow.checkpoint.private import private_folder, private_name

_NOBODY = 65534


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the folder would be, in a folder for everybody's temporary files."""
    shared = tmp_path / "tmp"
    shared.mkdir()
    shared.chmod(0o1777)
    monkeypatch.setattr(tempfile, "tempdir", str(shared))
    return shared / private_name()


def _link(folder: Path) -> str:
    folder.symlink_to(folder.parent.parent)
    return "it is a symbolic link"


def _file(folder: Path) -> str:
    folder.touch()
    return "it cannot be opened"


def _open(folder: Path) -> str:
    folder.mkdir()
    folder.chmod(0o777)
    return r"others may write to it \(mode 0777\)"


def _foreign(folder: Path) -> str:
    if os.geteuid() != 0:
        pytest.skip("only root can make another user's folder")
    folder.mkdir(mode=0o700)
    os.chown(folder, _NOBODY, _NOBODY)
    return "it belongs to user nobody"


def test_it_is_made_for_the_user_alone_and_closed_to_readers(folder: Path) -> None:
    assert private_folder() == folder and folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o755)
    assert private_folder() == folder and folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("spoil", [_link, _file, _open, _foreign])
def test_one_that_is_not_the_users_alone_is_refused_with_its_name_and_what_to_do(
    folder: Path, spoil: Callable[[Path], str]
) -> None:
    why = spoil(folder)
    try:
        with pytest.raises(PermissionError, match=rf"{folder}.*{why}.*set TMPDIR to a folder of yours"):
            private_folder()
    finally:
        if folder.is_symlink():
            folder.unlink()
