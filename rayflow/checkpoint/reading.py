"""Look into a store without Ray and without taking anything over: which executions there are, and what is on record of one.

Owners may write and truncate meanwhile. What is returned is true of each shard at some moment during the call and holds everything
that was durable before it; it is not one moment for all shards together. Nothing is written, and a folder that is not there is not
created.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from rayflow.checkpoint.continuing import ShardReader
from rayflow.checkpoint.identity import StoreIdentity, read_identity
from rayflow.checkpoint.queues import read_waiting
from rayflow.checkpoint.reports import (
    ExecutionHistory,
    ExecutionInfo,
    StepCounts,
    describe_ended,
    history_with_waiting,
    info_with_waiting,
    report,
    summarize,
)
from rayflow.checkpoint.store import Store
from rayflow.checkpoint.tables import read_histories, read_history
from rayflow.core.records import Record, Status, Summary, decode_record
from rayflow.core.state import DurableState
from rayflow.errors import Damaged, ExecutionNotFound, InvalidInput, NotFound

PARALLEL_SHARDS = 8


@dataclass(frozen=True, slots=True)
class Damage:
    """Something that cannot be read. ``shard`` is the number of the shard that it belongs to; ``message`` names the object."""

    shard: int
    message: str


@dataclass(frozen=True, slots=True)
class Listing:
    """The executions asked for, newest start first, out of ``total`` that match; and what could not be read.

    The executions of a damaged shard are missing. Where only the file of a finished execution is damaged, its ``steps`` are None.
    """

    executions: tuple[ExecutionInfo, ...]
    total: int
    damages: tuple[Damage, ...]


def list_executions(store: Store, *, limit: int | None = None, status: Status | None = None, prefix: str = "") -> Listing:
    """The executions in ``store``, newest start first.

    Args:
        store: An existing store.
        limit: At most so many; default: all.
        status: Only those in this state.
        prefix: Only those whose id starts with it.

    Reads every shard's log and, for finished executions among those returned, the files with their records. Raises InvalidInput
    (no store there, or of a newer format), StoreError. Damage does not hide what is intact: see Listing.
    """
    return Reader(store).listing(limit=limit, status=status, prefix=prefix)


def read_execution(store: Store, execution: str) -> ExecutionHistory:
    """All that is on record of one execution, as a report.

    Raises ExecutionNotFound, InvalidInput (no store there, or of a newer format), Damaged (names the object), StoreError.
    """
    return Reader(store).history(execution)


def read_records(store: Store, execution: str) -> Sequence[Record]:
    """All that is on record of one execution, in order. Raises what ``read_execution`` raises."""
    return Reader(store).records(execution)


class Reader:
    """A store looked at again and again: what was read before is read anew only where it was replaced meanwhile.

    Holds all that it has read. Not for several threads at a time. Raises, and each look raises, InvalidInput (no store there, or of
    a newer format), Damaged, StoreError; another look may follow.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._identity = identity_of(store)
        self._shards = [ShardReader(store, number) for number in range(self._identity.shards)]
        self._described: dict[str, _Described] = {}
        self._filed: dict[tuple[str, str], StepCounts] = {}

    def listing(self, *, limit: int | None = None, status: Status | None = None, prefix: str = "") -> Listing:
        """As ``list_executions``."""
        if limit is not None and limit < 0:
            raise InvalidInput(f"limit={limit}: it cannot be negative")
        found: list[_Found] = []
        damages: list[Damage] = []
        with ThreadPoolExecutor(min(len(self._shards), PARALLEL_SHARDS)) as pool:
            for one in pool.map(partial(self._survey, prefix), self._shards):
                if isinstance(one, Damage):
                    damages.append(one)
                else:
                    found.extend(one)
        matching = [one for one in found if status is None or one.info.status is status]
        matching.sort(key=lambda one: (-one.info.started.timestamp(), one.info.execution))
        chosen = matching[:limit]
        unknown = [one for one in chosen if one.filed is not None and (one.info.execution, one.filed.history) not in self._filed]
        self._filed.update(_filed_steps(self._store, unknown, damages))
        infos = tuple(
            one.info if one.filed is None else describe_ended(one.filed, self._filed.get((one.info.execution, one.filed.history)))
            for one in chosen
        )
        if any(info.ended is None for info in infos):
            waiting = read_waiting(self._store)
            infos = tuple(info_with_waiting(info, waiting) for info in infos) if waiting else infos
        return Listing(infos, len(matching), tuple(sorted(damages, key=lambda damage: (damage.shard, damage.message))))

    def history(self, execution: str) -> ExecutionHistory:
        """As ``read_execution``."""
        return self.described(self.records(execution))

    def described(self, records: Sequence[Record]) -> ExecutionHistory:
        """The report of an execution whose records were just read."""
        history = report(records)
        return history if history.info.ended is not None else history_with_waiting(history, read_waiting(self._store))

    def shard_of(self, execution: str) -> int:
        """The number of the shard that an execution belongs to."""
        return self._identity.shard_of(execution)

    def find(self, execution: str) -> ExecutionInfo | None:
        """One execution in short; None if it is not there."""
        try:
            return summarize(self.records(execution))
        except ExecutionNotFound:
            return None

    def records(self, execution: str) -> Sequence[Record]:
        """As ``read_records``."""
        shard = self._shards[self._identity.shard_of(execution)]
        missing: str | None = None
        while True:
            state = shard.state()
            records = state.live.get(execution) or state.unfiled.get(execution)
            if records is not None:
                return [decode_record(encoded) for encoded in records]
            summary = state.ended.get(execution)
            if summary is None:
                raise ExecutionNotFound(
                    f"there is no execution {execution!r} in {self._store.url}; 'python -m rayflow list' shows those there are"
                )
            try:
                return _present(read_history(self._store.get(summary.history), execution, summary.history), summary)
            except NotFound as error:
                if missing == summary.history:
                    raise _missing(summary) from error
                missing = summary.history  # dropped meanwhile, perhaps together with the execution: look again

    def _survey(self, prefix: str, shard: ShardReader) -> list[_Found] | Damage:
        try:
            state = shard.state()
            return [
                *(
                    _Found(shard.number, self._describe(execution, records), None)
                    for executions in (state.live, state.unfiled)
                    for execution, records in executions.items()
                    if execution.startswith(prefix)
                ),
                *(
                    _Found(shard.number, describe_ended(summary, None), summary)
                    for execution, summary in state.ended.items()
                    if summary.history and execution.startswith(prefix)
                ),
            ]
        except Damaged as error:
            return Damage(shard.number, str(error))

    def _describe(self, execution: str, records: Sequence[bytes]) -> ExecutionInfo:
        known = self._described.get(execution)
        if known is None or (known.first, known.count) != (records[0], len(records)):
            info = summarize([decode_record(encoded) for encoded in records])
            known = self._described[execution] = _Described(records[0], len(records), info)
        return known.info


