"""The arguments of an operation as they travel. Most are few and plain, and the same ones come again and again: those are encoded,
and decoded, once.

Only values that cannot be changed are shared between calls, and only small ones are kept.
"""

from __future__ import annotations

from functools import lru_cache
from types import NoneType
from typing import Any, Final, cast

from rayflow.core import codec

_KEPT: Final = 4096
_MAX_KEPT_BYTES: Final = 64

_PLAIN: Final = frozenset((int, bool, str, NoneType))
"""Types whose values are stored alike where they and their types are equal: not so for floats, as 0.0 == -0.0."""

_SHARED: Final = _PLAIN | {float, bytes}

_decoded: dict[bytes, tuple[Any, ...]] = {}


def encode_arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[bytes, str]:
    """``codec.encode_with_fingerprint`` of both. Raises CodecError."""
    if not kwargs:
        kinds = tuple(map(type, args))
        if _PLAIN.issuperset(kinds) and (not kinds or len(str(args)) <= _MAX_KEPT_BYTES):
            return _encode_plain(args, kinds)
    return codec.encode_with_fingerprint((args, kwargs), label="arguments")


@lru_cache(_KEPT)
def _encode_plain(args: tuple[Any, ...], kinds: tuple[type, ...]) -> tuple[bytes, str]:
    value: tuple[tuple[Any, ...], dict[str, Any]] = (args, {})
    return codec.encode_with_fingerprint(value, label="arguments")


def decode_arguments(data: bytes) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What ``encode_arguments`` was given. Raises CodecError."""
    known = _decoded.get(data)
    if known is not None:
        return known, {}
    args, kwargs = cast("tuple[tuple[Any, ...], dict[str, Any]]", codec.decode(data))
    if not kwargs and len(data) <= _MAX_KEPT_BYTES and all(type(one) in _SHARED for one in args):
        if len(_decoded) >= _KEPT:
            _decoded.clear()
        _decoded[data] = args
    return args, kwargs
