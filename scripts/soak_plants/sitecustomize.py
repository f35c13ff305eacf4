"""Faults that a soak must find: each breaks one rule in the processes of the soak that this module's folder is on the path of.

Python imports this module by itself when it starts. Which fault it is says the environment variable SOAK_PLANT.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any


def lost(outbox: Any) -> None:
    """Now and then what entities have done is not written, though everybody is answered."""
    close, count = outbox.Outbox.close, 0

    def closed(self: Any) -> Any:
        nonlocal count
        batch = close(self)
        count += 1
        if count % 7 == 0:
            kept = [index for index, record in enumerate(batch.records) if type(record).__name__ != "Handled"]
            batch.records, batch.encoded = [batch.records[index] for index in kept], [batch.encoded[index] for index in kept]
        return batch

    outbox.Outbox.close = closed


def doubled(owner: Any) -> None:
    """Now and then a letter is handed over twice."""
    hand_over, count = owner.Owner._hand_over, 0

    def handed_over(self: Any, letter: Any, now_ms: int) -> None:
        nonlocal count
        hand_over(self, letter, now_ms)
        count += 1
        if count % 9 == 0 and type(letter).__name__ == "Deliver":
            hand_over(self, letter, now_ms)

    owner.Owner._hand_over = handed_over


def reordered(workload: Any) -> None:
    """What is read is older than what was answered."""

    def get(self: Any) -> int:
        return max(self.state - 1, 0)

    workload.Tally.get.function = get


def hanging(timers: Any) -> None:
    """Now and then the clock is not set."""
    set_clock, count = timers.Timers.set, 0

    def set_(self: Any, due_ms: int, key: Any) -> None:
        nonlocal count
        count += 1
        if count % 4:
            set_clock(self, due_ms, key)

    timers.Timers.set = set_


def memory(owner: Any) -> None:
    """Something of every message stays."""
    receive, kept = owner.Owner.receive, list[bytes]()

    def received(self: Any, *args: Any) -> None:
        if len(kept) < 300:  # enough to be found, and no more than the machine has
            kept.append(b"x" * 4_000_000)
        receive(self, *args)

    owner.Owner.receive = received


def store(log: Any) -> None:
    """Segments stay though a snapshot has what is in them."""

    def none(at: Any) -> list[int]:
        return []

    log._replaced_segments = none


PLANTS: dict[str, tuple[str, Callable[[Any], None]]] = {
    "lost": ("rayflow.core.outbox", lost),
    "doubled": ("rayflow.core.owner", doubled),
    "reordered": ("rayflow.testing.soak_workload", reordered),
    "hanging": ("rayflow.core.timers", hanging),
    "memory": ("rayflow.core.owner", memory),
    "store": ("rayflow.checkpoint.log", store),
}


class _Planting(importlib.abc.MetaPathFinder):
    """Changes one module as soon as it is loaded."""

    def __init__(self, name: str, plant: Callable[[Any], None]) -> None:
        self._name, self._plant = name, plant

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._name:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        assert spec is not None
        loader: Any = spec.loader
        execute = loader.exec_module

        def executed(module: ModuleType) -> None:
            execute(module)
            self._plant(module)

        loader.exec_module = executed
        return spec


if os.environ.get("SOAK_PLANT"):
    sys.meta_path.insert(0, _Planting(*PLANTS[os.environ["SOAK_PLANT"]]))
