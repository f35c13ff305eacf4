"""Check recorded executions against the code of today: would it go the same way?

To be run over executions of production before a change of a workflow is rolled out. What is refused here would be suspended there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from rayflow.checkpoint.blobs import get_blob
from rayflow.checkpoint.opening import open_store
from rayflow.checkpoint.reading import read_records
from rayflow.checkpoint.store import Store
from rayflow.core import codec
from rayflow.core.definitions import Workflow
from rayflow.core.execution import bound, never_began
from rayflow.core.instance import Instance, Outcome
from rayflow.core.records import (
    Blob,
    CancelRequested,
    Completed,
    Finished,
    Function,
    Kept,
    Record,
    Started,
    Stored,
    Suspended,
)
from rayflow.core.replay import replay
from rayflow.errors import InvalidInput, NonDeterminismError


def replay_execution(workflow: Workflow[..., Any], store: str | os.PathLike[str] | Store, id: str) -> None:
    """Check the execution ``id`` of ``store``, live or ended, against ``workflow``; see ``replay_history``.

    Only reads; owners may go on meanwhile. ``store``: a folder, a URL, or a store.

    Raises:
        NonDeterminismError: The code does something else than what is on record.
        ExecutionNotFound, InvalidInput (no store there), Damaged, StoreError.
    """
    opened = open_store(store) if isinstance(store, str | os.PathLike) else store
    replay_history(workflow, read_records(opened, id), store=opened)


def replay_history(workflow: Workflow[..., Any], records: Sequence[Record], *, store: Store | None = None) -> None:
    """Run the code of ``workflow`` through ``records``, the history of one execution from its start on, and compare.

    No step runs. Each operation that the code asks for must be on record at that place with the same kind, name and arguments, and
    none may be missing; where the execution has ended, the code must end with the same result.

    Args:
        store: Where large values are; needed if there are any.

    Raises:
        NonDeterminismError: The code does something else; it names the place, and what was expected and done.
        InvalidInput: ``records`` are not such a history, or a large value is needed and there is no ``store``.
    """
    if not records or not isinstance(records[0], Started):
        raise InvalidInput("the history of an execution begins with its Started record; this one does not")
    values = _Values(records, store)
    if never_began(records):
        return  # so there is nothing yet that the code could fail to match
    instance = replay(records, lambda instance: _body(workflow, records[0], values, instance), values).instance
    outcome = instance.outcome
    instance.close()
    finished = records[-1] if isinstance(records[-1], Finished) else None
    if finished is not None and _was_suspended(records[:-1]):
        return  # it was ended by hand, without its code
    recorded = "it goes on" if finished is None else _in_words(_recorded(finished), finished.result, values)
    done = "it goes on" if outcome is None else _in_words(outcome, outcome.result, values)
    if recorded != done:
        raise NonDeterminismError(
            f"execution {instance.execution}: the code no longer ends as its record says\n"
            f"  recorded: {recorded}\n"
            f"  the code: {done}"
        )


def _was_suspended(records: Sequence[Record]) -> bool:
    """Whether the code could not go on at the end of these records."""
    last = next(one for one in reversed(records) if not isinstance(one, Kept | CancelRequested))
    return isinstance(last, Suspended)


class _Values:
    """The values of a history, and functions by name only: nothing is run that needs more.

    Large ones that the code has looked at are read at once: they are missed before it runs.
    """

    def __init__(self, records: Sequence[Record], store: Store | None) -> None:
        self._store = store
        self._blobs: dict[str, bytes] = {}
        for record in records:
            unread = isinstance(record, Completed) and record.unread
            for stored in (getattr(record, "arguments", None), None if unread else getattr(record, "result", None)):
                if isinstance(stored, Blob):
                    self._fetch(stored)

    def _fetch(self, blob: Blob) -> bytes:
        if blob.hash not in self._blobs:
            if self._store is None:
                raise InvalidInput(f"a value of {blob.size_bytes} bytes is in blob {blob.hash}: give the store that has it")
            self._blobs[blob.hash] = get_blob(self._store, blob)
        return self._blobs[blob.hash]

    def decode(self, stored: Stored) -> Any:
        return codec.decode(stored if isinstance(stored, bytes) else self._fetch(stored))

    def describe(self, function: Callable[..., Any]) -> Function:
        return Function(f"{function.__module__}:{function.__qualname__}")


def _body(
    workflow: Workflow[..., Any], started: Record, values: _Values, instance: Instance
) -> Callable[[], Coroutine[Any, Any, Any]]:
    assert isinstance(started, Started)
    arguments = values.decode(started.arguments)
    try:
        return bound(workflow, arguments, instance)
    except InvalidInput as error:
        raise NonDeterminismError(
            f"execution {instance.execution}: the code does not take the arguments on record ({error})"
        ) from error


def _recorded(finished: Finished) -> Outcome:
    return Outcome(finished.status, None, finished.failure)


def _in_words(outcome: Outcome, result: Stored | None, values: _Values) -> str:
    if outcome.failure is not None:
        return f"{outcome.status} with {outcome.failure.type}: {outcome.failure.message}"
    return f"{outcome.status} with {values.decode(result)!r}" if result is not None else str(outcome.status)
