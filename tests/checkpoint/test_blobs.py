"""Values stored under their hash: harmless to repeat, shared, and never returned damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayflow.checkpoint.blobs import blob_key, get_blob, put_blob
from rayflow.checkpoint.local import LocalStore
from rayflow.checkpoint.store import Store
from rayflow.core.records import Blob
from rayflow.errors import Damaged, InvalidInput, NotFound


def test_equal_values_share_one_object_and_come_back(store: Store) -> None:
    data = b"frame" * 50_000
    ref = put_blob(store, data)
    assert put_blob(store, data) == ref
    assert ref.size_bytes == len(data)
    assert get_blob(store, ref) == data
    assert [found.key for found in store.list("blobs/")] == [blob_key(ref)]
    assert blob_key(ref) == f"blobs/{ref.hash[:2]}/{ref.hash}"


@pytest.mark.parametrize("damaged", [b"framE", b"fram", b""], ids=["a flipped bit", "a missing end", "nothing left"])
def test_a_damaged_blob_is_named_and_not_returned(tmp_path: Path, damaged: bytes) -> None:
    store = LocalStore(tmp_path)
    ref = put_blob(store, b"frame")
    store.local_path(blob_key(ref)).write_bytes(damaged)
    with pytest.raises(Damaged, match=blob_key(ref)):
        get_blob(store, ref)


def test_a_missing_blob_is_not_found(store: Store) -> None:
    with pytest.raises(NotFound, match="blobs/ab/ab"):
        get_blob(store, Blob("ab" * 32, 1))


def test_a_reference_that_leads_out_of_the_store_is_refused(store: Store) -> None:
    with pytest.raises(InvalidInput, match="key"):
        get_blob(store, Blob("../../etc/passwd", 1))
