"""Facts as text: aligned columns, fitted to the width of a terminal, and JSON lines for programs.

What comes out of a store is shown as text and never interpreted: control characters of an id or a message do not reach the
terminal, brackets are not mark-up.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

import msgspec
from rich.cells import cell_len, set_cell_size

from rayflow.checkpoint.reading import Damage
from rayflow.core.records import Failure

NOTHING = "-"
_MESSAGE_CHARS = 100
_GAP = 2
_SHORTEST_LAST = 24


@dataclass(frozen=True, slots=True)
class Column:
    """A heading, and whether the cells below it are numbers: those are aligned to the right.

    ``gives_way``: of the columns that do not fit a terminal, those with the highest number are left out first; 0 never is.
    ``short``: what a cell is on a terminal.
    """

    heading: str
    numeric: bool = False
    gives_way: int = 0
    short: Callable[[str], str] = str


def print_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    """Print ``rows`` below headings, one line each. What does not fit a terminal is left out, see ``Column``."""
    terminal = sys.stdout.isatty()
    for line in fitted_lines(columns, rows, shutil.get_terminal_size().columns) if terminal else aligned_lines(columns, rows):
        print(line)


def fitted_lines(columns: Sequence[Column], rows: Sequence[Sequence[str]], room: int) -> list[str]:
    """The heading and one line for each of ``rows`` (at least one), for a terminal of ``room`` columns."""
    cells = [[column.short(printable(cell)) for column, cell in zip(columns, row, strict=True)] for row in rows]
    shown = [place for place, column in enumerate(zip(*cells, strict=True)) if not place or {*column} != {NOTHING}]
    widths = [
        max(cell_len(text) for text in (column.heading, *(row[place] for row in cells))) for place, column in enumerate(columns)
    ]
    # What is last may be cut to what is left, where that still says something.
    widths[-1] = min(widths[-1], _SHORTEST_LAST)
    while sum(widths[place] + _GAP for place in shown) - _GAP > room:
        last = max(shown, key=lambda place: columns[place].gives_way)
        if not columns[last].gives_way:
            break
        shown.remove(last)
    rest = room - sum(widths[place] + _GAP for place in shown if place != len(columns) - 1)
    fitted = [[*row[:-1], _cut(row[-1], max(rest, _SHORTEST_LAST))] for row in cells]
    return aligned_lines([columns[place] for place in shown], [[row[place] for place in shown] for row in fitted])


def aligned_lines(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> list[str]:
    """The heading and one line for each of ``rows``, with all that is in them."""
    headings = [column.heading.upper() for column in columns]
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(headings, *cells, strict=True)]
    return [aligned_line(columns, row, widths) for row in (headings, *cells)]


def aligned_line(columns: Sequence[Column], cells: Sequence[str], widths: Sequence[int]) -> str:
    """Printable cells as one line, each at least as wide as ``widths`` says."""
    parts = [
        " " * (width - cell_len(cell)) + cell if column.numeric else cell + " " * (width - cell_len(cell))
        for cell, width, column in zip(cells, widths, columns, strict=True)
    ]
    return (" " * _GAP).join(parts).rstrip()


def print_listing(
    noun: str, columns: Sequence[Column], rows: Sequence[Sequence[str]], total: int, damages: Sequence[Damage]
) -> None:
    """Print what was found as a table, whether there is more, and on stderr what could not be read. ``noun``: plural."""
    if rows:
        print_table(columns, rows)
        if total > len(rows):
            print(f"{len(rows)} of {total} {noun}; --limit shows more")
    elif not damages:
        print(f"no {noun}")
    print_damages(damages)


def print_damages(damages: Sequence[Damage]) -> None:
    """Say on stderr what could not be read."""
    for damage in damages:
        print(f"rayflow: {damage_text(damage)}", file=sys.stderr)


def damage_text(damage: Damage) -> str:
    """What could not be read, in one line."""
    return f"shard {damage.shard} is damaged: {printable(damage.message)}"


def _cut(text: str, width: int) -> str:
    return text if cell_len(text) <= width else set_cell_size(text, width - 1).rstrip() + "…"


def print_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Print pairs of name and value, one line each."""
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        print(f"{name.ljust(width)}  {printable(value)}")


def print_json(value: object) -> None:
    """Print a value, dataclasses and times included, as one line of JSON, for a reader who waits for it."""
    print(msgspec.json.encode(value).decode(), flush=True)


def clock(at: datetime) -> str:
    """The time of day, UTC, to the second."""
    return at.strftime("%H:%M:%SZ")


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


def brief(failure: Failure | None, nothing: str = NOTHING) -> str:
    """Type and message of an error, cut to what fits a table; ``nothing`` where there is none."""
    if failure is None:
        return nothing
    text = printable(f"{failure.type}: {failure.message}" if failure.message else failure.type)
    return text if len(text) <= _MESSAGE_CHARS else text[: _MESSAGE_CHARS - 1] + "…"


def printable(text: str) -> str:
    """``text`` as one line without control characters."""
    return "".join(char if char.isprintable() else "�" for char in " ".join(text.split()))
