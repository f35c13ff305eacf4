"""The encode command as users run it: a process of its own, with Ray and ffmpeg, stopped and killed and run again."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import IO, TypeVar

import msgspec
import pytest

from pipelines.video import ffmpeg, index, plan
from pipelines.video.command_events import Chunk, Done, Error, Event, Notice, Progress, Start, Stopped
from pipelines.video.settings import Settings
from rayflow.checkpoint.opening import open_store
from rayflow.checkpoint.reading import read_execution
from tests.pipelines.conversion import assert_same_frames, film

pytestmark = [pytest.mark.ray, pytest.mark.slow]

_ROOT = Path(__file__).parents[2]
_DEADLINE_S = 120.0
_AGENTS = {"ray::DashboardAgent", "ray::RuntimeEnvAgent"}
E = TypeVar("E")
_decode = msgspec.json.Decoder(Event).decode

# An ffmpeg that does to the last chunk what a file beside it says: wait as long as it is there, or fail.
_FFMPEG = """\
#!/bin/sh
case "$*" in
*"trim=start_pts={pts},"*)
    while [ -e "{folder}/hold" ]; do sleep 0.05; done
    if [ -e "{folder}/fail" ]; then echo "No space left on device" >&2; exit 1; fi ;;
esac
exec "{binary}" "$@"
"""


class Bench:
    """A folder with a video of four chunks, an ffmpeg that can be told to hold or fail the last of them, and a store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.source = folder / "bikes.mp4"
        film(self.source)
        self.output = folder / "bikes.encoded.mp4"
        self.store = folder / "store"
        self.mark = uuid.uuid4().hex
        self.chunks = plan.make(index.read(str(self.source)), Settings(chunk_seconds=2.5)).chunks
        wrapper = folder / "ffmpeg"
        binary = ffmpeg.find("libx264").path
        wrapper.write_text(_FFMPEG.format(pts=self.chunks[-1].start_pts, folder=folder, binary=binary))
        wrapper.chmod(0o755)

    def tell(self, word: str) -> Path:
        """Have the last chunk wait ("hold") or fail ("fail") until the file is removed."""
        path = self.folder / word
        path.touch()
        return path

    def start(self, *arguments: str, stdout: int | IO[str] = subprocess.PIPE) -> subprocess.Popen[str]:
        """Start the command, as the leader of a process group of its own, as a shell does."""
        command = [sys.executable, "-m", "rayflow.encode", "bikes.mp4", "--chunk-seconds", "2.5", "--workers", "2"]
        environment = os.environ | {
            "PYTHONPATH": str(_ROOT),
            "RAYFLOW_STORE": str(self.store),
            "RAYFLOW_FFMPEG": str(self.folder / "ffmpeg"),
            "RAYFLOW_TEST_MARK": self.mark,
        }
        environment.pop("RAY_ADDRESS", None)
        return subprocess.Popen(
            [*command, *arguments],
            cwd=self.folder,
            env=environment,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
        )

    def run(self, *arguments: str) -> tuple[int, list[Event], str]:
        """Run the command with --json; returns exit code, events and stderr."""
        with self.start("--json", *arguments) as process:
            out, err = process.communicate(timeout=_DEADLINE_S)
        return process.returncode, [_decode(line) for line in out.splitlines()], err

    def run_until_held(self, process: subprocess.Popen[str]) -> list[Event]:
        """Read events until all chunks but the one that is held are finished."""
        events: list[Event] = []
        assert process.stdout is not None
        for line in process.stdout:
            events.append(_decode(line))
            if len([event for event in events if isinstance(event, Chunk)]) == len(self.chunks) - 1:
                return events
        raise AssertionError(f"ended early: {events}, {process.stderr.read() if process.stderr else ''}")

    def processes(self) -> Iterator[int]:
        """Every process of this bench that lives, whoever its parent is."""
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if self.mark.encode() in path.read_bytes():
                    yield int(path.parent.name)

    def left_running(self, within_s: float) -> set[str]:
        """The command lines of processes that do not end within a while; dying ones may have started others meanwhile.

        Two agents of Ray may take a minute: they report the death of their raylet to a GCS server that is gone as well.
        """
        deadline_s = time.monotonic() + within_s
        while (pids := list(self.processes())) and time.monotonic() < deadline_s:
            with contextlib.suppress(ProcessLookupError):
                descriptor = os.pidfd_open(pids[0])
                select.select([descriptor], [], [], max(0.0, deadline_s - time.monotonic()))
                os.close(descriptor)
        lines: set[str] = set()
        for pid in pids:
            with contextlib.suppress(OSError):
                lines.add(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip())
        return lines

    def attempts(self, events: list[Event]) -> dict[str, int]:
        """How often each chunk was begun, by what the store has on record."""
        history = read_execution(open_store(self.store), first(Start, events).id)
        return {one.operation: len(one.attempts) for one in history.operations if one.name == "encode_chunk"}


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """Whatever happens, no process outlives the test."""
    made = Bench(tmp_path)
    yield made
    for pid in list(made.processes()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def first(kind: type[E], events: list[Event]) -> E:
    """The first event of a kind."""
    return next(event for event in events if isinstance(event, kind))


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
    assert bench.left_running(20.0) == set()

    code, again, err = bench.run()
    assert (code, err) == (0, "")
    assert [type(event) for event in again] == [Done]
    assert (again[-1].id, again[-1].size_bytes, again[-1].wall_s) == (done.id, done.size_bytes, None)

    with open("/dev/full", "w") as full, bench.start(stdout=full) as process:
        _, err = process.communicate(timeout=_DEADLINE_S)
    assert (process.returncode, err) == (1, "rayflow.encode: what it has to say cannot be written: No space left on device\n")

    bench.output.unlink()
    code, events, err = bench.run()
    assert (code, err) == (0, "")
    assert "is gone: encoding again" in first(Notice, events).message
    assert bench.output.stat().st_size == done.size_bytes
    assert sorted(path.name for path in bench.folder.iterdir()) == ["bikes.encoded.mp4", "bikes.mp4", "ffmpeg", "store"]


@pytest.mark.crash
def test_a_killed_command_leaves_nothing_running_and_goes_on_where_it_was(bench: Bench) -> None:
    hold = bench.tell("hold")
    with bench.start("--json") as process:
        before = bench.run_until_held(process)
        process.kill()
        process.wait()
    assert bench.left_running(20.0) <= _AGENTS
    assert not bench.output.exists()

    hold.unlink()
    code, events, err = bench.run()
    assert (code, err) == (0, "")
    assert first(Start, events).id == first(Start, before).id
    assert first(Start, events).chunks_reused == 3
    assert [event.name for event in events if isinstance(event, Chunk)] == [bench.chunks[-1].name]
    attempts = bench.attempts(events)
    assert [attempts[f"encode_chunk#1/[{chunk.name}]"] for chunk in bench.chunks[:-1]] == [1, 1, 1]
    done = events[-1]
    assert isinstance(done, Done)
    assert (done.frames, done.chunks_reused) == (250, 3)
    assert bench.left_running(90.0) == set()


@pytest.mark.crash
def test_ctrl_c_stops_everything_and_says_how_to_go_on(bench: Bench) -> None:
    bench.tell("hold")
    with bench.start("--json") as process:
        bench.run_until_held(process)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        out, err = process.communicate(timeout=_DEADLINE_S)
    assert process.returncode == 130
    stopped = _decode(out.splitlines()[-1])
    assert isinstance(stopped, Stopped)
    assert (stopped.chunks_done, stopped.chunks, stopped.exit_code) == (3, 4, 130)
    assert stopped.resume == "python -m rayflow.encode bikes.mp4 --chunk-seconds 2.5 --workers 2 --json"
    assert err.count("\n") == 1
    assert stopped.resume in err
    assert bench.left_running(20.0) == set()


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
    assert list(bench.attempts(events)) == [f"encode_chunk#1/[{bench.chunks[-1].name}]"]
    done = events[-1]
    assert isinstance(done, Done)
    assert (done.frames, done.chunks_reused) == (250, 3)


def test_a_stored_chunk_that_is_damaged_is_named_and_encoded_anew_by_the_next_run(bench: Bench) -> None:
    """I7: a flipped bit never gets into an output."""
    hold = bench.tell("hold")
    with bench.start("--json") as process:
        bench.run_until_held(process)
        victim = next(path for path in bench.store.rglob(f"*{bench.chunks[1].name}*.mp4"))
        content = bytearray(victim.read_bytes())
        content[len(content) * 3 // 4] ^= 1
        victim.write_bytes(content)
        hold.unlink()
        out, err = process.communicate(timeout=_DEADLINE_S)
    error = _decode(out.splitlines()[-1])
    assert process.returncode == 1
    assert isinstance(error, Error)
    assert error.step == "assemble"
    assert f"chunk {bench.chunks[1].name} in file://" in error.message
    assert "no longer what was stored" in error.message
    assert err.count("\n") == 1
    assert not bench.output.exists()

    code, events, err = bench.run()
    assert (code, err) == (0, "")
    assert list(bench.attempts(events)) == [f"encode_chunk#1/[{bench.chunks[1].name}]"]
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
        out, err = process.communicate(timeout=_DEADLINE_S)
    error = _decode(out.splitlines()[-1])
    assert process.returncode == 1
    assert isinstance(error, Error)
    assert (error.step, error.chunk) == ("encode_chunk", bench.chunks[-1].name)
    assert f"No such file or directory | Error opening input file {bench.source}" in error.message
    assert err.count("\n") == 1
    assert not list(bench.folder.glob("*.mp4"))
    assert bench.left_running(20.0) == set()

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
        _, err = process.communicate(timeout=_DEADLINE_S)
    assert (process.returncode, err) == (0, "")
    assert [path.name for path in (bench.folder / "out").iterdir()] == ["film.mp4"]


def test_any_name_that_a_file_system_takes_is_taken(tmp_path: Path) -> None:
    folder = tmp_path / 'it\'s "odd" $HOME [1]'
    folder.mkdir()
    source = film(folder / "-ü 日本 100% `x` \\ #?&.mp4")
    output = folder / f"{'é' * 125}.mkv"
    command = [sys.executable, "-m", "rayflow.encode", "--store", "st'ore %41 $x", "-o", output.name, "--split", "3,6"]
    environment = os.environ | {"PYTHONPATH": str(_ROOT)}
    environment.pop("RAY_ADDRESS", None)
    for expected in ("verified", "encoded before, nothing to do"):
        done = subprocess.run(
            [*command, "--lossless", "--preset", "ultrafast", "--", source.name],
            cwd=folder, env=environment, capture_output=True, text=True, timeout=_DEADLINE_S,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines()[-1].startswith(f"{output}: ")
        assert expected in done.stdout.splitlines()[-1]
    assert_same_frames(str(source), output, Fraction(1, 1000))
    assert sorted(path.name for path in folder.iterdir()) == sorted([source.name, output.name, "st'ore %41 $x"])
