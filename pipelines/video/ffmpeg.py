"""Find ffmpeg and run it as a child that cannot outlive its parent.

Contract of ``run``: when it returns, the child has ended well; when it raises, for whatever reason, the child is gone.
That holds for an exception thrown into the polling loop (cancellation, Ctrl-C) and, by a parent-death signal, for a
parent that is killed.

Why a wrapper process sets the parent-death signal: a ``preexec_fn`` runs Python in a fork of a process that may hold
gRPC threads and locks, which can hang; without one, ``subprocess`` uses vfork and is safe. The wrapper arms the signal,
checks that its parent is still the one that started it, and becomes ffmpeg. The signal fires when the *thread* that
forked ends, so ``run`` waits in that thread. Why polling: a blocking wait is not interrupted by ``ray.cancel``, a loop
of short waits is.
"""

from __future__ import annotations

import functools
import importlib
import os
import re
import selectors
import shlex
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import imageio_ffmpeg

from pipelines.video.source import openable, without_signatures
from rayflow.errors import InvalidInput, RayflowError

ENVIRONMENT_VARIABLE = "RAYFLOW_FFMPEG"
OLDEST = (5, 1)  # the first with -fps_mode

URL_OPTIONS = {
    "reconnect": "1",
    "reconnect_on_network_error": "1",
    "reconnect_on_http_error": "429,5xx",
    "reconnect_delay_max": "10",
    "rw_timeout": "30000000",
}
"""For a source on a web server: go on where a connection broke, and give up on a server that says nothing for 30 s."""

_POLL_S = 0.1
_TAIL_LINES = 40
_LIBRARY: Any = importlib.import_module("ffmpeg")  # ffmpeg-python has no types

Node: TypeAlias = Any
"""A node of ffmpeg-python: an input, a stream of one, or an output."""
_WRAPPER = """\
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None, use_errno=True).prctl(1, 9, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    os._exit(137)
os.execv(sys.argv[2], sys.argv[2:])
"""


@dataclass(frozen=True, slots=True)
class Binary:
    """An ffmpeg executable: its absolute path, its version as it prints it, and the codec of each of its encoders."""

    path: str
    version: str
    encoders: Mapping[str, str]

    @property
    def release(self) -> tuple[int, int] | None:
        """(major, minor), or None for a build from the development branch."""
        match = re.match(r"n?(\d+)\.(\d+)", self.version)
        return (int(match[1]), int(match[2])) if match else None

    def suits(self, encoder: str) -> bool:
        """Whether it is recent enough and has the encoder; the empty name asks for none."""
        return (self.release is None or self.release >= OLDEST) and (not encoder or encoder in self.encoders)


@dataclass(frozen=True, slots=True)
class Progress:
    """What a running ffmpeg last said of itself. ``speed`` is media seconds per second; both it and the time are 0
    while unknown.

    ``out_time_s`` counts from the first frame of a chunk, for audio from ffmpeg's first report on.
    """

    frames: int
    out_time_s: float
    speed: float
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Finished:
    """A child that ended well. ``cpu_s`` is its user plus system time, of all its threads; ``frames`` what it wrote.

    ``tail`` holds the last lines of its warnings.
    """

    wall_s: float
    cpu_s: float
    frames: int
    tail: str


class FfmpegFailed(RayflowError):
    """ffmpeg ended with an error. ``exit_code`` is negative for a signal, ``command`` can be pasted into a shell,
    ``reason`` is the last that it said."""

    def __init__(self, message: str, *, exit_code: int = 1, command: str = "", reason: str = "") -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.command = command
        self.reason = reason

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild_failed, (self.args[0], self.exit_code, self.command, self.reason))


def _rebuild_failed(message: str, exit_code: int, command: str, reason: str) -> FfmpegFailed:
    return FfmpegFailed(message, exit_code=exit_code, command=command, reason=reason)


