"""The client: ids, attaching, what is refused, and code that lives in no module.

Invariants: I12.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

import rayflow
from rayflow.core import limits
from tests.conftest import REPOSITORY
from tests.runtime import flows
from tests.runtime.conftest import eventually, read_records

pytestmark = pytest.mark.ray


def test_starting_an_id_again_attaches_to_the_execution_and_runs_nothing(client: rayflow.Client, tmp_path: Path) -> None:
    first = client.start(flows.counting, str(tmp_path), 3, id="one").result(30)
    before = len(read_records(client, "one"))
    assert client.start(flows.counting, str(tmp_path), 3, id="one").result(30) == first == 3
    assert len(read_records(client, "one")) == before
    assert [len(flows.marks(tmp_path, f"add-{index}")) for index in range(3)] == [1, 1, 1]


def test_two_clients_with_one_id_share_one_execution(client: rayflow.Client, tmp_path: Path) -> None:
    other = rayflow.connect(client.store.url)
    results: list[int] = []
    threads = [
        threading.Thread(target=lambda one=one: results.append(one.start(flows.counting, str(tmp_path), 20, id="one").result(30)))
        for one in (client, other)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    other.close()
    assert results == [20, 20]
    assert [len(flows.marks(tmp_path, f"add-{index}")) for index in range(20)] == [1] * 20


def test_a_client_starts_more_executions_than_it_can_await_at_a_time(client: rayflow.Client) -> None:
    with limits.using(client_requests=10):
        executions = [client.start(flows.sleeping, 1.5, id=f"sleeper-{number}") for number in range(30)]
        assert [execution.result(30) for execution in executions] == ["woke"] * 30


def test_what_is_no_workflow_is_refused_with_what_to_write_and_nothing_is_started(client: rayflow.Client) -> None:
    with pytest.raises(rayflow.InvalidInput, match=r"function eventually is no workflow: put @rayflow\.workflow above"):
        client.start(eventually, id="one")  # type: ignore[arg-type]  # the mistake under test
    with pytest.raises(rayflow.InvalidInput, match=r"step add is no workflow: steps run in workflows"):
        client.start(flows.add, id="one")  # type: ignore[arg-type]
    with pytest.raises(rayflow.ExecutionNotFound):
        client.get("one").result(30)


def test_an_id_with_other_arguments_or_another_workflow_is_refused(client: rayflow.Client, tmp_path: Path) -> None:
    client.start(flows.counting, str(tmp_path), 1, id="one").result(30)
    with pytest.raises(rayflow.IdInUse, match="other arguments"):
        client.start(flows.counting, str(tmp_path), 2, id="one")
    with pytest.raises(rayflow.IdInUse, match=r"counting, not of .*sleeping"):
        client.start(flows.sleeping, 1.0, id="one")


def test_a_forgotten_id_is_free_again(client: rayflow.Client) -> None:
    execution = client.start(flows.sleeping, 3600.0, id="one")
    execution.forget()
    assert client.start(flows.sleeping, 0.0, id="one").result(30) == "woke"


def test_an_unknown_id_is_not_found(client: rayflow.Client) -> None:
    with pytest.raises(rayflow.ExecutionNotFound, match="'nobody'"):
        client.get("nobody").result(30)


def test_arguments_that_cannot_be_stored_are_refused_before_anything_is_recorded(client: rayflow.Client) -> None:
    with pytest.raises(rayflow.CodecError, match=r"arguments\[0\]\[0\]"):
        client.start(flows.sleeping, threading.Lock(), id="one")
    with pytest.raises(rayflow.ExecutionNotFound):
        client.get("one").result(30)


def test_a_result_can_be_awaited(client: rayflow.Client) -> None:
    async def both() -> list[str]:
        return [await client.start(flows.sleeping, 0.01), await client.start(flows.sleeping, 0.02)]

    assert asyncio.run(both()) == ["woke", "woke"]


def test_waiting_for_a_result_can_be_bounded(client: rayflow.Client) -> None:
    execution = client.start(flows.sleeping, 3600.0)
    with pytest.raises(TimeoutError, match="it goes on"):
        execution.result(0.1)


def test_many_executions_are_started_in_few_round_trips(client: rayflow.Client, tmp_path: Path) -> None:
    runs = client.start_many(flows.counting, [(f"run-{index}", (str(tmp_path / "x"), 0), {}) for index in range(200)])
    assert [run.result(30) for run in runs] == [0] * 200


@pytest.mark.crash
def test_code_of_a_script_is_stored_with_its_execution_and_survives_the_loss_of_ray(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import os, signal, sys, time
            import rayflow

            @rayflow.step(num_cpus=0.1)
            def shout(text: str) -> str:
                return text.upper()

            @rayflow.step(num_cpus=0.1)
            def slowly(text: str, folder: str) -> str:
                open(folder + "/running", "a").write("x")
                while not os.path.exists(folder + "/go"):
                    time.sleep(0.02)
                return text + "!"

            @rayflow.workflow
            async def greet(ctx, folder: str) -> str:
                loud = await ctx.step(shout, "hello")
                return await ctx.step(slowly, loud, folder)

            if __name__ == "__main__":
                folder = sys.argv[1]
                client = rayflow.connect(folder + "/store", num_cpus=1)
                execution = client.start(greet, folder, id="greeting")
                print("started", flush=True)
                print(execution.result(60))
                client.close()
            """
        )
    )
    command = [sys.executable, str(script), str(tmp_path)]
    environment = {"PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None and first.stdout.readline() == "started\n"
        eventually(lambda: (tmp_path / "running").exists(), "the second step runs")
        first.kill()
    (tmp_path / "go").touch()
    second = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert second.stdout == "started\nHELLO!\n", second.stderr
    assert second.stderr == ""
