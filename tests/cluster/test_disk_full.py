"""A worker whose disk is full: its chunks are encoded elsewhere, and what is said names the machine and the folder.

Invariants: I9, I14.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from rayflow.checkpoint.opening import open_store
from rayflow.checkpoint.reading import read_execution
from tests.cluster.hosts import Host
from tests.cluster.nodes import Cluster
from tests.pipelines.command_bench import undisturbed
from tests.pipelines.conversion import film, frames
from tests.s3_service import BUCKET

pytestmark = [pytest.mark.cluster, pytest.mark.ray, pytest.mark.slow]

_FOLDER = f"/tmp/rayflow-files-{os.getuid()}"


@pytest.fixture
def full(cluster: Cluster) -> Iterator[Host]:
    """A worker that has next to no space for temporary files, and no process that has begun to use any."""
    host = cluster.workers[0]
    host.path(_FOLDER).mkdir(exist_ok=True)
    host.kill("ray::IDLE")
    host.check("mount", "-t", "tmpfs", "-o", "size=32k,mode=0700", "small", _FOLDER)
    yield host
    host.check("umount", "-l", _FOLDER)
    host.kill("ray::IDLE")


def test_a_chunk_that_finds_no_space_is_encoded_on_another_node(cluster: Cluster, full: Host, tmp_path: Path) -> None:
    store = f"s3://{BUCKET}/{uuid.uuid4().hex}"
    source = film(cluster.head.path("/root/large.mp4"))
    arguments = ("-m", "rayflow.encode", f"/root/{source.name}", "--store", store, "--chunk-seconds", "2.5", "--json")
    done = cluster.drive(*arguments, timeout_s=120)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout[-2000:] + done.stderr[-2000:]
    events = [json.loads(line) for line in done.stdout.splitlines()]
    retries = [event["message"] for event in events if event["event"] == "retry"]
    assert retries
    for message in retries:
        assert "No space left on device" in message and f"on node {full.name}" in message and _FOLDER in message, message
    assert frames(str(cluster.head.path("/root/large.encoded.mp4"))) == undisturbed()
    operations = read_execution(open_store(store), events[-1]["id"]).operations
    for one in operations:
        *failed, last = one.attempts
        assert last.failure is None
        assert {attempt.node for attempt in failed} <= {full.name}, "where the other node is busy, it may be tried there again"
