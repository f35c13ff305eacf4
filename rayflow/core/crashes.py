"""What was under way when its process ended, and how often.

A message that is not durable yet comes again after a crash, and would crash the next process as well; so would the code of a
workflow, which is replayed. So what is under way is noted somewhere that outlives the process; whoever follows finds the note.
Noting happens with every turn and must cost next to nothing.
"""

from __future__ import annotations

from typing import Protocol

from rayflow.core.failures import failure_of
from rayflow.core.records import Failure, Started

MAX_CRASHES = 3
"""What was under way in so many crashes is not tried again: a message becomes a dead letter, a reminder is left out that time, an
execution is suspended."""

SAME_SEED_BITS = 20
"""So many bits of the seed of a run are those of the message that started it, whenever it came."""

PROCESS_CRASHED = "ProcessCrashed"
"""The type of failure of what was given up so."""


class Crashes(Protocol):
    """The notes of one shard."""

    def begin(self, name: str) -> None:
        """A turn begins, known by this name: of a message, or of an execution."""
        ...

    def end(self) -> None:
        """It has ended, with the process alive."""
        ...

    def count(self, name: str) -> int:
        """In how many crashes this was under way."""
        ...

    def forget(self, name: str) -> None:
        """Whatever has this name from now on is something else."""
        ...


class NoCrashes:
    """Where nothing outlives the process."""

    def begin(self, name: str) -> None:
        pass

    def end(self) -> None:
        pass

    def count(self, name: str) -> int:
        return 0

    def forget(self, name: str) -> None:
        pass


class Noted:
    """The code of a run, which is noted as under way while in this context. ``code`` names the code that there is.

    Other code has other notes, another ``occasion`` has, and so has another run of the same id. So they need not be deleted when an
    execution is forgotten, which may not be on record when the run that follows it ends the process: with the notes deleted each
    time that the two messages come again, that would go round in circles. A start that comes again finds the notes of the first
    time, also with another owner.
    """

    __slots__ = ("_crashes", "_name", "code")

    def __init__(self, crashes: Crashes, started: Started, code: str, occasion: str = "") -> None:
        self.code = code
        self._crashes = crashes
        self._name = f"execution {started.execution} {code}, run {started.seed % 2**SAME_SEED_BITS:x}{occasion}"

    def __enter__(self) -> None:
        self._crashes.begin(self._name)

    def __exit__(self, *exc: object) -> None:
        self._crashes.end()

    def too_often(self) -> bool:
        """Whether it has ended its process as often as it may."""
        return self._crashes.count(self._name) >= MAX_CRASHES

    def forget(self) -> None:
        """It is tried afresh."""
        self._crashes.forget(self._name)


def crashed_too_often(started: Started) -> Failure:
    """Why an execution is suspended whose code has ended its process as often as it may."""
    return failure_of(
        PROCESS_CRASHED,
        f"execution {started.execution} of {started.workflow.name}: its code has ended the process that ran it {MAX_CRASHES} times "
        f"(out of memory, a segmentation fault, os._exit), so it is not run any more; all others go on. Nothing is lost: mend the "
        f"code and connect with it from a program started anew, and it goes on where it was; 'python -m rayflow resume' tries the "
        f"code that there is once more, 'cancel' gives it up",
    )
