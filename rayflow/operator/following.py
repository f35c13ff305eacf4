"""``python -m rayflow show ID --follow``: one execution as it stands, then what happens to it, until it ends."""

from __future__ import annotations

from collections.abc import Sequence

from rayflow.checkpoint.reading import Reader
from rayflow.checkpoint.store import Store
from rayflow.core.records import Finished, Record, Status
from rayflow.errors import ExecutionNotFound
from rayflow.operator.display import print_json
from rayflow.operator.events import events, in_words
from rayflow.operator.executions import show_execution
from rayflow.operator.looking import Looker, say

EXIT_CODES = {Status.COMPLETED: 0, Status.FAILED: 3, Status.CANCELLED: 4}
"""By how an execution ended."""

_DROPPED = 4


def follow(store: Store, execution: str, interval_s: float | None, *, steps: bool, json: bool) -> int:
    """Print until the execution has ended; returns the command's exit code. One that is not there is waited for.

    Raises InvalidInput, Damaged, StoreError for what does not pass, KeyboardInterrupt.
    """
    reader, looker = Reader(store), Looker(store, interval_s)
    seen: Sequence[Record] = ()
    waiting = False
    while True:
        records = looker.look(lambda: _records(reader, execution))
        if records is not None:
            if not records and seen:
                say(f"{execution} was dropped")
                return _DROPPED
            if seen and records[0] != seen[0]:
                say(f"{execution} was dropped and started anew")
                seen = ()
            if not records and not waiting:
                waiting = True
                say(f"there is no execution {execution!r} in {store.url}; waiting for it to start")
            if records and not seen:
                show_execution(reader.described(records), steps=steps, json=json)
                if not json and not isinstance(records[-1], Finished):
                    print(flush=True)  # below it, what happens from now on
            for event in events(records, len(seen)) if seen else ():
                if json:
                    print_json(event)
                else:
                    print(in_words(event), flush=True)
            seen = records
            if seen and isinstance(seen[-1], Finished):
                return EXIT_CODES[seen[-1].status]
        looker.pause()


def _records(reader: Reader, execution: str) -> Sequence[Record]:
    try:
        return reader.records(execution)
    except ExecutionNotFound:
        return ()
