"""What makes a folder or bucket a store of rayflow: one small object that says which one it is and how many shards it has."""

from __future__ import annotations

import contextlib
import hashlib
import secrets

import msgspec

from rayflow.checkpoint.store import Store
from rayflow.errors import AlreadyExists, Damaged, InvalidInput, NotFound

KEY = "rayflow.json"
FORMAT = 1


class StoreIdentity(msgspec.Struct, frozen=True):
    """Written once, at the first start, and never changed: instances are spread over the shards by a hash of their id."""

    format: int
    store_id: str
    shards: int

    def shard_of(self, instance: str) -> int:
        """The number of the shard that an execution belongs to, from 0."""
        if self.shards == 1:
            return 0
        return int.from_bytes(hashlib.blake2b(instance.encode(), digest_size=8).digest()) % self.shards


FOLDER_SHARDS = 1
BUCKET_SHARDS = 4


def shard_prefix(number: int) -> str:
    """Where the log of a shard lies in its store."""
    return f"shards/{number:03d}/"


def identify(store: Store, shards: int) -> StoreIdentity:
    """The identity of ``store``; a new store gets one, with ``shards`` shards.

    Raises InvalidInput if it was written by a newer rayflow, Damaged if it is not readable, StoreError.
    """
    if not 1 <= shards <= 1000:
        raise InvalidInput(f"shards={shards}: a store has between 1 and 1000 shards")
    try:
        return read_identity(store)
    except NotFound:
        own = msgspec.json.encode(StoreIdentity(FORMAT, secrets.token_hex(8), shards))
    with contextlib.suppress(AlreadyExists):  # by somebody who began the store at the same time
        store.create(KEY, own)
    return read_identity(store)


def read_identity(store: Store) -> StoreIdentity:
    """The identity of a store that has been used before. Raises NotFound for one that has not."""
    data = store.get(KEY)
    try:
        identity = msgspec.json.decode(data, type=StoreIdentity)
    except msgspec.DecodeError as error:
        raise Damaged(f"{KEY} in {store.url} is not readable ({error}); restore it from a copy") from error
    if identity.format != FORMAT:
        raise InvalidInput(
            f"{store.url} has format {identity.format}, this rayflow reads format {FORMAT}; use the rayflow that wrote it"
        )
    return identity
