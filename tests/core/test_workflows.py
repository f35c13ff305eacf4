"""The machine of a shard: attempts and retries, what is late or unknown, starting and ending, and what it costs.

Invariants: I12, I14.
"""

import asyncio
import gc
import sys
import weakref
from typing import Any

import pytest

from rayflow.core import codec
from rayflow.core.context import Context
from rayflow.core.definitions import Retry, Workflow, retry_pause_ms, step, workflow
from rayflow.core.execution import MAX_LOSSES
from rayflow.core.instance import Instance
from rayflow.core.messages import Attempt, AwaitOutcome, CancelExecution, ForgetExecution, Refused, StepProgress, StepResult
from rayflow.core.records import (
    Abandoned,
    Cause,
    Completed,
    Elapsed,
    Failed,
    Failure,
    Forgotten,
    Retried,
    Scheduled,
    Woke,
    decode_record,
)
from rayflow.errors import StepFailed, StepLost, StepTimedOut
from tests.core.driver import EPOCH_MS, SEED, Driver

SLOW = Retry(max_attempts=4, initial_s=2, backoff=3, max_s=10, jitter=0.5, retry_on=(OSError,), give_up_on=(FileNotFoundError,))
ERRORS: list[Exception] = []


@step(retry=SLOW)
def work(value: Any = None) -> Any:
    if ERRORS:
        raise ERRORS.pop(0)
    return value


@step
def other(value: Any = None) -> Any:
    return value


@pytest.fixture(autouse=True)
def nothing_is_left() -> Any:
    """No test leaves a coroutine or task behind that complains when it is collected."""
    ERRORS.clear()
    yield
    gc.collect()


@workflow
async def one_step(ctx: Context, value: Any = None) -> Any:
    try:
        return await ctx.step(work, value)
    except StepFailed as error:
        return [type(error).__name__, error.error_type, str(error), error.remote_traceback]


@workflow
async def two_steps(ctx: Context) -> list[Any]:
    return [await ctx.step(work, 1), await ctx.step(other, 2)]


# -- attempts ------------------------------------------------------------------------------------------------------------------


def test_pauses_between_attempts_follow_the_schedule_known_in_advance_also_after_a_crash() -> None:
    def starts(crash: bool) -> list[int]:
        ERRORS[:] = [OSError("1"), OSError("2"), OSError("3")]
        driver = Driver(one_step, dispatcher="survives")
        driver.start(one_step, seed=11)
        while driver.running or driver.machine.next_due_ms() is not None:
            if crash:
                driver.crash()
            if driver.running:
                driver.finish("work#1")
            else:
                due_ms = driver.machine.next_due_ms()
                assert due_ms is not None
                driver.pass_until(due_ms - 1)
                assert not driver.running, "not a millisecond early"
                driver.pass_until(due_ms)
        assert driver.result() is None
        return [at_ms for at_ms, _ in driver.starts]

    expected = [EPOCH_MS]
    for attempt in (1, 2, 3):
        expected.append(expected[-1] + retry_pause_ms(SLOW, 11, "work#1", attempt))
    assert starts(crash=False) == starts(crash=True) == expected
    pauses = [retry_pause_ms(SLOW, 11, "work#1", attempt) for attempt in (1, 2, 3, 4, 5)]
    bounds = [(1000, 3000), (3000, 9000), (5000, 15000), (5000, 15000), (5000, 15000)]
    assert all(low <= pause <= high for pause, (low, high) in zip(pauses, bounds, strict=True))
    assert pauses != [retry_pause_ms(SLOW, 12, "work#1", attempt) for attempt in (1, 2, 3, 4, 5)]


@pytest.mark.parametrize(
    ("error", "attempts"),
    [(OSError("busy"), 4), (ConnectionError("a kind of it"), 4), (ValueError("not listed"), 1), (FileNotFoundError("excepted"), 1)],
)
def test_only_errors_of_the_listed_types_are_worth_more_attempts_and_the_code_gets_type_message_and_traceback(
    error: Exception, attempts: int
) -> None:
    ERRORS[:] = [error] * 9
    driver = Driver(one_step)
    _, _, (kind, error_type, message, trace) = driver.run(one_step)
    assert (kind, error_type) == ("StepFailed", type(error).__name__)
    assert message == f"work#1 failed after {attempts} attempt{'s' * (attempts > 1)}: {type(error).__name__}: {error}"
    assert "in work\n    raise ERRORS.pop(0)" in trace
    assert driver.runs["work#1"] == attempts