def find(encoder: str = "") -> Binary:
    """The ffmpeg to use for an encoder (its ffmpeg name; empty: any ffmpeg will do).

    ``$RAYFLOW_FFMPEG`` is used without alternative when it is set; else the one on ``PATH`` if it is at least 5.1 and
    has the encoder; else the one that comes with imageio-ffmpeg. Raises InvalidInput when none of them serves.
    """
    override = os.environ.get(ENVIRONMENT_VARIABLE)
    if override:
        binary = _inspect(override)
        if binary is None:
            raise InvalidInput(f"${ENVIRONMENT_VARIABLE} is {override!r}, which does not run as ffmpeg: correct or unset it")
        if not binary.suits(encoder):
            raise InvalidInput(
                f"{override} (ffmpeg {binary.version}) is older than 5.1 or lacks the encoder {encoder!r}: "
                f"choose another codec or unset ${ENVIRONMENT_VARIABLE}"
            )
        return binary
    candidates = [_inspect(path) for path in (shutil.which("ffmpeg"), _bundled()) if path]
    for binary in candidates:
        if binary is not None and binary.suits(encoder):
            return binary
    if not any(candidates):
        raise InvalidInput("no ffmpeg found: install ffmpeg 5.1 or later, or the package imageio-ffmpeg")
    raise InvalidInput(f"no ffmpeg here has the encoder {encoder!r}: see `ffmpeg -encoders` for the names that exist")


def _bundled() -> str | None:
    try:
        return imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError:
        return None


@functools.lru_cache(maxsize=8)
def _inspect(path: str) -> Binary | None:
    """Version and encoders of an executable; None if it is not an ffmpeg that runs."""
    resolved = shutil.which(path)
    if resolved is None:
        return None
    try:
        version = _output(resolved, "-version")
        listing = _output(resolved, "-hide_banner", "-encoders")
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.match(r"ffmpeg version (\S+)", version)
    if match is None:
        return None
    rows = re.findall(r"^ [VAS][F.][S.][X.][B.][D.] (\S+)(?:.*\(codec (\S+)\))?", listing, re.MULTILINE)
    return Binary(str(Path(resolved).absolute()), match[1], MappingProxyType({name: codec or name for name, codec in rows}))


def pixel_formats(binary: Binary, encoder: str) -> tuple[str, ...]:
    """The pixel formats that an encoder takes without conversion; empty when it takes any or does not say."""
    text = _output(binary.path, "-hide_banner", "-h", f"encoder={encoder}")
    match = re.search(r"Supported pixel formats: (.+)", text)
    return tuple(match[1].split()) if match else ()


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60, check=True)
    return done.stdout


def source(url: str, **options: object) -> Node:
    """An input of a command, as a node of ffmpeg-python; options go before its ``-i``."""
    return _LIBRARY.input(openable(url), **options, **(URL_OPTIONS if "://" in url else {}))


def concatenated(videos: Sequence[Node]) -> Node:
    """Videos of the same size shown one after the other, by filter."""
    return _LIBRARY.concat(*videos, v=1, a=0)


def target(streams: Sequence[Node], path: Path | str, **options: object) -> Node:
    """An output of a command, as a node of ffmpeg-python. A tuple as a value repeats the option, None gives it no
    value."""
    return _LIBRARY.output(*streams, str(path), **options)


def compile_command(binary: Binary, output: Node, extra: Sequence[str] = (), also: Node | None = None) -> list[str]:
    """The argument list for an output node.

    ``extra`` goes last before the output's name, so it wins over what is set. ``also`` is an input to open even if no
    stream of it is used, for its metadata.
    """
    command: list[str] = _LIBRARY.compile(output, cmd=binary.path)
    if also is not None:
        opened: list[str] = _LIBRARY.get_args(_LIBRARY.output(also, "-"))
        opened = opened[: opened.index("-i") + 2]
        if opened[-1] not in command[:-1]:
            command[command.index("-map") : command.index("-map")] = opened
    command[1:1] = ["-hide_banner", "-nostdin", "-y", "-v", "warning", "-nostats", "-progress", "pipe:1"]
    command[-1:-1] = list(extra)
    return command


def input_number(command: Sequence[str], url: str) -> int:
    """The number that ffmpeg gives an input of a compiled command: ffmpeg-python orders them as it likes."""
    return [command[place + 1] for place, word in enumerate(command) if word == "-i"].index(openable(url))


def seconds(value: Fraction) -> str:
    """A time in seconds as ffmpeg reads it: rounded to the microsecond, its own resolution, never in exponent
    notation."""
    micro = round(value * 1_000_000)
    return f"{'-' if micro < 0 else ''}{abs(micro) // 1_000_000}.{abs(micro) % 1_000_000:06d}"


