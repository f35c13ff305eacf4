"""Large values that go from one step to another: stored once, and in memory only where somebody looks at them.

A large argument is a blob of its own, named by its content, so a result that is passed on is the blob that is there already. And
what ``ctx.step`` or ``ctx.map`` returned may itself be an argument: then its result is handed on as it is stored, unread.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, Protocol, cast

import msgspec

from rayflow.core import codec, codec_arrays, codec_tags, limits
from rayflow.core.records import Blob, Stored

Place = int | str
"""Where an argument belongs: its position, or its name."""

Passed = tuple[tuple[Place, Stored], ...]
"""Arguments that are stored apart; in their places stands None."""


class Keeper(Protocol):
    """Has a blob written before the records that name it."""

    def store_apart(self, data: bytes, blob: Blob | None = None) -> Blob: ...


class Large:
    """A large argument that may not be in the store yet."""

    __slots__ = ("_blob", "_data")

    def __init__(self, blob: Blob, data: bytes) -> None:
        self._blob = blob
        self._data: bytes | None = data

    def stored(self, keeper: Keeper) -> Blob:
        """Where it is. Handed over once: what is returned stays true as long as whoever calls this."""
        if self._data is not None:
            keeper.store_apart(self._data, self._blob)
            self._data = None
        return self._blob


Part = Stored | Large
Parts = tuple[tuple[Place, Part], ...]


def stored_parts(parts: Parts, keeper: Keeper) -> Passed:
    """The same as they travel."""
    if not parts:
        return ()
    return tuple((place, part.stored(keeper) if isinstance(part, Large) else part) for place, part in parts)


_VERSION: Final = bytes((codec.FORMAT_VERSION,))
_NONE: Final = b"\xc0"
_NOTHING: Final = msgspec.Raw(_NONE)
_BEGIN: Final = _VERSION + bytes((0x81, codec_tags.TUPLE, 0x92, 0x81, codec_tags.TUPLE))
"""How encoded arguments begin: a tuple of two, the first of which is a tuple."""
_SMALL: Final = frozenset((type(None), bool, int, float, list, dict, tuple))
"""Types of which not even a look tells whether a value is large, or it never is."""
_ENCODER: Final = msgspec.msgpack.Encoder()
_ARGUMENTS: Final = msgspec.msgpack.Decoder(dict[int, tuple[dict[int, list[msgspec.Raw]], msgspec.Raw]])
_BY_NAME: Final = msgspec.msgpack.Decoder(dict[str, msgspec.Raw])


def part(body: bytes | memoryview, known: Collection[str], head: bytes = b"") -> Part:
    """An encoded value, without its byte of version, as a blob of its own. ``known``: hashes of blobs that are in the store."""
    head = _VERSION + head
    digest = hashlib.sha256(head)
    digest.update(body)
    blob = Blob(digest.hexdigest(), len(head) + len(body))
    return blob if blob.hash in known else Large(blob, b"".join((head, body)))


def split(arguments: bytes, known: Collection[str]) -> tuple[bytes, Parts]:
    """Encoded arguments without those that are large, and these."""
    limit = max(limits.current().inline_bytes, 2)  # None, which is encoded in two bytes, is the mark of an empty place, and stays
    if len(arguments) <= limit:
        return arguments, ()
    outer = _ARGUMENTS.decode(memoryview(arguments)[1:])
    by_position, low_by_name = outer[codec_tags.TUPLE]
    parts: list[tuple[Place, Part]] = []
    args = by_position[codec_tags.TUPLE]
    for index, raw in enumerate(args):
        if len(memoryview(raw)) >= limit:
            parts.append((index, part(memoryview(raw), known)))
            args[index] = _NOTHING
    try:
        kwargs: Any = _BY_NAME.decode(low_by_name)
    except msgspec.ValidationError:  # names that are no Unicode
        kwargs = low_by_name
    else:
        for name, raw in kwargs.items():
            if len(memoryview(raw)) >= limit:
                parts.append((name, part(memoryview(raw), known)))
                kwargs[name] = _NOTHING
    if not parts:
        return arguments, ()
    return _VERSION + _ENCODER.encode({codec_tags.TUPLE: [{codec_tags.TUPLE: args}, kwargs]}), tuple(parts)


def encoded(args: tuple[Any, ...], kwargs: dict[str, Any], known: Collection[str]) -> tuple[bytes, str, Parts]:
    """Arguments without those that are large; the fingerprint, which is that of all; and the large ones. Raises CodecError."""
    limit = limits.current().inline_bytes
    for one in args:
        if type(one) not in _SMALL and _is_large(one, limit):
            break
    else:
        data, fingerprint = codec.encode_with_fingerprint((args, kwargs), label="arguments")
        own, parts = split(data, known) if len(data) > limit else (data, ())
        return own, fingerprint, parts
    # One by one, as a copy of all would be as large again.
    begin = _BEGIN + _ENCODER.encode([None] * len(args))[: -len(args)]
    pieces: list[bytes | memoryview] = [begin]
    digest = hashlib.blake2b(begin, digest_size=codec.FINGERPRINT_BYTES)
    apart: list[tuple[Place, Part]] = []
    for place, one in enumerate(args):
        head, body, compared = _pieces(one, f"arguments[0][{place}]")
        digest.update(head)
        digest.update(compared)
        if len(head) + len(body) >= limit:
            apart.append((place, part(body, known, head)))
            pieces.append(_NONE)
        else:
            pieces += (head, body)
        del body, compared
    data, compared = codec.encode_for_fingerprint(kwargs, label="arguments[1]")
    digest.update(memoryview(compared)[1:])
    pieces.append(memoryview(data)[1:])
    own, others = split(b"".join(pieces), known)
    return own, digest.hexdigest(), (*apart, *others)


def _is_large(value: object, limit: int) -> bool:
    """Whether it is large for sure; of containers only encoding tells."""
    kind = type(value)
    if kind is bytes or kind is str:
        return len(cast("bytes | str", value)) > limit
    return (codec_arrays.is_array(kind) or codec_arrays.is_table(kind)) and cast("Any", value).nbytes > limit


def _pieces(value: object, label: str) -> tuple[bytes, bytes | memoryview, bytes | memoryview]:
    """How a value is encoded, without its byte of version: a head, what follows it, and what follows it in a fingerprint."""
    if type(value) is bytes and 0xFFFF < len(value) < 2**32:
        return b"\xc6" + len(value).to_bytes(4, "big"), value, value  # as it is: no copy of it
    data, compared = codec.encode_for_fingerprint(value, label=label)
    return b"", memoryview(data)[1:], memoryview(compared)[1:]


def joined(
    own: Stored, shared: Stored | None, passed: Passed, decode: Callable[[Stored], Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a step, positional and by name. What is ``shared`` comes behind those in ``own``."""
    args, kwargs = decode(own)
    every: list[Any] = [*args] if shared is None else [*args, *decode(shared)]
    for place, stored in passed:
        if isinstance(place, int):
            every[place] = decode(stored)
        else:
            kwargs[place] = decode(stored)
    return tuple(every), kwargs


