"""The fenced log: one owner at a time, proved by the log itself; no lock service, no lease, no clock.

A log is a dense sequence of numbered slots below a prefix, each written once, by create-if-absent, and never changed::

    <prefix>log/<number, 12 digits>                                     a segment of records, or a claim
    <prefix>snapshots/<number>-<first>-<incarnation>-<digest>.parquet   the state after slot <number>

An owner appends by creating the next slot. A new owner replays until a slot is missing and creates that one as its
*claim*; the next write of the old owner hits the claim, so it is fenced by its own write. What holds, whatever stops,
crashes or comes late:

- What ``append`` returned from is in what every later ``recover`` and ``read`` returns, once and in order.
- Whoever is not the owner any more learns it from its next ``append`` (Fenced). What it can still write, delete or
  snapshot is a true prefix, or lies where nobody reads.
- Every claim has the epoch of its predecessor + 1, and within an epoch one incarnation writes.

The rules that this rests on, each shown to be needed in ``tests/checkpoint/test_log_model.py``: claims are never
deleted, else a stalled owner could create its slot again and acknowledge what nobody will read. After a claim the
snapshots are listed again: if the newest is not the one that the replay started from, the replay may have run into
the gap of a truncation. "Already exists" and time-outs are settled by reading the slot back. A snapshot holds the
state after a durable slot and nothing more.

Every operation is a generator that yields requests to a store and is sent their results (errors are thrown in): it
does no I/O, knows no time and draws no random numbers. ``rayflow.checkpoint.requests.run`` drives it with a real
store, ``rayflow.testing.log_simulation`` with a hostile one. An operation that raised StoreUnavailable may be started
again with the same arguments.

Truncation after a snapshot deletes the segments *before* the snapshot's own slot. That slot stays until the next
snapshot: it anchors the chain of checksums, and a snapshot that somebody removed shows as a hole rather than as a
young log. ``<first>`` in the name of a snapshot is the first slot that may hold something other than a claim:
truncation starts there, and so does whoever finishes a truncation that was interrupted. So its cost depends on what
was written since the last one, not on the age of the log. A write that comes late may land in a slot that was
truncated: it stays there, and nobody reads it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TypeVar

from rayflow.checkpoint.requests import Create, Delete, Get, GetMany, List, Operation
from rayflow.checkpoint.segment import (
    NO_PREDECESSOR,
    Kind,
    Segment,
    check_incarnation,
    checksum,
    decode,
    encode,
)
from rayflow.checkpoint.store import ObjectInfo
from rayflow.errors import AlreadyExists, Damaged, Fenced, InvalidInput, NotFound, StoreError, StoreUnavailable

T = TypeVar("T")

_BATCH_GET = 256
_BATCH_DELETE = 1000


def slot_key(prefix: str, number: int) -> str:
    """The key of a slot; keys sort like their numbers."""
    return f"{prefix}log/{number:012d}"


def snapshot_prefix(prefix: str) -> str:
    """What the keys of all snapshots of a log start with."""
    return f"{prefix}snapshots/"


@dataclass(frozen=True, slots=True, order=True)
class SnapshotName:
    """What the name of a snapshot tells; names sort like their numbers.

    The object holds the state after slot ``number``; every slot before ``first`` was a claim or gone when it was
    written. ``digest`` is the BLAKE2b-128 of the object, in hex.
    """

    number: int
    first: int
    incarnation: str
    digest: str

    def key(self, prefix: str) -> str:
        """The object's key in the log below ``prefix``."""
        return f"{snapshot_prefix(prefix)}{self.number:012d}-{self.first:012d}-{self.incarnation}-{self.digest}.parquet"


_SNAPSHOT_NAME = re.compile(r"(\d{12})-(\d{12})-([A-Za-z0-9]{1,32})-([0-9a-f]{32})\.parquet", re.ASCII)
_SLOT_NAME = re.compile(r"\d{12}", re.ASCII)


