"""When a shard writes a snapshot, and in what steps: what has ended is filed first, then the rest of the state is written.

What was filed is filed: a snapshot that fails is tried again later, and files only what has ended since.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable

from rayflow.checkpoint import log
from rayflow.checkpoint.requests import Create, Operation
from rayflow.checkpoint.tables import history_key
from rayflow.core import limits
from rayflow.core.state import DurableState
from rayflow.errors import AlreadyExists, StoreUnavailable, StoreUnsuitable
from rayflow.runtime.ports import ShardPorts

SEGMENT_BYTES = 2048
"""What a segment counts for beside its own size: reading it back is a request of its own."""

RECORD_BYTES = 100
"""What a record counts for beside its own size: applying it takes as long as reading so many bytes more."""

_AGAIN_S = (1.0, 4.0, 15.0, 60.0)

_log = logging.getLogger("rayflow.shard")


class Snapshots:
    """Of one take-over of shard ``number``, whose durable state is ``state``."""

    def __init__(self, number: int, ports: ShardPorts, state: DurableState, view: log.View) -> None:
        self.number = number
        self.size_bytes = 0
        """Of the newest snapshot."""
        self._ports = ports
        self._state = state
        self._unpacked_bytes = 0
        if view.snapshot is not None:
            self.size_bytes = len(view.snapshot)
            self._unpacked_bytes = ports.tables.unpacked_bytes(view.snapshot)
        self._records = sum(len(segment.records) for segment in view.segments)
        """How many records recovery would replay."""
        self._replaced = 0
        self.busy = False
        """Whether one is being written."""
        self._failures = 0
        self._not_before_s = 0.0
        self._done: log.Snapshot | None = None

    def committed(self, records: int) -> None:
        """So many records more are in the log."""
        self._records += records

    def taken_in(self, tail: log.Tail) -> log.Tail:
        """The tail with regard to a snapshot that was written meanwhile. Between two writes only: a write in flight returns a tail
        of its own."""
        done, self._done = self._done, None
        if done is None:
            return tail
        self._records -= self._replaced
        return tail.after_snapshot(done)

    def due(self, tail: log.Tail) -> bool:
        """Whether ``write`` is to be called now."""
        if self.busy or self._done is not None:
            return False
        segments = tail.next_number - (tail.snapshot_number or 0)
        replay = tail.replay_bytes + SEGMENT_BYTES * segments + RECORD_BYTES * self._records
        most = max(limits.current().snapshot_bytes, self._unpacked_bytes)
        return replay > most and self._ports.monotonic_s() >= self._not_before_s

    async def write(self, tail: Callable[[], log.Tail]) -> None:
        """Write one, as of the last durable segment; commits go on. ``tail`` returns the end of the log as it is then."""
        self.busy = True
        try:
            if self._state.unfiled:
                unfiled = dict(self._state.unfiled)
                history = await self._ports.store.run(self.file(unfiled, tail().number))
                self._state.filed(unfiled, history)
            at, records = tail(), self._records
            operation = self.snapshot(at, self.frozen(self._state))
            self._done, self.size_bytes, self._unpacked_bytes = await self._ports.store.run(operation)
        except (StoreUnavailable, StoreUnsuitable) as error:
            pause_s = _AGAIN_S[min(self._failures, len(_AGAIN_S) - 1)]
            self._failures += 1
            self._not_before_s = self._ports.monotonic_s() + pause_s
            _log.warning("shard %d could not write a snapshot (%s); trying again in %.0f s", self.number, error, pause_s)
        else:
            self._replaced, self._failures = records, 0
            self._ports.meter.snapshot()
        finally:
            self.busy = False

    def frozen(self, state: DurableState) -> DurableState:
        """What goes into the snapshot."""
        return state.frozen()

    def file(self, unfiled: dict[str, list[bytes]], number: int) -> Operation[str]:
        """Write the records of what has ended; returns the key."""
        data = self._ports.tables.write_history(unfiled)
        history = history_key(self.number, number, data)
        with contextlib.suppress(AlreadyExists):  # the same content, after an earlier try
            yield Create(history, data)
        return history

    def snapshot(self, at: log.Tail, state: DurableState) -> Operation[tuple[log.Snapshot, int, int]]:
        """Write the state after ``at``; returns the snapshot, its size, and its size unpacked."""
        body = self._ports.tables.write_snapshot(state)
        return (yield from log.write_snapshot(at, body)), len(body), self._ports.tables.unpacked_bytes(body)
