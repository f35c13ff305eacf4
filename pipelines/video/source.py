"""A source as bytes: a file, or a URL whose server gives any piece of it. Its name, its size, and a key of its content.

ffmpeg reads a URL as it reads a file: chunks seek, so a worker fetches what it needs and no machine holds the whole. That takes a
server with range requests, as web servers and buckets are; one without is refused here, before anything is started. An object in a
bucket is read by a signed URL, made where it is used with the credentials that are there, and shown nowhere.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

from rayflow.errors import InvalidInput, NotFound, RayflowError, StoreUnavailable, StoreUnsuitable

if TYPE_CHECKING:
    from rayflow.checkpoint.objects import BucketObject

_SAMPLE_BYTES = 64 * 1024
_SAMPLES_OF_FILE = 64
_SAMPLES_OF_URL = 8
_TIMEOUT_S = 20.0
_PATIENCE_S = 600.0
_AGAIN_S = 0.5
_WORTH_ANOTHER_TRY = frozenset((408, 425, 429))
_BUCKETS = frozenset(("s3", "gs", "az"))
_SIGN_AGAIN_S = 6 * 3600.0
"""A quarter of the time for which a signed URL is valid."""

_signed: dict[str, tuple[str, float]] = {}
"""By source: the signed URL, and when it was made."""


class SourceUnreachable(RayflowError):
    """The server of a source does not answer, or not as it should: worth another try."""


def is_url(source: str) -> bool:
    """Whether a source is on a server, and no file."""
    return "://" in source


def check_url(url: str) -> str:
    """The URL as servers want it, blanks and other letters escaped. Raises InvalidInput for one that cannot be a source."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise InvalidInput(f"{url!r} is not a URL ({error}): check it") from error
    if parts.scheme in _BUCKETS:
        bucket_object(url)
        return url
    if parts.scheme == "file":
        raise InvalidInput(f"{url}: name a file by its path")
    if parts.scheme not in ("http", "https"):
        raise InvalidInput(f"{url}: a source is a file, or a URL with http://, https://, s3://, gs:// or az://; download it first")
    if not host:
        raise InvalidInput(f"{url}: the URL names no server")
    if parts.username is not None:
        raise InvalidInput(
            f"a URL with a user or password ({parts.scheme}://…@{host}) would be recorded as it is: use a signed URL"
        )
    return quote(url, safe="%/:=&?~#+!$,;'@()*[]")


def in_bucket(source: str) -> bool:
    """Whether a source is an object in a bucket."""
    return is_url(source) and source.partition("://")[0] in _BUCKETS


def bucket_object(url: str) -> BucketObject:
    """The object at a URL for which ``in_bucket`` holds. Raises InvalidInput."""
    from rayflow.checkpoint.objects import BucketObject  # the client of buckets is for those who use one

    return BucketObject(url)


def openable(source: str) -> str:
    """What ffmpeg can open: the source itself, or a signed URL. Raises InvalidInput, SourceUnreachable."""
    if not in_bucket(source):
        return source
    url, made_s = _signed.get(source, ("", 0.0))
    if not url or time.monotonic() - made_s > _SIGN_AGAIN_S:
        with _said_of_source(source):
            url = bucket_object(source).signed_url()
        _signed[source] = url, time.monotonic()
    return url


def without_signatures(text: str) -> str:
    """Text of ffmpeg's, the URLs that were signed here replaced by their sources."""
    for source, (url, _) in _signed.items():
        text = text.replace(url, source)
    return text


def name_of(source: str) -> str:
    """The name of the file, or the last part of a URL's path; empty for a URL without one."""
    if in_bucket(source):
        path = source.partition("://")[2].partition("/")[2]
    else:
        path = unquote(urlsplit(source).path) if is_url(source) else source
    return path.rpartition("/")[2]


def size_bytes(source: str) -> int:
    """Raises InvalidInput, SourceUnreachable."""
    if is_url(source):
        return _fetch(source, 0, 1)[1]
    try:
        return os.stat(source).st_size
    except OSError as error:
        raise _unreadable(source, error) from error


