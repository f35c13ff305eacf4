"""Turns that kill their process: ``rayflow.runtime.crash_journal`` in a simulation."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from rayflow.core.crashes import MAX_CRASHES
from rayflow.testing.simulation_traces import DEADLY, key_of
from rayflow.testing.simulation_workload import EXPLOSION

if TYPE_CHECKING:
    from rayflow.testing.simulation_owner import Shard


class CrashNotes:
    """The notes of one shard, as the process of one take-over keeps them; what they say is in ``System.crash_notes``."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self._notes: Counter[str] = shard.system.crash_notes[shard.number]
        self._message = ""

    def begin(self, name: str) -> None:
        self._message = name
        EXPLOSION.set(("", 0))

    def end(self) -> None:
        tag, times = EXPLOSION.get()
        EXPLOSION.set(("", 0))
        system, host = self._shard.system, self._shard.host
        if not tag or not host.group.alive or system.explosions[tag] >= times:
            return
        system.explosions[tag] += 1
        self._notes[self._message] += 1
        again = system.judge.entities.traces.again[key_of(tag)]
        if system.explosions[tag] > MAX_CRASHES * (1 + again):
            system.judge.violated(DEADLY, self._message)
        system.world.happened["explosion"] += 1
        system.crash(host)

    def count(self, name: str) -> int:
        return self._notes[name]

    def forget(self, name: str) -> None:
        del self._notes[name]
