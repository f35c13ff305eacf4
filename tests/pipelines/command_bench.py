"""The encode command on a bench: started as users start it, held, killed and run again, with all that it starts in view."""

from __future__ import annotations

import contextlib
import functools
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TypeVar

import msgspec

from pipelines.video import ffmpeg, index, plan
from pipelines.video.command_events import Chunk, Done, Event, Start
from pipelines.video.settings import Settings
from rayflow.checkpoint.opening import open_store
from rayflow.checkpoint.reading import read_execution
from tests.pipelines.conversion import Frame, convert, film, frames

DEADLINE_S = 120.0
"""Of a command that is expected to end."""
GONE_S = 10.0
"""Within this time everything that a command has started is gone, however the command ended."""

_ROOT = Path(__file__).parents[2]
_SETTINGS = Settings(chunk_seconds=2.5)
E = TypeVar("E")

decode = msgspec.json.Decoder(Event).decode

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
    """A folder with a video of four chunks, an ffmpeg that can be told to hold or fail the last of them, and a store.

    ``store``: its URL; default: a folder in ``folder``, which the command finds in its environment.
    """

    def __init__(self, folder: Path, store: str = "") -> None:
        self.folder = folder
        self.source = folder / "bikes.mp4"
        film(self.source)
        self.output = folder / "bikes.encoded.mp4"
        self.store = store or str(folder / "store")
        self._arguments = ["--store", store] if store else []
        self.mark = uuid.uuid4().hex
        self.chunks = plan.make(index.read(str(self.source)), _SETTINGS).chunks
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
            "RAYFLOW_STORE": self.store,
            "RAYFLOW_FFMPEG": str(self.folder / "ffmpeg"),
            "RAYFLOW_TEST_MARK": self.mark,
        }
        environment.pop("RAY_ADDRESS", None)
        return subprocess.Popen(
            [*command, *self._arguments, *arguments],
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
            return finish(process)

    def assert_nothing_to_do(self, done: Done, *arguments: str) -> None:
        """Run the command again after it has said ``done``: it says so once more, and starts nothing."""
        code, events, err = self.run(*arguments)
        assert (code, err) == (0, "")
        (again,) = events
        assert isinstance(again, Done)
        assert (again.id, again.size_bytes, again.wall_s) == (done.id, done.size_bytes, None)

    def assert_goes_on_where_it_was_killed(self) -> list[Event]:
        """Kill the command once all chunks but one are finished, and run it again; returns what the second one has to say."""
        hold = self.tell("hold")
        with self.start("--json") as process:
            before = self.run_until_held(process)
            process.kill()
            process.wait()
        assert self.left_running() == set()
        assert not self.output.exists()

        hold.unlink()
        code, events, err = self.run()
        assert (code, err) == (0, "")
        self.assert_went_on(before, events)
        assert [event.name for event in events if isinstance(event, Chunk)] == [self.chunks[-1].name]
        return events

    def assert_went_on(self, before: list[Event], events: list[Event]) -> None:
        """The same execution was continued by another command to the end: no chunk anew, the same frames, nothing left running."""
        start, done = first(Start, events), first(Done, events)
        assert (start.id, start.chunks_reused) == (first(Start, before).id, 3)
        assert (done.frames, done.chunks_reused) == (250, 3)
        attempts = self.attempts(events)
        assert [attempts[chunk.name] for chunk in self.chunks[:-1]] == [1, 1, 1], read_failures(self.store, start.id)
        assert frames(str(self.output)) == undisturbed()
        assert self.left_running() == set()

    def run_until_held(self, process: subprocess.Popen[str]) -> list[Event]:
        """Read events until all chunks but the one that is held are finished."""
        return read_until(process, self.is_held)

    def is_held(self, events: list[Event]) -> bool:
        """Whether all chunks but the last are finished, by the events of a command."""
        return len([event for event in events if isinstance(event, Chunk)]) == len(self.chunks) - 1

    def processes(self) -> Iterator[int]:
        """Every process of this bench that lives, whoever its parent is: those with its mark, and those that work in its folder.

        Processes of Ray that give themselves a title may overwrite their environment.
        """
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if self.mark.encode() in (path / "environ").read_bytes() or (path / "cwd").readlink() == self.folder:
                    yield int(path.name)

    def kill_all(self, spare: int = 0) -> None:
        """SIGKILL every process of this bench but one, again and again: dying ones may have started others meanwhile."""
        while pids := [pid for pid in self.processes() if pid != spare]:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def left_running(self, within_s: float = GONE_S) -> set[str]:
        """The command lines of processes that do not end within a while; dying ones may have started others meanwhile."""
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
        return read_attempts(self.store, first(Start, events).id)


def read_attempts(store: str, execution: str) -> dict[str, int]:
    """How often each chunk of an execution was begun, by what a store has on record."""
    operations = [one for one in read_execution(open_store(store), execution).operations if one.name == "encode_chunk"]
    return {one.operation.partition("/[")[2].removesuffix("]"): len(one.attempts) for one in operations}


def read_failures(store: str, execution: str) -> list[str]:
    """Why attempts of an execution failed, by what a store has on record."""
    operations = read_execution(open_store(store), execution).operations
    tried = [(one.operation, attempt) for one in operations for attempt in one.attempts if attempt.failure is not None]
    return [f"{operation} attempt {attempt.number}: {attempt.cause} {attempt.failure}" for operation, attempt in tried]


def read_until(process: subprocess.Popen[str], reached: Callable[[list[Event]], bool]) -> list[Event]:
    """Read the events of a command with --json until they are such that ..."""
    events: list[Event] = []
    assert process.stdout is not None
    for line in process.stdout:
        events.append(decode(line))
        if reached(events):
            return events
    raise AssertionError(f"ended early: {events}, {process.stderr.read() if process.stderr else ''}")


def finish(process: subprocess.Popen[str], within_s: float = DEADLINE_S) -> tuple[int, list[Event], str]:
    """Wait for a command with --json; returns exit code, the events not read yet, and stderr."""
    out, err = process.communicate(timeout=within_s)
    return process.returncode, [decode(line) for line in out.splitlines()], err


def first(kind: type[E], events: list[Event]) -> E:
    """The first event of a kind."""
    return next(event for event in events if isinstance(event, kind))


@functools.cache
def undisturbed() -> tuple[Frame, ...]:
    """The decoded frames of the bench's output as an encode in this process, without Ray, makes it."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "out.mp4")
        convert(str(film(Path(folder, "in.mp4"))), _SETTINGS, output)
        return frames(str(output))
