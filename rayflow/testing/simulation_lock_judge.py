"""What must hold of locks: a part of ``simulation_entity_judge``.

A run of a workflow has a lock from the record that says so to its record of giving it back, or to its end. Meanwhile the entity's
own record must name it, and nothing of others may stand in the entity's book between two entries that it made under that lock.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from rayflow.core.entity_state import EntityRow
from rayflow.core.messages import Caller, holder_of
from rayflow.core.records import Completed, Scheduled
from rayflow.testing.simulation_traces import BETWEEN, HALF, SHARED, STUCK, key_of
from rayflow.testing.simulation_workload import Book

_NO_BLOCKS: dict[str, str] = {}


@dataclass(slots=True)
class _Block:
    """Entries of an entity that belong together, from the first one on; ``last`` is the index of the latest."""

    name: str = ""
    first: int = 0
    last: int = 0


@dataclass(slots=True)
class _Entity:
    block: _Block = field(default_factory=_Block)
    closed: dict[str, None] = field(default_factory=dict[str, None])
    """Blocks that something else has come after."""


class LockJudge:
    """Looks at who has locked what."""

    def __init__(self, violated: Callable[[str, str], None]) -> None:
        self._violated = violated
        self._asked: dict[Caller, str] = {}
        """Locks that runs have asked for, with the address."""
        self._held: dict[str, dict[str, str]] = {}
        """By address: who has it, with what names their block."""
        self._count = 0
        self._blocks: dict[str, dict[str, str]] = {}
        """What was sent under locks, by key: the block that it belongs to, by address."""
        self._entities: dict[str, _Entity] = {}

    def scheduled(self, record: Scheduled, run: int) -> None:
        """A run asks for a lock, or gives it back."""
        address = record.name.partition(" ")[2]
        if record.kind == "lock":
            self._asked[Caller(record.execution, record.operation, run)] = address
        else:
            self._held.get(address, {}).pop(holder_of(record.execution, run), None)

    def completed(self, record: Completed, run: int) -> bool:
        """Something that a run has asked for is there; returns whether it is a lock."""
        address = self._asked.pop(Caller(record.execution, record.operation, run), "")
        if address and record.failure is None:
            holder, held = holder_of(record.execution, run), self._held.setdefault(address, {})
            if held:
                self._violated(SHARED, f"{address}: {holder} and {', '.join(held)}")
            self._count += 1
            held[holder] = f"{holder} {self._count}"
            return True
        return False

    def ended(self, execution: str, run: int) -> None:
        """A run is over, or dropped."""
        holder = holder_of(execution, run)
        for held in self._held.values():
            held.pop(holder, None)

    def sent(self, key: str, execution: str, run: int) -> None:
        """A run has sent a message, perhaps under locks."""
        holder = holder_of(execution, run)
        self._blocks[key] = {address: held[holder] for address, held in self._held.items() if holder in held}

    def look_at_entries(self, address: str, base: Book, book: Book) -> None:
        """The entries after those of ``base`` are new."""
        entity = self._entities.setdefault(address, _Entity())
        for index in range(len(base.entries), len(book.entries)):
            name, block = self._blocks.get(key_of(book.entries[index][0]), _NO_BLOCKS).get(address, ""), entity.block
            if name != block.name:
                entity.closed[block.name] = None
                entity.block = _Block(name, index, index)
                if name and name in entity.closed:
                    self._violated(BETWEEN, f"{address}: {book.entries} of {name}")
            elif name:
                rings = [ring for plan in book.plans.values() for ring in plan.rings if block.last < ring[2] <= index]
                if rings:
                    self._violated(BETWEEN, f"{address}: a reminder while {name} has it, {rings}")
                block.last = index

    def complete(self, row_of: Callable[[str], EntityRow | None]) -> None:
        """A segment is there: what it and those before it say of locks goes together."""
        for address, held in self._held.items():
            for holder in held:
                row = row_of(address)
                if row is None or row.holder != holder:
                    self._violated(HALF, f"{holder} was told that it has locked {address}, which says {row and row.holder}")

    def look_at_queue(self, address: str, row: EntityRow) -> None:
        """Where nobody has the lock, nobody waits for it."""
        if row.queue and not row.holder:
            self._violated(STUCK, f"{address} is not locked, and {len(row.queue)} wait until it is free")

    def finish(self, address: str, row: EntityRow, is_live: Callable[[str], bool]) -> None:
        """In the end whoever has a lock is not over. ``is_live`` is asked about a holder."""
        if row.holder and not is_live(row.holder):
            self._violated(STUCK, f"{address} is locked by {row.holder}, which is over")
