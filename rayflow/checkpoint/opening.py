"""From a URL or a path to a store, and the test whether a store keeps its promise.

Clients for buckets are imported only when a bucket is opened: whoever uses a folder does not pay for them.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from urllib.parse import unquote, urlsplit

from rayflow.checkpoint.local import LocalStore
from rayflow.checkpoint.memory import MemoryStore
from rayflow.checkpoint.store import Store
from rayflow.errors import AlreadyExists, InvalidInput, NotFound, StoreError, StoreUnsuitable

_FORMS = "a path, file:///path, memory://name, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix"

_WHAT_TO_DO = (
    "Two owners could overwrite each other's records there. Use a local or NFS folder, AWS S3, Google Cloud Storage, "
    "Azure Blob Storage, or a version of this service that enforces conditional writes (If-None-Match: *)"
)


def open_store(url: str | os.PathLike[str]) -> Store:
    """The store at ``url``: a path, ``file://``, ``memory://name``, ``s3://``, ``gs://`` or ``az://`` with bucket and
    prefix.

    Nothing is contacted, created or written yet. Buckets take credentials and end points from the environment.

    Raises:
        InvalidInput: the URL is of no known form, or carries credentials or a query (it is not repeated in the
        message).
    """
    text = os.fspath(url)
    if not text:
        raise InvalidInput(f"the store is an empty string; give {_FORMS}")
    if "://" not in text:
        return LocalStore(text)
    try:
        parts = urlsplit(text)
    except ValueError:
        raise InvalidInput(f"the store is given by a URL that cannot be parsed; give {_FORMS}") from None
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise InvalidInput(
            "the URL of a store must hold neither user, password, query nor fragment; credentials for a bucket come "
            f"from the environment, and the URL is {_FORMS}"
        )
    match parts.scheme:
        case "file":
            if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
                raise InvalidInput(f"{text!r} names no absolute path on this machine; write file:///path")
            return LocalStore(unquote(parts.path))
        case "memory":
            if not parts.netloc:
                raise InvalidInput("a store in memory needs a name: memory://name")
            return MemoryStore.named(parts.netloc + parts.path.rstrip("/"))
        case "s3" | "gs" | "az":
            from rayflow.checkpoint.bucket import BucketStore

            return BucketStore(parts.scheme, parts.netloc, parts.path)
        case _:
            raise InvalidInput(f"no store is called {parts.scheme}://; give {_FORMS}")


def probe(store: Store) -> None:
    """Find out with real writes whether ``store`` can serve: create, refuse the second create, read back, list, delete.

    Costs a handful of operations on one key of its own, ``probe/<unique>``, which is removed again.

    Raises:
        StoreUnsuitable: the store overwrites, forgets or hides what was written; the message says what to do.
        StoreError: an operation failed, as documented by ``Store``.
    """
    key = f"probe/{uuid.uuid4().hex}"
    first, second = b"first", b"second"
    try:
        # The key is ours alone: "already exists" can only mean that the client repeated a write that had been
        # carried out.
        _create_own(store, key, first)
        try:
            store.create(key, second)
        except AlreadyExists:
            pass
        else:
            raise StoreUnsuitable(f"{store.url} accepted a second create of the same key, {key}. {_WHAT_TO_DO}")
        if store.get(key) != first:
            raise StoreUnsuitable(f"{store.url} refused the second create of {key}, but overwrote the first. {_WHAT_TO_DO}")
        if [found.key for found in store.list(key)] != [key]:
            raise StoreUnsuitable(
                f"{store.url} does not list {key}, which was just created. rayflow needs listings that show every "
                "finished write; use a store that lists consistently, without a cache in front"
            )
    finally:
        # The first failure is the one to report; a leftover of a few bytes under a unique key does no harm.
        with contextlib.suppress(StoreError):
            store.delete([key])
    try:
        store.get(key)
    except NotFound:
        return
    raise StoreUnsuitable(
        f"{store.url} still returns {key} after it was deleted; switch off caches and retention rules for this prefix"
    )


def _create_own(store: Store, key: str, data: bytes) -> None:
    try:
        store.create(key, data)
    except AlreadyExists:
        if store.get(key) != data:
            raise StoreUnsuitable(f"{store.url} reports the unused key {key} as taken. {_WHAT_TO_DO}") from None
