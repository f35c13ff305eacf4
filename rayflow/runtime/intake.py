"""What happens to a shard, in order, each event once the large values that it is going to read are in memory.

The machine of a shard does not wait, and neither may its loop, which all shards of a host share. So the values are read
before, those of many events at once, by threads. While an event waits for its values, what comes after it waits behind it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice

from rayflow.checkpoint.blobs import blob_key, read_blobs
from rayflow.core.owner import Owner
from rayflow.core.records import Blob
from rayflow.errors import StoreUnavailable
from rayflow.runtime.ports import ShardPorts

_AHEAD = 256
"""Of so many events that wait the values are read at once."""

_AHEAD_BYTES = 64 * 2**20
"""So many bytes of them at the most, but in any case those of the first event."""

_RETRY_S = 1.0

_log = logging.getLogger("rayflow.shard")

Event = tuple[Callable[[], Sequence[Blob]], Callable[[], None]]


class Intake:
    """Of shard ``number``. ``owner`` must be set before the first event; ``changed`` is called after each that had to wait."""

    def __init__(self, number: int, ports: ShardPorts, changed: Callable[[], None]) -> None:
        self.owner: Owner
        self._number = number
        self._ports = ports
        self._changed = changed
        self._events: deque[Event] = deque()
        self._first: Event | None = None
        """The event that values were read for last."""
        self._hopeless: set[str] = set()
        """Blobs that are not there, or damaged: the machine meets the error when it reads them."""

    def at_hand(self, blob: Blob) -> bool:
        """See ``rayflow.core.owner.Parts``."""
        return self._ports.code.has(blob) or blob.hash in self._hopeless

    @property
    def busy(self) -> bool:
        """Whether something waits for its values; then ``work`` must be running."""
        return bool(self._events or self.owner.missing)

    def take(self, wanted: Callable[[], Sequence[Blob]], happen: Callable[[], None]) -> None:
        """Have something happen, now if that is possible. ``wanted`` tells what it is going to read, asked when its turn comes."""
        if self.busy or wanted():
            self.put(wanted, happen)
        else:
            happen()

    def put(self, wanted: Callable[[], Sequence[Blob]], happen: Callable[[], None]) -> None:
        """Have something happen after what waits already."""
        self._events.append((wanted, happen))

    async def work(self) -> None:
        """Read values, and have happen what waits for them, until nothing does."""
        try:
            while self.busy:
                if self.owner.missing:
                    await self.read(self.owner.missing)
                    self.owner.read(self._ports.now_ms())
                    self._changed()
                elif wanted := self._wanted():
                    await self.read(wanted)
                else:
                    _, happen = self._events.popleft()
                    happen()
                    self._changed()
        finally:
            self.let_go()

    def let_go(self) -> None:
        """What was read ahead is not needed any more."""
        self._first = None
        self._ports.code.pinned.clear()
        self._hopeless.clear()

    def _wanted(self) -> list[Blob]:
        """What is to be read before the first event can happen, and on that occasion for those behind it."""
        event = self._events[0]
        first = event[0]()
        if not first:
            return []
        if event is not self._first:  # what has been read for it is not dropped again: that could go on for ever
            self._first = event
            if self._pinned_bytes() > _AHEAD_BYTES:
                self._ports.code.pinned.clear()
                first = event[0]()
        found = {blob.hash: blob for blob in first}
        size = sum(blob.size_bytes for blob in found.values())
        for wanted, _ in islice(self._events, 1, _AHEAD):
            for blob in wanted():
                if size + blob.size_bytes > _AHEAD_BYTES:
                    return list(found.values())
                if blob.hash not in found:
                    found[blob.hash] = blob
                    size += blob.size_bytes
        return list(found.values())

    def _pinned_bytes(self) -> int:
        return sum(map(len, self._ports.code.pinned.values()))

    async def read(self, blobs: Sequence[Blob]) -> None:
        """Have these in memory until ``let_go``, however long that takes."""
        store, code = self._ports.store, self._ports.code
        while True:
            try:
                found = await store.run(read_blobs(blobs, store.url))
            except StoreUnavailable as error:
                first = blob_key(blobs[0])
                _log.warning("shard %d cannot read %s (%s); trying again", self._number, first, error)
                await asyncio.sleep(_RETRY_S)
            else:
                code.pinned.update(found)
                self._hopeless.update(blob.hash for blob in blobs if blob.hash not in found)
                return