@pytest.mark.parametrize(("cause", "kind"), [(Cause.TIMEOUT, StepTimedOut), (Cause.CRASH, StepLost)])
def test_time_outs_and_crashes_count_and_are_retried_whatever_the_listed_types(cause: Cause, kind: type[StepFailed]) -> None:
    driver = Driver(one_step)
    driver.start(one_step)
    for _ in range(4):
        driver.fail("work#1", cause)
        driver.pass_until(driver.now_ms + 60_000)
    assert driver.result()[:2] == [kind.__name__, "RuntimeError"]
    assert len(driver.starts) == 4


def test_attempts_lost_with_the_dispatcher_do_not_count_and_start_again_at_once() -> None:
    ERRORS[:] = [OSError("1"), OSError("2"), OSError("3"), OSError("4")]
    driver = Driver(one_step, dispatcher="dies")
    driver.start(one_step)
    for _ in range(4):
        now_ms = driver.now_ms
        for _ in range(5):
            driver.crash()
        assert all(at_ms == now_ms for at_ms, _ in driver.starts[-5:])
        driver.finish("work#1")
        if (due_ms := driver.machine.next_due_ms()) is not None:
            driver.pass_until(due_ms)
    assert driver.result()[2].startswith("work#1 failed after 24 attempts: OSError: 4")
    failed = [one for one in driver.records() if isinstance(one, Failed) and one.cause == "error"]
    pauses = [one.retry_ms - one.at_ms for one in failed if one.retry_ms is not None]
    assert pauses == [retry_pause_ms(SLOW, 7, "work#1", attempt) for attempt in (1, 2, 3)]


def test_a_step_that_is_lost_again_and_again_is_taken_for_the_cause_of_it() -> None:
    driver = Driver(one_step)
    driver.start(one_step)
    for _ in range(MAX_LOSSES):
        driver.fail("work#1", Cause.LOST)
    assert driver.running
    driver.fail("work#1", Cause.LOST)
    assert driver.result()[0] == "StepLost"


@pytest.mark.parametrize("cause", Cause)
def test_an_at_most_once_step_never_has_a_second_attempt(cause: Cause) -> None:
    @step(delivery="at_most_once", retry=Retry(max_attempts=9, initial_s=0))
    def charge() -> None: ...

    @workflow
    async def charging(ctx: Context) -> str:
        try:
            await ctx.step(charge)
        except StepFailed as error:
            return type(error).__name__
        return "charged"

    driver = Driver(charging)
    driver.start(charging)
    driver.fail("charge#1", cause)
    driver.settle()
    assert driver.result() == {"error": "StepFailed", "timeout": "StepTimedOut", "crash": "StepLost", "lost": "StepLost"}[cause]
    assert len(driver.starts) == 1


def test_a_result_reaches_the_code_as_the_record_holds_it_also_the_first_time() -> None:
    value = {"t": (1, [2.0]), "s": frozenset({1}), "n": None}
    kinds: list[Any] = []

    @workflow
    async def looking(ctx: Context) -> None:
        got = await ctx.step(other, value)
        kinds.append((got is value, got == value, type(got["t"]), type(got["t"][1]), type(got["s"])))
        await ctx.step(other)

    driver = Driver(looking)
    driver.start(looking)
    driver.finish("other#1")
    driver.crash()
    driver.settle()
    assert kinds == [(False, True, tuple, list, frozenset)] * 2


# -- what is late or unknown ---------------------------------------------------------------------------------------------------


def snapshot(driver: Driver) -> tuple[Any, ...]:
    return (len(driver.log), list(driver.running), list(driver.starts), list(driver.stopped), driver.machine.next_due_ms())


def result(operation: str, attempt: int, value: Any = 1, id: str = "x") -> StepResult:
    return StepResult(id, operation, attempt, codec.encode(value), run=SEED)


