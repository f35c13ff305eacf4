"""What is particular to folders: the order in which data and names reach the disk, crashes, full disks, strangers in
the folder.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from rayflow.checkpoint import local, scratch, wholefile
from rayflow.checkpoint.local import LocalStore
from rayflow.errors import AlreadyExists, InvalidInput, NotFound, StoreUnavailable, StoreUnsuitable


@pytest.fixture
def disk_log(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """What reaches the disk or changes a name, in order: ("fsync", path), ("link", from, to), ("replace", from, to),
    ...
    """
    log: list[tuple[str, ...]] = []

    def record(name: str, describe: Callable[..., tuple[str, ...]]) -> None:
        real = getattr(os, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            described = describe(*args)
            result = real(*args, **kwargs)
            log.append((name, *described))
            return result

        monkeypatch.setattr(os, name, call)

    record("fsync", lambda fd: (os.readlink(f"/proc/self/fd/{fd}"),))
    record("mkdir", lambda path, *_: (os.fspath(path),))
    for name in ("link", "replace"):
        record(name, lambda source, target: (os.fspath(source), os.fspath(target)))
    return log


def leftovers(root: Path) -> list[Path]:
    return [path for path in (root / scratch.FOLDER).glob("*/*") if path.name != "lock"]


def test_data_reaches_the_disk_before_the_name_and_the_name_before_the_return(
    tmp_path: Path, disk_log: list[tuple[str, ...]]
) -> None:
    root = tmp_path / "new" / "store"
    LocalStore(root).create("log/0/1", b"x")
    [(_, temporary, final)] = [event for event in disk_log if event[0] == "link"]
    linked = disk_log.index(("link", temporary, final))
    assert final == str(root / "log/0/1")
    assert disk_log.index(("fsync", temporary)) < linked
    assert disk_log[linked + 1 :] == [("fsync", str(root / "log/0"))]
    # Every folder that had to be made is on the disk before anything is named in it.
    for folder in [tmp_path / "new", root, root / "log", root / "log/0"]:
        made = disk_log.index(("mkdir", str(folder)))
        assert made < disk_log.index(("fsync", str(folder.parent)), made) < linked


def test_a_folder_made_by_another_process_is_brought_to_the_disk_once(tmp_path: Path, disk_log: list[tuple[str, ...]]) -> None:
    (tmp_path / "log").mkdir()
    store = LocalStore(tmp_path)
    store.create("log/1", b"x")
    assert ("fsync", str(tmp_path)) in disk_log
    disk_log.clear()
    store.create("log/2", b"x")
    assert [event[0] for event in disk_log] == ["fsync", "link", "fsync"]


def test_a_lost_race_is_told_only_after_the_winner_is_on_the_disk(tmp_path: Path, disk_log: list[tuple[str, ...]]) -> None:
    store = LocalStore(tmp_path)
    store.create("log/1", b"x")
    disk_log.clear()
    with pytest.raises(AlreadyExists):
        store.create("log/1", b"y")
    assert disk_log[-1] == ("fsync", str(tmp_path / "log"))


def test_an_upload_is_on_the_disk_before_it_has_its_name(tmp_path: Path, disk_log: list[tuple[str, ...]]) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"content")
    LocalStore(tmp_path / "store").upload("files/a", source)
    final = tmp_path / "store/files/a"
    [named] = [place for place, event in enumerate(disk_log) if event[0] == "replace"]
    assert disk_log.index(("fsync", str(source))) < named
    assert disk_log[named + 1 :] == [("fsync", str(final.parent))]
    assert final.samefile(source)


def test_an_upload_from_another_file_system_is_a_copy_that_is_on_the_disk(
    tmp_path: Path, disk_log: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    source = tmp_path / "source"
    source.write_bytes(b"content" * 1000)
    monkeypatch.setattr(os, "link", refuse)
    LocalStore(tmp_path / "store").upload("files/a", source)
    [(_, temporary, final)] = [event for event in disk_log if event[0] == "replace"]
    assert disk_log.index(("fsync", temporary)) < disk_log.index(("replace", temporary, final))
    assert Path(final).read_bytes() == source.read_bytes()
    assert not Path(final).samefile(source)


WRITER = """
import os, signal, sys
from rayflow.checkpoint.local import LocalStore
real = getattr(os, {name!r})
def stop(*args, **kwargs):
    {before}
    print("here", flush=True)
    signal.pause()
