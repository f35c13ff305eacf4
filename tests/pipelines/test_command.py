"""The encode command as users run it: a process of its own, with Ray and ffmpeg, run and run again."""

from __future__ import annotations

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest

from pipelines.video.command_events import Chunk, Done, Error, Event, Notice, Progress, Start
from tests.conftest import REPOSITORY
from tests.pipelines.command_bench import DEADLINE_S, Bench, finish, first, read_until, undisturbed
from tests.pipelines.conversion import assert_same_frames, film, frames

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_a_video_is_encoded_and_the_same_command_returns_at_once_without_ray_until_the_output_is_gone(bench: Bench) -> None:
    words, output = ("-o", "out/film.mp4"), bench.folder / "out" / "film.mp4"
    output.parent.mkdir()
    code, events, err = bench.run(*words)
    assert (code, err) == (0, "")
    done = events[-1]
    assert isinstance(done, Done)
    assert (done.frames, done.chunks, done.chunks_reused, done.verified) == (250, 4, 0, True)
    assert done.size_bytes == output.stat().st_size
    assert first(Start, events).frames == 250
    assert sorted(event.name for event in events if isinstance(event, Chunk)) == sorted(one.name for one in bench.chunks)
    assert {event.phase for event in events if isinstance(event, Progress)} >= {"starting", "encoding"}
    chunks_told = [number for number, event in enumerate(events) if isinstance(event, Chunk)]
    assert all(number > chunks_told[-1] for number, event in enumerate(events) if getattr(event, "phase", "") == "joining")
    assert bench.left_running() == set()

    bench.assert_nothing_to_do(done, *words)
    with open("/dev/full", "w") as full, bench.start(*words, stdout=full) as process:
        _, err = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, err) == (1, "rayflow.encode: what it has to say cannot be written: No space left on device\n")

    hold = bench.tell("hold")
    output.unlink()
    with bench.start("--json", *words) as process:
        events = bench.run_until_held(process)
        output.parent.rmdir()  # made again when there is something to put into it
        hold.unlink()
        code, _, err = finish(process)
    assert (code, err) == (0, "")
    assert "is gone: encoding again" in first(Notice, events).message
    assert output.stat().st_size == done.size_bytes
    assert [path.name for path in output.parent.iterdir()] == ["film.mp4"]
    assert sorted(path.name for path in bench.folder.iterdir()) == ["bikes.mp4", "ffmpeg", "out", "store"]


@pytest.mark.long
def test_whatever_fails_is_named_and_the_same_command_goes_on_with_the_chunks_that_are_finished(bench: Bench) -> None:
    """One failure after the other: each run but the last begins with what the run before has left."""
    last = bench.chunks[-1].name
    fail = bench.tell("fail")
    code, events, err = bench.run()
    error = failure(code, events, err)
    assert (error.step, error.chunk, error.exit_code) == ("encode_chunk", last, 1)
    assert "No space left on device: " in error.message and "make room there" in error.message
    fail.unlink()

    hold = bench.tell("hold")
    content = bench.source.read_bytes()
    with bench.start("--json", "--workers", "1") as process:
        events = read_until(process, lambda events: is_encoding(events[-1]))
        assert "the run before failed: trying again, with 3 chunks that it finished" in first(Notice, events).message
        bench.source.unlink()
        hold.unlink()
        error = failure(*finish(process))
    assert (error.step, error.chunk) == ("encode_chunk", last)
    assert f"No such file or directory | Error opening input file {bench.source}" in error.message
    assert not list(bench.folder.glob("*.mp4"))
    assert bench.left_running() == set()
    bench.source.write_bytes(content)

    hold = bench.tell("hold")
    with bench.start("--json") as process:
        read_until(process, lambda events: is_encoding(events[-1]))
        damage(next(path for path in Path(bench.store).rglob(f"*{bench.chunks[1].name}*.mp4")))
        hold.unlink()
        error = failure(*finish(process))
    assert error.step == "assemble"
    assert f"chunk {bench.chunks[1].name} in file://" in error.message
    assert "no longer what was stored" in error.message
    assert not bench.output.exists()

    code, events, err = bench.run()
    assert (code, err) == (0, "")
    assert list(bench.attempts(events)) == [bench.chunks[1].name]
    done = events[-1]
    assert isinstance(done, Done)
    assert (done.frames, done.chunks_reused) == (250, 3)
    assert frames(str(bench.output)) == undisturbed()


def failure(code: int, events: list[Event], err: str) -> Error:
    """What a command that failed has to say: one event, and the same in one line for people."""
    error = events[-1]
    assert code == 1
    assert isinstance(error, Error)
    assert error.message in err
    assert err.count("\n") == 1
    return error


def is_encoding(event: Event) -> bool:
    return isinstance(event, Progress) and event.phase == "encoding" and event.chunks_running > 0


def damage(path: Path) -> None:
    """Flip one bit (I7: it never gets into an output)."""
    content = bytearray(path.read_bytes())
    content[len(content) * 3 // 4] ^= 1
    path.write_bytes(content)


@pytest.mark.long
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