def test_results_of_older_attempts_given_up_operations_and_ended_or_unknown_executions_change_nothing() -> None:
    @workflow
    async def giving_up(ctx: Context) -> str:
        left = asyncio.ensure_future(ctx.step(other))
        await ctx.step(work)
        left.cancel()
        await ctx.step(work.options(name="last"))
        return "end"

    ERRORS[:] = [OSError("once")]
    driver = Driver(giving_up)
    driver.start(giving_up)
    driver.finish("work#1")
    before = snapshot(driver)
    driver.report(result("work#1", 1))
    driver.report(StepResult("x", "work#1", 1, cause=Cause.ERROR, failure=Failure("OSError", "again"), run=SEED))
    driver.report(result("work#1", 2))  # attempt 2 is waiting for its time: it cannot have run
    driver.machine.step_lost(Attempt("x", "work#1", 2, SEED), driver.now_ms)
    driver.report(result("nothing#1", 1))
    driver.report(result("other#1", 1, id="unknown"))
    driver.commit()
    assert snapshot(driver) == before
    due_ms = driver.machine.next_due_ms()
    assert due_ms is not None
    driver.pass_until(due_ms)
    before = snapshot(driver)
    driver.machine.step_finished(result("work#1", 1), driver.now_ms)
    driver.commit()
    assert snapshot(driver) == before
    driver.finish("work#1")
    assert driver.stopped == [Attempt("x", "other#1", 1, SEED)]
    before = snapshot(driver)
    driver.report(result("other#1", 1))
    driver.report(result("work#1", 2))
    assert snapshot(driver) == before
    driver.settle()
    assert driver.result() == "end"
    before = snapshot(driver)
    driver.report(result("last#1", 1))
    driver.pass_until(driver.now_ms + 10**9)
    assert snapshot(driver)[:4] == before[:4]


def test_progress_of_older_attempts_and_unknown_operations_is_not_shown() -> None:
    ERRORS[:] = [OSError("once")]
    driver = Driver(one_step)
    driver.start(one_step)
    driver.machine.step_progress(StepProgress("x", "work#1", 1, {"done": 0.5}, SEED))
    view = driver.machine.view("x", driver.now_ms)
    assert view is not None
    assert [(one.name, one.attempt, one.progress, one.state) for one in view.running] == [("work", 1, {"done": 0.5}, "queued")]
    driver.machine.step_progress(StepProgress("x", "work#1", 1, {}, SEED, "running"))
    view = driver.machine.view("x", driver.now_ms)
    assert view is not None and [(one.progress, one.state) for one in view.running] == [({"done": 0.5}, "running")]
    driver.finish("work#1")
    driver.machine.step_progress(StepProgress("x", "work#1", 1, {"done": 0.9}, SEED))
    driver.machine.step_progress(StepProgress("x", "other#1", 1, {"done": 0.9}, SEED))
    driver.machine.step_progress(StepProgress("y", "work#1", 1, {"done": 0.9}, SEED))
    view = driver.machine.view("x", driver.now_ms)
    assert view is not None
    due_ms = driver.machine.next_due_ms()
    assert [(one.attempt, one.waiting_until_ms, one.progress, one.state) for one in view.running] == [(2, due_ms, {}, "retrying")]
    assert (view.failed_attempts, driver.machine.view("y", driver.now_ms)) == (1, None)


# -- executions ----------------------------------------------------------------------------------------------------------------


def test_the_same_start_attaches_and_the_same_id_for_anything_else_is_refused_live_and_ended_and_after_a_crash() -> None:
    driver = Driver(one_step, two_steps)
    (first,) = driver.start(one_step, 5)
    assert (first.execution, first.created) == ("x", True)
    for phase in ("live", "ended", "restored"):
        if phase == "ended":
            driver.settle()
        if phase == "restored":
            driver.crash()
        size = len(driver.log)
        (again,) = driver.start(one_step, 5, seed=99)
        assert (again.execution, again.created) == ("x", False)
        (arguments,) = driver.start(one_step, 6)
        assert (arguments.error, "with other arguments" in arguments.message) == ("IdInUse", True)
        (another,) = driver.start(two_steps)
        assert (another.error, "belongs to an execution of one_step, not of two_steps" in another.message) == ("IdInUse", True)
        assert len(driver.log) == size
    assert driver.result() == 5
    assert driver.runs == {"work#1": 1}


def test_what_is_unknown_is_answered_so_and_recorded_nowhere() -> None:
    driver = Driver(one_step)
    for message in (AwaitOutcome("nobody"), CancelExecution("nobody", "why")):
        (answer,) = driver.tell(message)
        assert (answer.error, "'nobody'" in answer.message) == ("ExecutionNotFound", True)
    (answer,) = driver.tell(ForgetExecution("nobody"))
    assert answer.created is False
    (answer,) = driver.start(Workflow(one_step.function, "not deployed", "1"))
    assert (answer.error, answer.message) == ("InvalidInput", "not deployed cannot be loaded")
    assert driver.log == []
    assert driver.machine.live_count == 0