def content_key(source: str) -> str:
    """A hash of a source's size and of blocks of 64 KiB spread evenly over it, 64 of a file and 8 of a URL: nearly free.

    Another take, cut or encode of a video has another key. Bytes changed in place between the blocks are not seen. Raises
    InvalidInput, SourceUnreachable.
    """
    if not is_url(source):
        try:
            return _key_of_file(Path(source), _SAMPLES_OF_FILE)
        except OSError as error:
            raise _unreadable(source, error) from error
    head, total_bytes = _fetch(source, 0, _SAMPLE_BYTES)
    return _key(total_bytes, _SAMPLES_OF_URL, lambda at: head if at == 0 else _fetch(source, at, _SAMPLE_BYTES)[0])


def holds_same(file: Path, url_key: str) -> bool:
    """Whether a file is, byte for byte as far as keys tell, what is at the URL with that ``content_key``."""
    return key_once_uploaded(file) == url_key


def key_once_uploaded(file: Path) -> str:
    """The ``content_key`` of the URL under which a file will be."""
    return _key_of_file(file, _SAMPLES_OF_URL)


def _unreadable(source: str, error: OSError) -> InvalidInput:
    return InvalidInput(f"{source} cannot be read: {error.strerror or error}")


def _key_of_file(path: Path, samples: int) -> str:
    with open(path, "rb", buffering=0) as file:

        def read(at: int) -> bytes:
            file.seek(at)
            return file.read(_SAMPLE_BYTES)

        return _key(os.fstat(file.fileno()).st_size, samples, read)


def _key(total_bytes: int, samples: int, read: Callable[[int], bytes]) -> str:
    digest = hashlib.blake2b(str(total_bytes).encode(), digest_size=16)
    last = max(total_bytes - _SAMPLE_BYTES, 0)
    for at in sorted({last * index // (samples - 1) for index in range(samples)}):
        digest.update(read(at))
    return digest.hexdigest()


def _fetch(url: str, at: int, count: int) -> tuple[bytes, int]:
    """Up to ``count`` bytes from ``at`` on, and the size of the whole."""
    if in_bucket(url):
        with _said_of_source(url):
            return bucket_object(url).read(at, count)
    request = urllib.request.Request(url, headers={"Range": f"bytes={at}-{at + count - 1}", "User-Agent": "rayflow"})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
            if answer.status != http.HTTPStatus.PARTIAL_CONTENT:
                raise InvalidInput(f"{url}: the server gives only the whole file (no range requests): download it first")
            total = re.fullmatch(r"bytes \d+-\d+/(\d+)", answer.headers.get("Content-Range", ""))
            if total is None:
                raise InvalidInput(f"{url}: the server does not say how large it is: download it first")
            return answer.read(), int(total[1])
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise InvalidInput(f"{url} is empty: check the address") from error
        if error.code >= 500 or error.code in _WORTH_ANOTHER_TRY:
            raise SourceUnreachable(f"{url}: the server answers {error.code} {error.reason}; try again later") from error
        raise InvalidInput(f"{url}: the server answers {error.code} {error.reason}: check the address") from error
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        words = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
        raise SourceUnreachable(f"{url} cannot be reached ({words}): check the address") from error


def was_away(source: str) -> bool:
    """Whether a source cannot be reached now; then returns once it can be, or after ``_PATIENCE_S``.

    For work that failed: that a server is away for a minute is no reason to have it fail for good.
    """
    if not is_url(source):
        return False
    until_s = time.monotonic() + _PATIENCE_S
    away = False
    while True:
        try:
            size_bytes(source)
            return away
        except SourceUnreachable:
            away = True
        except RayflowError:  # it answers, if only that there is nothing
            return away
        if time.monotonic() > until_s:
            return False
        time.sleep(_AGAIN_S)


@contextmanager
def _said_of_source(source: str) -> Generator[None]:
    """Errors of a bucket as errors of a source."""
    try:
        yield
    except (NotFound, StoreUnsuitable) as error:
        raise InvalidInput(f"{source}: {error}: check the address and the credentials") from error
    except StoreUnavailable as error:
        raise SourceUnreachable(f"{source} cannot be reached: {error}") from error
