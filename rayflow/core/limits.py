"""How much is kept in memory and for how long, and when a log is rolled over: numbers for which any value is correct.

Nobody has to set one. Tests set them so low that what is rare becomes common, by ``using`` in a process, or for all processes of
a Ray by the environment variable RAYFLOW_LIMITS: a JSON object such as ``{"snapshot_bytes": 4096}``. The actors of a store take
the limits of the program that starts them; a program that connects later does not change them.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from rayflow.core.records import INLINE_LIMIT_BYTES
from rayflow.errors import InvalidInput

VARIABLE = "RAYFLOW_LIMITS"

Count = Annotated[int, Meta(ge=1, le=2**53)]
"""Beyond that floats are not exact any more, and soon after machines do not count on."""
Seconds = Annotated[float, Meta(gt=0)]


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The limits of a process, with the values that they have unless somebody sets them."""

    snapshot_bytes: Count = 4 * 2**20
    """A snapshot is due once recovery would replay this much log, or as much as the last snapshot holds, unpacked, if that is
    more: so writing all of the state again never costs more than writing what is new did."""

    owner_look_s: Seconds = 10.0
    """How long an owner without anything to write goes without looking whether it is still the owner."""

    session_s: Seconds = 600.0
    """A client of which a host hears nothing for so long is forgotten by it. Longer than ``poll_s``."""

    poll_s: Seconds = 20.0
    """How long a client's call that only waits for answers stays with the host."""

    call_bytes: Count = 4 * 2**20
    """What the requests in one call of a client come to at most. One that is larger goes alone."""

    reply_bytes: Count = 2**19
    """The same of the answers in what a call returns."""

    client_requests: Count = 100_000
    """So many requests of a client may be under way; with more it is told to wait."""

    execution_idle_ms: Count = 60_000
    """An execution that has rested for so long leaves memory; what happens to it brings it back."""

    execution_pressed_ms: Count = 1000
    """The same where more than ``executions`` are in memory."""

    executions: Count = 10_000
    """With more executions than that in the memory of a shard, those that rest leave it sooner."""

    entity_idle_ms: Count = 15 * 60_000
    """An entity that had no message for so long leaves memory; the next one brings it back."""

    entity_bytes: Count = 256 * 2**20
    """Beyond about so many bytes of states in the memory of a shard, the least recently used entities leave it at once."""

    entity_mailbox: Count = 10_000
    """So many messages of one entity may be handled and not durable yet, or wait for its lock; one more is refused with Overloaded.

    A signal of another entity or of a workflow has nobody whom that could be told: it becomes a dead letter."""

    dead_letters: Count = 10_000
    """So many messages that could not be handled a shard keeps; with one more the oldest is thrown away, which its log says."""

    events_per_state: Count = 100
    """An event-sourced entity's state is part of the record with every so-manieth event."""

    sender_window_ms: Count = 3_600_000
    """How long a sender that is silent may still ask again for what it was answered."""

    letters_at_once: Count = 1000
    """So many letters go to another shard in one message."""

    inline_bytes: Count = INLINE_LIMIT_BYTES
    """A larger value is a blob of its own in the store."""

    blob_cache_bytes: Count = 64 * 2**20
    """So many bytes of blobs a shard keeps in memory, for who reads them next."""

    def __post_init__(self) -> None:
        if self.poll_s >= self.session_s:
            raise ValueError(
                f"`poll_s` ({self.poll_s}) must be less than `session_s` ({self.session_s}): who polls would be forgotten"
            )


def parsed(text: str) -> Limits:
    """The limits that a value of RAYFLOW_LIMITS sets. Raises InvalidInput."""
    try:
        return msgspec.json.decode(text, type=Limits)
    except msgspec.DecodeError as error:
        raise InvalidInput(
            f"{VARIABLE} is {text!r}: {error}. It is a JSON object of numbers; there are {', '.join(Limits.__struct_fields__)}"
        ) from error


def environment() -> dict[str, str]:
    """What a process that is to have the limits of this one needs in its environment: nothing where they are the usual ones."""
    usual, now = msgspec.to_builtins(Limits()), msgspec.to_builtins(_current)
    changed = {name: value for name, value in now.items() if value != usual[name]}
    return {VARIABLE: msgspec.json.encode(changed).decode()} if changed else {}


def current() -> Limits:
    """The limits of this process, now."""
    return _current


@contextmanager
def using(**changes: Any) -> Generator[Limits]:
    """Other limits in this process while the block runs, for tests. Raises TypeError for a name that there is not."""
    global _current
    before = _current
    _current = msgspec.convert(msgspec.to_builtins(msgspec.structs.replace(before, **changes)), Limits)
    try:
        yield _current
    finally:
        _current = before


_current = parsed(os.environ.get(VARIABLE) or "{}")