def test_arguments_that_do_not_fit_are_refused_before_anything_is_recorded() -> None:
    @workflow
    async def exacting(ctx: Context, needed: int, *, unit: str = "s") -> int:
        return await ctx.step(other, needed)

    driver = Driver(exacting)
    for arguments, reason in (((), "missing a required argument: 'needed'"), ((1, 2), "too many positional arguments")):
        (answer,) = driver.start(exacting, *arguments)
        assert answer == Refused("InvalidInput", f"workflow exacting does not take these arguments: {reason}")
    assert (driver.log, driver.machine.live_count) == ([], 0)
    assert driver.run(exacting, 3) == ("completed", None, 3), "the id is free"


@pytest.mark.parametrize("between", ["the same owner", "another owner"])
def test_a_forgotten_execution_and_one_started_again_are_two_runs_even_if_the_same_message_starts_both(between: str) -> None:
    driver = Driver(one_step)
    driver.start(one_step, "a")
    old = driver.attempt("work#1")
    driver.tell(ForgetExecution("x"))
    if between == "another owner":
        driver.crash()
    driver.start(one_step, "a")
    new = driver.attempt("work#1")
    assert (old[:3], old.run != new.run) == (new[:3], True)
    before = snapshot(driver)
    late = StepResult("x", "work#1", 1, codec.encode("of the old run"), run=old.run)
    driver.machine.step_finished(late, driver.now_ms)
    driver.machine.step_lost(old, driver.now_ms)
    driver.machine.step_progress(StepProgress("x", "work#1", 1, {"done": 1.0}, old.run))
    driver.commit()
    assert snapshot(driver) == before
    view = driver.machine.view("x", driver.now_ms)
    assert view is not None
    assert [one.progress for one in view.running] == [{}]
    driver.settle()
    assert driver.result() == "a"


def test_forgetting_stops_steps_ends_the_code_tells_waiters_and_frees_the_id() -> None:
    ended: list[str] = []

    @workflow
    async def noting(ctx: Context, value: int) -> int:
        try:
            return await ctx.step(work, value)
        finally:
            ended.append("ended")

    driver = Driver(one_step, noting)
    driver.start(noting, 1)
    waiting = driver.tell(AwaitOutcome("x"))
    (answer,) = driver.tell(ForgetExecution("x"))
    assert answer.created
    assert [one.error for one in waiting] == ["ExecutionCancelled"]
    assert ended == ["ended"]
    assert driver.stopped == [Attempt("x", "work#1", 1, SEED)]
    driver.crash()
    assert driver.suspension().error == "ExecutionNotFound"
    assert driver.run(one_step, 2)[2] == 2
    (answer,) = driver.tell(ForgetExecution("x"))
    assert answer.created
    assert driver.run(one_step, 3)[2] == 3
    assert sum(isinstance(one, Forgotten) for one in driver.records()) == 2


def test_cancelling_is_answered_once_durable_unwinds_the_code_and_asking_twice_does_not_break_into_the_clean_up() -> None:
    @workflow
    async def careful(ctx: Context) -> None:
        try:
            await ctx.step(work)
        finally:
            await ctx.step(other, "tidy")

    driver = Driver(careful)
    driver.start(careful)
    waiting = driver.tell(AwaitOutcome("x"))
    (first,) = driver.cancel()
    (second,) = driver.cancel(reason="again")
    assert (first.created, second.created, waiting) == (True, False, [])
    assert driver.stopped == [Attempt("x", "work#1", 1, SEED)]
    driver.crash()
    (third,) = driver.cancel()
    assert third.created is False
    driver.settle()
    ended = driver.ended()
    assert (ended.status, ended.failure and ended.failure.message) == ("cancelled", "the execution was cancelled: asked")
    assert driver.runs["other#1"] == 1
    (late,) = driver.cancel()
    assert late.created is False