os.{name} = stop
LocalStore(sys.argv[1]).create("log/1", b"0123456789" * 100_000)
"""


@pytest.mark.crash
@pytest.mark.parametrize(
    ("name", "before", "visible"),
    [
        ("write", "real(args[0], args[1][:1000])", False),
        ("link", "pass", False),
        ("link", "real(*args, **kwargs)", True),
    ],
    ids=["in the middle of the data", "before the link", "after the link"],
)
def test_a_writer_killed_at_any_point_leaves_all_or_nothing(tmp_path: Path, name: str, before: str, visible: bool) -> None:
    root = tmp_path / "store"
    writer = subprocess.Popen([sys.executable, "-c", WRITER.format(name=name, before=before), str(root)], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    with writer.stdout:
        assert writer.stdout.readline() == b"here\n"
        store = LocalStore(root)
        store.create("other", b"x")
        assert len(leftovers(root)) == 1, "the file of a living writer must stay"
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    assert [found.key for found in store.list("log/")] == (["log/1"] if visible else [])
    if visible:
        assert store.get("log/1") == b"0123456789" * 100_000
    else:
        with pytest.raises(NotFound):
            store.get("log/1")
        store.create("log/1", b"successor")
    LocalStore(root).create("another", b"x")
    assert leftovers(root) == [], "the file of a dead writer must go"


def test_a_scratch_folder_swept_from_under_a_writer_costs_nothing_but_a_retry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore(tmp_path)
    store.create("a", b"x")
    for path in (tmp_path / scratch.FOLDER).glob("*/*"):
        path.unlink()
        path.parent.rmdir()
    store.create("b", b"after the folder")
    real, swept = os.link, []

    def sweep_first(source: str, target: str) -> None:
        if not swept:
            swept.append(source)
            os.unlink(source)
        real(source, target)

    monkeypatch.setattr(os, "link", sweep_first)
    store.create("c", b"after the file")
    assert swept
    assert (store.get("b"), store.get("c")) == (b"after the folder", b"after the file")


def test_a_folder_removed_by_somebody_else_is_made_again(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.create("log/0/1", b"x")
    store.delete(["log/0/1"])
    (tmp_path / "log/0").rmdir()
    (tmp_path / "log").rmdir()
    store.create("log/0/1", b"again")
    assert store.get("log/0/1") == b"again"


@pytest.mark.parametrize(
    ("code", "expected", "advice"),
    [
        (errno.ENOSPC, StoreUnsuitable, "no space left"),
        (errno.EDQUOT, StoreUnsuitable, "quota"),
        (errno.EROFS, StoreUnsuitable, "read-only"),
        (errno.EACCES, StoreUnsuitable, "permission"),
        (errno.EIO, StoreUnavailable, "error"),
        (errno.ESTALE, StoreUnavailable, "[Ss]tale"),
    ],
)
@pytest.mark.parametrize("failing", ["write", "fsync", "link"])
def test_a_failing_disk_is_reported_with_what_to_do_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, expected: type[Exception], advice: str, failing: str
) -> None:
    store = LocalStore(tmp_path)
    store.create("log/0", b"x")

    def fail(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, failing, fail)
        with pytest.raises(expected, match=advice) as caught:
            store.create("log/1", b"data")
    assert "log/1" in str(caught.value) and str(tmp_path) in str(caught.value)
    assert [found.key for found in store.list("")] == ["log/0"]
    assert leftovers(tmp_path) == []


def test_a_name_that_may_not_survive_a_power_cut_is_not_known_to_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore(tmp_path)
    store.create("log/0", b"x")

    def fail(_: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(local, "fsync_folder", fail)
    with pytest.raises(StoreUnavailable, match="not known"):
        store.create("log/1", b"data")


def test_a_key_cannot_be_the_folder_of_another(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.create("a/b", b"x")
    with pytest.raises(InvalidInput, match="folder"):
        store.create("a", b"x")
    with pytest.raises(InvalidInput, match="folder"):
        store.create("a/b/c", b"x")
    assert [found.key for found in store.list("")] == ["a/b"]


def test_strangers_in_the_folder_are_not_objects(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.create("a/b", b"x")
    (tmp_path / "a" / "b~").write_text("an editor's")
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "lost+found" / "x").touch()
    assert [found.key for found in store.list("")] == ["a/b"]


def test_reading_writes_nothing_not_even_the_root(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "absent")
    assert list(store.list("log/")) == []
    with pytest.raises(NotFound):
        store.get("log/1")
    store.delete(["log/1"])
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_place_of_the_root_or_above_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for root in ["file", "file/below", "file/far/below"]:
        with pytest.raises(InvalidInput, match=f"{tmp_path}/file is a file"):
            LocalStore(tmp_path / root)


def test_a_closed_store_takes_its_scratch_folder_with_it(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.create("a", b"x")
    assert len(list((tmp_path / scratch.FOLDER).iterdir())) == 1
    del store
    assert list((tmp_path / scratch.FOLDER).iterdir()) == []


def test_many_stores_opened_at_once_on_a_new_folder_do_not_hinder_each_other(tmp_path: Path) -> None:
    start = threading.Barrier(12)

    def write(number: int) -> None:
        store = LocalStore(tmp_path / "new")
        start.wait()
        for turn in range(5):
            store.create(f"log/{number}/{turn}", b"x")

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(write, range(12)))
    assert len(list(LocalStore(tmp_path / "new").list("log/"))) == 60


def test_a_failed_download_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"old")

    def broken() -> Any:
        yield b"half"
        raise StoreUnavailable("broke off")

    with pytest.raises(StoreUnavailable):
        wholefile.place_chunks(target, broken())
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]
