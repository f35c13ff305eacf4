"""``replay_execution`` and ``replay_history``: records of yesterday against the code of today."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

import rayflow
from rayflow.checkpoint import log
from rayflow.checkpoint.identity import identify
from rayflow.checkpoint.local import LocalStore
from rayflow.checkpoint.requests import run
from rayflow.checkpoint.store import Store
from rayflow.core import codec
from rayflow.core.definitions import Workflow
from rayflow.core.records import CancelRequested, Failure, Resumed, Suspended, encode_record
from rayflow.testing import read_records, replay_execution, replay_history
from rayflow.testing.in_process import Clock, LocalCode, Owner, Tally, start_message
from tests.testing.workflows import double, download, fetch, first_of_two, large, refused, reminder, total, unread

ALL = [
    (total, ([1, 2, 3, 4, 5, 6, 7, 8, 9],)),
    (reminder, (2,)),
    (download, ("a",)),
    (large, (70_000,)),
    (unread, (70_000,)),
    (first_of_two, ()),
    (refused, (1,)),
]


def record(store: Store, workflow: Workflow[..., Any], *args: Any, id: str = "recorded") -> None:
    """Run ``workflow`` on ``store``."""
    identify(store, 1)
    code = LocalCode(store, {})
    with closing(Owner(store, code, Clock(), "recorder" + id, Tally())) as owner:
        owner.ask(start_message(code, workflow, id, args, {}))


@pytest.mark.parametrize(("workflow", "args"), ALL)
def test_unchanged_code_agrees_at_every_point(workflow: Workflow[..., Any], args: tuple[Any, ...], tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    record(store, workflow, *args)
    replay_execution(workflow, tmp_path, "recorded")
    replay_history(workflow, read_records(store, "recorded"), store=store)


def test_large_values_that_the_code_does_not_look_at_need_no_store(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    record(store, unread, 70_000)
    record(store, large, 70_000, id="looked at")
    replay_history(unread, read_records(store, "recorded"))
    with pytest.raises(rayflow.InvalidInput, match="give the store that has it"):
        replay_history(large, read_records(store, "looked at"))


def test_reads_the_files_of_ended_executions(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    record(store, total, [1], id="short")
    record(store, total, list(range(12)), id="long")
    assert list(store.list("history/"))
    for id in ("short", "long"):
        replay_execution(total, store, id)
    with pytest.raises(rayflow.ExecutionNotFound, match="'other'"):
        replay_execution(total, store, "other")


def test_a_live_execution_agrees_as_far_as_it_has_come(tmp_path: Path) -> None:
    finished = LocalStore(tmp_path / "finished")
    record(finished, total, [1, 2, 3])
    records = read_records(finished, "recorded")
    live = LocalStore(tmp_path / "live")
    identify(live, 1)
    tail = run(log.recover("shards/000/", "i1"), live).tail
    run(log.append(tail, [encode_record(one) for one in records[:-2]]), live)
    replay_execution(total, live, "recorded")


def test_one_that_never_began_agrees_with_any_code(tmp_path: Path) -> None:
    """I27: its first turn has ended the process, and so there is no record of what it asked for."""
    store = LocalStore(tmp_path)
    record(store, total, [1])
    first = read_records(store, "recorded")[0]
    crashed = Suspended("recorded", 1, Failure("ProcessCrashed", "again and again"), "code", unstarted=True)
    replay_history(total, [first, crashed], store=store)
    with pytest.raises(rayflow.NonDeterminismError):
        replay_history(total, [first], store=store)


def test_one_that_was_suspended_and_went_on_is_held_against_its_end_and_one_that_was_ended_by_hand_is_not(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    record(store, total, [1])
    *records, finished = read_records(store, "recorded")
    suspended = Suspended("recorded", 1, Failure("NonDeterminismError", "it was altered for a while"))
    other = msgspec.structs.replace(finished, result=codec.encode(-1))
    replay_history(total, [*records, suspended, Resumed("recorded", 2), finished], store=store)
    with pytest.raises(rayflow.NonDeterminismError, match="no longer ends as its record says"):
        replay_history(total, [*records, suspended, Resumed("recorded", 2), other], store=store)
    replay_history(total, [*records, suspended, CancelRequested("recorded", 2, "enough"), other], store=store)


def test_changed_code_is_refused_with_the_difference(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    record(store, total, [1, 2])

    @rayflow.workflow
    async def other_order(ctx: rayflow.Context, numbers: list[int]) -> int:
        first = await ctx.step(double, 100)
        return first + len(numbers)

    @rayflow.workflow
    async def other_step(ctx: rayflow.Context, numbers: list[int]) -> str:
        return await ctx.step(fetch, "a")

    @rayflow.workflow
    async def other_arguments(ctx: rayflow.Context) -> None: ...

    with pytest.raises(rayflow.NonDeterminismError, match=r"double#2/\[1\]: recorded step double .*; the code asks for nothing"):
        replay_execution(other_order, store, "recorded")
    with pytest.raises(rayflow.NonDeterminismError, match=r"fetch#1: recorded nothing; the code asks for step fetch"):
        replay_execution(other_step, store, "recorded")
    with pytest.raises(rayflow.NonDeterminismError, match="does not take the arguments on record"):
        replay_execution(other_arguments, store, "recorded")


def test_another_end_is_refused(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    record(store, refused, 1)

    @rayflow.workflow
    async def mended(ctx: rayflow.Context, value: int) -> int:
        return await ctx.step(double, value)

    @rayflow.workflow
    async def longer(ctx: rayflow.Context, value: int) -> int:
        await ctx.step(double, value)
        return await ctx.step(double, value)

    with pytest.raises(
        rayflow.NonDeterminismError, match="recorded: failed with ValueError: 1 is refused\n  the code: completed with 2"
    ):
        replay_execution(mended, store, "recorded")
    with pytest.raises(rayflow.NonDeterminismError, match=r"double#2: recorded nothing"):
        replay_execution(longer, store, "recorded")


def test_large_values_need_their_store(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    record(store, large, 70_000)
    with pytest.raises(rayflow.InvalidInput, match="give the store that has it"):
        replay_history(large, read_records(store, "recorded"))