def test_code_may_refuse_to_be_cancelled_and_a_cancellation_of_its_own_making_is_a_failure() -> None:
    @workflow
    async def refusing(ctx: Context) -> str:
        try:
            await ctx.step(work)
        except asyncio.CancelledError as error:
            return f"no: {error}"
        return ""

    @workflow
    async def tripping(ctx: Context) -> None:
        task = asyncio.ensure_future(ctx.step(work))
        await ctx.step(other)
        task.cancel()
        await task

    driver = Driver(refusing, tripping)
    driver.start(refusing)
    driver.cancel()
    assert driver.result() == "no: asked"
    driver.hold = {"work"}
    status, kind, _ = driver.run(tripping, id="t")
    assert (status, kind) == ("failed", "CancelledError")


# -- code that misbehaves: its own execution fails, the machine goes on --------------------------------------------------------


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


@workflow
async def never_awaits(ctx: Context) -> int:
    return 3


@workflow
async def returns_the_unstorable(ctx: Context) -> Any:
    return {"handle": [object()]}


@workflow
async def passes_the_unstorable(ctx: Context) -> Any:
    return await ctx.step(work, [1, lambda: 0])


@workflow
async def no_step(ctx: Context) -> Any:
    return await ctx.step(print, 1)  # type: ignore[arg-type]  # the mistake under test


@workflow
async def raises_in_a_foreign_tongue(ctx: Context) -> None:
    raise ValueError(b"caf\xe9.mp4".decode("utf-8", "surrogateescape"))


@workflow
async def raises_the_mute(ctx: Context) -> None:
    raise Mute


@workflow
async def exits(ctx: Context) -> None:
    sys.exit(4)


@workflow
async def exits_in_a_branch(ctx: Context) -> None:
    async def branch() -> None:
        await ctx.step(work)
        sys.exit(5)

    await asyncio.gather(branch(), ctx.step(other))


@workflow
async def waits_for_ages(ctx: Context) -> None:
    await ctx.wait(1e20)


@workflow
async def bad_key(ctx: Context) -> list[str]:
    name = b"caf\xe9.mp4".decode("utf-8", "surrogateescape")
    (item,) = await ctx.map(work, [1], key=lambda _: name)
    return [str(item.key == name), str(await ctx.step(work.options(key=name), 2))]


@workflow
async def bad_name(ctx: Context) -> None:
    await ctx.step(work.options(name="caf\udce9"))


@pytest.mark.parametrize(
    ("misbehaving", "expected"),
    [
        (never_awaits, ("completed", None, 3)),
        (returns_the_unstorable, ("failed", "CodecError", None)),
        (passes_the_unstorable, ("failed", "CodecError", None)),
        (no_step, ("failed", "InvalidInput", None)),
        (raises_in_a_foreign_tongue, ("failed", "ValueError", None)),
        (raises_the_mute, ("failed", "Mute", None)),
        (exits, ("failed", "SystemExit", None)),
        (exits_in_a_branch, ("failed", "SystemExit", None)),
        (waits_for_ages, ("failed", "InvalidInput", None)),
        (bad_key, ("completed", None, ["True", "2"])),
        (bad_name, ("failed", "InvalidInput", None)),
    ],
    ids=lambda one: one.name if isinstance(one, Workflow) else "",
)
def test_whatever_the_code_does_the_execution_ends_the_others_go_on_and_the_log_stays_readable(
    misbehaving: Workflow[..., Any], expected: tuple[Any, ...]
) -> None:
    driver = Driver(misbehaving, two_steps, dispatcher="survives")
    driver.start(two_steps, id="other")
    assert driver.run(misbehaving) == expected
    driver.settle()
    driver.crash()
    assert driver.result("other") == [1, 2]
    if expected[0] == "failed":
        failure = driver.ended().failure
        assert failure is not None
        assert "test_workflows.py" in failure.traceback or misbehaving is returns_the_unstorable


def test_errors_raised_at_once_leave_the_code_where_it_was() -> None:
    @workflow
    async def trying(ctx: Context) -> list[Any]:
        out: list[Any] = []
        for attempt in (
            lambda: ctx.step(work, object()),
            lambda: ctx.step(work.options(name="a/b")),
            lambda: ctx.map(work, [1, object()]),
            lambda: ctx.map(work, [1, 2], key=lambda _: "same"),
            lambda: ctx.map(work, [1], max_concurrency=0),
            lambda: ctx.wait(-1),
            lambda: ctx.wait(float("nan")),
            lambda: ctx.scope(""),
        ):
            try:
                attempt()
            except Exception as error:
                out.append(type(error).__name__)
        await ctx.step(work.options(key="k"), 1)
        try:
            ctx.step(work.options(key="k"), 2)
        except Exception as error:
            out.append(str(error))
        return [out, await ctx.step(work, 7)]

    driver = Driver(trying)
    _, _, (errors, value) = driver.run(trying)
    assert value == 7
    assert errors == [
        *("CodecError", "InvalidInput", "CodecError"),
        *["InvalidInput"] * 5,
        "execution x: key 'k' is used twice for 'work'; keys name one call each",
    ]
    assert [one.operation for one in driver.records() if isinstance(one, Scheduled)] == ["work[k]", "work#1"]


