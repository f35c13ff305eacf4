"""Code of workflows that ends its process: it alone is suspended, all others go on (I27)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from rayflow.core import limits
from rayflow.core.context import Context
from rayflow.core.crashes import MAX_CRASHES, NoCrashes
from rayflow.core.definitions import step, workflow
from rayflow.core.messages import Accepted, Answer, ForgetExecution, Refused, ResumeExecution, StepResult, Token
from rayflow.core.records import Kept, Started, Suspended
from tests.core.driver import Driver
from tests.core.shards import Died, Shards


class Notes(NoCrashes):
    """Notes that outlive the process. The code of the execution ``deadly`` ends it as soon as it runs."""

    def __init__(self, deadly: str = "") -> None:
        self.deadly = deadly
        self.counts: Counter[str] = Counter()
        self.noted: list[str] = []

    def begin(self, name: str) -> None:
        self.noted.append(name)
        if self.deadly and f" {self.deadly} " in name:
            self.counts[name] += 1
            raise Died

    def count(self, name: str) -> int:
        return self.counts[name]

    def forget(self, name: str) -> None:
        del self.counts[name]


@step
def add(a: int, b: int) -> int:
    return a + b


@workflow(name="w")
async def adding(ctx: Context, number: int) -> int:
    total = await ctx.step(add, number, 1)
    return await ctx.step(add, total, 10)


class Process:
    """A driver whose process dies and begins again, as Ray would have it."""

    def __init__(self) -> None:
        self.notes = Notes()
        self.driver = Driver(adding, dispatcher="survives", notes=self.notes)
        self.deaths = 0

    def restart(self) -> None:
        """Until it stays."""
        while True:
            self.notes.deadly, deadly = "", self.notes.deadly
            self.driver.machine.close()
            self.notes.deadly = deadly
            try:
                self.driver.crash()
            except Died:
                self.deaths += 1
            else:
                return

    def insist(self, act: Callable[[], Any]) -> Any:
        """Do it again after each death, as clients and the dispatcher do."""
        while True:
            try:
                return act()
            except Died:
                self.deaths += 1
                self.restart()


@pytest.fixture
def process() -> Process:
    return Process()


def suspensions(driver: Driver) -> list[Suspended]:
    return [one for one in driver.records() if isinstance(one, Suspended)]


def test_code_that_ends_its_process_at_its_start_is_suspended_and_begins_once_it_is_mended(process: Process) -> None:
    driver, notes = process.driver, process.notes
    driver.start(adding, 5, id="other")
    notes.deadly = "x"
    assert process.insist(lambda: driver.start(adding, 1)) == [Accepted("x", created=True)]
    assert process.deaths == MAX_CRASHES
    refused = driver.suspension()
    assert refused.error == "ProcessCrashed"
    for words in ("execution x of w", "ended the process that ran it 3 times", "mend the code", "goes on where it was"):
        assert words in refused.message
    view = driver.machine.view("x", driver.now_ms)
    assert view is not None
    assert view.status == "suspended"
    assert view.failure is not None

    for _ in range(3):
        process.restart()
    driver.settle()
    assert process.deaths == MAX_CRASHES, "as long as the code is the same, it does not run"
    assert driver.result("other") == 16
    assert [type(one) for one in driver.records()] == [Started, Suspended]

    notes.deadly, driver.code_version = "", "2"
    process.restart()
    assert driver.code_version == "2"
    driver.finish("add#1")
    process.restart()
    driver.settle()
    assert driver.result() == 12
    assert driver.runs["add#1"] == 2, "once here, once in the other execution"
    assert driver.reruns == []


def test_code_that_ends_its_process_when_it_gets_a_result_is_suspended_and_gets_it_once_it_is_mended(process: Process) -> None:
    driver, notes = process.driver, process.notes
    driver.start(adding, 1)
    attempt = driver.attempt("add#1")

    def finish() -> None:
        notes.deadly = "x"
        driver.finish(attempt)

    def finish_once_more() -> None:
        notes.deadly = ""
        process.restart()
        finish()

    with pytest.raises(Died):
        finish()
    for _ in range(MAX_CRASHES - 1):
        with pytest.raises(Died):
            finish_once_more()
    process.restart()
    assert process.deaths == 0, "what has died in a turn is not replayed either"
    driver.finish(attempt)
    assert driver.suspension().error == "ProcessCrashed"
    assert isinstance(driver.records()[-1], Kept)
    notes.deadly, driver.code_version = "", "2"
    process.restart()
    driver.settle()
    assert driver.result() == 12
    assert driver.runs == {"add#1": 1, "add#2": 1}


def test_code_that_ends_its_process_in_its_replay_is_suspended_and_the_others_go_on(process: Process) -> None:
    driver, notes = process.driver, process.notes
    for id in ("a", "x", "z"):
        driver.start(adding, 1, id=id)
    notes.deadly = "x"
    process.restart()
    assert process.deaths == MAX_CRASHES
    driver.settle()
    assert (driver.result("a"), driver.result("z")) == (12, 12)
    assert driver.suspension().error == "ProcessCrashed"
    assert [one.code for one in suspensions(driver)] == ["1"]


def test_with_other_code_the_count_starts_anew(process: Process) -> None:
    driver, notes = process.driver, process.notes
    driver.start(adding, 1)
    notes.deadly = "x"
    process.restart()
    for deaths, code_version in [(2, "2"), (3, "3")]:
        process.deaths, driver.code_version = 0, code_version
        process.restart()
        assert process.deaths == MAX_CRASHES, deaths
        assert driver.suspension().error == "ProcessCrashed"
    assert [one.code for one in suspensions(driver)] == ["1", "2", "3"]


def test_the_record_of_it_holds_where_there_are_no_notes_of_the_crashes(process: Process) -> None:
    """Notes do not outlive the machine."""
    driver, notes = process.driver, process.notes
    driver.start(adding, 1)
    notes.deadly = "x"
    process.restart()
    notes.counts.clear()
    process.restart()
    assert process.deaths == MAX_CRASHES
    assert driver.suspension().error == "ProcessCrashed"


def test_it_can_be_cancelled_and_an_execution_of_its_id_that_comes_later_counts_for_itself(process: Process) -> None:
    driver, notes = process.driver, process.notes
    notes.deadly = "x"
    process.insist(lambda: driver.start(adding, 1))
    assert driver.cancel() == [Accepted("x", created=True)]
    assert driver.ended().status == "cancelled"
    notes.deadly = ""
    driver.tell(ForgetExecution("x"))
    driver.start(adding, 2, seed=8)
    driver.settle()
    assert driver.result() == 13


def test_what_is_forgotten_and_started_again_in_one_go_ends_no_more_processes_than_anything_else(process: Process) -> None:
    """Neither is on record when the process ends, so both come again, each time."""
    driver, notes = process.driver, process.notes
    driver.start(adding, 1)
    driver.settle()
    notes.deadly = "x"

    def start_anew() -> list[Answer]:
        assert process.deaths <= MAX_CRASHES
        for _ in range(2):
            driver.machine.receive(Token("client", 1, 0), ForgetExecution("x"), driver.now_ms)
            answers = driver.start(adding, 2, seed=8)
        return answers

    assert process.insist(start_anew) == [Accepted("x", created=True)]
    assert process.deaths == MAX_CRASHES
    assert driver.suspension().error == "ProcessCrashed"


def test_what_follows_a_resume_before_that_is_on_record_counts_for_it(process: Process) -> None:
    driver, notes = process.driver, process.notes
    notes.deadly = "x"
    process.insist(lambda: driver.start(adding, 1))
    before = process.deaths

    def resume_and_cancel() -> list[Answer]:
        assert process.deaths - before <= MAX_CRASHES
        notes.deadly = ""
        driver.machine.receive(Token("client", 1, 0), ResumeExecution("x"), driver.now_ms)
        notes.deadly = "x"
        return driver.cancel()

    assert process.insist(resume_and_cancel) == [Accepted("x", created=True)]
    assert process.deaths == before + MAX_CRASHES
    assert driver.ended().status == "cancelled"


def test_whatever_runs_code_is_noted(process: Process) -> None:
    """Its start, its turns, its replay, its end, whether it comes by itself or not."""
    driver, notes = process.driver, process.notes
    for act in (
        lambda: driver.start(adding, 1),
        lambda: driver.finish("add#1"),
        process.restart,
        driver.settle,
        lambda: driver.start(adding, 1, id="y"),
        lambda: driver.tell(ForgetExecution("y")),
        lambda: driver.start(adding, 1, id="z"),
        lambda: driver.machine.close(),  # of the process of now
    ):
        notes.noted.clear()
        act()
        assert notes.noted, act
    assert set(notes.noted) == {"execution z 1, run 7"}


def test_one_that_rests_once_it_is_mended_is_not_taken_for_suspended(process: Process) -> None:
    driver, notes = process.driver, process.notes
    driver.deploy(waiting)
    driver.start(waiting)
    notes.deadly = "x"
    process.restart()
    notes.deadly, driver.code_version = "", "2"
    process.restart()
    driver.pass_until(driver.now_ms + limits.current().execution_idle_ms)
    assert driver.machine.passive_count == 1
    process.restart()
    assert driver.machine.passive_count == 1
    view = driver.machine.view("x", driver.now_ms)
    assert view is not None
    assert view.status == "running"
    driver.settle()
    assert driver.result() == "waited"


@workflow
async def waiting(ctx: Context) -> str:
    await ctx.wait(86_400)
    return "waited"


@step(delivery="at_most_once")
def charge() -> str:
    return "charged"


@workflow(name="charging")
async def charging(ctx: Context) -> str:
    return await ctx.step(charge)


@workflow(name="charging")
async def adding_first(ctx: Context) -> str:
    await ctx.step(add, 1, 2)
    return await ctx.step(charge)


def test_a_step_that_code_asks_for_with_a_result_that_was_kept_for_it_does_not_count_as_lost() -> None:
    """I14: nobody was told to start it before."""
    shards = Shards()
    token = shards.run(adding_first)
    shards.settle()
    shards.code.workflows["charging"] = charging
    shards.crash(0)
    owner = shards.owners[0]
    [running] = owner.expected()
    owner.step_finished([StepResult(*running[:3], shards.code.encoded(3), run=running.run)], shards.now_ms)
    shards.settle()
    assert isinstance(shards.answers[token], Refused)
    shards.code.workflows["charging"] = adding_first
    shards.crash(0)
    owner = shards.owners[0]
    assert [attempt.operation for attempt in owner.machine.running_steps()] == ["charge#1"]
    assert owner.expected() == ()


def test_a_step_that_mended_code_asks_for_at_once_does_not_count_as_lost() -> None:
    """I14: nobody was told to start it before."""
    shards = Shards()
    shards.crashes.counts["execution x , run 7"] = MAX_CRASHES
    shards.run(charging)
    shards.settle()
    assert shards.owners[0].machine.view("x", shards.now_ms).status == "suspended"  # pyright: ignore[reportOptionalMemberAccess]
    shards.code_version = "2"
    shards.crash(0)
    owner = shards.owners[0]
    assert [attempt.operation for attempt in owner.machine.running_steps()] == ["charge#1"]
    assert owner.expected() == ()
