"""Values too large for a record, each stored under the hash of its content.

The name is the content, so storing twice is harmless, an interrupted store is simply repeated, equal values share one
object, and damage cannot go unnoticed.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from dataclasses import dataclass

from rayflow.checkpoint.store import Store
from rayflow.errors import AlreadyExists, Damaged, InvalidInput

_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class BlobRef:
    """What a record holds in place of a large value. ``hash`` is the SHA-256 of the content, in hexadecimal."""

    hash: str
    size_bytes: int

    def __post_init__(self) -> None:
        if not _HASH.fullmatch(self.hash):
            raise InvalidInput(f"{self.hash[:80]!r} is not a SHA-256 in hexadecimal")

    @property
    def key(self) -> str:
        """Where the blob lies; spread over 256 folders, which keeps each of them small."""
        return f"blobs/{self.hash[:2]}/{self.hash}"


def put_blob(store: Store, data: bytes) -> BlobRef:
    """Store ``data``. When this returns, it is durable. Raises StoreError; then the call can simply be repeated."""
    ref = BlobRef(hashlib.sha256(data).hexdigest(), len(data))
    # The key is the hash of the content: what is there already is this very value.
    with contextlib.suppress(AlreadyExists):
        store.create(ref.key, data)
    return ref


def get_blob(store: Store, ref: BlobRef) -> bytes:
    """The content of the blob, checked. Raises NotFound, and Damaged if size or hash are not those of the reference."""
    data = store.get(ref.key)
    if len(data) != ref.size_bytes:
        raise Damaged(
            f"{ref.key} in {store.url} has {len(data)} bytes instead of {ref.size_bytes}; restore it from a backup"
        )
    if hashlib.sha256(data).hexdigest() != ref.hash:
        raise Damaged(
            f"{ref.key} in {store.url} is not the content that was stored: its hash differs; restore it from a backup"
        )
    return data
