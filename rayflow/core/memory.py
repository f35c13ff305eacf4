"""Which executions of a shard are in memory, and which are on record only.

An execution that waits for nothing but time and letters rests. Its code is dropped once it has rested for a while, and made again
from the record when something happens to it: a hundred thousand that sleep cost what their records cost.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence

from rayflow.core import limits
from rayflow.core.execution import Execution, Passive
from rayflow.core.messages import Token
from rayflow.core.records import Blob, Started, decode_record

Replay = Callable[[str, "Passive | None", int], Execution]
"""Makes an execution from its record: id, what was kept of it, the time."""


class Memory:
    """The executions that have not ended. ``live`` are those in memory; whoever drives them adds and removes.

    ``replay`` must put into ``live`` what it makes. ``look_at`` is told when ``sweep`` next has something to do.
    """

    def __init__(self, replay: Replay, look_at: Callable[[int], None]) -> None:
        self.live: dict[str, Execution] = {}
        self.passive: dict[str, Passive] = {}
        self.durable: Mapping[str, Sequence[bytes]] = {}
        """The durable records of all of them, kept up by the owner."""
        self._replay = replay
        self._look_at = look_at
        self._sweep_ms: int | None = None
        self.replays = self.passivations = 0
        """How often code was made from its record, and how often it was let go."""

    def __len__(self) -> int:
        return len(self.live) + len(self.passive)

    def suspended_count(self) -> int:
        """How many cannot go on. Looks at all that are in memory, where they stay."""
        return sum(entry.suspended is not None for entry in self.live.values())

    def find(self, execution: str, now_ms: int) -> Execution | None:
        """An execution that has not ended, in memory from now on."""
        entry = self.live.get(execution)
        if entry is not None:
            return entry
        passive = self.passive.get(execution)
        if passive is None:
            return None
        entry = self._replay(execution, passive, now_ms)
        del self.passive[execution]
        self.watch(entry, now_ms)
        return entry

    def large_values(self, execution: str) -> tuple[Blob, ...]:
        """The large values that bringing an execution into memory takes; none if it is there."""
        passive = self.passive.get(execution)
        return () if passive is None else passive.large

    def started(self, execution: str) -> Started | None:
        """How an execution that has not ended was started; it stays where it is."""
        entry = self.live.get(execution)
        if entry is not None:
            return entry.started
        if execution not in self.passive:
            return None
        started = decode_record(self.durable[execution][0])
        assert isinstance(started, Started)
        return started

    def await_end(self, execution: str, token: Hashable) -> None:
        """Note on an execution, which there must be, who waits for its end. It stays where it is."""
        entry = self.live.get(execution)
        if entry is not None:
            entry.watchers.append(token)
        else:
            passive = self.passive[execution]
            self.passive[execution] = passive._replace(watchers=(*passive.watchers, token))

    def stop_waiting(self, execution: str, sender: str, number: int) -> set[Token]:
        """Take the request of that number from those who wait for the end of an execution; returns it, if it was there."""
        entry, passive = self.live.get(execution), self.passive.get(execution)
        watchers = entry.watchers if entry is not None else () if passive is None else passive.watchers
        found = {one for one in watchers if isinstance(one, Token) and (one.sender, one.number) == (sender, number)}
        if found:
            others = [one for one in watchers if one not in found]
            if entry is not None:
                entry.watchers[:] = others
            elif passive is not None:
                self.passive[execution] = passive._replace(watchers=tuple(others))
        return found

    def restored(self, execution: str, entry: Execution, now_ms: int) -> None:
        """It was brought back from the record: does it have to stay?"""
        limit, due_ms = limits.current(), entry.due_ms()
        if len(self.live) > limit.executions or (due_ms is not None and due_ms - now_ms >= limit.execution_idle_ms):
            self._passivate(execution, entry)

    def watch(self, entry: Execution, now_ms: int) -> None:
        """It has had a turn: see to it that ``sweep`` finds it, some time, if it rests."""
        sweep_ms = now_ms + self._patience_ms()
        # Whether it rests takes a look at all that it waits for: only where that makes a difference, not in every turn.
        if (self._sweep_ms is None or sweep_ms < self._sweep_ms) and entry.rests():
            self._sweep_ms = sweep_ms
            self._look_at(sweep_ms)

    def sweep(self, now_ms: int) -> None:
        """Let go what has rested for long enough."""
        if self._sweep_ms is None or now_ms < self._sweep_ms:
            return
        self._sweep_ms = None
        patience_ms = self._patience_ms()
        for execution, entry in list(self.live.items()):
            if now_ms - entry.used_ms >= patience_ms:
                self._passivate(execution, entry)
        for entry in self.live.values():
            self.watch(entry, now_ms)

    def close(self) -> None:
        """Drop all."""
        for entry in self.live.values():
            entry.close()
        self.live.clear()
        self.passive.clear()

    def _patience_ms(self) -> int:
        limit = limits.current()
        idle_ms = limit.execution_idle_ms
        return idle_ms if len(self.live) <= limit.executions else min(idle_ms, limit.execution_pressed_ms)

    def _passivate(self, execution: str, entry: Execution) -> None:
        """Unless it has work in hand, or not all of its records are durable."""
        if not entry.rests():
            return
        records = self.durable.get(execution, ())
        if len(records) == entry.recorded and decode_record(records[0]) == entry.started:  # else those of an earlier run
            del self.live[execution]
            self.passive[execution] = entry.passivated()
            self.passivations += 1
