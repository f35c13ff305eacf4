"""Parquet files of the store: they give back exactly what was put in, have the columns that are documented, and show damage."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayflow.checkpoint import tables
from rayflow.checkpoint.memory import MemoryStore
from rayflow.checkpoint.tables import history_key, read_history, read_snapshot, unpacked_bytes, write_history, write_snapshot
from rayflow.core.records import (
    Abandoned,
    Blob,
    CancelRequested,
    Cause,
    Completed,
    Elapsed,
    Failed,
    Failure,
    Finished,
    Function,
    Record,
    Retried,
    Scheduled,
    Started,
    Status,
    Suspended,
    Usage,
    Woke,
    encode_record,
)
from rayflow.core.state import DurableState
from rayflow.errors import Damaged

from .executions import T0_MS, Owners

text = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)
times_ms = st.integers(0, 4_000_000_000_000)
numbers = st.integers(1, 2**31 - 1)
stored = st.binary(max_size=20) | st.builds(Blob, text, numbers)
causes = st.sampled_from(Cause)
failures = st.builds(Failure, text, text, text)
usages = st.builds(Usage, times_ms, times_ms, st.floats(0, 1e6), text)


def records_of(execution: str) -> st.SearchStrategy[list[Record]]:
    """Any records of one execution after its start, before its end."""
    this = st.just(execution)
    return st.lists(
        st.builds(Scheduled, this, times_ms, text, st.sampled_from(["step", "wait"]), text, text, times_ms)
        | st.builds(Completed, this, times_ms, text, numbers, stored, usages)
        | st.builds(
            Failed, this, times_ms, text, numbers, st.sampled_from(Cause), failures, st.none() | times_ms, st.none() | usages
        )
        | st.builds(Retried, this, times_ms, text, numbers)
        | st.builds(Elapsed, this, times_ms, text)
        | st.builds(Woke, this, times_ms)
        | st.builds(CancelRequested, this, times_ms, text)
        | st.builds(Abandoned, this, times_ms, text)
        | st.builds(Suspended, this, times_ms, failures),
        max_size=6,
    )


@st.composite
def states(draw: st.DrawFn) -> DurableState:
    """Executions that run, that ended, and that ended and were filed."""
    state = DurableState()
    for execution in draw(st.lists(text, unique=True, max_size=5)):
        this = st.just(execution)
        functions = st.builds(Function, text, st.none() | stored)
        history: list[Record] = [
            draw(st.builds(Started, this, times_ms, functions, text, stored, text, st.integers(0, 2**63 - 1))),
            *draw(records_of(execution)),
        ]
        ended, filed = draw(st.sampled_from([(False, False), (True, False), (True, True)]))
        if ended:
            finals = st.sampled_from([Status.COMPLETED, Status.FAILED, Status.CANCELLED])
            history.append(draw(st.builds(Finished, this, times_ms, finals, st.none() | stored, st.none() | failures)))
        for record in history:
            state.apply(record, encode_record(record))
        if filed:
            state.filed({execution: state.unfiled[execution]}, f"history/{draw(st.integers(0, 9))}.parquet")
    return state


def content(state: DurableState) -> tuple[object, ...]:
    return state.live, state.ended, state.unfiled


@settings(deadline=None, max_examples=40)
@given(states())
def test_a_snapshot_gives_back_the_state_that_was_written(state: DurableState) -> None:
    assert content(read_snapshot(write_snapshot(state), "key")) == content(state)


@settings(deadline=None, max_examples=40)
@given(states())
def test_a_history_gives_back_the_records_of_each_execution_in_order(state: DurableState) -> None:
    executions = {**state.live, **state.unfiled}
    data = write_history(executions)
    key = history_key(0, 1, data)
    for execution, records in executions.items():
        assert [encode_record(record) for record in read_history(data, execution, key)] == records
    assert read_history(data, "no such execution, the name is too long", key) == []


def busy_state() -> DurableState:
    owners = Owners(MemoryStore(), shards=1)
    owner = owners.all[0]
    owner.start("film", "busy", 2)
    owner.drive_busy("film")
    owner.start("done", "single", 1)
    owner.complete("done", "fetch#1", 1)
    return owner.state


def rows_of(data: bytes) -> list[dict[str, Any]]:
    return pq.read_table(pa.BufferReader(data)).to_pylist()


def documented_columns() -> list[tuple[str, str]]:
    lines = re.findall(r"^\| ([a-z_, ]+) \| ([^|]+) \|", tables.__doc__ or "", re.M)
    return [(name, kind) for names, kind in lines if names != "column" for name in names.split(", ")]


def test_a_snapshot_s_size_is_told_as_that_of_its_records_however_well_they_are_packed() -> None:
    state = DurableState()
    records = [Started("film", T0_MS, Function("module:workflow"), "", b"x" * 100_000, "", 0)]
    records_bytes = 0
    for record in (
        *records,
        *(Completed("film", T0_MS, f"step#{number}", 1, b"y" * 10_000, Usage(T0_MS, T0_MS)) for number in range(500)),
    ):
        encoded = encode_record(record)
        records_bytes += len(encoded)
        state.apply(record, encoded)
    data = write_snapshot(state)
    assert len(data) < records_bytes / 50
    assert records_bytes <= unpacked_bytes(data) < records_bytes * 1.01


def test_both_files_have_the_documented_columns_in_that_order_and_no_others() -> None:
    spelled = {"timestamp[ms, tz=UTC]": "timestamp[ms, UTC]"}
    state = busy_state()
    for data in (write_snapshot(state), write_history(state.unfiled)):
        schema = pq.read_schema(pa.BufferReader(data))
        assert [(field.name, spelled.get(str(field.type), str(field.type))) for field in schema] == documented_columns()


def only(rows: Sequence[dict[str, Any]], **wanted: object) -> dict[str, Any]:
    (row,) = [row for row in rows if all(row[name] == value for name, value in wanted.items())]
    return row


def test_the_columns_say_what_the_records_say_without_reading_the_records() -> None:
    rows = rows_of(write_snapshot(busy_state()))
    film = [row for row in rows if row["execution"] == "film"]
    assert [row["sequence"] for row in film] == list(range(len(film)))

    def moment(offset_ms: int) -> datetime:
        return datetime.fromtimestamp((T0_MS + offset_ms) / 1000, UTC)

    started = only(film, type="start")
    assert (started["name"], started["at"], started["operation"]) == ("busy", moment(0), None)
    failed = only(film, type="fail", operation="fetch#1/[1]")
    assert (failed["attempt"], failed["cause"], failed["error_type"], failed["error_message"]) == (1, "error", "OSError", "flaky")
    assert (failed["started"], failed["ended"], failed["cpu_s"], failed["node"]) == (moment(500), moment(1500), 0.5, "node-b")
    assert only(film, type="done", operation="fetch#1/[1]")["attempt"] == 2
    assert only(film, type="fail", operation="fetch#3")["node"] is None
    assert only(film, type="sched", operation="wait#1")["name"] == "wait"
    ended = only(rows, execution="done", type="end")
    assert (ended["status"], ended["error_type"]) == ("completed", None)
    summary = only(rows, execution="done", type="sum")
    assert (summary["name"], summary["status"], summary["at"]) == ("single", "completed", ended["at"])


def test_a_file_cut_short_anywhere_is_damaged_and_named() -> None:
    state = busy_state()
    history, snapshot = write_history(state.unfiled), write_snapshot(state)
    key = history_key(0, 7, history)
    for end in range(0, len(history), 97):
        with pytest.raises(Damaged, match=key):
            read_history(history[:end], "done", key)
        flipped = bytearray(history)
        flipped[end] ^= 1
        with pytest.raises(Damaged, match=key):
            read_history(bytes(flipped), "done", key)
    for end in range(0, len(snapshot), 97):
        with pytest.raises(Damaged, match="snapshots/3"):
            read_snapshot(snapshot[:end], "snapshots/3")