def test_ending_with_work_under_way_stops_the_steps_and_records_only_what_was_asked_for() -> None:
    @workflow
    async def leaving(ctx: Context) -> str:
        branches = [asyncio.create_task(branch(ctx)) for _ in range(3)]
        await ctx.step(other)
        ctx.step(other, "never asked for, as the turn ends the execution")
        return str(len(branches))

    async def branch(ctx: Context) -> None:
        try:
            await ctx.step(work)
        finally:
            await ctx.step(work, "clean up that comes too late")

    driver = Driver(leaving)
    driver.start(leaving)
    driver.finish("other#1")
    assert driver.result() == "3"
    assert driver.stopped == [Attempt("x", f"work#{number}", 1, SEED) for number in (1, 2, 3)]
    assert {one.operation for one in driver.records() if isinstance(one, Scheduled)} == {"other#1", "work#1", "work#2", "work#3"}
    assert [one.operation for one in driver.records() if isinstance(one, Abandoned)] == ["work#1", "work#2", "work#3"]
    assert not driver.running


def test_an_execution_that_ended_leaves_nothing_in_memory_but_its_summary(monkeypatch: pytest.MonkeyPatch) -> None:
    class Large:
        pass

    kept: list[weakref.ref[Any]] = []
    made: list[weakref.ref[Instance]] = []
    original = Instance.__init__

    def remember(self: Instance, *args: Any) -> None:
        original(self, *args)
        made.append(weakref.ref(self))

    monkeypatch.setattr(Instance, "__init__", remember)

    @workflow
    async def holding(ctx: Context, end: str) -> str:
        large = Large()
        kept.append(weakref.ref(large))
        background = asyncio.ensure_future(ctx.scope("b").step(work))
        async with asyncio.timeout(3600):
            await ctx.step(work)
        if end == "fail":
            raise ValueError(large)
        await ctx.wait(10)
        background.cancel()
        return str(type(large))

    driver = Driver(holding)
    for end in ("return", "fail", "cancel", "forget"):
        driver.start(holding, end, id=end)
        driver.finish(Attempt(end, "work#1", 1, SEED))
    driver.cancel("cancel")
    driver.tell(ForgetExecution("forget"))
    driver.settle()
    assert [driver.ended(id).status for id in ("return", "fail", "cancel")] == ["completed", "failed", "cancelled"]
    gc.collect()
    assert len(kept) == len(made) == 4
    assert [one() for one in kept + made] == [None] * 8
    assert driver.machine.live_count == 0


# -- cost ----------------------------------------------------------------------------------------------------------------------


def test_the_ten_thousandth_step_costs_what_the_hundredth_did() -> None:
    @workflow
    async def endless(ctx: Context, count: int) -> None:
        for _ in range(count):
            nap = asyncio.ensure_future(ctx.wait(86_400))
            async with asyncio.timeout(3600):
                await ctx.step(other, 1)
            nap.cancel()

    driver = Driver(endless)
    driver.start(endless, 10_050)
    data = codec.encode(1)
    calls: list[int] = []

    def count(frame: Any, event: str, argument: Any) -> None:
        calls[-1] += event in ("call", "c_call")

    for number in range(1, 10_001):
        measured = number in (*range(90, 100), *range(9_990, 10_000))
        if measured:
            calls.append(0)
            sys.setprofile(count)
        driver.machine.step_finished(StepResult("x", f"other#{number}", 1, data, run=SEED), driver.now_ms)
        sys.setprofile(None)
        driver.outbox.close()
    assert sorted(calls[10:])[5] <= sorted(calls[:10])[5] + 12, calls  # the heap of timers is deeper by a few levels, no more
    entry = driver.machine._live["x"]
    instance = entry.instance
    assert instance is not None
    sizes = {
        "open": len(entry.open),
        "progress": len(entry.progress),
        "waiting": len(instance._waiting),
        "ordinals": len(instance._ordinals),
        "keyed": len(instance._keyed),
        "tasks": len(instance._loop._tasks),
        "ready": len(instance._loop._ready),
    }
    assert all(size <= 3 for size in sizes.values()), sizes
    assert len(instance._loop._timers) < 300
    driver.machine.close()


