"""The bytes in one slot of a log: records of an owner, or the claim of a new one.

Contract: ``decode`` gives back exactly what ``encode`` was given, or raises; bytes that were altered, cut or extended
are never read as something else. The same segment always has the same bytes, so that a writer who does not know
whether its write happened can write again, and recognise its own.

Layout, little-endian::

    offset  size  field
    0       4     magic "RFSG"
    4       1     format version, 1
    5       1     kind: 1 records, 2 claim
    6       1     n, length of the incarnation
    7       1     0
    8       4     c, number of records
    12      8     number of the slot, from 0
    20      8     epoch, from 1
    28      16    checksum of the predecessor: the last 16 bytes of slot number - 1; zeros in slot 0
    44      n     incarnation, ASCII
    44+n    4c    lengths of the records
    ...           the records, one after the other
    end-16  16    checksum: BLAKE2b-128 of everything before it

A cryptographic checksum rather than a CRC, because it also is the link from one segment to the next: two different
segments must not pass for each other. Magic and checksum keep their places in later versions, so that "newer" can be
told from "damaged".
"""

from __future__ import annotations

import enum
import hashlib
import re
import struct
from dataclasses import dataclass

from rayflow.errors import Damaged, InvalidInput, StoreUnsuitable

CHECKSUM_BYTES = 16
NO_PREDECESSOR = bytes(CHECKSUM_BYTES)
"""What slot 0 carries as the checksum of its predecessor."""

_MAGIC = b"RFSG"
_VERSION = 1
_HEADER = struct.Struct("<4sBBBxIQQ16s")
_SMALLEST = _HEADER.size + CHECKSUM_BYTES
_INCARNATION = re.compile(r"[A-Za-z0-9]{1,32}", re.ASCII)


class Kind(enum.IntEnum):
    """What a slot holds."""

    RECORDS = 1
    CLAIM = 2


@dataclass(frozen=True, slots=True)
class Segment:
    """One slot of a log.

    ``predecessor`` is the checksum of the slot before (16 bytes). ``records`` are opaque; a claim has none, and
    records may be empty too: such a segment only proves that its writer still owns the log.
    """

    kind: Kind
    number: int
    epoch: int
    incarnation: str
    predecessor: bytes
    records: tuple[bytes, ...] = ()


def check_incarnation(incarnation: str) -> None:
    """Raise InvalidInput unless ``incarnation`` is 1 to 32 ASCII letters and digits, as names of objects need it."""
    if not _INCARNATION.fullmatch(incarnation):
        raise InvalidInput(f"{incarnation!r} is no incarnation: 1 to 32 ASCII letters and digits, for example uuid4().hex")


def checksum(data: bytes) -> bytes:
    """The checksum that an encoded segment carries (16 bytes); it is what the successor names as its predecessor."""
    return data[-CHECKSUM_BYTES:]


def encode(segment: Segment) -> bytes:
    """The bytes of ``segment``, always the same for the same segment.

    Raises InvalidInput when a field does not fit: 4 GiB per record, 2**32 - 1 records, 2**64 - 1 for number and epoch.
    """
    incarnation = segment.incarnation.encode("ascii")
    records = segment.records
    try:
        header = _HEADER.pack(
            _MAGIC,
            _VERSION,
            segment.kind,
            len(incarnation),
            len(records),
            segment.number,
            segment.epoch,
            segment.predecessor,
        )
        lengths = struct.pack(f"<{len(records)}I", *map(len, records))
    except struct.error as error:
        raise InvalidInput(f"segment {segment.number} of epoch {segment.epoch} does not fit its format: {error}") from error
    content = b"".join((header, incarnation, lengths, *records))
    return content + _digest(content)


def decode(data: bytes, name: str) -> Segment:
    """The segment in ``data``; ``name`` is the object's, for messages.

    Raises Damaged, which names the object and the offset of the first byte that is wrong as far as that can be told,
    and StoreUnsuitable for a segment of a later format version.
    """
    end = len(data) - CHECKSUM_BYTES
    if data[:4] != _MAGIC[: len(data)]:
        raise _damaged(name, 0, f"starts with {data[:4]!r} and not with {_MAGIC!r}")
    if len(data) < _SMALLEST:
        raise _damaged(name, len(data), f"ends there, but the smallest segment has {_SMALLEST} bytes")
    _, version, kind, incarnation_size, count, number, epoch, predecessor = _HEADER.unpack_from(data)
    lengths_at = _HEADER.size + incarnation_size
    records_at = lengths_at + 4 * count
    intact = _digest(memoryview(data)[:end]) == data[end:]
    if intact and version != _VERSION:
        raise StoreUnsuitable(f"{name} has format version {version}, this rayflow reads {_VERSION}: upgrade rayflow to read it")
    if records_at > end:
        raise _damaged(name, len(data), f"ends there, but {count} records are announced")
    lengths = struct.unpack_from(f"<{count}I", data, lengths_at)
    if (announced := records_at + sum(lengths) + CHECKSUM_BYTES) != len(data):
        raise _damaged(name, min(announced, len(data)), f"has {len(data)} bytes where its header announces {announced}")
    if not intact:
        raise _damaged(name, end, "the checksum there does not match the bytes before it")
    records: list[bytes] = []
    at = records_at
    for length in lengths:
        records.append(data[at : at + length])
        at += length
    try:
        return Segment(Kind(kind), number, epoch, data[_HEADER.size : lengths_at].decode("ascii"), predecessor, tuple(records))
    except ValueError as error:
        raise _damaged(name, 5, f"holds what no segment holds: {error}") from error


def _digest(content: bytes | memoryview) -> bytes:
    return hashlib.blake2b(content, digest_size=CHECKSUM_BYTES).digest()


def _damaged(name: str, offset: int, what: str) -> Damaged:
    return Damaged(f"{name} is damaged at byte {offset}: {what}. Restore the object from a copy")
