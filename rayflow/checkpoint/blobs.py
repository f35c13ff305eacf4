"""Values too large for a record, each stored under the hash of its content.

The name is the content, so storing twice is harmless, an interrupted store is simply repeated, equal values share one
object, and damage cannot go unnoticed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection

from rayflow.checkpoint.requests import Create, Get, GetMany, Operation, run
from rayflow.checkpoint.store import Store
from rayflow.core.records import Blob, digest
from rayflow.errors import AlreadyExists, Damaged


def blob_key(blob: Blob) -> str:
    """Where the blob lies; spread over 256 folders, which keeps each of them small."""
    return f"blobs/{blob.hash[:2]}/{blob.hash}"


def write_blob(data: bytes) -> Operation[Blob]:
    """``put_blob``, request by request."""
    blob = Blob(digest(data), len(data))
    # The key is the hash of the content: what is there already is this very value.
    with contextlib.suppress(AlreadyExists):
        yield Create(blob_key(blob), data)
    return blob


def read_blob(blob: Blob, store_url: str) -> Operation[bytes]:
    """``get_blob``, request by request."""
    data: bytes = yield Get(blob_key(blob))
    _check(data, blob, store_url)
    return data


def read_blobs(blobs: Collection[Blob], store_url: str) -> Operation[dict[str, bytes]]:
    """The contents of some blobs, many at once, by their hash; those that are missing or damaged are left out."""
    found: tuple[bytes | None, ...] = yield GetMany(tuple(map(blob_key, blobs)))
    whole: dict[str, bytes] = {}
    for blob, data in zip(blobs, found, strict=True):
        with contextlib.suppress(Damaged):
            if data is not None:
                _check(data, blob, store_url)
                whole[blob.hash] = data
    return whole


def put_blob(store: Store, data: bytes) -> Blob:
    """Store ``data``. When this returns, it is durable. Raises StoreError; then the call can simply be repeated."""
    return run(write_blob(data), store)


def get_blob(store: Store, blob: Blob) -> bytes:
    """The content of the blob, checked. Raises NotFound, and Damaged if size or hash are not those of the reference."""
    return run(read_blob(blob, store.url), store)


def _check(data: bytes, blob: Blob, store_url: str) -> None:
    key = blob_key(blob)
    if len(data) != blob.size_bytes:
        raise Damaged(f"{key} in {store_url} has {len(data)} bytes instead of {blob.size_bytes}; restore it from a backup")
    if digest(data) != blob.hash:
        raise Damaged(f"{key} in {store_url} is not the content that was stored: its hash differs; restore it from a backup")
