"""``python -m rayflow entities`` and ``dead-letters``. Looking takes the store alone; settling a dead letter goes to its shard."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from rayflow.checkpoint.entities import DeadLetterInfo, EntityInfo, list_dead_letters, list_entities
from rayflow.checkpoint.store import Store
from rayflow.errors import InvalidInput
from rayflow.operator.display import NOTHING, Column, moment, print_damages, print_json, print_listing, print_table

_ENTITY_COLUMNS = (
    Column("entity"),
    Column("changed", gives_way=1),
    Column("changes", numeric=True),
    Column("bytes", numeric=True, gives_way=3),
    Column("reminders", numeric=True, gives_way=2),
    Column("waiting", numeric=True, gives_way=2),
    Column("state"),
)

_LETTER_COLUMNS = (
    Column("dead letter"),
    Column("since"),
    Column("operation"),
    Column("sender", gives_way=1),
    Column("error"),
)


def show_entities(store: Store, entity_type: str, prefix: str, limit: int, *, json: bool) -> bool:
    """Print entities, of all types if none is given; False if part of the store is damaged. Raises InvalidInput, StoreError."""
    listing = list_entities(store, entity_type=entity_type, prefix=prefix, limit=limit)
    if json:
        for info in listing.entities:
            print_json(info)
        print_damages(listing.damages)
    else:
        rows = [_entity_row(info) for info in listing.entities]
        print_listing("entities", _ENTITY_COLUMNS, rows, listing.total, listing.damages)
    return not listing.damages


def _entity_row(info: EntityInfo) -> Sequence[str]:
    state = f"unreadable: {info.unreadable}" if info.unreadable else _brief_state(info.state)
    return (
        f"{info.entity_type}/{info.key}",
        moment(info.changed),
        str(info.changes),
        str(info.size_bytes),
        str(info.reminders) if info.reminders else NOTHING,
        str(info.waiting) if info.waiting else NOTHING,
        f"{state}, and {info.events} events since" if info.events else state,
    )


def _brief_state(state: object) -> str:
    try:
        text = msgspec.json.encode(state, enc_hook=repr).decode()
    except (TypeError, ValueError):  # keys that JSON has not
        text = repr(state)
    return text if len(text) <= 100 else text[:99] + "…"


def show_dead_letters(store: Store, entity_type: str, *, json: bool) -> None:
    """Print what could not be handled and nobody waits for, oldest first. Raises InvalidInput, Damaged, StoreError."""
    letters = list_dead_letters(store, entity_type=entity_type)
    if json:
        for letter in letters:
            print_json(letter)
    elif letters:
        print_table(_LETTER_COLUMNS, [_letter_row(letter) for letter in letters])
    else:
        print("no dead letters")


def settle_dead_letter(store: Store, address: str | None, name: str, *, discard: bool) -> str:
    """Have a dead letter handled again, or throw it away; returns what happened. Raises InvalidInput, RayflowError."""
    found = [letter for letter in list_dead_letters(store) if _name(letter) == name]
    if not found:
        raise InvalidInput(f"there is no dead letter {name}: `python -m rayflow dead-letters` names those there are")
    from rayflow.operator.connecting import connected

    with connected(store, address) as client:
        if discard:
            client.discard(found[0])
        else:
            client.replay(found[0])
    return f"{name} is {'thrown away' if discard else 'handled'}"


def _name(letter: DeadLetterInfo) -> str:
    return f"{letter.entity_type}/{letter.key}#{letter.number}"


def _letter_row(letter: DeadLetterInfo) -> Sequence[str]:
    return (
        _name(letter),
        moment(letter.since),
        letter.operation,
        letter.sender or NOTHING,
        f"{letter.error_type}: {letter.error_message}",
    )
