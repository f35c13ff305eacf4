"""What steps print and workflows log, on its way to the terminal of the program that waits.

Ray shows a program the output of its own job's workers alone, without saying whose it is, and the job of steps is that of whichever
program made the dispatcher. So lines travel to the dispatcher, which runs all steps, and programs fetch them there (``listening``).
They are for display: bounded at every stop, lost where somebody is too slow, never recorded. The log of their process has them too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TextIO, cast

import msgspec

_LONGEST_LINE = 2000
_MOST_LINES = 200
"""That a process keeps until they are sent, which is what it says in a second at the most."""
_SPOKEN_BYTES = 2**20
_POLL_S = 20.0

_encode = msgspec.msgpack.Encoder().encode


class Who(NamedTuple):
    """Who says something: a step's attempt, as ``operation`` names it for people, or a workflow's own code, where that is empty."""

    execution: str
    operation: str


class Line(msgspec.Struct, frozen=True, array_like=True):
    """Without its end."""

    execution: str
    operation: str
    text: str

    def __str__(self) -> str:
        return f"({self.execution} {self.operation}) {self.text}" if self.operation else f"({self.execution}) {self.text}"


class Heard(msgspec.Struct, frozen=True, array_like=True):
    """What a dispatcher has been told: encoded lists of lines, up to ``number``; ``missed`` lists came and went before these."""

    incarnation: str
    number: int
    lists: list[bytes]
    missed: int = 0


decode_lines = msgspec.msgpack.Decoder(list[Line]).decode
decode_heard = msgspec.msgpack.Decoder(Heard).decode


def encode_line(who: Who, text: str) -> bytes:
    """A list of one line."""
    return _encode([Line(*who, text)])


class Mouth:
    """Gathers the lines of this process and has ``send`` take them away: ``first_s`` after the first, and every ``pause_s`` then.

    Thread-safe. ``send`` is called in a thread of its own, but for ``flush``.
    """

    def __init__(self, send: Callable[[bytes], None], first_s: float, pause_s: float) -> None:
        self._send = send
        self._first_s, self._pause_s = first_s, pause_s
        self._lock = threading.Lock()
        self._lines: list[Line] = []
        self._dropped = 0
        self._thread: threading.Thread | None = None
        self._hurry = threading.Event()

    def say(self, who: Who, text: str) -> None:
        """Never blocks. What is too much is dropped, and counted."""
        with self._lock:
            if len(self._lines) >= _MOST_LINES:
                self._dropped += 1
                return
            cut = text if len(text) <= _LONGEST_LINE else f"{text[:_LONGEST_LINE]}..."
            self._lines.append(Line(*who, cut))
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="rayflow-output", daemon=True)
                self._thread.start()

    def take(self) -> bytes:
        """What there is, encoded; empty if that is nothing."""
        with self._lock:
            lines, self._lines = self._lines, []
            dropped, self._dropped = self._dropped, 0
        if dropped:
            lines.append(Line(lines[-1].execution, lines[-1].operation, f"... {dropped} more lines: see the log of its process"))
        return _encode(lines) if lines else b""

    def flush(self) -> None:
        """Send what there is from this thread."""
        if self._lines and (lines := self.take()):
            with contextlib.suppress(Exception):  # whoever would take it is gone
                self._send(lines)

    def rest(self) -> bytes:
        """End the thread, and take what there is."""
        with self._lock:
            thread = self._thread
        if thread is not None:
            self._hurry.set()
            thread.join()
            self._hurry.clear()
        return self.take()

    def _work(self) -> None:
        self._hurry.wait(self._first_s)
        while True:
            with self._lock:
                if not self._lines or self._hurry.is_set():
                    self._thread = None
                    return
            self.flush()
            self._hurry.wait(self._pause_s)


class Tee:
    """In place of ``sys.stdout`` or ``sys.stderr``: says what is written there as well, where ``who`` knows by whom."""

    def __init__(self, stream: TextIO, who: Callable[[], Who | None], mouth: Mouth) -> None:
        self._stream, self._who, self._mouth = stream, who, mouth
        self._lock = threading.Lock()
        self._begun: dict[Who, str] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """As a stream does."""
        count = self._stream.write(text)
        who = self._who()
        if who is not None:
            with self._lock:
                *lines, rest = (self._begun.pop(who, "") + text).split("\n")
                if rest:
                    self._begun[who] = _overwritten(rest)[-_LONGEST_LINE:]
            for line in lines:
                self._mouth.say(who, _overwritten(line))
        return count

    def writelines(self, lines: Iterable[str]) -> None:
        """As a stream does."""
        for line in lines:
            self.write(line)

    def end(self, who: Who) -> None:
        """It writes no more: a line that it has begun is one."""
        if self._begun:
            with self._lock:
                begun = self._begun.pop(who, "")
            if begun:
                self._mouth.say(who, begun)


def _overwritten(line: str) -> str:
    """What a terminal shows in the end, of a line that goes back to its beginning."""
    return line.rstrip("\r").rpartition("\r")[2]


_tees: list[Tee] = []


def capture(who: Callable[[], Who | None], mouth: Mouth) -> None:
    """From now on, ``mouth`` says what is printed in this process, where ``who`` knows by whom. Once per process."""
    for name in ("stdout", "stderr"):
        tee = Tee(getattr(sys, name), who, mouth)
        _tees.append(tee)
        setattr(sys, name, tee)


def ended(who: Who) -> None:
    """An attempt prints no more."""
    for tee in _tees:
        tee.end(who)


class Handler(logging.Handler):
    """Says what workflows log. ``ReplayLogger`` says in each record whose it is, and is silent during replay."""

    def __init__(self, mouth: Mouth) -> None:
        super().__init__()
        self._mouth = mouth

    def emit(self, record: logging.LogRecord) -> None:
        execution = getattr(record, "execution", None)
        if execution is not None:
            text = self.format(record).removeprefix(f"[{execution}] ")
            who = Who(str(execution), "")
            for line in (text if record.levelno <= logging.INFO else f"{record.levelname}: {text}").split("\n"):
                self._mouth.say(who, line)


def log_workflows(mouth: Mouth) -> None:
    """What workflows log, from INFO on, is said and stands in this process's log."""
    log = logging.getLogger("rayflow.workflow")
    log.addHandler(Handler(mouth))
    own = logging.StreamHandler()
    own.setFormatter(logging.Formatter("%(asctime)s rayflow: %(levelname)s %(message)s"))
    log.addHandler(own)
    log.setLevel(logging.INFO)
    log.propagate = False


