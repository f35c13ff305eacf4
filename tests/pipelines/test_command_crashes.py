"""The encode command and its Ray, stopped and killed: nothing is left running, and the same command goes on (I9, I15, I23)."""

from __future__ import annotations

import os
import re
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipelines.video.command_events import Done, Error, Event, Notice, Progress, Stopped
from tests.pipelines.command_bench import DEADLINE_S, Bench, decode, finish, read_attempts, read_until, undisturbed
from tests.pipelines.conversion import frames

pytestmark = [pytest.mark.ray, pytest.mark.crash, pytest.mark.slow]


def test_a_killed_command_leaves_nothing_running_and_goes_on_where_it_was(bench: Bench) -> None:
    bench.assert_goes_on_where_it_was_killed()


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_stops_everything_and_says_how_to_go_on(bench: Bench) -> None:
    bench.tell("hold")
    with bench.start("--json") as process:
        bench.run_until_held(process)
        told = read_until(process, lambda events: is_running(events[-1]) or len(events) == 10)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        out, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130
    assert is_running(told[-1])
    stopped = decode(out.splitlines()[-1])
    assert isinstance(stopped, Stopped)
    assert (stopped.chunks_done, stopped.chunks, stopped.exit_code) == (3, 4, 130)
    assert stopped.resume == "python -m rayflow.encode bikes.mp4 --chunk-seconds 2.5 --workers 2 --json"
    assert err.count("\n") == 1
    assert stopped.resume in err
    assert bench.left_running() == set()


def test_all_of_ray_killed_under_the_command_ends_it_with_a_word_and_the_same_command_goes_on(bench: Bench) -> None:
    hold = bench.tell("hold")
    with bench.start("--json") as process:
        before = bench.run_until_held(process)
        bench.kill_all(spare=process.pid)
        code, events, err = finish(process, within_s=30.0)
    error = events[-1]
    assert isinstance(error, Error)
    assert (code, error.exit_code) == (1, 1)
    told = re.fullmatch(
        r"Ray ended on this machine \(killed, or out of memory; logs: (/.*)\); what is finished is on record", error.message
    )
    assert told and Path(told[1], "raylet.out").exists(), error.message
    assert error.resume == "python -m rayflow.encode bikes.mp4 --chunk-seconds 2.5 --workers 2 --json"
    assert err.count("\n") == 1
    assert bench.left_running() == set()
    assert not bench.output.exists()

    hold.unlink()
    code, events, err = bench.run()
    assert (code, err) == (0, "")
    bench.assert_went_on(before, events)


def test_two_commands_at_the_same_moment_are_one_execution_and_both_report_it(bench: Bench) -> None:
    with bench.start("--json") as one, bench.start("--json") as other:
        results = [finish(one), finish(other)]
    assert [(code, err) for code, _, err in results] == [(0, ""), (0, "")]
    done = [events[-1] for _, events, _ in results]
    assert all(isinstance(event, Done) for event in done)
    assert len({(event.id, event.output, event.size_bytes, event.frames) for event in done if isinstance(event, Done)}) == 1
    assert [is_waiting(events) for _, events, _ in results].count(True) == 1
    assert bench.attempts(results[0][1]) == dict.fromkeys((chunk.name for chunk in bench.chunks), 1)
    assert frames(str(bench.output)) == undisturbed()
    assert bench.left_running() == set()


@pytest.mark.long
@pytest.mark.parametrize("victim", ["encodes", "waits"])
def test_of_two_commands_at_the_same_moment_one_may_be_killed_and_the_other_finishes(bench: Bench, victim: str) -> None:
    hold = bench.tell("hold")
    with bench.start("--json") as one, bench.start("--json") as other, ThreadPoolExecutor(2) as threads:
        commands = [one, other]
        futures = [
            threads.submit(read_until, process, lambda events: bench.is_held(events) or is_waiting(events)) for process in commands
        ]
        waits = [is_waiting(future.result(DEADLINE_S)) for future in futures]
        assert sorted(waits) == [False, True]
        killed = commands[waits.index(victim == "waits")]
        killed.kill()
        killed.wait()
        hold.unlink()
        code, events, err = finish(other if killed is one else one)
    assert (code, err) == (0, "")
    done = events[-1]
    assert isinstance(done, Done)
    assert done.frames == 250
    attempts = read_attempts(bench.store, done.id)
    assert [attempts[chunk.name] for chunk in bench.chunks[:-1]] == [1, 1, 1]
    assert frames(str(bench.output)) == undisturbed()
    assert bench.left_running() == set()


@pytest.mark.long
def test_two_commands_after_a_failure_try_again_once_together(bench: Bench) -> None:
    """What the failed run finished is used by one of them, and removed from the store: the other must not build on it (I17)."""
    fail = bench.tell("fail")
    assert bench.run()[0] == 1
    fail.unlink()
    with bench.start("--json") as one, bench.start("--json") as other:
        results = [finish(one), finish(other)]
    assert [(code, err) for code, _, err in results] == [(0, ""), (0, "")]
    assert bench.attempts(results[0][1]) == {bench.chunks[-1].name: 1}
    assert frames(str(bench.output)) == undisturbed()


def is_running(event: Event) -> bool:
    """Whether a chunk counts as running, none as queued: also the one that is held, whose ffmpeg has not begun."""
    return isinstance(event, Progress) and (event.chunks_running, event.chunks_queued) == (1, 0)


def is_waiting(events: list[Event]) -> bool:
    """Whether a command waits, or waited, for the Ray of another one."""
    return any(isinstance(event, Notice) and "works on the same store" in event.message for event in events)
