"""The output gate: nothing leaves before what it could have seen is durable.

Handlers put records and effects in; ``close`` takes both out as one batch. The owner writes the batch's blobs, then its records as
one segment, and only then lets its effects go. Work goes on meanwhile into the next batch. A batch without records has nothing to
wait for but the batches before it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from rayflow.core import limits
from rayflow.core.instance import StepRequest
from rayflow.core.messages import Answer
from rayflow.core.passing import Passed
from rayflow.core.records import Blob, Record, Stored, digest, encode_record


class StartStep(msgspec.Struct, frozen=True, gc=False):
    """Run an attempt of a step."""

    execution: str
    attempt: int
    request: StepRequest
    arguments: Stored
    run: int
    shared: Stored | None = None
    """What comes behind the positional ones of ``arguments``."""
    passed: Passed = ()
    """What is stored apart, and goes into the places of ``arguments`` that are empty."""

    @property
    def operation(self) -> str:
        """The identity of the operation."""
        return self.request.operation


class CancelStep(msgspec.Struct, frozen=True, gc=False):
    """Stop an attempt whose result no longer counts."""

    execution: str
    operation: str
    attempt: int
    run: int
    inline: bool


class Reply(msgspec.Struct, frozen=True, gc=False):
    """Answer a client's request."""

    token: Hashable
    answer: Answer


class Durable(msgspec.Struct, frozen=True, gc=False):
    """Everything recorded before this is durable; ``mark`` is the owner's own."""

    mark: int


class Post(msgspec.Struct, frozen=True, gc=False):
    """A letter to another shard, the ``number``-th."""

    shard: int
    number: int
    letter: bytes


Effect = StartStep | CancelStep | Reply | Durable | Post


@dataclass(slots=True)
class Batch:
    """What becomes durable together. ``encoded[i]`` is ``records[i]`` as it stands in the log."""

    records: list[Record] = field(default_factory=list[Record])
    encoded: list[bytes] = field(default_factory=list[bytes])
    blobs: dict[str, bytes] = field(default_factory=dict[str, bytes])
    effects: list[Effect] = field(default_factory=list[Effect])


class Mark(NamedTuple):
    """How many records and effects there are in a batch."""

    records: int
    effects: int


class Outbox:
    """Collects one batch at a time."""

    def __init__(self) -> None:
        self.unwritten: dict[str, bytes] = {}
        """Blobs that are not in the store yet, by hash."""
        self._batch = Batch()
        self._expected = False
        self._before_close: list[Callable[[], None]] = []

    def before_close(self, complete: Callable[[], None]) -> None:
        """Have ``complete`` called before each batch is closed: it may add records that sum up what happened in it."""
        self._before_close.append(complete)

    def expect(self) -> None:
        """Something has happened that will be summed up: the batch is not empty."""
        self._expected = True

    def record(self, record: Record) -> None:
        """Make ``record`` part of the next segment, unless it cannot be encoded: then nothing has happened."""
        encoded = encode_record(record)
        self._batch.records.append(record)
        self._batch.encoded.append(encoded)

    def effect(self, effect: Effect) -> None:
        """Let ``effect`` go once everything recorded so far is durable."""
        self._batch.effects.append(effect)

    def mark(self) -> Mark:
        """How far the batch has got: for ``take_back``, before it is closed."""
        return Mark(len(self._batch.records), len(self._batch.effects))

    def take_back(self, mark: Mark) -> tuple[list[Record], list[Effect]]:
        """Remove what was put in since, and return it. Blobs stay: nothing names them."""
        batch = self._batch
        taken = batch.records[mark.records :], batch.effects[mark.effects :]
        del batch.records[mark.records :], batch.encoded[mark.records :], batch.effects[mark.effects :]
        return taken

    def store(self, data: bytes, known: Collection[str] = ()) -> Stored:
        """``data`` itself, or the blob that is written before the records which name it, unless it is among those ``known`` to be
        in the store, by their hashes."""
        if len(data) <= limits.current().inline_bytes:
            return data
        blob = Blob(digest(data), len(data))
        return blob if blob.hash in known else self.store_apart(data, blob)

    def store_apart(self, data: bytes, blob: Blob | None = None) -> Blob:
        """The same, as a blob whatever its size: this one, if it is known already."""
        blob = blob or Blob(digest(data), len(data))
        self._batch.blobs[blob.hash] = self.unwritten[blob.hash] = data
        return blob

    def readable(self, stored: Stored) -> Stored:
        """The same value in a form that can be read now: a blob that was stored here may not be written yet."""
        return stored if isinstance(stored, bytes) else self.unwritten.get(stored.hash, stored)

    def written(self, batch: Batch) -> None:
        """The blobs of a batch are in the store."""
        for hash in batch.blobs:
            self.unwritten.pop(hash, None)

    def __bool__(self) -> bool:
        return self._expected or bool(self._batch.records or self._batch.effects)

    def close(self) -> Batch:
        """The batch gathered so far; the next one begins."""
        for complete in self._before_close:
            complete()
        self._expected = False
        batch, self._batch = self._batch, Batch()
        return batch