class Spoken:
    """What a dispatcher was told of late. Belongs to its loop."""

    def __init__(self) -> None:
        self._incarnation = secrets.token_hex(8)
        self._lists: deque[tuple[int, bytes]] = deque()
        self._bytes = self._count = 0
        self._news = asyncio.Event()

    def add(self, lines: bytes) -> None:
        """An encoded list of lines."""
        self._count += 1
        self._lists.append((self._count, lines))
        self._bytes += len(lines)
        while self._bytes > _SPOKEN_BYTES:
            self._bytes -= len(self._lists.popleft()[1])
        self._news.set()
        self._news = asyncio.Event()

    async def heard(self, incarnation: str, seen: int, wait: bool) -> bytes:
        """An encoded Heard: what came after ``seen``, as soon as there is anything, or after a while, or at once.

        Of another incarnation than the one that was asked so far: all that there is, or nothing if ``seen`` is below zero.
        """
        if incarnation != self._incarnation:
            seen = self._count if seen < 0 else 0
            wait = wait and bool(incarnation)
        if seen >= self._count and wait:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_POLL_S):
                    await self._news.wait()
        lists = [lines for number, lines in self._lists if number > seen]
        return _encode(Heard(self._incarnation, self._count, lists, self._count - seen - len(lists)))


def stderr(line: Line) -> None:
    """Show it. A program's stdout is for what the program itself has to say."""
    with contextlib.suppress(OSError, ValueError):  # closed
        cast("TextIO", sys.stderr).write(f"{line}\n")
