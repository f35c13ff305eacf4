"""Large files in a store: referred to by key, size and hash, checked when they come back."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from rayflow.checkpoint.files import File, fetch_file, put_file, verify_file
from rayflow.checkpoint.local import LocalStore
from rayflow.checkpoint.memory import MemoryStore
from rayflow.checkpoint.store import Store
from rayflow.errors import Damaged, InvalidInput, NotFound

KEY = "files/movie/chunk-0007/attempt-1/out.mp4"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "out.mp4"
    path.write_bytes(os.urandom(3_000_000))
    return path


def test_a_file_comes_back_unchanged_and_its_source_stays(store: Store, source: Path, tmp_path: Path) -> None:
    content = source.read_bytes()
    file = put_file(store, KEY, source)
    assert file == File(KEY, len(content), hashlib.sha256(content).hexdigest())
    assert source.read_bytes() == content
    (tmp_path / "work").mkdir()
    fetched = fetch_file(store, file, tmp_path / "work")
    assert fetched.read_bytes() == content
    assert fetched.suffix == ".mp4"
    verify_file(file, fetched)


def test_a_store_in_a_folder_hands_out_its_own_file_without_copying(source: Path, tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    file = put_file(store, KEY, source)
    fetched = fetch_file(store, file, tmp_path)
    assert fetched == tmp_path / "store" / KEY
    assert fetched.samefile(source), "on one file system the data is shared"
    source.unlink()
    verify_file(file, fetched)


def test_a_download_is_used_again_only_if_it_is_whole(source: Path, tmp_path: Path) -> None:
    store = MemoryStore()
    file = put_file(store, KEY, source)
    first = fetch_file(store, file, tmp_path)
    inode = first.stat().st_ino
    assert fetch_file(store, file, tmp_path).stat().st_ino == inode
    first.write_bytes(b"\0" * file.size_bytes)
    again = fetch_file(store, file, tmp_path)
    assert again.stat().st_ino != inode
    verify_file(file, again)


def test_files_of_one_name_do_not_meet_in_the_directory(tmp_path: Path) -> None:
    store = MemoryStore()
    fetched: list[Path] = []
    for attempt in (1, 2):
        path = tmp_path / f"source-{attempt}"
        path.write_text(f"attempt {attempt}")
        fetched.append(fetch_file(store, put_file(store, f"files/{attempt}/out.mp4", path), tmp_path))
    assert [path.read_text() for path in fetched] == ["attempt 1", "attempt 2"]


@pytest.mark.parametrize("size", [2_999_999, 3_000_001, 0])
def test_a_file_of_another_size_is_damaged_wherever_it_lies(store: Store, source: Path, tmp_path: Path, size: int) -> None:
    file = put_file(store, KEY, source)
    wrong = File(file.key, size, file.hash)
    (tmp_path / "work").mkdir()
    with pytest.raises(Damaged, match=f"{KEY}.*3000000 bytes instead of {size}"):
        fetch_file(store, wrong, tmp_path / "work")
    assert list((tmp_path / "work").iterdir()) == []


def test_other_content_of_the_same_size_is_damaged(source: Path, tmp_path: Path) -> None:
    store = MemoryStore()
    file = put_file(store, KEY, source)
    store.delete([KEY])
    store.create(KEY, b"\0" * file.size_bytes)
    (tmp_path / "work").mkdir()
    with pytest.raises(Damaged, match=f"{KEY}.*hash"):
        fetch_file(store, file, tmp_path / "work")
    assert list((tmp_path / "work").iterdir()) == []


def test_damage_within_a_folder_is_found_on_demand(source: Path, tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    file = put_file(store, KEY, source)
    with open(store.local_path(KEY), "r+b") as content:
        content.write(b"damage")
    path = fetch_file(store, file, tmp_path)
    with pytest.raises(Damaged, match=f"{KEY}.*hash"):
        verify_file(file, path)


def test_what_is_not_there_is_said_to_be_missing(store: Store, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=KEY):
        fetch_file(store, File(KEY, 1, "00" * 32), tmp_path)
    with pytest.raises(InvalidInput, match="no such file"):
        put_file(store, KEY, tmp_path / "nowhere.mp4")


class WritingWhileStored(MemoryStore):
    """A store so slow that the writer of the source goes on meanwhile."""

    def upload(self, key: str, path: Path) -> None:
        super().upload(key, path)
        with open(path, "ab") as source:
            source.write(b"more")


def test_a_file_that_is_still_being_written_is_refused(source: Path) -> None:
    with pytest.raises(InvalidInput, match="changed while"):
        put_file(WritingWhileStored(), KEY, source)
