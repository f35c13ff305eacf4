"""The books of a soak: what each program asked, before it asked, and what it was answered, once it was.

A line is on the disk before the program goes on. A program that is killed leaves its last line whole, or not at all.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec


class Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line. ``number`` is that of the request in its book; ``asks`` is empty in the line of an answer.

    asks: ``increment``, ``get``, ``note``, ``burst``, ``refuse``, ``pass_on``, ``later``, ``remind``, ``grow``, ``tell``,
        ``start``, ``result``, ``cancel``, ``forget``, or ``life`` where a program begins.
    error: The type of the error that was the answer.
    at_s: By ``time.monotonic``, which is one clock for all processes of a machine.
    """

    number: int
    at_s: float
    asks: str = ""
    args: list[Any] = []
    value: Any = None
    error: str = ""


@dataclass(slots=True)
class Request:
    """What was asked, and all that was answered: more than once where a program asked again after it was killed."""

    book: str
    number: int
    life: int
    asks: str
    args: list[Any]
    asked_s: float
    answers: list[Line] = field(default_factory=list[Line])

    @property
    def answered(self) -> Line | None:
        """The first answer."""
        return self.answers[0] if self.answers else None

    @property
    def acknowledged(self) -> bool:
        """Whether it was answered, and not by an error."""
        return any(not one.error for one in self.answers)


class Book:
    """One program's, to write. For several threads. A new life of the program goes on in the same file."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._last = max((one.number for one in read_lines(path)), default=0)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.ask("life")

    def ask(self, asks: str, *args: Any) -> int:
        """Note what is about to be asked; its number."""
        number = self.fresh()
        self._write(Line(number, time.monotonic(), asks, list(args)))
        return number

    def fresh(self) -> int:
        """A number that nothing else in this book has."""
        with self._lock:
            self._last += 1
            return self._last

    def answer(self, number: int, value: Any = None, error: str = "") -> None:
        """Note what it was answered."""
        self._write(Line(number, time.monotonic(), "", [], value, error))

    def _write(self, line: Line) -> None:
        os.write(self._file, msgspec.json.encode(line) + b"\n")
        os.fdatasync(self._file)


def read_lines(path: Path) -> Iterator[Line]:
    """All whole lines of a book."""
    if path.exists():
        for line in path.read_bytes().split(b"\n")[:-1]:
            yield msgspec.json.decode(line, type=Line)


def read_book(path: Path) -> list[Request]:
    """All requests of a book, in the order in which they were asked."""
    requests: dict[int, Request] = {}
    life = 0
    for line in read_lines(path):
        life += line.asks == "life"
        if line.asks:
            requests[line.number] = Request(path.name, line.number, life, line.asks, line.args, line.at_s)
        else:
            requests[line.number].answers.append(line)
    return [one for one in requests.values() if one.asks != "life"]


def read_books(folder: Path) -> list[Request]:
    """The requests of all programs."""
    return [request for path in sorted(folder.glob("book-*")) for request in read_book(path)]


def read_attempts(folder: Path) -> list[tuple[str, str, int]]:
    """Execution, operation and number of every attempt that began."""
    found: list[tuple[str, str, int]] = []
    for path in folder.glob("attempts-*"):
        for line in path.read_text().splitlines():
            execution, operation, attempt = line.split(" ")
            found.append((execution, operation, int(attempt)))
    return found
