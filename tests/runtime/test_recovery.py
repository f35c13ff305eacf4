"""What survives the death of each process: counted in the store, and by the marks that the steps' attempts leave.

Invariants: I9, I13, I14, I15.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import rayflow
from rayflow.checkpoint.reading import read_execution
from rayflow.core import limits
from tests.runtime import flows
from tests.runtime.conftest import actor_pid, alive, attempts, eventually, kill

pytestmark = [pytest.mark.ray, pytest.mark.crash]


def test_steps_survive_the_death_of_the_shards_process(client: rayflow.Client, tmp_path: Path) -> None:
    execution = client.start(flows.holding, str(tmp_path), ["a", "b"], id="one")
    eventually(lambda: len(flows.marks(tmp_path, "a")) == len(flows.marks(tmp_path, "b")) == 1, "both steps run")
    kill(actor_pid(client, "host"))
    eventually(lambda: execution.view() is not None, "the shard is open again")
    Path(tmp_path, "a.go").touch()
    Path(tmp_path, "b.go").touch()
    assert execution.result(30) == ["2", "a", "b"]
    assert len(flows.marks(tmp_path, "a")) == len(flows.marks(tmp_path, "b")) == 1
    seen = attempts(client, "one")
    assert set(seen.begun.values()) == {1} and sorted(seen.completed) == ["add#1", "held[a]", "held[b]"]


def test_a_step_that_ends_while_the_shard_is_down_is_not_run_again(client: rayflow.Client, tmp_path: Path) -> None:
    execution = client.start(flows.holding, str(tmp_path), ["a"], id="one")
    eventually(lambda: len(flows.marks(tmp_path, "a")) == 1, "the step runs")
    kill(actor_pid(client, "host"))
    Path(tmp_path, "a.go").touch()
    assert execution.result(30) == ["2", "a"]
    assert len(flows.marks(tmp_path, "a")) == 1 and attempts(client, "one").begun["held[a]"] == 1


def test_the_death_of_the_dispatcher_repeats_what_was_running_and_nothing_else(client: rayflow.Client, tmp_path: Path) -> None:
    execution = client.start(flows.holding, str(tmp_path), ["a", "b"], id="one")
    eventually(lambda: len(flows.marks(tmp_path, "a")) == len(flows.marks(tmp_path, "b")) == 1, "both steps run")
    Path(tmp_path, "a.go").touch()
    eventually(lambda: "held[a]" in attempts(client, "one").completed, "the first step is on record")
    kill(actor_pid(client, "dispatcher"))
    eventually(lambda: len(flows.marks(tmp_path, "b")) == 2, "the step that ran is started again")
    Path(tmp_path, "b.go").touch()
    assert execution.result(30) == ["2", "a", "b"]
    seen = attempts(client, "one")
    assert seen.begun == {"add#1": 1, "held[a]": 1, "held[b]": 2} and len(flows.marks(tmp_path, "a")) == 1
    assert [one.cause for one in seen.failed] == ["lost"]


def test_both_actors_dying_at_once_lose_no_finished_step(client: rayflow.Client, tmp_path: Path) -> None:
    execution = client.start(flows.holding, str(tmp_path), ["a", "b"], id="one")
    eventually(lambda: len(flows.marks(tmp_path, "a")) == len(flows.marks(tmp_path, "b")) == 1, "both steps run")
    Path(tmp_path, "a.go").touch()
    eventually(lambda: "held[a]" in attempts(client, "one").completed, "the first step is on record")
    for pid in (actor_pid(client, "host"), actor_pid(client, "dispatcher")):
        kill(pid)
    Path(tmp_path, "b.go").touch()
    assert execution.result(30) == ["2", "a", "b"]
    assert len(flows.marks(tmp_path, "a")) == 1 and attempts(client, "one").begun["held[a]"] == 1


def test_a_crashed_worker_costs_its_step_one_attempt(client: rayflow.Client, tmp_path: Path) -> None:
    execution = client.start(flows.holding, str(tmp_path), ["a"], id="one")
    eventually(lambda: len(flows.marks(tmp_path, "a")) == 1, "the step runs")
    kill(flows.marks(tmp_path, "a")[0])
    eventually(lambda: len(flows.marks(tmp_path, "a")) == 2, "the step is started again")
    Path(tmp_path, "a.go").touch()
    assert execution.result(30) == ["2", "a"]
    assert [one.cause for one in attempts(client, "one").failed] == ["crash"]


def test_a_step_that_may_run_only_once_is_not_repeated_after_a_crash(client: rayflow.Client, tmp_path: Path) -> None:
    execution = client.start(flows.cautious, str(tmp_path), id="one")
    eventually(lambda: len(flows.marks(tmp_path, "once")) == 1, "the step runs")
    kill(flows.marks(tmp_path, "once")[0])
    assert execution.result(30).startswith("unknown")
    assert len(flows.marks(tmp_path, "once")) == 1


def test_inline_steps_on_record_are_never_run_again(client: rayflow.Client, tmp_path: Path) -> None:
    execution = client.start(flows.counting, str(tmp_path), 400, id="one")
    eventually(lambda: len(flows.marks(tmp_path, "add-100")) == 1, "a quarter is done")
    kill(actor_pid(client, "host"))
    assert execution.result(60) == 400
    runs = [len(flows.marks(tmp_path, f"add-{index}")) for index in range(400)]
    assert min(runs) == 1 and sum(runs) <= 401, "at most the step that was running runs twice"
    assert attempts(client, "one").completed == [f"noted_add#{index + 1}" for index in range(400)]


def test_a_durable_timer_survives_the_shards_process(client: rayflow.Client) -> None:
    execution = client.start(flows.sleeping, 2.0, id="one")
    kill(actor_pid(client, "host"))
    assert execution.result(30) == "woke"


def test_a_host_that_dies_while_no_program_is_connected_is_made_anew(client: rayflow.Client) -> None:
    client.start(flows.sleeping, 1.0, id="one")
    pid = actor_pid(client, "host")
    client.close()
    kill(pid)
    eventually(lambda: read_execution(client.store, "one").info.status == "completed", "the execution ends")


def test_a_client_that_only_waits_is_answered_by_the_next_host_without_waiting_for_its_poll_to_end(client: rayflow.Client) -> None:
    execution = client.start(flows.sleeping, 0.5, id="one")
    kill(actor_pid(client, "host"))
    assert execution.result(limits.current().poll_s * 0.75) == "woke"


def test_the_child_processes_of_a_step_die_with_its_worker(client: rayflow.Client, tmp_path: Path) -> None:
    execution = client.start(flows.children, str(tmp_path), id="one")
    eventually(lambda: len(flows.marks(tmp_path, "child")) == 1, "the child runs")
    kill(flows.marks(tmp_path, "parent")[0])
    first = flows.marks(tmp_path, "child")[0]
    eventually(lambda: not alive(first), "the child of the killed worker is gone")
    execution.cancel()
    with pytest.raises(rayflow.ExecutionCancelled):
        execution.result(30)
    eventually(lambda: not any(alive(pid) for pid in flows.marks(tmp_path, "child")), "no child is left")
