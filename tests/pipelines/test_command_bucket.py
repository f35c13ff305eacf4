"""The encode command with its store in a bucket, which a real HTTP server on the loopback interface serves (I9, I17, I23)."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.video.command_events import Done, Start
from rayflow.checkpoint.opening import open_store
from rayflow.checkpoint.reading import read_execution
from rayflow.core.records import Status
from tests.pipelines.command_bench import Bench, first
from tests.s3_service import BUCKET

pytestmark = [pytest.mark.ray, pytest.mark.crash, pytest.mark.slow]


@pytest.fixture
def bench(tmp_path: Path, s3_environment: str) -> Iterator[Bench]:
    """Whatever happens, no process outlives the test."""
    made = Bench(tmp_path, f"s3://{BUCKET}/encodes/{uuid.uuid4().hex}")
    yield made
    made.kill_all()


def test_a_killed_command_goes_on_from_what_is_in_the_bucket_and_leaves_only_history_there(bench: Bench) -> None:
    events = bench.assert_goes_on_where_it_was_killed()
    assert first(Start, events).store == bench.store
    store = open_store(bench.store)
    assert [info.key for info in store.list("files/")] == []
    history = read_execution(store, first(Start, events).id)  # without Ray
    assert history.info.status is Status.COMPLETED
    assert {one.name for one in history.operations} == {"prepare", "encode_chunk", "assemble", "remove_files"}
    assert sorted(path.name for path in bench.folder.iterdir()) == ["bikes.encoded.mp4", "bikes.mp4", "ffmpeg"]
    bench.assert_nothing_to_do(first(Done, events))
