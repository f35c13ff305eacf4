"""What the store has on record of an encode: read without Ray, while it runs or long after.

The record is the truth about finished chunks (their frames and sizes) and failed attempts; the live view that a client gets tells
only what is under way.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any, cast

from pipelines.video.index import SourceInfo
from pipelines.video.job import Job
from pipelines.video.join import Joined
from pipelines.video.plan import Plan
from pipelines.video.workflow import Prepared, StoredChunk, encode_chunk, encode_video, plan_by_scenes, prepare
from rayflow.checkpoint.blobs import get_blob
from rayflow.checkpoint.identity import read_identity
from rayflow.checkpoint.reading import read_state
from rayflow.checkpoint.store import Store
from rayflow.checkpoint.tables import read_history
from rayflow.core import codec
from rayflow.core.code_reference import reference_of
from rayflow.core.records import Completed, Failed, Failure, Record, Started, Status, Stored, Summary, decode_record
from rayflow.errors import Damaged, InvalidInput, NotFound, StoreError, StoreUnavailable

_SLOWEST_SHARE = 0.1
"""Of the time, at most, that a follower spends reading."""
_PAUSE_S = 1.0


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt of a step that failed. ``final``: there was no further one. ``chunk`` is empty for other steps."""

    step: str
    chunk: str
    number: int
    failure: Failure
    final: bool


@dataclass(frozen=True, slots=True)
class Finished:
    """A chunk that is in the store, and how long its encode took, in seconds."""

    stored: StoredChunk
    wall_s: float


@dataclass(frozen=True, slots=True)
class Recorded:
    """An encode as it stands in the store.

    ``started_ms`` tells runs of the same id apart. ``job`` is None where the file with its history cannot be read; ``info`` and
    ``plan`` until they are known. ``finished`` is by chunk name and holds those taken over from a run before, too. ``joined`` is
    the result, ``failure`` why there is none.
    """

    status: Status
    started_ms: int
    job: Job | None
    info: SourceInfo | None
    plan: Plan | None
    finished: dict[str, Finished]
    failed: tuple[Attempt, ...]
    joined: Joined | None
    failure: Failure | None


class Reader:
    """Reads the record of one execution, again and again; what was decoded once is kept. Not thread-safe."""

    def __init__(self, store: Store, execution: str) -> None:
        self._store = store
        self._execution = execution
        self._decoded: dict[bytes, Any] = {}
        self._next_s = 0.0
        self.unavailable: StoreUnavailable | None = None
        """Why the store did not answer when it was last looked into for display; None where it did."""

    def read(self) -> Recorded | None:
        """The record as it is now; None where there is none.

        Raises InvalidInput (the id belongs to another workflow, or the store to a newer rayflow), StoreError.
        """
        try:
            identity = read_identity(self._store)
        except NotFound:
            return None
        state = read_state(self._store, identity.shard_of(self._execution))
        encoded = state.live.get(self._execution) or state.unfiled.get(self._execution)
        summary = state.ended.get(self._execution)
        if encoded is None and summary is None:
            return None
        records = [decode_record(one) for one in encoded] if encoded is not None else self._filed(summary)
        return self._describe(records, summary)

    def read_if_due(self) -> Recorded | None:
        """As ``glance``, but None while reading would cost more than a tenth of the time."""
        began_s = time.monotonic()
        if began_s < self._next_s:
            return None
        recorded = self.glance()
        ended_s = time.monotonic()
        self._next_s = ended_s + max(_PAUSE_S, (ended_s - began_s) / _SLOWEST_SHARE)
        return recorded

    def glance(self) -> Recorded | None:
        """As ``read``, for display only: None where the store fails, which whoever depends on it will say."""
        self.unavailable = None
        try:
            return self.read()
        except StoreUnavailable as error:
            self.unavailable = error
        except (StoreError, InvalidInput):
            pass
        return None

    def _filed(self, summary: Summary | None) -> list[Record]:
        """Records that a snapshot moved to a file of their own; none where it cannot be read, for the summary says the rest."""
        try:
            return [] if summary is None else read_history(self._store.get(summary.history), self._execution, summary.history)
        except (NotFound, Damaged):
            return []

    def _describe(self, records: list[Record], summary: Summary | None) -> Recorded:
        started = records[0] if records else None
        name = started.workflow.name if isinstance(started, Started) else summary.workflow if summary is not None else ""
        if name != reference_of(encode_video.function):
            raise InvalidInput(f"id {self._execution!r} belongs to an execution of {name}: choose another --id")
        started_ms = started.at_ms if isinstance(started, Started) else summary.started_ms if summary is not None else 0
        recorded = Recorded(Status.RUNNING, started_ms, None, None, None, {}, (), None, None)
        if isinstance(started, Started):
            (job, *kept), _ = cast("tuple[tuple[Any, ...], Any]", self._decode(started.arguments))
            finished = {one.encoded.name: Finished(one, 0.0) for one in (kept[0] if kept else ())}
            recorded = replace(recorded, job=job, finished=finished)
        for record in records:
            recorded = self._advance(recorded, record)
        if summary is not None:
            joined = None if summary.result is None else cast("Joined", self._decode(summary.result))
            recorded = replace(recorded, status=summary.status, joined=joined, failure=summary.failure)
        return recorded

    def _advance(self, recorded: Recorded, record: Record) -> Recorded:
        if isinstance(record, Completed):
            step, _ = step_and_chunk(record.operation)
            if step == encode_chunk.settings.name:
                stored = cast("StoredChunk", self._decode(record.result))
                wall_s = (record.usage.ended_ms - record.usage.started_ms) / 1000
                recorded.finished[stored.encoded.name] = Finished(stored, wall_s)
            elif step == prepare.settings.name:
                prepared = cast("Prepared", self._decode(record.result))
                return replace(recorded, info=prepared.plan.info, plan=None if prepared.intervals else prepared.plan)
            elif step == plan_by_scenes.settings.name:
                return replace(recorded, plan=cast("Plan", self._decode(record.result)))
        elif isinstance(record, Failed):
            step, chunk = step_and_chunk(record.operation)
            failed = Attempt(step, chunk, record.attempt, record.failure, record.retry_ms is None)
            return replace(recorded, failed=(*recorded.failed, failed))
        return recorded

    def _decode(self, stored: Stored) -> Any:
        key = stored if isinstance(stored, bytes) else stored.hash.encode()
        if key not in self._decoded:
            self._decoded[key] = codec.decode(stored if isinstance(stored, bytes) else get_blob(self._store, stored))
        return self._decoded[key]


def step_and_chunk(operation: str) -> tuple[str, str]:
    """The step's name and the chunk's, or "": of ``encode_chunk#1/[0007]`` they are ``encode_chunk`` and ``0007``."""
    head, _, key = operation.partition("/[")
    return head.partition("#")[0], key.removesuffix("]")


def usable_chunks(store: Store, recorded: Recorded) -> tuple[StoredChunk, ...]:
    """The finished chunks of a record whose files are still whole in the store, in the order of the video. Raises StoreError.

    Files are not read: those of right size that are damaged were found by the join, which names their keys as it fails.
    """
    found = "\n".join(one.failure.message for one in recorded.failed if one.failure.type == Damaged.__name__)
    chunks = [one.stored for _, one in sorted(recorded.finished.items()) if one.stored.file.key not in found]
    folders = {one.file.key.rpartition("/")[0] + "/" for one in chunks}
    present = {info.key: info.size_bytes for folder in folders for info in store.list(folder)}
    return tuple(one for one in chunks if present.get(one.file.key) == one.file.size_bytes)
