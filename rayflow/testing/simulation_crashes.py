"""Turns that kill their process: ``rayflow.runtime.crash_journal`` in a simulation."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from rayflow.core.crashes import MAX_CRASHES
from rayflow.testing.simulation_traces import DEADLY, key_of
from rayflow.testing.simulation_workload import EXPLOSION

if TYPE_CHECKING:
    from rayflow.testing.simulation_host import HostProcess


class CrashNotes:
    """The notes of one shard, as one process keeps them; what they say is in ``System.crash_notes``."""

    def __init__(self, process: HostProcess, shard: int) -> None:
        self._process = process
        self._notes: Counter[str] = process.system.crash_notes[shard]
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
        self._notes[self._message] += 1
        again = system.judge.entities.traces.again[key_of(tag)]
        if system.explosions[tag] > MAX_CRASHES * (1 + again):
            system.judge.violated(DEADLY, self._message)
        system.world.happened["explosion"] += 1
        system.crash(self._process)

    def count(self, name: str) -> int:
        return self._notes[name]

    def forget(self, name: str) -> None:
        del self._notes[name]

    def pause_s(self) -> float:
        return 0.0

    def close(self) -> None:
        """The notes stay."""
