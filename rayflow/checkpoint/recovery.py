"""What a log amounts to: the state that its snapshot holds, and the records after it."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from rayflow.checkpoint import log, tables
from rayflow.core.state import DurableState
from rayflow.errors import Damaged


def state_in(
    view: log.View, prefix: str, read_snapshot: Callable[[bytes, str], DurableState] = tables.read_snapshot
) -> DurableState:
    """The durable state of the shard below ``prefix``. Raises Damaged (names the object)."""
    key = f"{prefix}snapshots/{view.snapshot_number}"
    try:
        state = DurableState() if view.snapshot is None else read_snapshot(view.snapshot, key)
        for segment in view.segments:
            key = log.slot_key(prefix, segment.number)
            state.extend(segment.records)
    except msgspec.DecodeError as error:
        raise Damaged(f"{key} holds what is no record ({error}); it was written by a newer rayflow, or damaged") from error
    except KeyError as error:
        raise Damaged(f"{key} has a record of execution {error}, but not its start; restore a copy of the shard") from error
    return state
