"""What is shown of a store without Ray: true, complete, and undisturbed by owners at work and by damage elsewhere."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from rayflow.checkpoint.local import LocalStore
from rayflow.checkpoint.memory import MemoryStore
from rayflow.checkpoint.reading import list_executions, read_execution, read_records
from rayflow.checkpoint.reports import OperationState, StepCounts
from rayflow.checkpoint.store import ObjectInfo, Store
from rayflow.core.records import Cause, Kept, Status
from rayflow.errors import Damaged, ExecutionNotFound, InvalidInput

from .executions import T0_MS, Owner, Owners, single, single_changed


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


def at(offset_ms: int) -> datetime:
    return datetime.fromtimestamp((T0_MS + offset_ms) / 1000, UTC)


def one_of_each(store: Store) -> Owners:
    """An execution in every status, each a second after the one before, the ids in no order."""
    owners = Owners(store)
    owners.code.workflows["edited"] = single
    for second, execution in enumerate(["e-completed", "a-failed", "d-cancelled", "b-suspended", "c-running"]):
        for owner in owners.all:
            owner.now_ms = T0_MS + 1000 * second
        owners[execution].start(execution, "edited" if execution == "b-suspended" else "single", second)
    owners["e-completed"].complete("e-completed", "fetch#1", 0)
    for attempt in (1, 2, 3):
        owners["a-failed"].fail("a-failed", "fetch#1", "disk on fire", attempt=attempt)
        owners["a-failed"].advance(60_000)
    owners["d-cancelled"].cancel("d-cancelled", "not needed")
    for execution in ("b-suspended", "c-running"):
        owners[execution].lose(execution, "fetch#1")
    owners.code.workflows["edited"] = single_changed
    owners.reopen()
    return owners


def test_every_execution_of_every_shard_is_listed_newest_first_with_its_status_steps_and_error(store: LocalStore) -> None:
    one_of_each(store)
    listing = list_executions(store)
    assert [info.execution for info in listing.executions] == [
        "c-running",
        "b-suspended",
        "d-cancelled",
        "a-failed",
        "e-completed",
    ]
    by_id = {info.execution: info for info in listing.executions}
    assert by_id["e-completed"].status is Status.COMPLETED
    assert by_id["e-completed"].steps == StepCounts(1, 0, 0, 0, 0, 0)
    assert by_id["e-completed"].workflow == "single"
    assert by_id["e-completed"].version == "7"
    assert by_id["e-completed"].started == at(0)
    assert by_id["a-failed"].steps == StepCounts(0, 0, 0, 1, 0, 3)
    error = by_id["a-failed"].error
    assert error is not None
    assert error.type == "StepFailed"
    assert "disk on fire" in error.message
    assert by_id["d-cancelled"].status is Status.CANCELLED
    assert by_id["d-cancelled"].steps == StepCounts(0, 0, 0, 0, 1, 0)
    suspended = by_id["b-suspended"].error
    assert suspended is not None
    assert suspended.type == "NonDeterminismError"
    assert by_id["b-suspended"].steps == StepCounts(0, 1, 0, 0, 0, 1)
    assert (by_id["c-running"].status, by_id["c-running"].ended, by_id["c-running"].error) == (Status.RUNNING, None, None)
    assert listing.total == 5
    assert listing.damages == ()


def test_what_is_suspended_stays_so_while_results_are_kept_for_it(store: LocalStore) -> None:
    """I11: they come to its code once that can go on."""
    owners = one_of_each(store)
    owners["b-suspended"].complete("b-suspended", "fetch#1", 5, attempt=2)
    [info] = [info for info in list_executions(store).executions if info.execution == "b-suspended"]
    assert isinstance(list(read_records(store, "b-suspended"))[-1], Kept)
    assert info.status is Status.SUSPENDED
    assert info.error is not None


def test_a_listing_can_be_narrowed_and_says_how_many_match(store: LocalStore) -> None:
    owners = Owners(store, shards=3)
    for number in range(9):
        owners[f"film-{number}"].start(f"film-{number}", "single", number)
    for number in range(4):
        owners[f"film-{number}"].complete(f"film-{number}", "fetch#1", number)
    owners["other"].start("other", "single", 1)
    owners.all[0].snapshot()
    listing = list_executions(store, status=Status.COMPLETED, limit=3)
    assert [info.execution for info in listing.executions] == ["film-0", "film-1", "film-2"]
    assert listing.total == 4
    assert list_executions(store, prefix="film-").total == 9
    assert list_executions(store, limit=0).executions == ()
    with pytest.raises(InvalidInput, match="negative"):
        list_executions(store, limit=-1)


def test_a_history_has_every_operation_with_its_state_attempts_and_cost(store: LocalStore) -> None:
    owners = Owners(store)
    owners["film"].start("film", "busy", 2)
    owners["film"].drive_busy("film")
    history = read_execution(store, "film")
    rows = {operation.operation: operation for operation in history.operations}
    assert [(name, row.state) for name, row in rows.items()] == [
        ("convert#1", OperationState.ABANDONED),
        ("fetch#1/[0]", OperationState.COMPLETED),
        ("fetch#1/[1]", OperationState.COMPLETED),
        ("convert#2", OperationState.FAILED),
        ("fetch#2", OperationState.RETRYING),
        ("fetch#3", OperationState.RUNNING),
        ("wait#1", OperationState.WAITING),
    ]
    flaky = rows["fetch#1/[1]"]
    assert [(one.number, one.state, one.cause, one.node) for one in flaky.attempts] == [
        (1, OperationState.FAILED, Cause.ERROR, "node-b"),
        (2, OperationState.COMPLETED, None, "node-a"),
    ]
    assert (flaky.attempts[0].started, flaky.attempts[0].ended) == (at(500), at(1500))
    assert flaky.attempts[0].failure is not None
    assert flaky.attempts[0].failure.message == "flaky"
    assert flaky.cpu_s == 3.5
    assert (flaky.started, flaky.ended, flaky.duration_s) == (at(500), at(12_000), 11.5)
    assert rows["convert#2"].attempts[0].cause is Cause.TIMEOUT
    assert (rows["fetch#2"].due, rows["fetch#2"].ended) == (at(24_000), None)
    lost = rows["fetch#3"]
    assert [(one.number, one.state, one.cause, one.ended) for one in lost.attempts] == [
        (1, OperationState.FAILED, Cause.LOST, at(14_000)),
        (2, OperationState.RUNNING, None, None),
    ]
    assert (rows["wait#1"].kind, rows["wait#1"].attempts) == ("wait", ())
    assert rows["wait#1"].due == at(12_000) + timedelta(hours=1)
    assert [(one.state, one.ended) for one in rows["convert#1"].attempts] == [(OperationState.ABANDONED, at(12_000))]
    assert history.info.steps == StepCounts(completed=2, running=1, retrying=1, failed=1, abandoned=1, failed_attempts=4)
    assert history.cpu_s == 2.0 + 3.5 + 0.5 + 0.5
    assert history.duration_s is None

    owners["film"].cancel("film", "that will do")
    ended = read_execution(store, "film")
    assert ended.cancel_reason == "that will do"
    assert ended.info.status is Status.CANCELLED
    assert ended.duration_s == 14.0
    assert {row.state for row in ended.operations[-3:]} == {OperationState.ABANDONED}


def test_filing_an_execution_changes_nothing_of_what_is_shown(store: LocalStore) -> None:
    owners = one_of_each(store)
    listed = list_executions(store)
    shown = {info.execution: read_execution(store, info.execution) for info in listed.executions}
    owners.snapshot()
    assert any(True for _ in store.list("history/"))
    assert list_executions(store) == listed
    assert {execution: read_execution(store, execution) for execution in shown} == shown


def test_what_was_forgotten_or_never_there_is_not_found(store: LocalStore) -> None:
    owners = Owners(store)
    owners["gone"].start("gone", "single", 1)
    owners["gone"].complete("gone", "fetch#1", 1)
    owners.snapshot()
    owners["gone"].forget("gone")
    for execution in ("gone", "never"):
        with pytest.raises(ExecutionNotFound, match=execution):
            read_execution(store, execution)
    assert list_executions(store).executions == ()


def test_a_place_without_a_store_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "nothing")
    with pytest.raises(InvalidInput, match="no store of rayflow at file://"):
        list_executions(store)
    with pytest.raises(InvalidInput, match="no store of rayflow at file://"):
        read_execution(store, "film")
    assert not (tmp_path / "nothing").exists()


class Interrupted:
    """A store for readers in which something happens before one of the calls."""

    def __init__(self, store: Store, call: int, happening: Callable[[], None]) -> None:
        self._store = store
        self._left = call
        self._happening = happening
        self._lock = threading.Lock()
        self.url = store.url

    @property
    def happened(self) -> bool:
        return self._left < 0

    def get(self, key: str) -> bytes:
        self._count()
        return self._store.get(key)

    def list(self, prefix: str, start_after: str = "") -> Iterator[ObjectInfo]:
        self._count()
        return self._store.list(prefix, start_after)

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"a reader called {name}")

    def _count(self) -> None:
        with self._lock:
            self._left -= 1
            if self._left == -1:
                self._happening()


def test_owners_that_write_file_and_truncate_at_any_point_of_a_reading_do_not_disturb_it() -> None:
    """Systematic: the same reading once for every store call that something can happen before."""
    call = 0
    while True:
        store = MemoryStore()
        owners = Owners(store, shards=1)
        owner = owners.all[0]
        for name in ("first", "second"):
            owner.start(name, "single", 1)
        owner.complete("first", "fetch#1", 1)
        if call % 2:
            owner.snapshot()

        def work(owner: Owner = owner) -> None:
            owner.complete("second", "fetch#1", 1)
            owner.snapshot()
            owner.start("third", "single", 1)
            owner.snapshot()

        # The number of the call is halved: each point is tried without and with a snapshot before.
        listing = Interrupted(store, call // 2, work)
        listed = list_executions(listing, status=None)
        assert {info.execution for info in listed.executions} >= {"first", "second"}
        assert listed.damages == ()
        assert all(info.steps is not None for info in listed.executions)
        showing = Interrupted(store, call // 2, owner.snapshot)
        assert read_execution(showing, "first").info.status is Status.COMPLETED
        if not listing.happened and not showing.happened:
            break
        call += 1
    assert call > 10


def test_an_execution_that_is_dropped_with_its_file_during_a_reading_is_shown_or_not_found() -> None:
    outcomes: list[str] = []
    for call in range(20):
        store = MemoryStore()
        owner = Owners(store, shards=1).all[0]
        owner.start("film", "single", 1)
        owner.complete("film", "fetch#1", 1)
        owner.snapshot()
        file = next(iter(store.list("history/"))).key

        def drop(owner: Owner = owner, store: Store = store, file: str = file) -> None:
            owner.forget("film")
            store.delete([file])

        reading = Interrupted(store, call, drop)
        try:
            outcomes.append(read_execution(reading, "film").info.status)
        except ExecutionNotFound:
            outcomes.append("not found")
        if not reading.happened:
            break
    assert outcomes == ["not found"] * (len(outcomes) - 1) + ["completed"]


def damage_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def two_shards(store: LocalStore) -> tuple[Owners, str, str]:
    """One finished execution in each of two shards."""
    owners = Owners(store)
    broken, intact = owners.id_in(0), owners.id_in(1)
    for execution in (broken, intact):
        owners[execution].start(execution, "single", 1)
        owners[execution].complete(execution, "fetch#1", 1)
    return owners, broken, intact


@pytest.mark.parametrize("kind", ["segment", "snapshot", "snapshot cut short"])
def test_a_damaged_log_is_named_and_hides_only_its_own_shard(store: LocalStore, kind: str) -> None:
    owners, broken, intact = two_shards(store)
    prefix = "shards/000/log/"
    if kind != "segment":
        owners.snapshot()
        prefix = "shards/000/snapshots/"
    key = list(store.list(prefix))[-1].key
    path = store.local_path(key)
    if kind == "snapshot cut short":
        path.write_bytes(path.read_bytes()[:-10])
    else:
        damage_byte(path)
    listing = list_executions(store)
    assert [info.execution for info in listing.executions] == [intact]
    assert [damage.shard for damage in listing.damages] == [0]
    assert key in listing.damages[0].message
    with pytest.raises(Damaged, match=key):
        read_execution(store, broken)
    assert read_execution(store, intact).info.status is Status.COMPLETED


@pytest.mark.parametrize("kind", ["cut short", "gone"])
def test_a_damaged_history_is_named_and_costs_only_the_steps_of_its_executions(store: LocalStore, kind: str) -> None:
    owners, broken, intact = two_shards(store)
    owners.snapshot()
    key = next(iter(store.list("history/000"))).key
    path = store.local_path(key)
    if kind == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-10])
    listing = list_executions(store)
    steps = {info.execution: info.steps for info in listing.executions}
    assert steps == {broken: None, intact: StepCounts(1, 0, 0, 0, 0, 0)}
    assert [(damage.shard, key in damage.message) for damage in listing.damages] == [(0, True)]
    with pytest.raises(Damaged, match=key):
        read_execution(store, broken)
