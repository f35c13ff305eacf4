"""A store in a bucket of S3 (or what speaks its protocol), Google Cloud Storage or Azure Blob Storage, over obstore.

Create-if-absent is a conditional put (``If-None-Match: *`` or the like). **A create is ambiguous**, in two ways:

- StoreUnavailable: the answer was lost; the object may be there, or may still appear.
- AlreadyExists: the client repeats a request after a server error, and the first try may have been carried out, so
  the object found may be the caller's own.

Both are settled by creating again until the key is taken, then reading it back and comparing, which is up to the
caller, who knows what it wrote; to find nothing there settles nothing. AlreadyExists is raised only after the object
has been seen; a refused put without an object (S3 answers so when two puts collide) is StoreUnavailable.

Credentials and end points come from the environment (``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL``,
``GOOGLE_APPLICATION_CREDENTIALS``, ``AZURE_STORAGE_ACCOUNT_NAME``, ...) or from the machine's role; never from the
URL, nor from profile files such as ``~/.aws/credentials``. Neither the URL nor an error carries them. Plain HTTP is
used only when an end point in the environment names it.

A large upload that is killed leaves invisible parts behind, which cost money: give the bucket a lifecycle rule that
aborts incomplete multipart uploads.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import AzureStore, GCSStore, S3Store

from rayflow.checkpoint.keys import ALPHABET, check_key, check_prefix, is_key
from rayflow.checkpoint.store import ObjectInfo
from rayflow.checkpoint.wholefile import check_source, place_chunks
from rayflow.errors import AlreadyExists, InvalidInput, NotFound, RayflowError, StoreUnavailable, StoreUnsuitable

if TYPE_CHECKING:
    from obstore import GetResult
    from obstore.store import ClientConfig, RetryConfig

CONNECT_TIMEOUT_S = 5
REQUEST_TIMEOUT_S = 20
"""For a whole request that moves at most ``SMALL_BYTES``."""
STALL_TIMEOUT_S = 20
"""For a read of any size to go on when nothing more arrives."""
READ_TIMEOUT_S = 3600
"""For a whole read of any size."""
WRITE_TIMEOUT_S = 300
"""For a whole request that writes more than ``SMALL_BYTES``: an object in one piece, or one part of a file."""
MAX_RETRIES = 4
RETRY_TIMEOUT_S = 30
"""After the first try of a request; then the error is raised, and whoever called decides."""

SMALL_BYTES = 1 << 20
PART_BYTES = 8 << 20
MAX_PARTS = 10_000
PARTS_IN_FLIGHT = 4
_LIST_PAGE = 1000
_DELETE_BATCH = 1000

_BUCKET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,221}")
_KINDS = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}
_ENDPOINT_VARIABLES = (
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT",
    "GOOGLE_BASE_URL",
    "AZURE_STORAGE_ENDPOINT",
    "AZURE_ENDPOINT",
)


class BucketStore:
    """Objects below ``prefix`` in the bucket (for ``az``: the container) named ``bucket``.

    ``scheme`` is ``s3``, ``gs`` or ``az``. Nothing is sent before the first operation. Raises InvalidInput for a name
    or prefix that cannot be and for settings in the environment that the client does not understand.
    """

    def __init__(self, scheme: str, bucket: str, prefix: str = "") -> None:
        if scheme not in _KINDS:
            raise InvalidInput(f"no kind of bucket is called {scheme!r}; there are {', '.join(_KINDS)}")
        if not _BUCKET_NAME.fullmatch(bucket):
            raise InvalidInput("the name of the bucket is missing or cannot be one; write s3://bucket/prefix")
        prefix = prefix.strip("/")
        if prefix:
            check_key(prefix)
        self._url = f"{scheme}://{bucket}/{prefix}" if prefix else f"{scheme}://{bucket}"
        self._folder = f"{prefix}/" if prefix else ""
        self._small = kind_of_client(scheme, bucket, "small", self._url)
        self._reader = kind_of_client(scheme, bucket, "reader", self._url)
        self._writer = kind_of_client(scheme, bucket, "writer", self._url)

    def __repr__(self) -> str:
        return f"BucketStore({self._url!r})"

    @property
    def url(self) -> str:
        """Scheme, bucket and prefix."""
        return self._url

    def create(self, key: str, data: bytes) -> None:
        """As ``Store.create``; see the module on what AlreadyExists and StoreUnavailable leave open."""
        check_key(key)
        client = self._small if len(data) <= SMALL_BYTES else self._writer
        try:
            obstore.put(client, self._folder + key, data, mode="create", use_multipart=False)
            return
        except (AlreadyExistsError, PreconditionError):
            pass
        except (BaseError, OSError) as error:
            raise self._failed(error, f"cannot create {key}") from None
        try:
            obstore.head(self._small, self._folder + key)
        except FileNotFoundError:
            raise StoreUnavailable(
                f"cannot create {key} in {self._url}: another write to it was under way; read it back, then try again"
            ) from None
        except (BaseError, OSError) as error:
            raise self._failed(error, f"cannot see what is at {key}") from None
        raise AlreadyExists(f"{key} is already in {self._url}")

    def get(self, key: str) -> bytes:
        """As ``Store.get``."""
        check_key(key)
        try:
            return bytes(obstore.get(self._reader, self._folder + key).bytes())
        except (BaseError, OSError) as error:
            raise self._failed(error, f"cannot read {key}") from None

    def list(self, prefix: str, start_after: str = "") -> Iterator[ObjectInfo]:
        """As ``Store.list``, page by page. Raises StoreUnsuitable where the bucket does not list in the order of the
        keys.
        """
        check_prefix(prefix)
        check_prefix(start_after)
        return self._pages(prefix, start_after)

    def delete(self, keys: Iterable[str]) -> None:
        """As ``Store.delete``, in batches."""
        keys = list(keys)
        for key in keys:
            check_key(key)
        paths = [self._folder + key for key in keys]
        for start in range(0, len(paths), _DELETE_BATCH):
            self._delete_batch(paths[start : start + _DELETE_BATCH])

    def upload(self, key: str, path: Path) -> None:
        """As ``Store.upload``, in parts, several at a time. A taken key is replaced. Raises InvalidInput if no file
        is at ``path``.
        """
        check_key(key)
        check_source(path)
        part_bytes = max(PART_BYTES, -(-path.stat().st_size // MAX_PARTS))
        try:
            obstore.put(
                self._writer,
                self._folder + key,
                path,
                mode="overwrite",
                chunk_size=part_bytes,
                max_concurrency=PARTS_IN_FLIGHT,
            )
        except (BaseError, OSError) as error:
            raise self._failed(error, f"cannot store {path} as {key}") from None

    def download(self, key: str, path: Path) -> None:
        """As ``Store.download``, as a stream; raises StoreUnavailable when it breaks off."""
        check_key(key)
        try:
            found = obstore.get(self._reader, self._folder + key)
        except (BaseError, OSError) as error:
            raise self._failed(error, f"cannot read {key}") from None
        place_chunks(path, self._chunks(key, found))

    def local_path(self, key: str) -> None:
        """None: a bucket is no folder."""
        check_key(key)

    def _chunks(self, key: str, found: GetResult) -> Iterator[memoryview]:
        try:
            for chunk in found.stream(min_chunk_size=1 << 20):
                yield memoryview(chunk)
        except (BaseError, OSError) as error:
            raise self._failed(error, f"reading {key} broke off") from None

    def _pages(self, prefix: str, start_after: str) -> Iterator[ObjectInfo]:
        # Clients list by folders only, so a prefix that ends within a name is cut down to its folder, skipping what
        # lies before it.
        folder = self._folder + prefix.rpartition("/")[0]
        offset = max(_just_before(prefix), start_after)
        last = start_after
        try:
            # The overload that returns Arrow tables is typed by an optional package.
            pages = obstore.list(  # pyright: ignore[reportUnknownMemberType]
                self._small,
                prefix=folder.rstrip("/") or None,
                offset=self._folder + offset.rstrip("/") if offset else None,
                chunk_size=_LIST_PAGE,
            )
            for page in pages:
                for found in page:
                    key = found["path"].removeprefix(self._folder)
                    if key <= start_after or not is_key(key):
                        continue
                    if key <= last:
                        raise StoreUnsuitable(
                            f"{self._url} does not list its objects in the order of their keys ({key} after {last}), "
                            "as is known of directory buckets and hierarchical namespaces; use a general purpose bucket"
                        )
                    last = key
                    if key.startswith(prefix):
                        yield ObjectInfo(key, found["size"])
                    elif key > prefix:
                        return
        except (BaseError, OSError) as error:
            raise self._failed(error, f"cannot list {prefix or 'all objects'}") from None

    def _delete_batch(self, paths: list[str]) -> None:
        try:
            obstore.delete(self._small, paths)
        except FileNotFoundError as error:
            if _names_missing_bucket(str(error)):
                raise self._failed(error, "cannot delete") from None
            # Some services refuse a batch for one missing object and leave the rest.
            for path in paths:
                self._delete_one(path)
        except (BaseError, OSError) as error:
            raise self._failed(error, "cannot delete") from None

    def _delete_one(self, path: str) -> None:
        try:
            obstore.delete(self._small, path)
        except FileNotFoundError:
            pass
        except (BaseError, OSError) as error:
            raise self._failed(error, f"cannot delete {path}") from None

    def _failed(self, error: Exception, doing: str) -> RayflowError:
        return failure(error, doing, self._url)


_NO_CREDENTIALS = re.compile(r"169\.254\.|metadata\.google\.internal|metadata endpoint|instance credentials", re.IGNORECASE)
_REFUSED_FOR_GOOD = re.compile(
    r"redirect without LOCATION|status(?: code)?:? (?:301|307|400|401|403|405|411|501)\b"
    r"|builder error|scheme is not allowed"
)
_MISSING_BUCKET = re.compile(r"NoSuchBucket|ContainerNotFound|specified bucket does not exist", re.IGNORECASE)
_CODE = re.compile(r"<Code>([A-Za-z0-9]{1,60})</Code>")


def failure(error: Exception, doing: str, url: str) -> RayflowError:
    """What an error of the client means, as an error to raise in its place."""
    text = _text(error)
    what = f"{doing} in {url}"
    if _names_missing_bucket(str(error)):
        return StoreUnsuitable(f"{what}: there is no such bucket; create it or correct the URL ({text})")
    if isinstance(error, FileNotFoundError):
        return NotFound(f"{what}: no such object")
    if isinstance(error, (PermissionDeniedError, UnauthenticatedError)):
        return StoreUnsuitable(
            f"{what}: permission is refused; give the credentials in use the right to read, write, list and delete there ({text})"
        )
    if _NO_CREDENTIALS.search(str(error)):
        return StoreUnsuitable(
            f"{what}: there are no credentials in the environment, and this machine has no role that gives some ({text})"
        )
    if _REFUSED_FOR_GOOD.search(str(error)):
        return StoreUnsuitable(f"{what}: the service refuses; check region, end point and settings ({text})")
    return StoreUnavailable(f"{what}: {text}")


def _names_missing_bucket(text: str) -> bool:
    return _MISSING_BUCKET.search(text) is not None


def _text(error: Exception) -> str:
    """The first line of the client's message and the service's code, without what could hold a secret: bodies and
    query strings.
    """
    text = str(error)
    line = re.sub(r"\?[^\s\"')]*", "", text.strip().partition("\n")[0].partition("<")[0])[:300].rstrip(" :-(")
    code = _CODE.search(text)
    return f"{line}; {code[1]}" if code and code[1] not in line else line


def _just_before(prefix: str) -> str:
    """A key, or the beginning of one, that sorts before all that start with ``prefix``, and not long before; may be
    empty.
    """
    if not prefix or prefix.endswith("/"):
        return ""
    position = ALPHABET.index(prefix[-1])
    return prefix[:-1] + ALPHABET[position - 1] + ALPHABET[-1] * 8 if position else prefix[:-1]


_TIMEOUTS: dict[str, ClientConfig] = {
    "small": {"timeout": timedelta(seconds=REQUEST_TIMEOUT_S)},
    "reader": {"timeout": timedelta(seconds=READ_TIMEOUT_S), "read_timeout": timedelta(seconds=STALL_TIMEOUT_S)},
    "writer": {"timeout": timedelta(seconds=WRITE_TIMEOUT_S)},
}


def kind_of_client(
    scheme: str, bucket: str, kind: Literal["small", "reader", "writer"], url: str = ""
) -> S3Store | GCSStore | AzureStore:
    """A client with the time-outs of requests that move little, of reads, or of writes. Raises InvalidInput."""
    try:
        return _client(scheme, bucket, _TIMEOUTS[kind])
    except (BaseError, ValueError) as error:
        raise InvalidInput(
            f"cannot set up the client for {url or f'{scheme}://{bucket}'}: {_text(error)}; "
            f"look at the variables AWS_*, GOOGLE_* or AZURE_*"
        ) from None


def _client(scheme: str, bucket: str, timeouts: ClientConfig) -> S3Store | GCSStore | AzureStore:
    options: ClientConfig = {"connect_timeout": timedelta(seconds=CONNECT_TIMEOUT_S), **timeouts}
    if any(os.environ.get(name, "").startswith("http://") for name in _ENDPOINT_VARIABLES):
        options["allow_http"] = True
    retries: RetryConfig = {
        "max_retries": MAX_RETRIES,
        "retry_timeout": timedelta(seconds=RETRY_TIMEOUT_S),
        "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=5), "base": 2},
    }
    return _KINDS[scheme](bucket, client_options=options, retry_config=retries)
