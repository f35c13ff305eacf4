"""A step that does not run says why, to who waits for it and to who looks: it is not its turn, or no node has what it asks for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import rayflow
from rayflow.checkpoint.queues import PREFIX
from rayflow.checkpoint.reading import list_executions, read_execution
from tests.conftest import REPOSITORY
from tests.runtime import flows
from tests.runtime.conftest import actor_pid, eventually, kill

pytestmark = pytest.mark.ray

LACKS = "asks for 4 GPU; the cluster has 0"
LOOKS_S = 10.0


def states(client: rayflow.Client, execution: str) -> dict[str, str]:
    view = client.view(execution)
    return {} if view is None else {step.operation: step.state for step in view.running}


def operator(*arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-m", "rayflow", *arguments], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_queued_steps_are_told_from_running_ones_and_what_no_node_has_is_named_to_all_who_ask_or_wait(
    client: rayflow.Client, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    busy = client.start(flows.holding, str(tmp_path), ["a"], id="busy")
    eventually(lambda: states(client, "busy") == {"held[a]": "running"}, "it says that it runs")
    wanting = client.start(flows.wanting, str(tmp_path), id="wanting")
    lacking = {"held[b]": "queued", "rendered#1": f"waiting for resources: {LACKS}"}
    eventually(lambda: states(client, "wanting") == lacking, "the view names it", LOOKS_S)
    eventually(lambda: f"execution wanting waits: rendered {LACKS}" in caplog.text, "who waits is told", LOOKS_S)

    eventually(lambda: any(client.store.list(PREFIX)), "it is noted in the store", LOOKS_S)
    infos = {info.execution: info for info in list_executions(client.store).executions}
    assert [(one.steps.running, one.steps.queued) for one in infos.values() if one.steps] == [(0, 2), (1, 0)]
    assert (infos["wanting"].waits_for, infos["busy"].waits_for) == (f"rendered {LACKS}", "")
    shown = {one.operation: (one.state, one.waits_for) for one in read_execution(client.store, "wanting").operations}
    assert shown == {"held[b]": ("queued", ""), "rendered#1": ("queued", LACKS)}
    assert f"rendered {LACKS}" in operator("list", "--store", client.store.url)
    assert "2 queued" in operator("show", "wanting", "--store", client.store.url)

    kill(actor_pid(client, "host"))
    eventually(lambda: states(client, "wanting") == lacking, "the next host knows it, too")
    assert caplog.text.count(LACKS) <= 2, "it is said once by each host"
    Path(tmp_path, "a.go").touch()
    assert busy.result(30) == ["2", "a"]
    eventually(lambda: states(client, "wanting").get("held[b]") == "running", "its turn has come")
    wanting.cancel()
    eventually(lambda: not any(client.store.list(PREFIX)), "nothing waits any more")
