"""``python -m rayflow list --watch``: on a terminal a table that is drawn again in place, else lines for what has changed."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from rich.cells import cell_len
from rich.console import Console
from rich.live import Live
from rich.text import Text

from rayflow.checkpoint.reading import Damage, Listing, Reader
from rayflow.checkpoint.reports import ExecutionInfo
from rayflow.checkpoint.store import Store
from rayflow.operator.display import NOTHING, aligned_line, clock, damage_text, fitted_lines, print_damages, print_json, printable
from rayflow.operator.executions import COLUMNS, Selection, row
from rayflow.operator.looking import Looker


@dataclass(frozen=True, slots=True)
class Dropped:
    """What ``list --watch --json`` prints of an execution that is not in the store any more."""

    execution: str
    dropped: Literal[True] = True


def watch(store: Store, selection: Selection, interval_s: float | None, *, json: bool) -> int:
    """Look until interrupted. Raises InvalidInput, StoreError for what does not pass, KeyboardInterrupt."""
    reader = Reader(store)
    looker = Looker(store, interval_s)
    console = Console(file=sys.stdout, highlight=False)
    with ExitStack() as ending:
        if json or not console.is_terminal or console.is_dumb_terminal:
            show = Changes(reader, selection, json=json).show
        else:
            live = ending.enter_context(Live(console=console, auto_refresh=False, vertical_overflow="crop"))

            def show(listing: Listing) -> None:
                now = datetime.now(UTC)
                lines = picture(listing, now, store.url, looker.interval_s, console.width, console.height - 1)
                live.update(Text("\n".join(lines), no_wrap=True, overflow="ellipsis"), refresh=True)

        while True:
            listing = looker.look(lambda: reader.listing(limit=selection.limit, status=selection.status, prefix=selection.prefix))
            if listing is not None:
                show(listing)
            looker.pause()


def picture(listing: Listing, now: datetime, url: str, interval_s: float, width: int, height: int) -> list[str]:
    """A listing as at most ``height`` lines: when it was true, the table, and what there is no room for."""
    notes = [f"damaged: {damage_text(damage)}" for damage in listing.damages]
    room = max(height - 2 - len(notes), 1)  # below the line with the time and the heading
    infos = listing.executions[: room if listing.total <= room else room - 1] or listing.executions[:1]
    table = fitted_lines(COLUMNS, [row(info, now) for info in infos], width) if infos else ["no executions"]
    more = [f"{len(infos)} of {listing.total} executions"] if listing.total > len(infos) else []
    return [f"{clock(now)}  every {interval_s:g} s  {printable(url)}", *table, *more, *notes][:height]


class Changes:
    """Prints executions when they are new or have changed, and each damage once."""

    def __init__(self, reader: Reader, selection: Selection, *, json: bool) -> None:
        self._reader = reader
        self._selection = selection
        self._json = json
        self._known: Mapping[str, ExecutionInfo] | None = None
        self._damages: set[Damage] = set()
        self._widths = [cell_len(column.heading) for column in COLUMNS]

    def show(self, listing: Listing) -> None:
        """Compare with the listing before and print what is different."""
        infos = {info.execution: info for info in listing.executions}
        known = self._known or {}
        changed = [info for info in listing.executions if known.get(info.execution) != info]
        damaged = {damage.shard for damage in listing.damages}
        dropped: list[str] = []
        for execution in known.keys() - infos.keys():
            if self._reader.shard_of(execution) in damaged:
                continue
            now = self._reader.find(execution)
            if now is None:
                dropped.append(execution)
            elif now.status is not known[execution].status:  # it is no more among those asked for
                changed.append(now)
        if self._json:
            for info in changed:
                print_json(info)
            for execution in dropped:
                print_json(Dropped(execution))
        else:
            self._print(changed, dropped, first=self._known is None)
        print_damages([damage for damage in listing.damages if damage not in self._damages])
        self._damages.update(listing.damages)
        self._known = infos

    def _print(self, changed: list[ExecutionInfo], dropped: list[str], *, first: bool) -> None:
        rows = [[printable(cell) for cell in row(info)] for info in changed]
        rows += [[printable(execution), NOTHING, NOTHING, "dropped", *[NOTHING] * (len(COLUMNS) - 4)] for execution in dropped]
        self._widths = [max([width, *(cell_len(cells[at]) for cells in rows)]) for at, width in enumerate(self._widths)]
        headings = [column.heading.upper() for column in COLUMNS] if first else None
        for cells in [*([headings] if headings else []), *rows]:
            print(aligned_line(COLUMNS, cells, self._widths), flush=True)
