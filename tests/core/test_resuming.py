"""A suspended execution goes on when it is asked to, and when its code was mended; that is on record (I27)."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayflow.core.context import Context
from rayflow.core.crashes import MAX_CRASHES
from rayflow.core.definitions import Retry, Workflow, step, workflow
from rayflow.core.messages import Accepted, Answer, AwaitOutcome, Refused, ResumeExecution, Token
from rayflow.core.records import Cause, Resumed, Suspended
from tests.core.driver import Driver
from tests.core.test_crashes import Process, adding


@step(retry=Retry(max_attempts=1000))
def fetch(name: str) -> str:
    return name


@workflow(name="both")
async def fetching(ctx: Context) -> list[str]:
    left, right = ctx.step(fetch, "left"), ctx.step(fetch, "right")
    await ctx.wait(60)
    return [await left, await right]


@workflow(name="both", version="2")
async def altered(ctx: Context) -> list[str]:
    return [await ctx.step(fetch, "neither")]


def resume(driver: Driver, number: int = 1, heard: int = 0, id: str = "x") -> list[Answer]:
    """A client asks, perhaps once more: under the same number, with more answers heard."""
    token = Token("client", number, heard)
    driver.machine.receive(token, ResumeExecution(id), driver.now_ms)
    driver.commit()
    return driver.answers[token]


def kinds(driver: Driver) -> list[type[Any]]:
    return [type(one) for one in driver.records()]


def test_what_ended_its_process_for_a_reason_that_is_gone_goes_on_with_the_same_code() -> None:
    process = Process()
    driver, notes = process.driver, process.notes
    notes.deadly = "x"
    process.insist(lambda: driver.start(adding, 1))
    assert driver.suspension().error == "ProcessCrashed"
    notes.deadly = ""
    assert resume(driver) == [Accepted("x", created=True)]
    assert kinds(driver).count(Resumed) == 1
    process.restart()
    view = driver.machine.view("x", driver.now_ms)
    assert view is not None
    assert view.status == "running", "the code on record as deadly has been given another chance"
    driver.settle()
    assert driver.result() == 12
    assert driver.reruns == []


def test_a_request_that_ends_the_process_again_is_given_up_like_the_execution_was() -> None:
    process = Process()
    driver, notes = process.driver, process.notes
    notes.deadly = "x"
    process.insist(lambda: driver.start(adding, 1))
    deaths = process.deaths
    heard = iter(range(100))
    answers = process.insist(lambda: resume(driver, 1, next(heard)))
    assert process.deaths == deaths + MAX_CRASHES
    assert [type(one) for one in answers] == [Refused]
    assert driver.suspension().error == "ProcessCrashed"
    assert Resumed not in kinds(driver)
    process.insist(lambda: resume(driver, 2, next(heard)))
    assert process.deaths == deaths + 2 * MAX_CRASHES, "who asks anew starts to count anew"


def suspended() -> Driver:
    """Two steps run; the code does not match its record any more."""
    driver = Driver(fetching, dispatcher="survives")
    driver.start(fetching)
    driver.deploy(altered)
    driver.crash()
    assert driver.suspension().error == "NonDeterminismError"
    return driver


def test_steps_that_run_or_ended_meanwhile_count_and_one_that_failed_is_tried_again() -> None:
    driver = suspended()
    driver.finish("fetch#1")
    driver.fail("fetch#2", Cause.ERROR)
    assert not driver.running
    driver.deploy(fetching)
    assert resume(driver) == [Accepted("x", created=True)]
    assert [attempt.attempt for attempt in driver.running] == [2], "its code's settings say that it is tried again"
    driver.settle()
    assert driver.result() == ["left", "right"]
    assert driver.runs == {"fetch#1": 1, "fetch#2": 1}


def test_what_is_not_durable_yet_is_not_passed_over() -> None:
    driver = suspended()
    driver.deploy(fetching)
    attempt = driver.attempt("fetch#1")
    driver.machine.step_finished(driver.execute(driver.running.pop(attempt)), driver.now_ms)
    (answer,) = resume(driver)
    assert isinstance(answer, Refused)
    assert answer.error == "Overloaded"
    assert resume(driver, 2) == [Accepted("x", created=True)]
    driver.settle()
    assert driver.result() == ["left", "right"]
    assert driver.runs == {"fetch#1": 1, "fetch#2": 1}


def test_a_step_that_runs_on_is_waited_for_and_the_clock_goes_on() -> None:
    driver = suspended()
    driver.deploy(fetching)
    resume(driver)
    assert driver.starts == [(driver.now_ms, attempt) for attempt in driver.running], "nothing was started again"
    driver.settle()
    assert driver.result() == ["left", "right"]
    assert driver.runs == {"fetch#1": 1, "fetch#2": 1}


def test_code_that_does_not_match_still_is_told_and_stays_suspended() -> None:
    driver = suspended()
    (answer,) = resume(driver)
    assert isinstance(answer, Refused)
    assert answer.error == "NonDeterminismError"
    assert driver.suspension().message == answer.message
    driver.crash()
    assert driver.suspension().message == answer.message
    driver.deploy(fetching)
    resume(driver, 2)
    driver.settle()
    assert driver.result() == ["left", "right"]


@pytest.mark.parametrize("deployed", [fetching, altered])
def test_going_on_after_a_recovery_is_on_record_once(deployed: Workflow[..., Any]) -> None:
    driver = suspended()
    driver.deploy(deployed)
    for _ in range(3):
        driver.crash()
    assert kinds(driver).count(Suspended) == 1
    assert kinds(driver).count(Resumed) == (1 if deployed is fetching else 0)


def test_what_is_not_suspended_is_left_as_it_is_and_what_there_is_not_is_not_found() -> None:
    driver = Driver(fetching)
    driver.start(fetching)
    before = driver.records()
    assert resume(driver) == [Accepted("x", created=False)]
    assert driver.records() == before
    driver.settle()
    assert driver.result() == ["left", "right"]
    assert resume(driver, 2) == [Accepted("x", created=False)]
    (answer,) = resume(driver, 3, id="nobody")
    assert isinstance(answer, Refused)
    assert answer.error == "ExecutionNotFound"


def test_who_waits_for_the_end_after_it_was_resumed_is_told() -> None:
    driver = suspended()
    driver.deploy(fetching)
    resume(driver)
    waiting = driver.tell(AwaitOutcome("x"))
    assert waiting == []
    driver.settle()
    assert len(waiting) == 1


@settings(max_examples=500, deadline=None)
@given(
    st.sampled_from(["survives", "dies"]),
    st.lists(st.sampled_from(["crash", "doom", "alter", "mend", "resume", "finish", "fail", "time"]), max_size=30),
)
def test_whatever_is_altered_mended_asked_for_and_crashes_no_finished_step_runs_again_and_it_ends_as_it_should(
    dispatcher: Literal["survives", "dies"], actions: list[str]
) -> None:
    driver = Driver(fetching, dispatcher=dispatcher)
    driver.start(fetching)
    for number, action in enumerate(actions):
        ready = next(iter(driver.running), None)
        if action == "crash":
            driver.crash()
        elif action == "doom":  # with the next batch durable and none of its effects out
            driver.crash_at = len(driver.log)
        elif action == "alter":
            driver.deploy(altered)
        elif action == "mend":
            driver.deploy(fetching)
        elif action == "resume":
            resume(driver, number)
        elif action == "finish" and ready is not None:
            driver.finish(ready)
        elif action == "fail" and ready is not None:
            driver.fail(ready.operation, Cause.CRASH)
        elif action == "time" and (due_ms := driver.machine.next_due_ms()) is not None:
            driver.pass_until(due_ms)
    driver.crash_at = None
    driver.deploy(fetching)
    resume(driver, len(actions))
    driver.settle()
    assert driver.result() == ["left", "right"]
    assert driver.reruns == []
