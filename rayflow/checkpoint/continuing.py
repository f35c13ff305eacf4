"""Look at the log of a shard again and again, and read only what came since.

One listing and the new slots are all that a look costs, however long the log is. What was truncated before it was read shows as a
gap, for truncation leaves the slot of the snapshot; so does a claim that came late into a slot that had been truncated, for what
follows does not chain to it. Then the log is read from its newest snapshot, as at first; damage is what is found then, not before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from rayflow.checkpoint import log
from rayflow.checkpoint.identity import shard_prefix
from rayflow.checkpoint.recovery import state_in
from rayflow.checkpoint.requests import GetMany, List, Operation, run
from rayflow.checkpoint.segment import Segment, checksum, decode
from rayflow.checkpoint.store import ObjectInfo, Store
from rayflow.core.state import DurableState
from rayflow.errors import Damaged


@dataclass(frozen=True, slots=True)
class Position:
    """A place in the log below ``prefix``: the slot that comes next, and the checksum of the one before it."""

    prefix: str
    next_number: int
    checksum: bytes


@dataclass(frozen=True, slots=True)
class Continuation:
    """What was appended after a position, claims included, and where it ends."""

    position: Position
    segments: tuple[Segment, ...]


def read_on(position: Position) -> Operation[Continuation]:
    """What the log holds after ``position``. Raises Damaged where it does not go on from there: it was truncated, or is damaged.

    Raises StoreUnavailable, StoreUnsuitable too.
    """
    prefix, number = position.prefix, position.next_number
    listed: tuple[ObjectInfo, ...] = yield List(f"{prefix}log/", log.slot_key(prefix, number - 1) if number else "")
    last = max((int(name) for info in listed if (name := info.key.rpartition("/")[2]).isdecimal()), default=number - 1)
    keys = tuple(log.slot_key(prefix, one) for one in range(number, last + 1))
    found: tuple[bytes | None, ...] = (yield GetMany(keys)) if keys else ()
    segments: list[Segment] = []
    before = position.checksum
    for key, data in zip(keys, found, strict=True):
        if data is None:
            raise Damaged(f"{key} is missing, but {keys[-1]} is there")
        segment = decode(data, key)
        if segment.number != number or segment.predecessor != before:
            raise Damaged(f"{key} does not follow the slot before it")
        segments.append(segment)
        before = checksum(data)
        number += 1
    return Continuation(Position(prefix, number, before), tuple(segments))


class ShardReader:
    """What the log of one shard amounts to, at every look. Not for several threads at a time.

    ``state`` is the same object from one look to the next where the log went on, another one where it was read anew.
    """

    def __init__(self, store: Store, number: int) -> None:
        self.number = number
        self._store = store
        self._state: DurableState | None = None
        self._position = Position(shard_prefix(number), 0, b"")

    def state(self) -> DurableState:
        """All that was durable before the call. Raises Damaged (names the object), StoreError; the next call looks again."""
        if self._state is None or not self._went_on(self._state):
            self._state = None
            view = run(log.read(self._position.prefix), self._store)
            self._state = state_in(view, self._position.prefix)
            self._position = Position(self._position.prefix, view.next_number, view.checksum)
        return self._state

    def _went_on(self, state: DurableState) -> bool:
        """Take in what came since; False where that does not follow."""
        try:
            more = run(read_on(self._position), self._store)
            _extend(state, more.segments)
        except (Damaged, msgspec.DecodeError, KeyError):
            return False
        self._position = more.position
        return True


def _extend(state: DurableState, segments: Sequence[Segment]) -> None:
    for segment in segments:
        state.extend(segment.records)
