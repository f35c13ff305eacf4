"""The encode command as users run it: a process of its own, with Ray and ffmpeg, run and run again."""

from __future__ import annotations

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest

from pipelines.video.command_events import Chunk, Done, Error, Notice, Progress, Start
from tests.conftest import REPOSITORY
from tests.pipelines.command_bench import DEADLINE_S, Bench, finish, first
from tests.pipelines.conversion import assert_same_frames, film

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
    chunks_told = [number for number, event in enumerate(events) if isinstance(event, Chunk)]
    assert all(number > chunks_told[-1] for number, event in enumerate(events) if getattr(event, "phase", "") == "joining")
    assert bench.left_running() == set()

    code, again, err = bench.run()
    assert (code, err) == (0, "")
    assert [type(event) for event in again] == [Done]
    assert (again[-1].id, again[-1].size_bytes, again[-1].wall_s) == (done.id, done.size_bytes, None)

    with open("/dev/full", "w") as full, bench.start(stdout=full) as process:
        _, err = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, err) == (1, "rayflow.encode: what it has to say cannot be written: No space left on device\n")

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
    assert "the run before failed: trying again, with 3 chunks that it finished" in first(Notice, events).message
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


def test_a_source_that_vanishes_is_named_and_the_encode_goes_on_once_it_is_back(bench: Bench) -> None:
    hold = bench.tell("hold")
    content = bench.source.read_bytes()
    with bench.start("--json") as process:
        bench.run_until_held(process)
        bench.source.unlink()
        hold.unlink()
        code, events, err = finish(process)
    error = events[-1]
    assert code == 1
    assert isinstance(error, Error)
    assert (error.step, error.chunk) == ("encode_chunk", bench.chunks[-1].name)
    assert f"No such file or directory | Error opening input file {bench.source}" in error.message
    assert err.count("\n") == 1
    assert not list(bench.folder.glob("*.mp4"))
    assert bench.left_running() == set()

    bench.source.write_bytes(content)
    code, events, err = bench.run()
    assert (code, err) == (0, "")
    done = events[-1]
    assert isinstance(done, Done)
    assert (done.frames, done.chunks_reused) == (250, 3)


def test_an_output_folder_that_is_removed_meanwhile_is_made_again(bench: Bench) -> None:
    hold = bench.tell("hold")
    (bench.folder / "out").mkdir()
    with bench.start("--json", "-o", "out/film.mp4") as process:
        bench.run_until_held(process)
        (bench.folder / "out").rmdir()
        hold.unlink()
        code, _, err = finish(process)
    assert (code, err) == (0, "")
    assert [path.name for path in (bench.folder / "out").iterdir()] == ["film.mp4"]


def test_any_name_that_a_file_system_takes_is_taken(tmp_path: Path) -> None:
    folder = tmp_path / 'it\'s "odd" $HOME [1]'
    folder.mkdir()
    source = film(folder / "-ü 日本 100% `x` \\ #?&.mp4")
    output = folder / f"{'é' * 125}.mkv"
    command = [sys.executable, "-m", "rayflow.encode", "--store", "st'ore %41 $x", "-o", output.name, "--split", "3,6"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    environment.pop("RAY_ADDRESS", None)
    for expected in ("verified", "encoded before, nothing to do"):
        done = subprocess.run(
            [*command, "--lossless", "--preset", "ultrafast", "--", source.name],
            cwd=folder, env=environment, capture_output=True, text=True, timeout=DEADLINE_S,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines()[-1].startswith(f"{output}: ")
        assert expected in done.stdout.splitlines()[-1]
    assert_same_frames(str(source), output, Fraction(1, 1000))
    assert sorted(path.name for path in folder.iterdir()) == sorted([source.name, output.name, "st'ore %41 $x"])
