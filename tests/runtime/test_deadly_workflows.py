"""A workflow whose code ends its host's process again and again is suspended alone, on a real Ray (I27)."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest

import rayflow
from rayflow.checkpoint.reading import list_executions
from tests.runtime import flows
from tests.runtime.conftest import eventually

pytestmark = [pytest.mark.ray, pytest.mark.crash]


@pytest.mark.parametrize("first", [True, False], ids=["at its start", "after a step"])
def test_it_is_suspended_after_three_crashes_the_others_go_on_and_so_does_it_once_mended(
    client: rayflow.Client, tmp_path: Path, first: bool
) -> None:
    home = client.identity.shard_of("deadly")
    near = (name for name in map(str, itertools.count()) if client.identity.shard_of(name) == home)
    Path(tmp_path, "before").mkdir()
    before = client.start(flows.holding, str(tmp_path / "before"), ["a"], id=next(near))
    eventually(lambda: len(flows.marks(tmp_path / "before", "a")) == 1, "a healthy one runs in the same shard")
    deadly = client.start(flows.ending_its_process, str(tmp_path), first, id="deadly")
    with pytest.raises(rayflow.ProcessCrashed, match=r"execution deadly of .*ended the process that ran it 3 times.*mend the code"):
        deadly.result(60)
    assert len(flows.marks(tmp_path, "turn")) == 3
    Path(tmp_path, "before", "a.go").touch()
    assert before.result(30) == ["2", "a"]
    assert client.start(flows.ending_its_process, str(tmp_path), first, id="deadly").id == "deadly", "it can be asked for"
    healthy = client.start(flows.holding, str(tmp_path / "before"), ["a"], id=next(near))
    assert healthy.result(30) == ["2", "a"], "a new one is not held up"
    [listed] = [one for one in list_executions(client.store).executions if one.execution == "deadly"]
    assert (listed.status, listed.error and listed.error.type) == ("suspended", "ProcessCrashed")
    assert len(flows.marks(tmp_path, "turn")) == 3, "it is left alone"

    Path(tmp_path, "mended").touch()
    if first:
        client.get("deadly").resume()
    else:
        command = [sys.executable, "-m", "rayflow", "resume", "deadly", "--store", client.store.url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout) == (0, "deadly goes on\n"), done.stderr
    assert client.get("deadly").result(30) == ([4] if first else [2, 4])
