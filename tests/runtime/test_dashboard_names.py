"""What Ray's dashboard and state API call the actors and tasks of a store, and what their logs say: as docs/dashboard.md has it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

pytestmark = pytest.mark.ray


def test_actors_say_what_they_hold_and_tasks_are_named_by_execution_and_step(tmp_path: Path) -> None:
    """In a Ray with a dashboard, which that of the other tests has not: the state API is a part of it."""
    command = [sys.executable, "-m", "tests.runtime.dashboard_names", str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    url, store = told["url"], told["store_id"]
    assert told["listed"] == {
        f"rayflow-shards-{store}": ["ShardHost", f"rayflow host of {url}"],
        f"rayflow-dispatcher-{store}": ["Dispatcher", f"rayflow dispatcher of {url}"],
    }
    shards = "shard 0 (epoch 1), shard 1 (epoch 1)"
    assert told["held_now"] == [
        f"rayflow host of {url}: {shards}; 1 executions, 2 steps running, 1 entities active",
        f"rayflow dispatcher of {url}: {shards}; 2 steps running, 0 results not on record yet",
    ]
    assert told["tasks"] == ["film held[a]", "film held[b]"]
    assert f"rayflow host of {url}.address" in told["calls"]
    for name in "ab":
        for what in ("started", "completed"):
            assert f" rayflow: execution film, step held[{name}], attempt 1: {what}\n" in told["logs"]
