"""The note of steps that wait for a place to run: the last one counts, for a while, and for what it can still be true of."""

from __future__ import annotations

import pytest

from rayflow.checkpoint import queues
from rayflow.checkpoint.memory import MemoryStore
from rayflow.checkpoint.queues import PREFIX, WaitingNote, WaitingSteps, read_waiting
from rayflow.checkpoint.reports import OperationState, history_with_waiting, info_with_waiting, report
from rayflow.core.records import Function, Record, Retried, Scheduled, Started

STEPS = [WaitingSteps("x", "train", "asks for 4 GPU; the cluster has 0", 2, (("train[a]", 1), ("train[b]", 1)))]


def test_the_latest_note_replaces_those_of_others_and_nothing_is_left_where_nothing_waits() -> None:
    store = MemoryStore()
    WaitingNote(store).write(STEPS)
    assert read_waiting(store) == tuple(STEPS)
    later = WaitingNote(store)
    later.write([STEPS[0], WaitingSteps("y", "cut", "", 1, (("cut#1", 1),))])
    assert [one.execution for one in read_waiting(store)] == ["x", "y"] and len(list(store.list(PREFIX))) == 1
    later.write([])
    assert read_waiting(store) == () and not list(store.list(PREFIX))


def test_a_note_that_nobody_renews_is_out_of_date(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    now_ms = 1_000_000
    monkeypatch.setattr(queues, "_now_ms", lambda: now_ms)
    WaitingNote(store).write(STEPS)
    now_ms += int(queues.REWRITE_S * 2000)
    assert read_waiting(store) == tuple(STEPS), "it may take a moment to be written"
    now_ms += int(queues.REWRITE_S * 2000)
    assert read_waiting(store) == ()


def test_a_note_of_another_format_is_none() -> None:
    store = MemoryStore()
    store.create(f"{PREFIX}0", b"\xc1")
    assert read_waiting(store) == ()


def test_only_attempts_that_the_note_names_count_as_queued() -> None:
    records: list[Record] = [
        Started("x", 0, Function("m:work"), "1", b"", "", 1),
        *(Scheduled("x", 1, f"train[{name}]", "step", "train", "") for name in "abc"),
    ]
    history = history_with_waiting(report(records), STEPS)
    waits = "asks for 4 GPU; the cluster has 0"
    assert [(one.state, one.waits_for) for one in history.operations] == [
        (OperationState.QUEUED, waits),
        (OperationState.QUEUED, waits),
        (OperationState.RUNNING, ""),
    ]
    steps = history.info.steps
    assert steps is not None and (steps.queued, steps.running, steps.total) == (2, 1, 3)
    assert history.info.waits_for == f"train (and 1 more) {waits}"
    records.append(Retried("x", 2, "train[a]", 2))
    later = history_with_waiting(report(records), [WaitingSteps("y", "train", waits, 1, (("train[a]", 2),))])
    assert {one.state for one in later.operations} == {OperationState.RUNNING}, "that is of another execution"
    assert info_with_waiting(report(records[:1]).info, STEPS).waits_for == "", "nothing of it is under way any more"
