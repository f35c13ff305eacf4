"""Turns that kill their process: ``rayflow.runtime.crash_journal`` in a simulation."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rayflow.core.crashes import MAX_CRASHES
from rayflow.testing.simulation_traces import DEADLY, key_of
from rayflow.testing.simulation_workload import EXPLOSION

if TYPE_CHECKING:
    from rayflow.testing.simulation_host import HostProcess


@dataclass(slots=True)
class Notes:
    """What is noted of one shard: how often something was under way when its process died."""

    counts: Counter[str] = field(default_factory=Counter[str])
    given_up: list[set[str]] = field(default_factory=list[set[str]])
    """Of each process that has had the shard, what had killed as many as it may before that one began, and ever since."""


class CrashNotes:
    """The notes of one shard, as one process keeps them; what they say is in ``System.crash_notes``."""

    def __init__(self, process: HostProcess, shard: int) -> None:
        self._process = process
        self._notes: Notes = process.system.crash_notes[shard]
        self._given_up = {name for name, count in self._notes.counts.items() if count >= MAX_CRASHES}
        self._notes.given_up.append(self._given_up)
        self._message = ""

    def begin(self, name: str) -> None:
        self._message = name
        EXPLOSION.set(("", 0))

    def end(self) -> None:
        tag, times = EXPLOSION.get()
        EXPLOSION.set(("", 0))
        system = self._process.system
        if not tag or not self._process.group.alive or system.explosions[tag] >= times:
            return
        system.explosions[tag] += 1
        self._notes.counts[self._message] += 1
        is_code = self._message.startswith("execution ")
        again = system.judge.entities.traces.again[key_of(tag)]
        if self._message in self._given_up if is_code else system.explosions[tag] > MAX_CRASHES * (1 + again):
            system.judge.violated(DEADLY, self._message)
        system.world.happened["explosion of a workflow" if is_code else "explosion"] += 1
        system.world.log(self._process.name, f"is killed by {self._message}")
        system.crash(self._process)

    def count(self, name: str) -> int:
        return self._notes.counts[name]

    def forget(self, name: str) -> None:
        del self._notes.counts[name]
        for given_up in self._notes.given_up:
            given_up.discard(name)

    def pause_s(self) -> float:
        return 0.0

    def close(self) -> None:
        """The notes stay."""
