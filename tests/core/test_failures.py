"""What is kept of an exception: it is raised again as its own type, on replay as well, and takes a bounded place.

Invariants: I10.
"""

from __future__ import annotations

import asyncio
import pickle
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any

import msgspec
import pytest

from rayflow import Context, ExecutionFailed, OperationFailed, Retry, StepFailed, StepLost, StepTimedOut, step, workflow
from rayflow.core.failures import MESSAGE_CHARS, TRACEBACK_CHARS, describe_error, raised_as
from rayflow.core.records import Cause, Failed, Failure, encode_record
from rayflow.core.state import encode_summary
from rayflow.testing import run_workflow
from tests.core.driver import Driver
from tests.core.entity_types import Account
from tests.core.shards import Shards


class Rejected(Exception):
    """Its constructor cannot be called with its ``args``, as with many exceptions there are."""

    def __init__(self, code: int, *, hint: str) -> None:
        super().__init__(f"rejected with {code}")
        self.code = code
        self.hints = [hint]


class Slotted(LookupError):
    __slots__ = ("place",)


@dataclass
class Quota(Exception):
    used: int
    allowed: int = 5


ERRORS: list[Callable[[], None]] = []


@step
def work() -> None:
    ERRORS[0]()


def rejects() -> None:
    try:
        raise KeyError("k")
    except KeyError as cause:
        raise Rejected(7, hint="turn it round") from cause


def misses() -> None:
    Path("/nowhere/at all").read_bytes()


def is_slotted() -> None:
    error = Slotted("here")
    error.place = 3
    raise error


def is_of_no_module() -> None:
    class Local(ConnectionError):
        pass

    raise Local("reset")


def is_a_group() -> None:
    raise ExceptionGroup("two", [ValueError("a"), Rejected(1, hint="b")])


def exceeds() -> None:
    raise Quota(9)


def fails_as_a_child() -> None:
    raise CalledProcessError(3, ["ffmpeg", "-i"], stderr=b"no such codec")


def stops() -> None:
    raise StopIteration(1)


@workflow
async def catching(ctx: Context) -> list[Any]:
    """Every handler that a user might write, of which the first that fits tells what it saw."""
    try:
        await ctx.step(work)
    except Rejected as error:
        return ["Rejected", error.code, error.hints, repr(error.__cause__), isinstance(error, StepFailed)]
    except FileNotFoundError as error:
        return ["FileNotFoundError", error.errno, error.filename]
    except Slotted as error:
        return ["Slotted", error.place, error.args]
    except ConnectionError as error:
        return ["ConnectionError", error.args]
    except ExceptionGroup as error:
        return ["ExceptionGroup", error.message, [repr(one) for one in error.exceptions], vars(error.exceptions[1])["code"]]
    except Quota as error:
        return ["Quota", error.used, error.allowed]
    except CalledProcessError as error:
        return ["CalledProcessError", error.returncode, error.cmd, error.stderr]
    except StepFailed as error:
        return ["StepFailed", error.error_type]
    return []


@pytest.mark.parametrize(
    ("raises", "caught"),
    [
        (rejects, ["Rejected", 7, ["turn it round"], "KeyError('k')", True]),
        (misses, ["FileNotFoundError", 2, "/nowhere/at all"]),
        (is_slotted, ["Slotted", 3, ("here",)]),
        (is_of_no_module, ["ConnectionError", ("reset",)]),
        (is_a_group, ["ExceptionGroup", "two", ["ValueError('a')", "Rejected('rejected with 1')"], 1]),
        (exceeds, ["Quota", 9, 5]),
        (fails_as_a_child, ["CalledProcessError", 3, ["ffmpeg", "-i"], b"no such codec"]),
        (stops, ["StepFailed", "StopIteration"]),
    ],
)
def test_a_failed_step_is_caught_by_its_own_type_with_its_attributes_and_its_cause_on_replay_too(
    raises: Callable[[], None], caught: list[Any]
) -> None:
    ERRORS[:] = [raises]
    driver = Driver(catching)
    assert driver.run(catching) == ("completed", None, caught)
    batches = len(driver.log)
    for crash_at in range(batches):
        driver = Driver(catching)
        driver.crash_at = crash_at
        assert driver.run(catching) == ("completed", None, caught), crash_at
        assert driver.crashes == 1


@workflow
async def passing_on(ctx: Context) -> None:
    await ctx.step(work)


@workflow
async def grouped(ctx: Context) -> str:
    seen = ""
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_wait_for(ctx))
    except* Rejected as errors:
        seen = str(errors.exceptions[0])
    return seen


async def _wait_for(ctx: Context) -> None:
    await ctx.step(work)


def test_an_error_in_a_branch_is_caught_by_its_own_type() -> None:
    ERRORS[:] = [rejects]
    assert Driver(grouped).run(grouped)[2] == "work#1 failed after 3 attempts: Rejected: rejected with 7"


def test_who_waits_for_an_execution_that_a_step_has_failed_catches_that_type_and_reads_where_the_step_was() -> None:
    ERRORS[:] = [rejects]
    with pytest.raises(Rejected) as caught:
        run_workflow(passing_on)
    error = caught.value
    assert isinstance(error, ExecutionFailed) and isinstance(error, StepFailed)
    assert (error.code, error.error_type, repr(error.__cause__)) == (7, "StepFailed", "KeyError('k')")
    assert str(error) == "execution test failed: StepFailed: work#1 failed after 3 attempts: Rejected: rejected with 7"
    printed = "".join(traceback.format_exception(error))
    assert "in passing_on\n" in printed and "in rejects\n" in printed, "where the workflow was, and where the step was"
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.code) == (type(error), str(error), 7)


