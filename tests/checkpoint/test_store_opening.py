"""From URLs to stores, and the probe that finds stores which break their promise."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from rayflow.checkpoint.bucket import BucketStore
from rayflow.checkpoint.local import LocalStore
from rayflow.checkpoint.memory import MemoryStore
from rayflow.checkpoint.opening import open_store, probe
from rayflow.checkpoint.store import ObjectInfo
from rayflow.errors import AlreadyExists, InvalidInput, StoreUnsuitable


def test_a_path_and_a_file_url_open_the_same_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "a b%20ä"
    for given in [
        folder,
        str(folder),
        folder.name,
        folder.as_uri(),
        folder.as_uri().replace("file://", "file://localhost"),
    ]:
        store = open_store(given)
        assert isinstance(store, LocalStore)
        assert store.url == folder.as_uri()


def test_a_memory_url_opens_one_store_per_name() -> None:
    store = open_store("memory://counter")
    store.create("a", b"x")
    assert open_store("memory://counter") is store
    assert open_store("memory://other") is not store
    anonymous = MemoryStore()
    assert open_store(anonymous.url) is anonymous


def test_a_bucket_url_opens_bucket_and_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    for url in ["s3://bucket/team/jobs", "s3://bucket", "az://container/jobs"]:
        store = open_store(url + "/")
        assert isinstance(store, BucketStore)
        assert store.url == url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://host/x",
        "ftp://x",
        "file://relative/path",
        "memory://",
        "s3://[bad",
        "s3://",
        "s3:///prefix",
        "s3://bucket/a b",
        "s3://b/../x",
    ],
)
def test_other_urls_are_refused_with_the_forms_that_are_known(url: str) -> None:
    with pytest.raises(InvalidInput):
        open_store(url)


@pytest.mark.parametrize("url", ["s3://key:hush@bucket/x", "s3://bucket/x?secret=hush", "az://c/x#hush"])
def test_credentials_in_a_url_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(InvalidInput, match="environment") as caught:
        open_store(url)
    assert "hush" not in str(caught.value)


def test_opening_a_folder_does_not_load_the_clients_for_buckets(tmp_path: Path) -> None:
    code = (
        "import sys; from rayflow.checkpoint.opening import open_store, probe; probe(open_store(sys.argv[1]));"
        "sys.exit(' '.join({'obstore', 'pyarrow', 'ray'} & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, "")


class Overwriting(MemoryStore):
    """Ignores the condition, as services do that do not know the header."""

    def create(self, key: str, data: bytes) -> None:
        self.delete([key])
        super().create(key, data)


class OverwritingInSecret(MemoryStore):
    def create(self, key: str, data: bytes) -> None:
        try:
            super().create(key, data)
        except AlreadyExists:
            self.delete([key])
            super().create(key, data)
            raise


class HidingFromLists(MemoryStore):
    def list(self, prefix: str, start_after: str = "") -> Iterator[ObjectInfo]:
        return iter(())


class KeepingTheDeleted(MemoryStore):
    def delete(self, keys: Iterable[str]) -> None:
        pass


class RepeatingItsWrites(MemoryStore):
    """Reports its own first write as taken, as after a lost answer and a retry within the client."""

    def create(self, key: str, data: bytes) -> None:
        super().create(key, data)
        raise AlreadyExists(key)


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (Overwriting, "accepted a second create.*If-None-Match"),
        (OverwritingInSecret, "overwrote the first.*If-None-Match"),
        (HidingFromLists, "does not list"),
        (KeepingTheDeleted, "still returns"),
    ],
)
def test_the_probe_refuses_a_store_that_breaks_its_promise(broken: type[MemoryStore], says: str) -> None:
    with pytest.raises(StoreUnsuitable, match=says):
        probe(broken())


def test_the_probe_cleans_up_after_a_refusal() -> None:
    store = Overwriting()
    with pytest.raises(StoreUnsuitable):
        probe(store)
    assert list(store.list("")) == []


def test_the_probe_is_not_misled_by_a_repeated_write_of_its_own() -> None:
    probe(RepeatingItsWrites())