def test_a_wide_map_keeps_nothing_of_items_that_are_done_but_their_results() -> None:
    @workflow
    async def wide(ctx: Context) -> int:
        return len(await ctx.map(other, range(2_000), max_concurrency=5))

    driver = Driver(wide)
    driver.start(wide)
    data = codec.encode(1)
    for number in range(1_990):
        driver.machine.step_finished(StepResult("x", f"other#1/[{number}]", 1, data, run=SEED), driver.now_ms)
        driver.outbox.close()
    entry = driver.machine._live["x"]
    assert entry.instance is not None
    assert (len(entry.open), len(entry.instance._waiting), len(entry.instance._keyed)) == (5, 5, 0)
    assert entry.completed == {"other": 1_990}
    driver.machine.close()


# -- time ----------------------------------------------------------------------------------------------------------------------


def test_waking_for_asyncio_timers_always_gets_on_wherever_the_clock_stands() -> None:
    @workflow
    async def sleeping(ctx: Context, naps: list[float]) -> int:
        for nap in naps:
            await asyncio.sleep(nap)
        return len(naps)

    naps = [0.1, 0.3, 1 / 3, 0.0001, 1e-9, 2.5, 0.7, 1e-4 / 3] * 5
    for start_ms in (1, 999, 1_023_999, 1_024_001, EPOCH_MS + 1, EPOCH_MS + 333, 2**41 + 1):
        driver = Driver(sleeping)
        driver.now_ms = start_ms
        driver.start(sleeping, naps)
        for _ in range(len(naps)):
            due_ms = driver.machine.next_due_ms()
            if due_ms is None:
                break
            driver.pass_until(due_ms)
        assert driver.result() == len(naps)
        assert sum(isinstance(one, Woke) for one in driver.records()) <= len(naps)


def test_a_timer_of_a_forgotten_run_does_not_end_a_wait_or_a_pause_of_the_next() -> None:
    @workflow
    async def waiting(ctx: Context, value: int) -> float:
        begun = ctx.now()
        await ctx.wait(10)
        await ctx.step(work, value)
        return (ctx.now() - begun).total_seconds()

    driver = Driver(waiting, one_step)
    driver.start(waiting, 1)
    driver.pass_until(driver.now_ms + 8_000)
    driver.tell(ForgetExecution("x"))
    driver.start(waiting, 1)
    driver.pass_until(driver.now_ms + 9_999)
    assert not driver.running, "the first run would have waited long enough"
    driver.settle()
    assert driver.result() == 10

    ERRORS[:] = [OSError("once"), OSError("once more")]
    driver.start(one_step, id="y")
    driver.finish("work#1")
    old_due_ms = driver.machine.next_due_ms()
    assert old_due_ms is not None
    driver.pass_until(old_due_ms - 1)
    driver.tell(ForgetExecution("y"))
    driver.start(one_step, id="y")
    driver.finish("work#1")
    driver.pass_until(old_due_ms)
    assert not driver.running, "the second run has its own pause"
    driver.settle()
    assert driver.ended("y").status == "completed"


@workflow
async def sleeping(ctx: Context, seconds: float) -> float:
    """Sleeps by asyncio, and then does a step."""
    begun = ctx.now()
    if seconds:
        await asyncio.sleep(seconds)
    await ctx.step(work)
    return (ctx.now() - begun).total_seconds()