def gives_up_waiting() -> None:
    raise TimeoutError("no answer")


def test_who_waits_does_not_take_what_a_workflow_has_raised_for_what_waiting_raises() -> None:
    """A loop that waits on at a time-out would never end."""
    ERRORS[:] = [gives_up_waiting]
    with pytest.raises(ExecutionFailed) as caught:
        run_workflow(passing_on)
    for error in (caught.value, pickle.loads(pickle.dumps(caught.value))):
        assert isinstance(error, StepFailed) and not isinstance(error, TimeoutError)
        assert isinstance(error.__cause__, TimeoutError) and error.__cause__.args == ("no answer",)
        assert str(error) == "execution test failed: StepFailed: work#1 failed after 3 attempts: TimeoutError: no answer"


class Strict(ValueError):
    def __init_subclass__(cls, *, reason: str) -> None:
        super().__init_subclass__()


def is_strict() -> None:
    raise Strict("not to be derived from")


def test_a_type_that_cannot_be_joined_gives_way_to_its_nearest_base() -> None:
    ERRORS[:] = [is_strict]
    with pytest.raises(ValueError, match="Strict: not to be derived from") as caught:
        run_workflow(passing_on)
    assert isinstance(caught.value, ExecutionFailed)


@pytest.mark.parametrize(("cause", "kind"), [(Cause.TIMEOUT, StepTimedOut), (Cause.LOST, StepLost)])
def test_who_waits_catches_as_well_what_became_of_a_step_that_raised_nothing(cause: Cause, kind: type[StepFailed]) -> None:
    @workflow
    async def timing_out(ctx: Context) -> None:
        raise raised_as(kind, "work#1 failed", Failure("Late", f"it was {cause}"))

    with pytest.raises(kind, match="execution test failed: "):
        run_workflow(timing_out)


def test_an_operation_of_an_entity_is_caught_by_the_type_that_it_raised() -> None:
    @workflow
    async def taking(ctx: Context) -> list[Any]:
        try:
            await ctx.entity(Account, "a").take(3)
        except ValueError as error:
            return [str(error), isinstance(error, OperationFailed), error.args]
        return []

    assert run_workflow(taking) == ["Account.take#1 raised ValueError: 3 too little", True, ("3 too little",)]


def _size(driver: Driver) -> int:
    return sum(len(record) for batch in driver.log for record in batch)


def shouts() -> None:
    error = ValueError("it said: " + "e" * 2**20, b"x" * 2**20)
    error.report = {"lines": ["e" * 2**20]}  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    raise error from OSError("o" * 2**20)


@step
def shouting() -> None:
    shouts()


def test_a_failure_takes_a_bounded_place_whatever_is_in_it_and_says_how_much_was_left_out() -> None:
    @workflow
    async def shouted(ctx: Context, itself: bool) -> None:
        if itself:
            shouts()
        await ctx.step(shouting)

    for itself in (True, False):
        driver = Driver(shouted)
        driver.start(shouted, itself)
        driver.settle()
        assert _size(driver) < 100_000
        assert len(encode_summary(driver.state.ended["x"])) < 40_000
        failure = driver.ended().failure
        assert failure is not None
        assert len(failure.message) < MESSAGE_CHARS + 100 and len(failure.traceback) < TRACEBACK_CHARS + 100
        assert "it said: eee" in failure.message and " characters left out … " in failure.message

    driver = Driver(shouted)
    driver.hold.add("shouting")
    driver.start(shouted, False)
    driver.cancel(reason="r" * 2**20)
    failure = driver.ended().failure
    assert failure is not None and len(failure.message) < MESSAGE_CHARS + 100

    shards = Shards()
    failure = shards.ask(shards.entity(Account, "a").take("x" * 2**20))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert len(msgspec.msgpack.encode(failure)) < 40_000


def test_what_is_too_large_or_cannot_be_stored_is_kept_as_text() -> None:
    error = ValueError(object(), "e" * 10**6)
    error.lock = asyncio.Lock()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    again: Any = raised_as(StepFailed, "work#1 failed", describe_error(error))
    assert again.args[0].startswith("<object object at") and again.lock.startswith("<asyncio.locks.Lock")
    assert again.args[1].count("e") < MESSAGE_CHARS + 100 and " characters left out … " in again.args[1]


def test_of_attempts_that_are_tried_again_the_text_is_kept_alone() -> None:
    @step(retry=Retry(max_attempts=3, retry_on=(Rejected,)))
    def flaky() -> None:
        rejects()

    @workflow
    async def trying(ctx: Context) -> None:
        await ctx.step(flaky)

    driver = Driver(trying)
    driver.run(trying)
    failed = [one for one in driver.records() if isinstance(one, Failed)]
    assert [bool(one.failure.error) for one in failed] == [False, False, True]
    assert all("in rejects" in one.failure.traceback for one in failed)


def test_a_failure_of_an_older_record_is_raised_as_before() -> None:
    @workflow
    async def telling(ctx: Context) -> list[Any]:
        try:
            await ctx.step(work)
        except ValueError:
            return ["by its type"]
        except StepFailed as error:
            return [str(error), error.error_type, error.remote_traceback]
        return []

    record = Failed("x", 1, "work#1", 1, Cause.ERROR, Failure("ValueError", "bad", "trace"), None)
    old = msgspec.msgpack.decode(encode_record(record))
    old[6] = old[6][:3]  # as it was written when a failure had three fields
    driver = Driver(telling)
    driver.hold.add("work")
    driver.start(telling)
    driver.slots.append([msgspec.msgpack.encode(old)])
    driver.crash()
    assert driver.result() == ["work#1 failed after 1 attempt: ValueError: bad", "ValueError", "trace"]
