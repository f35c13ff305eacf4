"""What every store promises, on every kind of store. A new kind has to pass this file as it is."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rayflow.checkpoint.opening import open_store, probe
from rayflow.checkpoint.store import ObjectInfo, Store
from rayflow.errors import AlreadyExists, InvalidInput, NotFound

BAD_KEYS = [
    "",
    "/",
    "/a",
    "a/",
    "a//b",
    ".",
    "..",
    "../a",
    "a/../b",
    "a/.",
    "a b",
    "a\n",
    "ä",
    "a~",
    "a\0b",
    "x" * 256,
    "x/" * 400 + "x",
]


def keys(store: Store, prefix: str, start_after: str = "") -> list[str]:
    return [found.key for found in store.list(prefix, start_after)]


def test_what_was_created_is_read_back_and_never_replaced(store: Store) -> None:
    store.create("log/0/00000001", b"one")
    store.create("log/0/00000002", b"")
    with pytest.raises(AlreadyExists, match="log/0/00000001"):
        store.create("log/0/00000001", b"another")
    assert store.get("log/0/00000001") == b"one"
    assert store.get("log/0/00000002") == b""


def test_of_twenty_racing_creates_exactly_one_wins_and_its_data_stays(store: Store) -> None:
    start = threading.Barrier(20)

    def race(racer: int) -> int | None:
        start.wait()
        try:
            store.create("log/race", b"%d" % racer * 1000)
        except AlreadyExists:
            return None
        return racer

    with ThreadPoolExecutor(20) as pool:
        winners = [racer for racer in pool.map(race, range(20)) if racer is not None]
    assert len(winners) == 1
    assert store.get("log/race") == b"%d" % winners[0] * 1000


def test_a_create_is_never_seen_in_part(store: Store) -> None:
    data = os.urandom(1 << 20)
    done = threading.Event()
    seen: list[bytes] = []

    def watch() -> None:
        while not seen and not done.is_set():
            try:
                seen.append(store.get("large/object"))
            except NotFound:
                listed = list(store.list("large/"))
                assert listed in ([], [ObjectInfo("large/object", len(data))])

    with ThreadPoolExecutor(2) as pool:
        watchers = [pool.submit(watch) for _ in range(2)]
        store.create("large/object", data)
        done.set()
        for watcher in watchers:
            watcher.result()
    assert all(found == data for found in seen)
    assert store.get("large/object") == data


def test_listing_is_in_the_order_of_the_keys_and_follows_prefix_and_start(store: Store) -> None:
    # "-" and "." sort before "/", digits and letters after it: folders must take their place among the files.
    names = ["a-b/x", "a.b", "a/1", "a/10", "a/2", "a/b/c", "a0", "ab/x", "b", "B", "a_"]
    for name in names:
        store.create(name, name.encode())
    assert list(store.list("")) == [ObjectInfo(name, len(name)) for name in sorted(names)]
    assert keys(store, "a/") == ["a/1", "a/10", "a/2", "a/b/c"]
    assert keys(store, "a/1") == ["a/1", "a/10"]
    assert keys(store, "a") == sorted(name for name in names if name.startswith("a"))
    assert keys(store, "a/b/c") == ["a/b/c"]
    assert keys(store, "nothing/here") == []
    for start in ["a", "a/", "a/1", "a/10", "a/15", "a/b", "a/b/c", "a0", "zz"]:
        assert keys(store, "", start) == sorted(name for name in names if name > start), start
        assert keys(store, "a/", start) == sorted(name for name in names if name > start and name.startswith("a/"))


def test_a_listing_longer_than_a_page_is_complete(store: Store) -> None:
    names = [f"log/{number:08d}" for number in range(0, 2300, 2)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: store.create(name, b"x"), names))
    assert keys(store, "log/") == names
    assert keys(store, "log/", "log/00002201") == names[-49:]
    assert keys(store, "log/0000010") == [name for name in names if name.startswith("log/0000010")]


def test_deleting_twice_or_nothing_is_no_error_and_the_key_is_free_again(store: Store) -> None:
    for name in ["d/1", "d/2", "d/3"]:
        store.create(name, b"x")
    store.delete(["d/1", "d/missing", "d/2", "missing/folder/x"])
    store.delete(iter(["d/1", "d/2"]))
    store.delete([])
    assert keys(store, "") == ["d/3"]
    store.create("d/1", b"again")
    assert store.get("d/1") == b"again"


def test_absent_objects_are_not_found(store: Store, tmp_path: Path) -> None:
    assert keys(store, "") == []
    store.create("a/b", b"x")
    for missing in ["c", "a", "a/b/c", "a/c"]:
        with pytest.raises(NotFound, match=missing):
            store.get(missing)
        with pytest.raises(NotFound, match=missing):
            store.download(missing, tmp_path / "target")
    assert not list(tmp_path.glob("*target*"))


def test_a_large_file_goes_up_and_comes_down_unchanged(store: Store, tmp_path: Path) -> None:
    content = os.urandom(20_000_003)
    source, target = tmp_path / "source.mp4", tmp_path / "target.mp4"
    source.write_bytes(content)
    target.write_bytes(b"old")
    store.upload("files/attempt-1/out.mp4", source)
    assert source.read_bytes() == content
    assert list(store.list("files/")) == [ObjectInfo("files/attempt-1/out.mp4", len(content))]
    store.download("files/attempt-1/out.mp4", target)
    assert target.read_bytes() == content
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["source.mp4", "target.mp4"]


def test_a_download_is_a_copy_of_its_own(store: Store, tmp_path: Path) -> None:
    store.create("a", b"as it was")
    store.download("a", tmp_path / "copy")
    (tmp_path / "copy").write_bytes(b"changed")
    assert store.get("a") == b"as it was"


def test_an_empty_file_can_be_stored(store: Store, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    store.upload("files/empty", tmp_path / "empty")
    assert store.get("files/empty") == b""


def test_a_large_object_is_created_whole_and_only_once(store: Store) -> None:
    data = os.urandom(12 << 20)
    store.create("snapshot", data)
    with pytest.raises(AlreadyExists):
        store.create("snapshot", data[:-1])
    assert store.get("snapshot") == data


def test_a_source_or_a_target_folder_that_is_not_there_is_the_callers_mistake(store: Store, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no such file"):
        store.upload("files/x", tmp_path / "nowhere")
    store.create("a", b"x")
    with pytest.raises(InvalidInput, match="no folder"):
        store.download("a", tmp_path / "nowhere" / "x")


@pytest.mark.parametrize("key", BAD_KEYS)
def test_a_key_outside_the_rules_is_refused_by_every_method(store: Store, key: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for operation in (
        lambda: store.create(key, b"x"),
        lambda: store.get(key),
        lambda: store.delete(["fine", key]),
        lambda: store.upload(key, tmp_path / "file"),
        lambda: store.download(key, tmp_path / "target"),
        lambda: store.local_path(key),
    ):
        with pytest.raises(InvalidInput):
            operation()


@pytest.mark.parametrize("prefix", ["/", "/a", "../", "a/../", "a//", "a b"])
def test_a_prefix_that_no_key_can_have_is_refused(store: Store, prefix: str) -> None:
    with pytest.raises(InvalidInput):
        store.list(prefix)
    with pytest.raises(InvalidInput):
        store.list("", prefix)


def test_a_local_path_is_the_object_where_there_is_one(store: Store) -> None:
    store.create("a/b", b"content")
    path = store.local_path("a/b")
    assert path is None or path.read_bytes() == b"content"


def test_the_url_opens_the_same_store(store: Store) -> None:
    store.create("a", b"x")
    again = open_store(store.url)
    assert again.url == store.url
    assert again.get("a") == b"x"


def test_the_probe_accepts_it_and_leaves_nothing_behind(store: Store) -> None:
    probe(store)
    assert keys(store, "") == []
