"""Objects in buckets by their URL, whatever their name, inside a store or out of it: what users bring and take away.

Credentials and end points come from the environment of the process that asks, as for ``bucket.BucketStore``. A signed URL is a
secret for as long as it is valid: it is made where it is used, and never recorded.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError

from rayflow.checkpoint.bucket import MAX_PARTS, PART_BYTES, PARTS_IN_FLIGHT, failure, kind_of_client
from rayflow.errors import InvalidInput

SIGNED_S = 24 * 3600
"""How long a signed URL is valid, at most: credentials that end earlier end it."""
_SCHEMES = frozenset(("s3", "gs", "az"))


class BucketObject:
    """The object at ``s3://bucket/name``, ``gs://`` or ``az://``. Nothing is sent before the first operation.

    Raises InvalidInput for what is no such URL; the operations raise StoreUnsuitable, StoreUnavailable, and NotFound.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url, allow_fragments=False)
        name = url.removeprefix(f"{parts.scheme}://{parts.netloc}").lstrip("/")
        if parts.scheme not in _SCHEMES or "@" in parts.netloc or not name or name.endswith("/"):
            raise InvalidInput(f"{parts.scheme}://{parts.hostname}{parts.path} names no object in a bucket: write s3://bucket/name")
        self._url = url
        self._name = name
        self._scheme, self._bucket = parts.scheme, parts.netloc

    def size_bytes(self) -> int:
        try:
            return obstore.head(kind_of_client(self._scheme, self._bucket, "small"), self._name)["size"]
        except (BaseError, OSError) as error:
            raise failure(error, f"cannot find {self._name}", self._bucket_url) from None

    def read(self, at: int, count: int) -> tuple[bytes, int]:
        """Up to ``count`` bytes from ``at`` on, and the size of the whole."""
        try:
            client = kind_of_client(self._scheme, self._bucket, "reader")
            found = obstore.get(client, self._name, options={"range": (at, at + count)})
            return bytes(found.bytes()), found.meta["size"]
        except (BaseError, OSError) as error:
            raise failure(error, f"cannot read {self._name}", self._bucket_url) from None

    def signed_url(self) -> str:
        """An http(s) URL by which anybody may read the object for ``SIGNED_S`` seconds."""
        try:
            client = kind_of_client(self._scheme, self._bucket, "reader")
            return obstore.sign(client, "GET", self._name, timedelta(seconds=SIGNED_S))
        except (BaseError, OSError) as error:
            raise failure(error, f"cannot sign a URL of {self._name}", self._bucket_url) from None

    def check_writable(self) -> None:
        """Raises what ``upload`` would, found out with an empty object of a name close by."""
        client, name = kind_of_client(self._scheme, self._bucket, "small"), f"{self._name}.{secrets.token_hex(4)}"
        try:
            obstore.put(client, name, b"", use_multipart=False)
            obstore.delete(client, name)
        except (BaseError, OSError) as error:
            raise failure(error, f"cannot write {self._name}", self._bucket_url) from None

    def upload(self, path: Path, on_progress: Callable[[int], None] | None = None) -> None:
        """Put the file at ``path`` there, in parts: it appears whole or not at all, and replaces what is there.

        ``on_progress`` is called with the bytes read so far.
        """
        part_bytes = max(PART_BYTES, -(-path.stat().st_size // MAX_PARTS))
        try:
            obstore.put(
                kind_of_client(self._scheme, self._bucket, "writer"),
                self._name,
                _parts(path, on_progress),
                chunk_size=part_bytes,
                max_concurrency=PARTS_IN_FLIGHT,
                use_multipart=True,
            )
        except (BaseError, OSError) as error:
            raise failure(error, f"cannot store {path} as {self._name}", self._bucket_url) from None

    @property
    def _bucket_url(self) -> str:
        return f"{self._scheme}://{self._bucket}"


def _parts(path: Path, on_progress: Callable[[int], None] | None) -> Iterator[bytes]:
    done = 0
    with open(path, "rb", buffering=0) as file:
        while data := file.read(1 << 20):
            done += len(data)
            yield data
            if on_progress is not None:
                on_progress(done)
