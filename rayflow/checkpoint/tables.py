"""Snapshots and the histories of ended executions as Parquet: one schema, readable by pyarrow, DuckDB and Ray Data.

One row per record. ``record`` holds it exactly as it stood in the log and is what rayflow reads back; the other columns are the
same facts spelled out for queries, null where they do not apply. A snapshot also has rows of type ``sum``, one per ended execution,
of type ``entity``, one per entity, ``sender``, with what was answered to whom, ``dead``, with messages that could not be handled,
and ``mail``, with letters on their way.

| column | type | meaning |
|---|---|---|
| execution | string | id of the execution; null for entities |
| entity | string | type and key of the entity, as in Counter/hits; null for executions |
| sequence | int32 | position of the record in its execution, from 0 |
| type | string | start, sched, done, fail, retry, wait, wake, cancel, drop, susp, resume, end, sum, entity, sender, dead, or mail |
| at | timestamp[ms, UTC] | when it was recorded |
| operation | string | identity of the operation |
| attempt | int32 | number of the attempt, from 1 |
| name | string | step or workflow |
| status | string | of an ended execution: completed, failed, cancelled |
| cause | string | of a failed attempt: error, timeout, crash, lost |
| error_type, error_message | string | of a failed attempt or execution |
| started, ended | timestamp[ms, UTC] | when the attempt ran |
| cpu_s | double | CPU seconds of the attempt, with its child processes |
| node | string | where the attempt ran |
| record | binary | the record, msgpack |
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from typing import Any

import msgspec

from rayflow.core.entity_state import KeptEntity, KeptSender, KeptSweep
from rayflow.core.mail import KeptMail
from rayflow.core.records import (
    Completed,
    DeadLetter,
    Failed,
    Failure,
    Finished,
    Record,
    Scheduled,
    Started,
    Summary,
    Usage,
    decode_record,
    digest,
)
from rayflow.core.state import DurableState, decode_summary, encode_summary
from rayflow.errors import Damaged

SUMMARY = "sum"
_KEPT = frozenset(["entity", "sender", "swept", "dead", "mail"])

_Kept = KeptEntity | KeptSender | KeptSweep | DeadLetter | KeptMail
_encode_kept = msgspec.msgpack.Encoder().encode
_decode_kept = msgspec.msgpack.Decoder(_Kept).decode

_Row = tuple[str | None, int, Record | Summary | _Kept, bytes]


def history_key(shard: int, number: int, data: bytes) -> str:
    """The key of a history file; it carries a digest of the content, so that damage is never read as data."""
    return f"history/{shard:03d}-{number:012d}-{digest(data)[:32]}.parquet"


def write_history(executions: Mapping[str, Sequence[bytes]]) -> bytes:
    """A Parquet file with the encoded records of these executions."""
    return _write(
        (execution, sequence, decode_record(encoded), encoded)
        for execution, records in executions.items()
        for sequence, encoded in enumerate(records)
    )


def read_history(data: bytes, execution: str, key: str) -> list[Record]:
    """The records of one execution, in order. Raises Damaged, naming ``key``, if the file cannot be read."""
    _check_digest(data, key)
    table = _read(data, key, ["execution", "sequence", "type", "record"], [("execution", "==", execution)])
    rows = sorted(table.to_pylist(), key=lambda row: row["sequence"])
    return [_decode(row["record"], key) for row in rows if row["type"] != SUMMARY]


def read_histories(data: bytes, key: str) -> dict[str, list[bytes]]:
    """The encoded records of all executions in a history file. Raises Damaged, naming ``key``, if it cannot be read."""
    _check_digest(data, key)
    return read_snapshot(data, key).unfiled


def write_snapshot(state: DurableState) -> bytes:
    """A Parquet file from which ``read_snapshot`` makes an equal state."""

    def rows() -> Iterable[_Row]:
        for records in (state.live, state.unfiled):
            for execution, history in records.items():
                for sequence, encoded in enumerate(history):
                    yield execution, sequence, decode_record(encoded), encoded
        for summary in state.ended.values():
            yield summary.execution, 0, summary, encode_summary(summary)
        for kept in (*state.entities.kept(), *state.mail.kept()):
            yield None, 0, kept, _encode_kept(kept)

    return _write(rows())


def read_snapshot(data: bytes, key: str) -> DurableState:
    """The state in a snapshot. Raises Damaged, naming ``key``, if it cannot be read."""
    table = _read(data, key, ["type", "record"], None)
    state = DurableState()
    summaries: list[Summary] = []
    for kind, encoded in zip(table.column("type").to_pylist(), table.column("record").to_pylist(), strict=True):
        if kind == SUMMARY:
            summaries.append(decode_summary(encoded))
        elif kind in _KEPT:
            kept = _decode_kept(encoded)
            if isinstance(kept, KeptMail):
                state.mail.restore(kept)
            else:
                state.entities.restore(kept)
        else:
            state.apply(_decode(encoded, key), encoded)
    for summary in summaries:
        state.ended[summary.execution] = summary
    return state


def unpacked_bytes(data: bytes) -> int:
    """How many bytes of records a snapshot holds: what reading it and writing the next one cost, however well they are packed."""
    pa = _arrow()
    metadata = pa.parquet.read_metadata(pa.BufferReader(data))
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    columns = [group.column(number) for group in groups for number in range(group.num_columns)]
    return sum(one.total_uncompressed_size for one in columns if one.path_in_schema == "record")


def _check_digest(data: bytes, key: str) -> None:
    if digest(data)[:32] != key.rpartition("-")[2].removesuffix(".parquet"):
        raise Damaged(f"{key}: its content does not match the digest in its name; restore it from a copy of the store")


def _decode(encoded: bytes, key: str) -> Record:
    try:
        return decode_record(encoded)
    except msgspec.DecodeError as error:
        raise Damaged(f"{key}: a row holds no record ({error}); it was written by a newer version or damaged") from error


def _arrow() -> Any:
    """pyarrow, loaded when first needed. It ships no types, so it is Any here."""
    import_module("pyarrow.parquet")
    return import_module("pyarrow")


def _schema(pa: Any) -> Any:
    moment = pa.timestamp("ms", tz="UTC")
    return pa.schema(
        [
            ("execution", pa.string()),
            ("entity", pa.string()),
            ("sequence", pa.int32()),
            ("type", pa.string()),
            ("at", moment),
            ("operation", pa.string()),
            ("attempt", pa.int32()),
            ("name", pa.string()),
            ("status", pa.string()),
            ("cause", pa.string()),
            ("error_type", pa.string()),
            ("error_message", pa.string()),
            ("started", moment),
            ("ended", moment),
            ("cpu_s", pa.float64()),
            ("node", pa.string()),
            ("record", pa.binary()),
        ]
    )


def _write(rows: Iterable[_Row]) -> bytes:
    pa = _arrow()
    schema = _schema(pa)
    columns: list[list[Any]] = [[] for _ in schema.names]
    for execution, sequence, record, encoded in rows:
        for column, value in zip(columns, _row(execution, sequence, record, encoded), strict=True):
            column.append(value)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(pa.Table.from_arrays(arrays, schema=schema), sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def _row(execution: str | None, sequence: int, record: Record | Summary | _Kept, encoded: bytes) -> tuple[Any, ...]:
    failure: Failure | None = getattr(record, "failure", None)
    usage: Usage | None = record.usage if isinstance(record, Completed | Failed) else None
    name = record.workflow.name if isinstance(record, Started) else record.name if isinstance(record, Scheduled) else None
    return (
        execution,
        getattr(record, "entity", None),
        sequence,
        type(record).__struct_config__.tag,
        record.finished_ms if isinstance(record, Summary) else getattr(record, "at_ms", None),
        getattr(record, "operation", None),
        getattr(record, "attempt", None),
        record.workflow if isinstance(record, Summary) else name,
        str(record.status) if isinstance(record, Finished | Summary) else None,
        str(record.cause) if isinstance(record, Failed) else None,
        failure.type if failure else None,
        failure.message if failure else None,
        usage.started_ms if usage else None,
        usage.ended_ms if usage else None,
        usage.cpu_s if usage else None,
        usage.node if usage else None,
        encoded,
    )


def _read(data: bytes, key: str, columns: list[str], filters: list[tuple[str, str, str]] | None) -> Any:
    pa = _arrow()
    try:
        # Without Arrow's threads: the bytes are in memory, and a short command that ends while such a thread starts is aborted.
        return pa.parquet.read_table(pa.BufferReader(data), columns=columns, filters=filters, use_threads=False, pre_buffer=False)
    except (pa.ArrowInvalid, OSError) as error:
        raise Damaged(f"{key}: not a readable Parquet file ({error}); restore it from a copy of the store") from error
