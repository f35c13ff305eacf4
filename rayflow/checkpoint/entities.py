"""Which entities there are in a store, and their states; read from the store alone, with no Ray running.

As in ``reading``, what is returned is true of each shard at some moment during the call and holds everything that was durable
before.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib import import_module
from typing import Any, cast

from rayflow.checkpoint.reading import PARALLEL_SHARDS, Damage, identity_of, read_state
from rayflow.checkpoint.store import Store
from rayflow.core import codec
from rayflow.core.entity_state import EntityRow
from rayflow.core.entity_type import address_of
from rayflow.core.records import DeadLetter
from rayflow.errors import CodecError, Damaged, InvalidInput


@dataclass(frozen=True, slots=True)
class EntityInfo:
    """One entity.

    ``state`` is a dict of its fields where it was stored as a dataclass, Struct or NamedTuple, else the value itself; None where it
    is ``unreadable``, which then says why. Of an event-sourced entity it is the state stored last; ``events`` counts those since.
    ``changes`` counts the turns that changed it, ``changed`` is when it last handled a
    message (UTC), ``size_bytes`` is that of the stored state, ``reminders`` and ``waiting`` count what it is to do later.
    """

    entity_type: str
    key: str
    state: Any
    changes: int
    changed: datetime
    state_version: int
    size_bytes: int
    reminders: int
    waiting: int
    unreadable: str
    events: int


@dataclass(frozen=True, slots=True)
class EntityListing:
    """The entities asked for, by type and key, out of ``total`` that match; and what could not be read."""

    entities: tuple[EntityInfo, ...]
    total: int
    damages: tuple[Damage, ...]


def list_entities(store: Store, *, entity_type: str = "", prefix: str = "", limit: int | None = None) -> EntityListing:
    """The entities in ``store``, ordered by type and key.

    Args:
        store: An existing store.
        entity_type: Only those of this type (the name of the class, or its ``entity_type``); default: all.
        prefix: Only those whose key starts with it.
        limit: At most so many; default: all.

    Reads every shard's log. Raises InvalidInput (no store there, or of a newer format), StoreError. Damage does not hide what is
    intact: see EntityListing.
    """
    if limit is not None and limit < 0:
        raise InvalidInput(f"limit={limit}: it cannot be negative")
    found: list[tuple[str, str, EntityRow]] = []
    damages: list[Damage] = []
    numbers = range(identity_of(store).shards)
    with ThreadPoolExecutor(min(len(numbers), PARALLEL_SHARDS)) as pool:
        for one in pool.map(partial(_survey, store, entity_type, prefix), numbers):
            if isinstance(one, Damage):
                damages.append(one)
            else:
                found.extend(one)
    found.sort(key=lambda one: one[:2])
    return EntityListing(tuple(_describe(*one) for one in found[:limit]), len(found), tuple(damages))


def entities_table(store: Store, entity_type: str, *, prefix: str = "") -> Any:
    """The states of all entities of a type as an Arrow table (``pyarrow.Table``), one row per entity, ordered by key.

    Columns: key, changes, changed (timestamp, UTC), unreadable, then one per field of the state, or ``state`` where it has no
    fields. A field that Arrow has no type for, or not one for all rows, is given as text. Raises what ``list_entities`` raises, and
    Damaged.
    """
    pa: Any = import_module("pyarrow")
    listing = list_entities(store, entity_type=entity_type, prefix=prefix)
    if listing.damages:
        raise Damaged("; ".join(damage.message for damage in listing.damages))
    columns: dict[str, Any] = {
        "key": pa.array([one.key for one in listing.entities], pa.string()),
        "changes": pa.array([one.changes for one in listing.entities], pa.int64()),
        "changed": pa.array([one.changed for one in listing.entities], pa.timestamp("ms", tz="UTC")),
        "unreadable": pa.array([one.unreadable for one in listing.entities], pa.string()),
    }
    states = [_fields(one.state) for one in listing.entities]
    for name in dict.fromkeys(str(name) for state in states for name in state):
        values = [state.get(name) for state in states]
        try:
            column = pa.array(values)
        except (pa.ArrowException, TypeError, ValueError):
            column = pa.array([None if value is None else str(value) for value in values], pa.string())
        columns[f"state.{name}" if name in columns else name] = column
    return pa.table(columns)


def read_events(store: Store, entity_type: str, key: str) -> list[Any]:
    """All events of one event-sourced entity, in order; a dict of its fields for an event whose type is gone or was changed.

    Raises InvalidInput, Damaged, StoreError.
    """
    address = address_of(entity_type, key)
    row = read_state(store, identity_of(store).shard_of(address)).entities.rows.get(address)
    return [] if row is None else [_event(event) for event in row.events]


def _event(data: bytes) -> Any:
    try:
        return codec.decode(data)
    except CodecError:
        return codec.decode_fields(data)


@dataclass(frozen=True, slots=True)
class DeadLetterInfo:
    """A message that could not be handled and that nobody waits for. ``number`` and the entity name it."""

    entity_type: str
    key: str
    number: int
    operation: str
    sender: str
    since: datetime
    error_type: str
    error_message: str


def list_dead_letters(store: Store, *, entity_type: str = "") -> tuple[DeadLetterInfo, ...]:
    """The dead letters in ``store``, oldest first. Raises InvalidInput, Damaged, StoreError."""
    letters = [letter for number in range(identity_of(store).shards) for letter in read_state(store, number).entities.dead.values()]
    letters.sort(key=lambda letter: (letter.at_ms, letter.entity, letter.number))
    found = [_describe_letter(letter) for letter in letters]
    return tuple(one for one in found if one.entity_type == (entity_type or one.entity_type))


def _describe_letter(letter: DeadLetter) -> DeadLetterInfo:
    entity_type, _, key = letter.entity.partition("/")
    since = datetime.fromtimestamp(letter.at_ms / 1000, UTC)
    reason = letter.reason
    return DeadLetterInfo(entity_type, key, letter.number, letter.operation, letter.sender, since, reason.type, reason.message)


def _fields(state: Any) -> dict[Any, Any]:
    return cast("dict[Any, Any]", state) if isinstance(state, dict) else {"state": state}


def _survey(store: Store, entity_type: str, prefix: str, number: int) -> list[tuple[str, str, EntityRow]] | Damage:
    try:
        return list(_matching(read_state(store, number).entities.rows, entity_type, prefix))
    except Damaged as error:
        return Damage(number, str(error))


def _matching(rows: dict[str, EntityRow], entity_type: str, prefix: str) -> Iterator[tuple[str, str, EntityRow]]:
    for address, row in rows.items():
        kind, _, key = address.partition("/")
        if (row.state is not None or row.timers or row.events) and kind == (entity_type or kind) and key.startswith(prefix):
            yield kind, key, row


def _describe(entity_type: str, key: str, row: EntityRow) -> EntityInfo:
    state, unreadable = None, ""
    try:
        state = None if row.state is None else codec.decode_fields(row.state)
    except CodecError as error:
        unreadable = str(error)
    changed = datetime.fromtimestamp(row.at_ms / 1000, UTC)
    waiting = sum(bool(timer.message) for timer in row.timers.values())
    size_bytes = len(row.state or b"")
    reminders = len(row.timers) - waiting
    return EntityInfo(
        entity_type=entity_type,
        key=key,
        state=state,
        changes=row.changes,
        changed=changed,
        state_version=row.state_version,
        size_bytes=size_bytes,
        reminders=reminders,
        waiting=waiting,
        unreadable=unreadable,
        events=len(row.events) - row.folded,
    )
