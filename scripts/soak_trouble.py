"""What kills and freezes the processes of a soak. It knows no process but those below the ones that the soak started itself."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

GOING_BYTES = 3_000
STANDING_S = 10.0

_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Process:
    """A process of a soak. ``role``: ``program``, ``host``, ``dispatcher``, ``step``, ``raylet`` and the like."""

    pid: int
    role: str


def below(roots: list[int]) -> Iterator[Process]:
    """The processes that these started, and all below them, themselves included. Nobody else's."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(OSError, IndexError):
                parent = int(Path("/proc", name, "stat").read_text().rpartition(") ")[2].split()[1])
                children.setdefault(parent, []).append(int(name))
    pending = list(roots)
    while pending:
        pid = pending.pop()
        pending.extend(children.get(pid, ()))
        yield Process(pid, "program" if pid in roots else role_of(pid))


def role_of(pid: int) -> str:
    """By its title."""
    try:
        title = Path("/proc", str(pid), "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return "other"
    if title.startswith("ray::"):
        if "ShardHost" in title or "rayflow host" in title:
            return "host"
        if "Dispatcher" in title or "rayflow dispatcher" in title:
            return "dispatcher"
        if "Agent" in title:
            return "agent"
        return "idle" if title.startswith("ray::IDLE") else "step"
    for part, role in (("/raylet/raylet", "raylet"), ("/gcs_server", "gcs")):
        if part in title:
            return role
    return "other"


def resident_bytes(pid: int) -> int:
    """Memory that a process takes; 0 if it is gone."""
    try:
        return int(Path("/proc", str(pid), "statm").read_text().split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0


def open_files(pid: int) -> int:
    """How many descriptors a process has; 0 if it is gone."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0


class Trouble:
    """Makes some at random moments. ``done`` counts what was done, ``diary`` says when."""

    def __init__(self, dice: Random, pause_s: float, diary: Path) -> None:
        self._diary = diary
        self._dice = dice
        self._pause_s = pause_s
        self._next_s = time.monotonic() + pause_s
        self._frozen: dict[int, float] = {}
        self._written = 0
        self.done: Counter[str] = Counter()

    def look(self, roots: list[int], programs: list[int], written: int) -> None:
        """Thaw what was frozen for long enough; do the next thing if it is time. ``programs``: may be killed as well.

        ``written``: how much they have, in bytes. Where nothing goes on yet after the last thing, the next one waits for a while.
        """
        now_s = time.monotonic()
        for pid, until_s in list(self._frozen.items()):
            if now_s >= until_s:
                send([pid], signal.SIGCONT)
                del self._frozen[pid]
        if now_s < self._next_s or (written < self._written + GOING_BYTES and now_s < self._next_s + STANDING_S):
            return
        self._written = written
        self._next_s = now_s + self._dice.uniform(0.3, 1.7) * self._pause_s
        what, role = self._dice.choice(
            (
                ("kill", "host"),
                ("kill", "host"),
                ("freeze", "host"),
                ("kill", "dispatcher"),
                ("freeze", "dispatcher"),
                ("kill", "step"),
                ("kill", "step"),
                ("kill", "program"),
                ("freeze", "program"),
                ("freeze", "raylet"),
                ("freeze", "ray"),
            )
        )
        all_ = list(below(roots))
        found = programs if role == "program" else [one.pid for one in all_ if one.role == role]
        found = [pid for pid in found if pid not in self._frozen]
        if role == "ray":
            chosen = [one.pid for one in all_]
        elif found:
            chosen = [self._dice.choice(sorted(found))]
        else:
            return
        if what == "kill":
            send(chosen, signal.SIGKILL)
        else:
            send(chosen, signal.SIGSTOP)
            self._frozen |= dict.fromkeys(chosen, now_s + self._dice.uniform(0.2, 3.0))
        self.note(f"{role} {'killed' if what == 'kill' else 'frozen'}", chosen[0])

    def note(self, what: str, pid: int) -> None:
        """Something was done to a process."""
        self.done[what] += 1
        with self._diary.open("a") as diary:
            print(f"{time.monotonic():.2f} {what} {pid}", file=diary)

    def end(self) -> None:
        """Thaw everything."""
        for pid in self._frozen:
            send([pid], signal.SIGCONT)
        self._frozen.clear()


def send(pids: list[int], number: signal.Signals) -> None:
    """To processes of the soak."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