def run(command: Sequence[str], on_progress: Callable[[Progress], None] | None = None) -> Finished:
    """Run a compiled command to its end and return what it took. Raises FfmpegFailed, and never leaves the child
    behind.

    ``on_progress`` is called in this thread, about twice a second and once at the end.
    """
    began = time.monotonic()
    wrapped = [sys.executable, "-I", "-S", "-c", _WRAPPER, str(os.getpid()), *command]
    child = subprocess.Popen(wrapped, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stderr is not None
    report = _ProgressReader(on_progress)
    tail = _Tail()
    exited = False
    cpu_s = 0.0
    try:
        with selectors.DefaultSelector() as selector, child.stdout, child.stderr:
            for pipe, consume in ((child.stdout, report.feed), (child.stderr, tail.feed)):
                os.set_blocking(pipe.fileno(), False)
                selector.register(pipe, selectors.EVENT_READ, consume)
            while selector.get_map():
                for key, _ in selector.select(_POLL_S):
                    data = os.read(key.fd, 65536)
                    if data:
                        key.data(data)
                    else:
                        selector.unregister(key.fileobj)
        while True:
            pid, status, usage = os.wait4(child.pid, os.WNOHANG)
            if pid:
                break
            time.sleep(_POLL_S / 10)
        exited = True
        child.returncode = exit_code = os.waitstatus_to_exitcode(status)
        cpu_s = usage.ru_utime + usage.ru_stime
    finally:
        if not exited:
            child.kill()
            child.wait()
    if exit_code != 0:
        shown = without_signatures(shlex.join(command))
        raise FfmpegFailed(
            f"ffmpeg {_ending(exit_code)}: {tail.reason()}\ncommand: {shown}",
            exit_code=exit_code,
            command=shown,
            reason=tail.reason(),
        )
    return Finished(time.monotonic() - began, cpu_s, report.frames, tail.text())


def _ending(exit_code: int) -> str:
    return f"was killed by signal {-exit_code}" if exit_code < 0 else f"failed with exit code {exit_code}"


class _ProgressReader:
    """Turns the ``key=value`` blocks of ``-progress`` into calls."""

    def __init__(self, on_progress: Callable[[Progress], None] | None) -> None:
        self._on_progress = on_progress
        self._rest = b""
        self._values: dict[str, str] = {}
        self.frames = 0

    def feed(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            name, _, value = line.decode(errors="replace").partition("=")
            self._values[name] = value.strip()
            if name == "progress":
                self.frames = int(self._number("frame"))
                if self._on_progress is not None:
                    seconds, size = self._number("out_time_us") / 1e6, int(self._number("total_size"))
                    self._on_progress(Progress(self.frames, seconds, self._number("speed"), size))

    def _number(self, name: str) -> float:
        try:
            return max(0.0, float(self._values.get(name, "").rstrip("x")))
        except ValueError:  # ffmpeg prints N/A until it knows
            return 0.0


class _Tail:
    """The last lines of stderr, and the one that says what went wrong."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=_TAIL_LINES)
        self._rest = b""

    def feed(self, data: bytes) -> None:
        *lines, self._rest = re.split(rb"[\r\n]+", self._rest + data)
        self._lines.extend(text for line in lines if (text := line.decode(errors="replace").strip()))

    def text(self) -> str:
        return without_signatures("\n".join([*self._lines, *([self._rest.decode(errors="replace")] if self._rest else [])]))

    def reason(self) -> str:
        """What went wrong, without what only follows from it: the last three lines that are not the same complaint again."""
        said = [_in_short(line) for line in self.text().splitlines()]
        causes = [line for line in said if not _CONSEQUENCE.search(line)] or said
        return " | ".join(list(dict.fromkeys(causes))[-3:]) or "it said nothing on stderr"


_CONSEQUENCE = re.compile(
    "Task finished with error code|Terminating thread with return code|Nothing was written into output file|Conversion failed"
    "|Error (while opening encoder|sending frames to consumers|opening output file|opening input files:|selecting an encoder"
    "|splitting the argument list|reinitializing filters|applying encoder options)"
    "|Could not open encoder before EOF|Failed to configure input pad|deprecated pixel format"
)


def _in_short(line: str) -> str:
    """A line of ffmpeg without addresses, and without places in its graph such as ``[vost#0:0/libx264 @ 0x55d0]``."""
    line = re.sub(r"\[(?:(?:[vas]?(?:ost|ist|f)|in|out)#|enc:|dec:|AV\w+ )[^\]]*\] ?", "", line)
    return re.sub(r"^\[(\S+) @ 0x[0-9a-f]+\] ?", r"\1: ", line)
