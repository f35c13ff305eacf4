"""The encode command as users run it: a process of its own, with Ray and ffmpeg, run and run again."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.video.command_events import Chunk, Done, Error, Notice, Progress, Start
from tests.pipelines.command_bench import Bench, finish, first

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_a_video_is_encoded_and_the_same_command_returns_at_once_without_ray(bench: Bench) -> None:
    code, events, err = bench.run()
    assert (code, err) == (0, "")
    done = events[-1]
    assert isinstance(done, Done)
    assert (done.frames, done.chunks, done.chunks_reused, done.verified) == (250, 4, 0, True)
    assert done.size_bytes == bench.output.stat().st_size
    assert first(Start, events).frames == 250
    assert sorted(event.name for event in events if isinstance(event, Chunk)) == sorted(one.name for one in bench.chunks)
    assert {event.phase for event in events if isinstance(event, Progress)} >= {"starting", "encoding"}
    assert bench.left_running() == set()

    code, again, err = bench.run()
    assert (code, err) == (0, "")
    assert [type(event) for event in again] == [Done]
    assert (again[-1].id, again[-1].size_bytes, again[-1].wall_s) == (done.id, done.size_bytes, None)

    bench.output.unlink()
    code, events, err = bench.run()
    assert (code, err) == (0, "")
    assert "is gone: encoding again" in first(Notice, events).message
    assert bench.output.stat().st_size == done.size_bytes
    assert sorted(path.name for path in bench.folder.iterdir()) == ["bikes.encoded.mp4", "bikes.mp4", "ffmpeg", "store"]


def test_a_failed_encode_names_chunk_and_reason_and_keeps_the_other_chunks(bench: Bench) -> None:
    fail = bench.tell("fail")
    code, events, err = bench.run()
    assert code == 1
    error = events[-1]
    assert isinstance(error, Error)
    assert (error.step, error.chunk, error.exit_code) == ("encode_chunk", bench.chunks[-1].name, 1)
    assert "ffmpeg failed with exit code 1: No space left on device" in error.message
    assert err.count("\n") == 1
    assert error.message in err

    fail.unlink()
    code, events, err = bench.run("--workers", "1")
    assert (code, err) == (0, "")
    assert "the run before failed: trying again, with the 3 chunks that it finished" in first(Notice, events).message
    assert list(bench.attempts(events)) == [bench.chunks[-1].name]
    done = events[-1]
    assert isinstance(done, Done)
    assert (done.frames, done.chunks_reused) == (250, 3)


def test_a_stored_chunk_that_is_damaged_is_named_and_encoded_anew_by_the_next_run(bench: Bench) -> None:
    """I7: a flipped bit never gets into an output."""
    hold = bench.tell("hold")
    with bench.start("--json") as process:
        bench.run_until_held(process)
        victim = next(path for path in Path(bench.store).rglob(f"*{bench.chunks[1].name}*.mp4"))
        content = bytearray(victim.read_bytes())
        content[len(content) * 3 // 4] ^= 1
        victim.write_bytes(content)
        hold.unlink()
        code, events, err = finish(process)
    error = events[-1]
    assert code == 1
    assert isinstance(error, Error)
    assert error.step == "assemble"
    assert f"chunk {bench.chunks[1].name} in file://" in error.message
    assert "no longer what was stored" in error.message
    assert err.count("\n") == 1
    assert not bench.output.exists()

    code, events, err = bench.run()
    assert (code, err) == (0, "")
    assert list(bench.attempts(events)) == [bench.chunks[1].name]
    done = events[-1]
    assert isinstance(done, Done)
    assert (done.frames, done.chunks_reused) == (250, 3)
