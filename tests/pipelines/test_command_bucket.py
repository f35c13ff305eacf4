"""The encode command with its store in a bucket, which a real HTTP server on the loopback interface serves (I9, I17, I23)."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.video.command_events import Chunk, Done, Event, Start
from rayflow.checkpoint.opening import open_store
from rayflow.checkpoint.reading import read_execution
from rayflow.core.records import Status
from tests.pipelines.command_bench import Bench, first, undisturbed
from tests.pipelines.conversion import frames
from tests.s3_service import BUCKET

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture
def bench(tmp_path: Path, s3_environment: str) -> Iterator[Bench]:
    """Whatever happens, no process outlives the test."""
    made = Bench(tmp_path, f"s3://{BUCKET}/encodes/{uuid.uuid4().hex}")
    yield made
    made.kill_all()


def test_a_video_is_encoded_over_a_bucket_and_the_same_command_returns_at_once_without_ray(bench: Bench) -> None:
    code, events, err = bench.run()
    assert (code, err) == (0, "")
    assert first(Start, events).store == bench.store
    done = events[-1]
    assert isinstance(done, Done)
    assert (done.frames, done.chunks, done.chunks_reused, done.verified) == (250, 4, 0, True)
    assert frames(str(bench.output)) == undisturbed()
    assert_only_history_is_left(bench, events)
    assert bench.left_running() == set()
    assert sorted(path.name for path in bench.folder.iterdir()) == ["bikes.encoded.mp4", "bikes.mp4", "ffmpeg"]

    code, again, err = bench.run()
    assert (code, err) == (0, "")
    assert [type(event) for event in again] == [Done]
    assert (again[-1].id, again[-1].size_bytes, again[-1].wall_s) == (done.id, done.size_bytes, None)


@pytest.mark.crash
def test_a_killed_command_goes_on_from_what_is_in_the_bucket(bench: Bench) -> None:
    hold = bench.tell("hold")
    with bench.start("--json") as process:
        before = bench.run_until_held(process)
        process.kill()
        process.wait()
    assert bench.left_running() == set()
    assert not bench.output.exists()

    hold.unlink()
    code, events, err = bench.run()
    assert (code, err) == (0, "")
    assert first(Start, events).id == first(Start, before).id
    assert first(Start, events).chunks_reused == 3
    assert [event.name for event in events if isinstance(event, Chunk)] == [bench.chunks[-1].name]
    attempts = bench.attempts(events)
    assert [attempts[chunk.name] for chunk in bench.chunks[:-1]] == [1, 1, 1]
    assert frames(str(bench.output)) == undisturbed()
    assert_only_history_is_left(bench, events)
    assert bench.left_running() == set()


def assert_only_history_is_left(bench: Bench, events: list[Event]) -> None:
    """The chunks are gone from the bucket; what happened is on record there, to be read without Ray."""
    store = open_store(bench.store)
    assert [info.key for info in store.list("files/")] == []
    history = read_execution(store, first(Start, events).id)
    assert history.info.status is Status.COMPLETED
    assert {one.name for one in history.operations} == {"prepare", "encode_chunk", "assemble", "remove_files"}