@dataclass(frozen=True, slots=True)
class _Described:
    """An execution in short as of its first ``count`` records. A later one of the same id has another first record."""

    first: bytes
    count: int
    info: ExecutionInfo


def identity_of(store: Store) -> StoreIdentity:
    """The identity of an existing store. Raises InvalidInput where there is none; Damaged, StoreError."""
    try:
        return read_identity(store)
    except NotFound as error:
        raise InvalidInput(f"there is no store of rayflow at {store.url}; name another one, or start an execution there") from error


def read_state(store: Store, number: int) -> DurableState:
    """What the log of one shard amounts to. Raises Damaged (names the object), StoreError."""
    return ShardReader(store, number).state()


@dataclass(frozen=True, slots=True)
class _Found:
    """An execution and, where its records are in a file of their own, its summary."""

    shard: int
    info: ExecutionInfo
    filed: Summary | None


def _filed_steps(store: Store, chosen: Iterable[_Found], damages: list[Damage]) -> dict[tuple[str, str], StepCounts]:
    """The steps of filed executions, by execution and file; each file is fetched once, and one at a time."""
    files: defaultdict[str, list[tuple[int, Summary]]] = defaultdict(list)
    for one in chosen:
        if one.filed is not None:
            files[one.filed.history].append((one.shard, one.filed))
    steps: dict[tuple[str, str], StepCounts] = {}
    for key, members in files.items():
        shard, first = members[0]
        try:
            filed = read_histories(store.get(key), key)
            for _, summary in members:
                records = [decode_record(encoded) for encoded in filed.get(summary.execution, ())]
                counts = summarize(_present(records, summary)).steps
                if counts is not None:
                    steps[summary.execution, key] = counts
        except NotFound:
            damages.append(Damage(shard, str(_missing(first))))
        except Damaged as error:
            damages.append(Damage(shard, str(error)))
        except KeyError as error:
            damages.append(Damage(shard, f"{key} lacks the start of execution {error}; restore it from a copy"))
    return steps


def _present(records: Sequence[Record], summary: Summary) -> Sequence[Record]:
    if not records:
        raise Damaged(f"{summary.history} has no records of execution {summary.execution!r}; restore it from a copy")
    return records


def _missing(summary: Summary) -> Damaged:
    return Damaged(f"{summary.history}, with the records of execution {summary.execution!r}, is gone; restore it from a copy")
