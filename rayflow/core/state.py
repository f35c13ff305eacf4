"""What the log of a shard amounts to: the durable truth, without any user code.

Replaying the log means applying its records here, one after the other. The shard's machine starts from this state, snapshots are
written from it, and tools that only read (``list``, ``show``) need nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from rayflow.core.entity_state import Entities
from rayflow.core.mail import MailState
from rayflow.core.records import (
    Abandoned,
    Completed,
    EntityRecord,
    Failed,
    Finished,
    Forgotten,
    Kept,
    MailRecord,
    Record,
    Retried,
    Scheduled,
    Started,
    Summary,
    decode_record,
    summarise,
)

_summary_encoder = msgspec.msgpack.Encoder()
_summary_decoder = msgspec.msgpack.Decoder(Summary)


class DurableState:
    """Executions and entities as far as they are durable."""

    def __init__(self) -> None:
        self.live: dict[str, list[bytes]] = {}
        """Encoded records of executions that have not ended, in order."""
        self.ended: dict[str, Summary] = {}
        """All that ended and were not forgotten."""
        self.unfiled: dict[str, list[bytes]] = {}
        """Records of those that ended since the last snapshot; it moves them to a Parquet file."""
        self.entities = Entities()
        self.mail = MailState()

    def extend(self, encoded: Iterable[bytes]) -> None:
        """Take in records as they stand in the log. Raises msgspec.DecodeError, and KeyError for what never began."""
        for one in encoded:
            self.apply(decode_record(one), one)

    def apply(self, record: Record, encoded: bytes) -> None:
        """Take in one record that has become durable."""
        if isinstance(record, EntityRecord):
            self.entities.apply(record)
            return
        if isinstance(record, MailRecord):
            self.mail.apply(record)
            return
        execution = record.execution
        if isinstance(record, Started):
            self.ended.pop(execution, None)
            self.unfiled.pop(execution, None)
            self.live[execution] = [encoded]
        elif isinstance(record, Forgotten):
            self.live.pop(execution, None)
            self.ended.pop(execution, None)
            self.unfiled.pop(execution, None)
        elif isinstance(record, Finished):
            history = self.live.pop(execution)
            started = decode_record(history[0])
            assert isinstance(started, Started)
            history.append(encoded)
            self.unfiled[execution] = history
            self.ended[execution] = summarise(started, record)
        else:
            self.live[execution].append(encoded)

    def frozen(self) -> DurableState:
        """A state that stays as this one is now, whatever becomes of this one."""
        frozen = DurableState()
        frozen.live = {execution: list(records) for execution, records in self.live.items()}
        frozen.unfiled, frozen.ended = dict(self.unfiled), dict(self.ended)  # what has ended does not change
        frozen.entities, frozen.mail = self.entities.frozen(), self.mail.frozen()
        return frozen

    def filed(self, executions: Mapping[str, Sequence[bytes]], history: str) -> None:
        """These records are now in the Parquet file ``history``; an execution of the same id that came later is left alone."""
        for execution, records in executions.items():
            current = self.unfiled.get(execution)
            if current is not None and current[0] == records[0]:
                del self.unfiled[execution]
                self.ended[execution] = msgspec.structs.replace(self.ended[execution], history=history)


def encode_summary(summary: Summary) -> bytes:
    """The bytes of a summary as they stand in a snapshot."""
    return _summary_encoder.encode(summary)


def decode_summary(data: bytes) -> Summary:
    """Raises msgspec.DecodeError for anything but a summary."""
    return _summary_decoder.decode(data)


def running_attempts(records: Sequence[Record]) -> dict[str, int]:
    """The attempts that should be running at the end of ``records``, by operation; told without the code."""
    running: dict[str, int] = {}
    for record in records:
        if isinstance(record, Scheduled) and record.kind == "step":
            running[record.operation] = 1
        elif isinstance(record, Retried):
            running[record.operation] = record.attempt
        elif isinstance(record, (Completed, Failed, Abandoned, Kept)):
            running.pop(record.operation, None)
    return running
