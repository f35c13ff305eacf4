"""Values to bytes and back: what steps take and return, the state of entities, what signals carry.

Contract
    ``decode(encode(value))`` equals ``value`` and has the same types throughout, or ``encode`` raises CodecError that
    names the place inside the value. Equal values of equal types, made in the same order, have equal bytes in every
    process and on every machine, whatever its hash seed; so ``fingerprint`` can tell on replay whether an operation
    still has the arguments on record. ``decode`` returns what was stored or raises CodecError, whatever bytes it is
    given.

What can be stored
    None, bool, int of any size, float, complex, str (lone surrogates included), bytes, list, tuple, dict (order kept,
    any keys that can be stored), set, frozenset, range; datetime, date, time, timedelta, timezone, ZoneInfo, Decimal,
    UUID, paths; Enum members, dataclasses, NamedTuples and ``msgspec.Struct`` of importable modules; numpy arrays and
    scalars, Arrow tables and record batches; anything inside ``Pickled``. Subclasses of these types are refused, for
    what they add would be lost. Two references to one object come back as two objects.

Form
    One byte of version, then MessagePack. JSON-like values are plain MessagePack, readable with any tool. Everything
    else is a map of one entry whose key is an integer tag; no other map has an integer key, as other dicts are stored
    tagged, as pairs.

Trust
    ``decode`` builds nothing but the types above. To do so it imports the modules that stored values name and runs
    the ``__post_init__``, or the ``_missing_`` of a Flag, of the types found there. ``Pickled`` content is unpickled,
    which runs whatever its bytes say. So bytes are to be decoded only from a store that is written to by trusted
    people.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, Final

import msgspec

from rayflow.core import codec_tags
from rayflow.core.codec_lifting import lift, lift_fields
from rayflow.core.codec_lowering import (
    CAREFUL,
    CAREFUL_OPAQUE,
    ENCODER,
    FAST,
    FAST_OPAQUE,
    Lowering,
    Pickled,
    first_refused,
)
from rayflow.errors import CodecError

__all__ = [
    "FINGERPRINT_BYTES",
    "FORMAT_VERSION",
    "Pickled",
    "decode",
    "decode_fields",
    "encode",
    "encode_for_fingerprint",
    "encode_with_fingerprint",
    "fingerprint",
]

FORMAT_VERSION: Final = 1
FINGERPRINT_BYTES: Final = 16

_VERSION_BYTE = bytes((FORMAT_VERSION,))
_DECODER = msgspec.msgpack.Decoder()
_PICKLED_MARK = bytes((0x81, codec_tags.PICKLED, 0x93))  # A map of one entry, the tag, an array of three.


def encode(value: object, *, label: str = "value") -> bytes:
    """The stored form of ``value``.

    ``label`` names the value in errors, as in ``args[1].chunks[3].handle``.
    Raises CodecError if some part cannot be stored; it says which, and what to do.
    """
    return _VERSION_BYTE + _encode_body(value, label, FAST, CAREFUL)


def decode(data: bytes) -> Any:
    """The value that ``encode`` stored. Arrays are writable and in C order.

    Raises CodecError if ``data`` is of another format version, damaged or cut short, or if a type it names is gone or
    no longer fits the stored fields.
    """
    return _decode(data, lift)


def decode_fields(data: bytes) -> Any:
    """As ``decode``, but a dataclass, Struct or NamedTuple is given as a dict of its fields, whatever has become of its type."""
    return _decode(data, lift_fields)


def _decode(data: bytes, lifting: Callable[[object], Any]) -> Any:
    if len(data) == 0:
        raise CodecError("a stored value cannot be empty: its bytes are lost or were never written. Restore the object.")
    if data[0] != FORMAT_VERSION:
        raise CodecError(
            f"a stored value starts with format version {data[0]}, this rayflow reads version {FORMAT_VERSION}. "
            "Read it with the rayflow that wrote it; if that is this one, the bytes are damaged."
        )
    try:
        return lifting(_DECODER.decode(memoryview(data)[1:]))
    except CodecError:
        raise
    except RecursionError as error:
        raise CodecError("a stored value nests too deep to be read from here; call decode higher up the stack.") from error
    except Exception as error:
        raise CodecError(
            f"a stored value of {len(data)} bytes is damaged ({type(error).__name__}: {error}). Restore it from a copy."
        ) from error


def fingerprint(value: object, *, label: str = "value") -> str:
    """BLAKE2b-128 of the stored form in hex (32 digits), equal in every process; of ``Pickled`` only the type counts.

    Raises CodecError as ``encode`` does.
    """
    return _digest(_VERSION_BYTE + _encode_body(value, label, FAST_OPAQUE, CAREFUL_OPAQUE))


def encode_with_fingerprint(value: object, *, label: str = "value") -> tuple[bytes, str]:
    """``(encode(value), fingerprint(value))`` for the price of one encoding, unless something in it is ``Pickled``."""
    data, compared = encode_for_fingerprint(value, label=label)
    return data, _digest(compared)


def encode_for_fingerprint(value: object, *, label: str = "value") -> tuple[bytes, bytes]:
    """``encode(value)``, and the bytes whose digest is its fingerprint: the same, unless something in it is ``Pickled``."""
    data = encode(value, label=label)
    if _PICKLED_MARK in data:  # Or bytes that look like it: then the second encoding is the same as the first.
        return data, _VERSION_BYTE + _encode_body(value, label, FAST_OPAQUE, CAREFUL_OPAQUE)
    return data, data


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=FINGERPRINT_BYTES).hexdigest()


def _encode_body(value: object, label: str, fast: Lowering, careful: Lowering) -> bytes:
    try:
        try:
            return ENCODER.encode(fast.lower(value))
        except (
            OverflowError,
            UnicodeEncodeError,
        ):  # An int over 64 bits or a lone surrogate: too rare to look for at first.
            return ENCODER.encode(careful.lower(value))
    except CodecError as error:
        path, reason = first_refused(value, careful)
        reason = reason or error
        raise CodecError(f"{label}{path}: {reason}") from reason.__cause__
    except RecursionError as error:
        raise CodecError(f"{label} contains itself or nests too deep. Flatten it; name what repeats by an id.") from error
    except ValueError as error:
        raise CodecError(f"{label} cannot be stored ({error}). Write large data to a file and pass its path.") from error