def woken(driver: Driver) -> list[tuple[str, int]]:
    """Which executions were woken, and how many seconds after the beginning."""
    records = [decode_record(one) for batch in driver.log for one in batch]
    return [(one.execution, (one.at_ms - EPOCH_MS) // 1000) for one in records if isinstance(one, (Woke, Elapsed))]


def test_a_timer_of_a_forgotten_run_does_not_start_an_attempt_of_the_next_again() -> None:
    ERRORS[:] = [OSError("once")]
    driver = Driver(one_step)
    driver.start(one_step)
    driver.finish("work#1")
    due_ms = driver.machine.next_due_ms()
    assert due_ms is not None
    driver.tell(ForgetExecution("x"))
    driver.start(one_step)
    before = snapshot(driver)
    driver.pass_until(due_ms)
    assert snapshot(driver)[:4] == before[:4]
    driver.settle()
    assert driver.result() is None


@pytest.mark.parametrize("seconds", [0, 15])
def test_a_timer_of_a_forgotten_run_does_not_wake_the_next(seconds: int) -> None:
    driver = Driver(sleeping)
    driver.start(sleeping, 10)
    driver.tell(ForgetExecution("x"))
    driver.start(sleeping, seconds)
    driver.pass_until(EPOCH_MS + 10_000)
    assert woken(driver) == []
    driver.settle()
    assert woken(driver) == [("x", 15)] * (seconds > 0)
    assert driver.ended().status == "completed"


def test_timers_of_forgotten_runs_let_nothing_of_the_next_go_before_its_turn() -> None:
    @workflow
    async def waiting(ctx: Context, seconds: float) -> None:
        await ctx.wait(seconds)

    for patient, restless in ((waiting, waiting), (sleeping, waiting), (waiting, sleeping)):
        driver = Driver(waiting, sleeping)
        driver.start(patient, 1)
        driver.tell(ForgetExecution("x"))
        driver.start(patient, 3)
        driver.start(restless, 2, id="y")
        driver.pass_until(EPOCH_MS + 4_000)
        assert woken(driver) == [("y", 4), ("x", 4)]


def test_a_short_sleep_beside_a_long_one_is_not_slept_through() -> None:
    @workflow
    async def both(ctx: Context) -> None:
        long = asyncio.ensure_future(asyncio.sleep(50))
        await ctx.step(work)
        await asyncio.sleep(2)
        await ctx.step(work)
        await long

    driver = Driver(both)
    driver.start(both)
    driver.settle()
    assert woken(driver) == [("x", 2), ("x", 50)]


@step
def large() -> bytes:
    return bytes(70_000)


@workflow
async def two_branches(ctx: Context) -> int:
    """A result that is a blob, beside a sleep of asyncio's."""
    data, _ = await asyncio.gather(ctx.step(large), asyncio.sleep(30))
    return len(data)


def test_code_that_is_suspended_is_not_woken() -> None:
    driver = Driver(two_branches)
    driver.start(two_branches)
    driver.code.unreadable = True
    driver.finish("large#1")
    assert driver.suspension().error == "CodecError"
    before = snapshot(driver)
    driver.pass_until(EPOCH_MS + 60_000)
    assert snapshot(driver)[:4] == before[:4]
    driver.code.unreadable = False
    driver.crash()
    driver.settle()
    assert driver.result() == 70_000


def test_who_was_told_of_a_suspension_is_not_told_of_the_end() -> None:
    driver = Driver(two_branches)
    driver.start(two_branches)
    waiting = driver.tell(AwaitOutcome("x"))
    driver.code.unreadable = True
    driver.finish("large#1")
    driver.cancel()
    assert driver.ended().status == "cancelled"
    assert [type(answer).__name__ for answer in waiting] == ["Refused"]


def test_timers_fire_in_order_and_once_even_if_the_time_jumps_or_goes_back() -> None:
    @workflow
    async def napping(ctx: Context) -> list[float]:
        begun = ctx.now()
        out: list[float] = []

        async def nap(seconds: float) -> None:
            await ctx.wait(seconds)
            out.append(seconds)

        await asyncio.gather(*(nap(seconds) for seconds in (3, 1, 2, 0, 1)))
        assert (ctx.now() - begun).total_seconds() == 500
        return out

    driver = Driver(napping)
    driver.start(napping)
    driver.pass_until(driver.now_ms)
    driver.machine.advance(driver.now_ms - 10_000)
    driver.commit()
    driver.crash()
    driver.pass_until(driver.now_ms + 500_000)
    assert driver.result() == [0, 1, 1, 2, 3]


def test_every_attempt_and_outcome_is_on_record_before_anything_comes_of_it() -> None:
    ERRORS[:] = [OSError("once")]
    driver = Driver(two_steps)
    driver.start(two_steps)
    driver.settle()
    kinds = [type(one).__name__ for one in driver.records()]
    assert kinds == ["Started", "Scheduled", "Failed", "Retried", "Completed", "Scheduled", "Completed", "Finished"]
    assert [one.attempt for one in driver.records() if isinstance(one, (Failed, Retried, Completed))] == [1, 2, 2, 1]