# -- unread --------------------------------------------------------------------------------------------------------------------


class Source:
    """An operation whose result is an argument of others: what they wait for."""

    __slots__ = ("_takers", "error", "operation", "stored")

    def __init__(self, operation: str) -> None:
        self.operation = operation
        self.stored: Stored | None = None
        self.error: BaseException | None = None
        self._takers: list[Callable[[Source], None]] = []

    @property
    def settled(self) -> bool:
        """Whether it has a result or an error."""
        return self.stored is not None or self.error is not None

    def take(self, taker: Callable[[Source], None]) -> None:
        """Have ``taker`` called once it is settled, which may be now."""
        if self.settled:
            taker(self)
        else:
            self._takers.append(taker)

    def leave(self, taker: Callable[[Source], None]) -> None:
        """It is not wanted by this one any more."""
        if taker in self._takers:
            self._takers.remove(taker)

    def settle(self, stored: Stored | None, error: BaseException | None) -> None:
        """It has come, or never will."""
        if not self.settled:
            self.stored, self.error = stored, error
            takers, self._takers = self._takers, []
            for taker in takers:
                taker(self)


class Gathering:
    """Waits for the sources of an operation; then ``ask``, or, with the first error among them, ``fail`` is called."""

    def __init__(
        self, sources: Mapping[Place, Source], ask: Callable[[Passed], None], fail: Callable[[BaseException], None]
    ) -> None:
        self.over = False
        """Whether nothing is waited for any more."""
        self._sources = sources
        self._ask = ask
        self._fail = fail
        self._left = len(sources)
        for source in sources.values():
            if not self.over:
                source.take(self._come)

    def drop(self) -> None:
        """Wait no more."""
        if not self.over:
            self.over = True
            for source in self._sources.values():
                source.leave(self._come)

    def _come(self, source: Source) -> None:
        self._left -= 1
        if source.error is not None:
            self.drop()
            self._fail(source.error)
        elif not self._left:
            self.over = True
            self._ask(tuple((place, one.stored) for place, one in self._sources.items() if one.stored is not None))


def fingerprint_with(fingerprint: str, sources: Mapping[Place, Source]) -> str:
    """That of arguments some of which are results of operations, by their identity; in the other one they are None."""
    return codec.fingerprint([fingerprint, [[place, source.operation] for place, source in sources.items()]])
