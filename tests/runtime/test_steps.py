"""Steps as Ray tasks: what comes back, what is tried again, what is stopped.

Invariants: I15, I17.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import rayflow
from tests.conftest import REPOSITORY
from tests.runtime import flows
from tests.runtime.conftest import alive, attempts, eventually

pytestmark = pytest.mark.ray


def test_a_map_over_ray_tasks_returns_results_in_the_order_of_its_items(client: rayflow.Client) -> None:
    assert client.start(flows.mapping, 40).result(60) == [2 * index for index in range(40)]


def test_large_values_travel_through_the_store_and_come_back_equal(client: rayflow.Client) -> None:
    size = 3 * 2**20
    made, passed, back = client.start(flows.moving, size, b"x" * size, id="large").result(60)
    assert (made, passed, back) == (size, size, bytes(size))
    log_bytes = sum(info.size_bytes for info in client.store.list("shards/"))
    assert log_bytes < 100_000 and sum(1 for _ in client.store.list("blobs/")) == 3, "arguments, step result, result"


def test_an_error_of_the_right_type_is_tried_again(client: rayflow.Client, tmp_path: Path) -> None:
    assert client.start(flows.flaking, str(tmp_path), 2, "os", id="one").result(30) == 3
    seen = attempts(client, "one")
    assert seen.begun == {"flaky#1": 3} and [one.failure.type for one in seen.failed] == ["OSError", "OSError"]


def test_an_error_of_another_type_fails_the_execution_with_that_type_its_message_and_traceback(
    client: rayflow.Client, tmp_path: Path
) -> None:
    with pytest.raises(rayflow.ExecutionFailed, match=r"flaky#1 failed after 1 attempt: ValueError: attempt 1 fails") as error:
        client.start(flows.flaking, str(tmp_path), 2, "value").result(30)
    assert isinstance(error.value, ValueError) and error.value.args == ("attempt 1 fails",)
    assert error.value.error_type == "StepFailed" and "in flaky\n" in error.value.remote_traceback, "where the step was"


def test_attempts_are_bounded(client: rayflow.Client, tmp_path: Path) -> None:
    with pytest.raises(rayflow.ExecutionFailed, match="after 3 attempts: OSError"):
        client.start(flows.flaking, str(tmp_path), 9, "os").result(30)
    assert len(flows.marks(tmp_path, "flaky")) == 3


def test_a_step_that_takes_too_long_is_interrupted_and_tried_again(client: rayflow.Client, tmp_path: Path) -> None:
    outcome = client.start(flows.slow, str(tmp_path), id="one").result(30)
    assert "too_slow#1 failed after 2 attempts: StepTimedOut: took longer than its time-out of 0.5 s" in outcome
    assert [one.cause for one in attempts(client, "one").failed] == ["timeout", "timeout"]


def test_a_step_that_the_workflow_gives_up_is_stopped_with_its_children(client: rayflow.Client, tmp_path: Path) -> None:
    execution = client.start(flows.first_wins, str(tmp_path))
    eventually(lambda: len(flows.marks(tmp_path, "child")) == 1, "the child runs")
    Path(tmp_path, "a.go").touch()
    assert execution.result(30) == "a"
    eventually(lambda: not alive(flows.marks(tmp_path, "child")[0]), "the child is gone")


def test_cancelling_an_execution_stops_its_steps(client: rayflow.Client, tmp_path: Path) -> None:
    execution = client.start(flows.children, str(tmp_path))
    eventually(lambda: len(flows.marks(tmp_path, "child")) == 1, "the child runs")
    execution.cancel("no longer wanted")
    with pytest.raises(rayflow.ExecutionCancelled):
        execution.result(30)
    eventually(lambda: not alive(flows.marks(tmp_path, "child")[0]), "the child is gone")


_IN_THE_BACKGROUND = """\
import signal, sys
import rayflow
from tests.runtime import flows
from tests.runtime.conftest import alive, eventually

signal.signal(signal.SIGINT, signal.SIG_IGN)
folder = sys.argv[1]
with rayflow.connect(f"{folder}/store", num_cpus=1) as client:
    execution = client.start(flows.tidying, folder)
    eventually(lambda: flows.marks(folder, "begun"), "the step runs")
    execution.cancel("enough")
    eventually(lambda: flows.marks(folder, "tidied") or not alive(flows.marks(folder, "begun")[0]), "the step is stopped")
    print("tidied" if flows.marks(folder, "tidied") else "killed")
"""


@pytest.mark.slow
def test_a_step_that_is_stopped_cleans_up_also_in_the_ray_of_a_background_job_which_ignores_interrupts(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", _IN_THE_BACKGROUND, str(tmp_path)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.stdout == "tidied\n", done.stderr


@pytest.mark.crash
def test_a_crash_in_a_bundle_of_short_steps_costs_each_of_them_one_attempt_and_is_tried_again_alone(
    client: rayflow.Client, tmp_path: Path
) -> None:
    assert client.start(flows.briefly, str(tmp_path), id="one").result(30) == list(range(60))
    seen = attempts(client, "one")
    assert seen.begun["brief[40]"] == 2 and set(seen.begun.values()) == {1, 2}
    assert {one.cause for one in seen.failed} == {"crash"} and len(seen.failed) < 45, "the probes ran apart"
    assert len(seen.completed) == 60
