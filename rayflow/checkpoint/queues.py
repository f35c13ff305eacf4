"""A note of the steps that wait for a place to run, for who looks at a store without Ray.

Not part of any log: it is true at its time, is written by the dispatcher while something waits, and gone or out of date a moment
later. Each is an object of its own, ``waiting/<milliseconds>-<random>``, and the last one counts.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence

import msgspec

from rayflow.checkpoint.store import Store
from rayflow.errors import NotFound

PREFIX = "waiting/"

REWRITE_S = 60.0
"""How often a note is written again though nothing has changed."""

_OUT_OF_DATE_S = 3 * REWRITE_S


class WaitingSteps(msgspec.Struct, frozen=True, array_like=True):
    """Steps of one execution that do not run yet; ``why`` says what no node has, and is empty where they wait for their turn.

    ``count``: how many there are; ``operations``: which, with the number of the attempt, as many as there is room for.
    """

    execution: str
    name: str
    why: str
    count: int
    operations: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        more = f" (and {self.count - 1} more)" if self.count > 1 else ""
        return f"{self.name}{more} {self.why}"


class _Note(msgspec.Struct, frozen=True, array_like=True):
    at_ms: int
    steps: tuple[WaitingSteps, ...]


def read_waiting(store: Store) -> tuple[WaitingSteps, ...]:
    """What waits, as far as a note says so that is not out of date. Raises StoreError."""
    for _ in range(2):  # the note may be replaced in between
        key = max((info.key for info in store.list(PREFIX)), default=None)
        if key is None:
            return ()
        try:
            note = msgspec.msgpack.decode(store.get(key), type=_Note)
        except NotFound:
            continue
        except msgspec.DecodeError:  # of a newer rayflow: it is not worth an error
            return ()
        return note.steps if _now_ms() - note.at_ms < _OUT_OF_DATE_S * 1000 else ()
    return ()


class WaitingNote:
    """The note of one writer. Not for several threads at a time."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def write(self, steps: Sequence[WaitingSteps]) -> None:
        """Replace what there is, by anybody; nothing is left where nothing waits. Raises StoreError."""
        before = [info.key for info in self._store.list(PREFIX)]
        if steps:
            at_ms = _now_ms()
            key = f"{PREFIX}{at_ms:015d}-{secrets.token_hex(4)}"
            self._store.create(key, msgspec.msgpack.encode(_Note(at_ms, tuple(steps))))
        self._store.delete(before)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
