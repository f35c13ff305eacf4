"""Facts as text: aligned columns, drawn as a table on a terminal, and JSON lines for programs.

What comes out of a store is shown as text and never interpreted: control characters of an id or a message do not reach the
terminal, brackets are not mark-up.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import msgspec

from rayflow.core.records import Failure

NOTHING = "-"
_MESSAGE_CHARS = 100


@dataclass(frozen=True, slots=True)
class Column:
    """A heading, and whether the cells below it are numbers: those are aligned to the right."""

    heading: str
    numeric: bool = False


def print_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    """Print ``rows`` below headings: fitted to the width of a terminal, otherwise one line each and nothing cut off."""
    cells = [[printable(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _print_fitted(columns, cells)
        return
    headings = [column.heading.upper() for column in columns]
    widths = [max(map(len, column)) for column in zip(headings, *cells, strict=True)]
    for row in (headings, *cells):
        parts = [
            cell.rjust(width) if column.numeric else cell.ljust(width)
            for cell, width, column in zip(row, widths, columns, strict=True)
        ]
        print("  ".join(parts).rstrip())


def print_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Print pairs of name and value, one line each."""
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        print(f"{name.ljust(width)}  {printable(value)}")


def print_json(value: object) -> None:
    """Print a value, dataclasses and times included, as one line of JSON."""
    print(msgspec.json.encode(value).decode())


def moment(at: datetime | None) -> str:
    """UTC to the second."""
    return NOTHING if at is None else at.strftime("%Y-%m-%d %H:%M:%SZ")


def duration(seconds: float | None) -> str:
    """A duration in the largest two units that say something: 0.004s, 12.3s, 4m05s, 3h07m, 2d04h."""
    if seconds is None:
        return NOTHING
    if seconds < 1:
        return f"{seconds:.3f}s"
    if seconds < 59.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02}h"


def brief(failure: Failure | None) -> str:
    """Type and message of an error, cut to what fits a table."""
    if failure is None:
        return NOTHING
    text = printable(f"{failure.type}: {failure.message}" if failure.message else failure.type)
    return text if len(text) <= _MESSAGE_CHARS else text[: _MESSAGE_CHARS - 1] + "…"


def printable(text: str) -> str:
    """``text`` as one line without control characters."""
    return "".join(char if char.isprintable() else "�" for char in " ".join(text.split()))


def _print_fitted(columns: Sequence[Column], cells: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column.heading, justify="right" if column.numeric else "left", overflow="fold")
    for row in cells:
        table.add_row(*map(Text, row))
    Console(highlight=False).print(table)