def _digest(body: bytes) -> str:
    return hashlib.blake2b(body, digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class Tail:
    """The end of a log as its owner knows it. Every append makes a new one; an old one stays good for a snapshot.

    ``next_number``: the slot to be written next. ``checksum``: of the slot before it. ``snapshot_number``: of the
    newest snapshot, None before the first. ``first``: every slot before it is a claim or gone. ``leftovers``: slots
    before the snapshot's own that were seen and may be more than claims. ``claims``: the claims from the snapshot's
    slot on. ``replay_bytes``: what a recovery would have to replay on top of the snapshot; it is what decides when
    the next snapshot is due.
    """

    prefix: str
    incarnation: str
    epoch: int
    next_number: int
    checksum: bytes
    snapshot_number: int | None
    first: int
    leftovers: tuple[int, ...]
    claims: tuple[int, ...]
    replay_bytes: int

    @property
    def number(self) -> int:
        """The last durable slot."""
        return self.next_number - 1

    def after_snapshot(self, snapshot: Snapshot) -> Tail:
        """This tail, once ``snapshot`` is written and truncated; appends may have gone on meanwhile."""
        return replace(
            self,
            snapshot_number=snapshot.number,
            first=snapshot.number,
            leftovers=(),
            claims=tuple(number for number in self.claims if number >= snapshot.number),
            replay_bytes=self.replay_bytes - snapshot.replaced_bytes,
        )


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A durable snapshot whose truncation is done. ``replaced_bytes``: log that need not be replayed any more."""

    key: str
    number: int
    replaced_bytes: int


@dataclass(frozen=True, slots=True)
class View:
    """The content of a log: the state in ``snapshot`` (None before the first one), then ``segments`` in order.

    ``snapshot_number`` is the slot after which the state was taken. ``segments`` are those with records, without
    claims, with ascending but not consecutive numbers. ``next_number`` and ``checksum`` are where it ends: the first
    slot that was missing, and the checksum of the one before; see ``rayflow.checkpoint.continuing``.
    """

    snapshot: bytes | None
    snapshot_number: int | None
    segments: tuple[Segment, ...]
    next_number: int = field(default=0, compare=False)
    checksum: bytes = field(default=NO_PREDECESSOR, compare=False)


@dataclass(frozen=True, slots=True)
class Recovered:
    """A log that was taken over: where to append, and what it holds."""

    tail: Tail
    view: View


def recover(prefix: str, incarnation: str) -> Operation[Recovered]:
    """Take the log below ``prefix`` over, from whoever owns it; an empty one is begun.

    ``prefix`` is empty or ends with "/". ``incarnation`` is fresh for every take-over, never used before by anybody,
    also not by this process before it was Fenced; only a ``recover`` that raised may be repeated with its own.

    Raises Damaged when something is missing or not what was written, StoreUnavailable, StoreUnsuitable when a later
    rayflow wrote it, InvalidInput.
    """
    _check_prefix(prefix)
    check_incarnation(incarnation)
    while True:
        start = yield from _newest_snapshot(prefix)
        try:
            replay = yield from _replay(prefix, start)
            yield from _claim(replay, incarnation)
        except Damaged:
            if (yield from _is_still_newest(prefix, start)):
                raise
        else:
            if (yield from _is_still_newest(prefix, start)):
                return Recovered(replay.tail(), replay.view())


def read(prefix: str) -> Operation[View]:
    """What the log holds, without taking it over: everything acknowledged before the call, perhaps more.

    A log that was never written is empty. Raises Damaged, StoreUnavailable, StoreUnsuitable, InvalidInput.
    """
    _check_prefix(prefix)
    while True:
        start = yield from _newest_snapshot(prefix)
        try:
            replay = yield from _replay(prefix, start)
        except Damaged:
            if (yield from _is_still_newest(prefix, start)):
                raise
        else:
            # What chains without a gap may still end in a claim that came late into a slot that had held records.
            if (yield from _is_still_newest(prefix, start)):
                return replay.view()


def append(tail: Tail, records: Sequence[bytes]) -> Operation[Tail]:
    """Make ``records`` durable, all or none, after everything before ``tail``; none at all just prove ownership.

    One append at a time. Raises Fenced when somebody else has taken over: whether the records are durable is then
    unknown, and only the new owner can tell. Raises StoreUnavailable when they may be there, or still arrive: repeat
    with the same tail and the same records, nothing else, or drop the tail and recover. Raises InvalidInput.
    """
    segment = Segment(Kind.RECORDS, tail.next_number, tail.epoch, tail.incarnation, tail.checksum, tuple(records))
    data = encode(segment)
    key = slot_key(tail.prefix, segment.number)
    try:
        found = yield from _create(key, data)
    except NotFound as error:
        # Taken, and then free again: a segment that a successor truncated. Only this owner could have put one there.
        raise Fenced(f"{key} was replayed and truncated by a new owner; drop what is in memory and recover") from error
    if not _is_own(found, data):
        raise Fenced(
            f"{key} holds {_owner(found, key)}, not the records of epoch {tail.epoch} of {tail.incarnation}: "
            f"the log has a new owner; drop what is in memory and recover"
        )
    return replace(
        tail,
        next_number=tail.next_number + 1,
        checksum=checksum(data),
        replay_bytes=tail.replay_bytes + len(data),
    )


def write_snapshot(at: Tail, body: bytes) -> Operation[Snapshot]:
    """Store ``body``, the state after ``at.number``, and delete what it replaces. ``after_snapshot`` wants the result.

    ``at`` is the tail from when the state was taken, appends may go on meanwhile; but only one snapshot at a time.
    The state must hold everything up to ``at.number`` and nothing that is not durable yet. Deletes older snapshots
    and segments before ``at.number``, never a claim.

    Raises StoreUnavailable: the snapshot may be there, may still arrive, and may be truncated by halves. All of that
    is harmless, and put right by the next snapshot: the same again, or a later one.
    """
    name = SnapshotName(at.number, at.first, at.incarnation, _digest(body))
    key = name.key(at.prefix)
    with suppress(AlreadyExists):  # by an earlier try: the name is this incarnation's and has the body's digest
        yield Create(key, body)
    older = yield from _snapshots(at.prefix)
    doomed = [snapshot.key(at.prefix) for snapshot in older if snapshot.number < at.number]
    doomed.extend(slot_key(at.prefix, number) for number in (yield from _leftover_segments(at)))
    doomed.extend(slot_key(at.prefix, number) for number in _replaced_segments(at))
    for keys in _batches(doomed, _BATCH_DELETE):
        yield Delete(keys)
    return Snapshot(key, at.number, at.replay_bytes)


def _is_own(found: bytes, written: bytes) -> bool:
    """Whether a slot holds what this writer wrote; number, epoch, incarnation and chain are all part of the bytes."""
    return found == written


def _owner(found: bytes, key: str) -> str:
    try:
        other = decode(found, key)
    except StoreError as error:  # of a later format, or damaged: the slot is lost all the same, recover will tell
        return f"something unreadable ({error})"
    return f"{other.kind.name} of epoch {other.epoch} of {other.incarnation}"


def _is_still_newest(prefix: str, start: SnapshotName | None) -> Operation[bool]:
    """The second look: was nothing from ``start`` on truncated up to now?

    Only a newer snapshot allows that, and it is there before the first deletion and until there is a newer one still.
    """
    return (yield from _newest_snapshot(prefix)) == start


def _replaced_segments(at: Tail) -> list[int]:
    """The slots that a snapshot at ``at`` replaces, of those that its owner replayed or wrote itself."""
    claims = frozenset(at.claims)
    return [number for number in range(at.snapshot_number or 0, at.number) if number not in claims]


def _leftover_segments(at: Tail) -> Operation[list[int]]:
    """What an interrupted truncation left over, told from the claims among it by reading."""
    segments: list[int] = []
    for numbers in _batches(at.leftovers, _BATCH_GET):
        found: tuple[bytes | None, ...] = yield GetMany(tuple(slot_key(at.prefix, number) for number in numbers))
        for number, data in zip(numbers, found, strict=True):
            if data is not None and not _may_be_claim(data, slot_key(at.prefix, number)):
                segments.append(number)
    return segments


def _may_be_claim(data: bytes, key: str) -> bool:
    try:
        return decode(data, key).kind is Kind.CLAIM
    except StoreError:
        return True  # nobody needs its content any more, but the slot must not become free if it was a claim


class _Replay:
    """The end and the content of a log while its slots come in, each checked against the one before."""

    __slots__ = (
        "_checksum",
        "_claims",
        "_epoch",
        "_incarnation",
        "_leftovers",
        "_replay_bytes",
        "_segments",
        "_snapshot",
        "_start",
        "next_number",
        "prefix",
    )

    def __init__(self, prefix: str, start: SnapshotName | None, snapshot: bytes | None, leftovers: Iterable[int]) -> None:
        self.prefix = prefix
        self._start = start
        self._snapshot = snapshot
        self._leftovers = tuple(leftovers)
        self._claims: list[int] = []
        self._segments: list[Segment] = []
        self._replay_bytes = 0
        self._epoch = 0
        self._incarnation = ""
        self._checksum = NO_PREDECESSOR
        self.next_number = 0 if start is None else start.number

    def accept(self, data: bytes) -> None:
        """Take in the next slot. Raises Damaged when it is not what must follow."""
        key = slot_key(self.prefix, self.next_number)
        segment = decode(data, key)
        if segment.number != self.next_number:
            raise Damaged(f"{key} holds slot {segment.number}: objects were swapped or renamed. Restore a copy")
        if self._start is not None and segment.number == self._start.number:
            if segment.incarnation != self._start.incarnation:
                raise Damaged(
                    f"{key} was written by {segment.incarnation}, but {self._start.key(self.prefix)}, the snapshot "
                    f"taken after it, by another: two logs were mixed. Restore them from a copy"
                )
        else:
            self._check_succession(segment, key)
            self._replay_bytes += len(data)
            if segment.kind is Kind.RECORDS:
                self._segments.append(segment)
        if segment.kind is Kind.CLAIM:
            self._claims.append(segment.number)
        self._epoch = segment.epoch
        self._incarnation = segment.incarnation
        self._checksum = checksum(data)
        self.next_number += 1

    def _check_succession(self, segment: Segment, key: str) -> None:
        if segment.predecessor != self._checksum:
            raise Damaged(
                f"{key} follows a slot with checksum {segment.predecessor.hex()}, but the one before it has "
                f"{self._checksum.hex()}: one of the two was replaced. Restore it from a copy"
            )
        if segment.kind is Kind.CLAIM:
            fits = segment.epoch == self._epoch + 1
        else:
            fits = segment.epoch == self._epoch and segment.incarnation == self._incarnation
        if not fits:
            raise Damaged(
                f"{key} has {segment.kind.name} of epoch {segment.epoch} by {segment.incarnation}, which cannot follow "
                f"epoch {self._epoch} by {self._incarnation or 'nobody'}: two logs were mixed. Restore it from a copy"
            )

    def claim(self, incarnation: str) -> bytes:
        """The claim that ``incarnation`` would put into the next slot."""
        return encode(Segment(Kind.CLAIM, self.next_number, self._epoch + 1, incarnation, self._checksum))

    def tail(self) -> Tail:
        start = self._start
        return Tail(
            prefix=self.prefix,
            incarnation=self._incarnation,
            epoch=self._epoch,
            next_number=self.next_number,
            checksum=self._checksum,
            snapshot_number=None if start is None else start.number,
            first=0 if start is None else start.first,
            leftovers=self._leftovers,
            claims=tuple(self._claims),
            replay_bytes=self._replay_bytes,
        )

    def view(self) -> View:
        at = None if self._start is None else self._start.number
        return View(self._snapshot, at, tuple(self._segments), self.next_number, self._checksum)


def _replay(prefix: str, start: SnapshotName | None) -> Operation[_Replay]:
    """Everything from ``start`` to the last slot that was there at the time of the call.

    Raises Damaged when something is not as it must be. That may also mean that a newer snapshot has replaced
    ``start``, which the caller must rule out first.
    """
    snapshot: bytes | None = None
    if start is not None:
        snapshot = yield from _snapshot(prefix, start)
    first = 0 if start is None else start.first
    slots: tuple[ObjectInfo, ...] = yield List(f"{prefix}log/", slot_key(prefix, first - 1) if first else "")
    names = (slot.key.rpartition("/")[2] for slot in slots)
    numbers = [int(name) for name in names if _SLOT_NAME.fullmatch(name)]
    begin = 0 if start is None else start.number
    replay = _Replay(prefix, start, snapshot, (number for number in numbers if number < begin))
    last = max(numbers, default=-1)
    if start is not None and last < begin:
        raise Damaged(f"{slot_key(prefix, begin)} is missing, but {start.key(prefix)} was taken after it. Restore a copy")
    for batch in _batches(range(begin, last + 1), _BATCH_GET):
        found: tuple[bytes | None, ...] = yield GetMany(tuple(slot_key(prefix, number) for number in batch))
        for number, data in zip(batch, found, strict=True):
            if data is None:
                raise Damaged(
                    f"{slot_key(prefix, number)} is missing, but {slot_key(prefix, last)} is there: it, or a snapshot "
                    f"that replaces it, was removed from outside. Restore it from a copy"
                )
            replay.accept(data)
    return replay


def _snapshot(prefix: str, name: SnapshotName) -> Operation[bytes]:
    key = name.key(prefix)
    try:
        body: bytes = yield Get(key)
    except NotFound as error:
        raise Damaged(f"{key} is listed, but not there: the store is inconsistent") from error
    if _digest(body) != name.digest:
        raise Damaged(
            f"{key} is damaged somewhere in bytes 0 to {len(body)}: they do not match the digest in its name. "
            f"Restore it from a copy"
        )
    return body


def _claim(replay: _Replay, incarnation: str) -> Operation[None]:
    """Put a claim into the first free slot; replay those that others were faster to take. Raises like ``_replay``."""
    while True:
        claim = replay.claim(incarnation)
        key = slot_key(replay.prefix, replay.next_number)
        try:
            found = yield from _create(key, claim)
        except NotFound as error:
            raise Damaged(f"{key} was taken and is gone again, but no snapshot replaces it") from error
        if _is_own(found, claim):
            replay.accept(claim)
            return
        replay.accept(found)


def _create(key: str, data: bytes) -> Operation[bytes]:
    """Create an object and return what it holds then: ``data``, or what somebody else was faster to put there.

    Raises StoreUnavailable when nothing is there, but ``data`` may still arrive, NotFound when what was there is gone
    again.
    """
    try:
        yield Create(key, data)
    except AlreadyExists:
        return (yield Get(key))
    except StoreUnavailable as unknown:
        try:
            return (yield Get(key))
        except NotFound:
            raise unknown from None
    return data


def _newest_snapshot(prefix: str) -> Operation[SnapshotName | None]:
    return max((yield from _snapshots(prefix)), default=None)


def _snapshots(prefix: str) -> Operation[list[SnapshotName]]:
    """The snapshots that are listed, without foreign objects: one renamed by hand shows as a hole in the log."""
    listed: tuple[ObjectInfo, ...] = yield List(snapshot_prefix(prefix))
    matches = (_SNAPSHOT_NAME.fullmatch(info.key.rpartition("/")[2]) for info in listed)
    return [SnapshotName(int(match[1]), int(match[2]), match[3], match[4]) for match in matches if match]


def _check_prefix(prefix: str) -> None:
    if prefix and not prefix.endswith("/"):
        raise InvalidInput(f"{prefix!r} is no prefix of a log: it must be empty or end with '/'")


def _batches(items: Sequence[T], size: int) -> Iterator[tuple[T, ...]]:
    for begin in range(0, len(items), size):
        yield tuple(items[begin : begin + size])
