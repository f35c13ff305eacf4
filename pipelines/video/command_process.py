"""The process of the encode command: signals that stop it, and keeping what Ray prints off the terminal."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Generator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, BinaryIO, NoReturn, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequested(BaseException):
    """The command was told to stop by a signal; raised in the main thread. A BaseException so that nothing swallows it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


@contextlib.contextmanager
def stopped_by_signals() -> Generator[None]:
    """In the block the first signal raises StopRequested, the second ends the process at once. For the main thread.

    A signal that is ignored stays so: that is how ``nohup`` and a shell's background job are told to go on.
    """
    previous = {number: signal.getsignal(number) for number in _SIGNALS}
    catch_signals()
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def catch_signals() -> None:
    """Take the signals back from Ray, which installs a handler of its own when it is started."""
    _handle(_stop)


def _handle(handler: Callable[[int, FrameType | None], NoReturn]) -> None:
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    _handle(_leave)
    raise StopRequested(number)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    # Everything that was started here watches this process and goes with it.
    os._exit(128 + number)


@contextlib.contextmanager
def own_terminal() -> Generator[tuple[TextIO, TextIO, BinaryIO]]:
    """Streams that are this command's alone: whatever else writes to stdout and stderr, in Python or in C, goes to a file.

    Ray writes warnings and the deaths of its processes to the driver's stderr, past all settings of its own. The file, the third
    value, has no name: it is gone with the process, however that ends.
    """
    _open_what_is_closed()
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    out, err = _stream(1, sys.stdout.encoding), _stream(2, sys.stderr.encoding)
    with tempfile.TemporaryFile(prefix="rayflow-encode-") as chatter:
        os.dup2(chatter.fileno(), 1)
        os.dup2(chatter.fileno(), 2)
        try:
            yield out, err, chatter
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for target, fd in zip((1, 2), saved, strict=True):
                os.dup2(fd, target)
                os.close(fd)
            for stream in (out, err):
                with contextlib.suppress(OSError):  # it has been told already, or there is nobody to tell
                    stream.close()


class OutputGone(BrokenPipeError):
    """What the command has to say cannot be written: the reader has gone, or the disk is full."""


class _Writer(io.FileIO):
    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            raise OutputGone(error.errno, error.strerror) from error


def _stream(descriptor: int, encoding: str) -> TextIO:
    return io.TextIOWrapper(io.BufferedWriter(_Writer(os.dup(descriptor), "w")), encoding=encoding, errors="replace")


def _open_what_is_closed() -> None:
    """A command may be started without stdout or stderr (``>&-``): what it says is then lost, and that is all."""
    if sys.stdout is not None and sys.stderr is not None:  # pyright: ignore[reportUnnecessaryComparison] -- Python makes them None
        return
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def keep_report(chatter: BinaryIO, trace: str) -> Path:
    """Write what Ray had to say and a traceback to a file, for whoever looks into an unexpected error; returns its path."""
    os.lseek(chatter.fileno(), 0, os.SEEK_SET)
    fd, path = tempfile.mkstemp(prefix="rayflow-encode-", suffix=".log")
    with os.fdopen(fd, "wb") as report:
        report.write(chatter.read() + trace.encode())
    return Path(path)
