"""A store that fails in the ways that real ones do, reproducibly, to test code that has to survive them.

Wrap any store::

    store = FaultyStore(MemoryStore(), seed=7, rates=FaultRates(lost_ack=0.1, never_lands=0.1, lands_late=0.1))

From the seed alone follows which call fails and how: it depends on the operation, its key and how often that
operation was called with that key before, not on how threads happen to interleave. ``injected`` tells what was done,
for a failing test to print.

A write that lands late is the fault most easily forgotten: the caller is told that the outcome is unknown, reads
back, finds nothing, and the object appears afterwards. Here it appears ``late_by_calls`` calls later, or when
``land_late_writes`` is called.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from rayflow.checkpoint.store import ObjectInfo, Store
from rayflow.errors import AlreadyExists, InvalidInput, StoreUnavailable


class Fault(StrEnum):
    """What can happen to a call."""

    LOST_ACK = "lost_ack"
    """The write is carried out (or refused), but StoreUnavailable is raised."""
    NEVER_LANDS = "never_lands"
    """The write is not carried out, and StoreUnavailable is raised."""
    LANDS_LATE = "lands_late"
    """StoreUnavailable is raised, and the write is carried out some calls later. Only for ``create``."""
    UNAVAILABLE = "unavailable"
    """A read, listing or download raises StoreUnavailable; so does any call while the store is made unavailable."""
    SLOW = "slow"
    """The call is carried out after a pause."""


@dataclass(frozen=True, slots=True)
class FaultRates:
    """How likely each fault is, from 0 to 1, for each call that it can strike; all are 0 by default.

    ``lost_ack``, ``never_lands`` and ``lands_late`` strike writes (the last only ``create``) and must not add up to
    more than 1; ``unavailable`` strikes reads; ``slow`` strikes every call, on top of another fault. Raises
    InvalidInput for other values.
    """

    lost_ack: float = 0.0
    never_lands: float = 0.0
    lands_late: float = 0.0
    unavailable: float = 0.0
    slow: float = 0.0

    def __post_init__(self) -> None:
        single = (self.lost_ack, self.never_lands, self.lands_late, self.unavailable, self.slow)
        if not all(0 <= rate <= 1 for rate in single) or self.lost_ack + self.never_lands + self.lands_late > 1:
            raise InvalidInput(f"rates of faults lie between 0 and 1, and those of writes add up to at most 1, unlike {self}")


@dataclass(frozen=True, slots=True)
class InjectedFault:
    """One fault that was injected: into which operation, on which key (or prefix), in which call of the store,
    counted from 1.
    """

    call: int
    operation: str
    key: str
    fault: Fault


@dataclass(frozen=True, slots=True)
class _LateWrite:
    due_call: int
    key: str
    data: bytes


class FaultyStore:
    """``store`` with faults injected at ``rates``, determined by ``seed``. Safe to share between threads, as far as
    ``store`` is.

    Args:
        store: what carries the calls out. seed: the same seed gives the same faults. rates: how likely each fault is;
        by default there are none but those asked for by ``make_unavailable`` and ``fail_next_create``. late_by_calls:
        how many calls later, of any operation, a late write lands. slow_s: how long the pause of a slow call is, in
        seconds. sleep: makes the pause; a virtual clock's, for instance.
    """

    def __init__(
        self,
        store: Store,
        *,
        seed: int = 0,
        rates: FaultRates | None = None,
        late_by_calls: int = 3,
        slow_s: float = 0.05,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._store = store
        self._seed = seed
        self._rates = rates or FaultRates()
        self._rate_of = {
            Fault.LOST_ACK: self._rates.lost_ack,
            Fault.NEVER_LANDS: self._rates.never_lands,
            Fault.LANDS_LATE: self._rates.lands_late,
            Fault.UNAVAILABLE: self._rates.unavailable,
        }
        self._late_by_calls = late_by_calls
        self._slow_s = slow_s
        self._sleep = sleep
        self._lock = threading.Lock()
        self._calls = 0
        self._repeats: Counter[tuple[str, str]] = Counter()
        self._unavailable_calls = 0
        self._ordered: list[Fault] = []
        self._late: list[_LateWrite] = []
        self._injected: list[InjectedFault] = []

    def __repr__(self) -> str:
        return f"FaultyStore({self._store!r}, seed={self._seed}, rates={self._rates})"

    @property
    def url(self) -> str:
        """That of the wrapped store: opening it gives a store without faults."""
        return self._store.url

    @property
    def injected(self) -> tuple[InjectedFault, ...]:
        """Every fault so far, in the order of the calls."""
        with self._lock:
            return tuple(self._injected)

    def make_unavailable(self, calls: int) -> None:
        """Let the next ``calls`` calls, whatever they are, raise StoreUnavailable without being carried out; 0 ends
        an outage.
        """
        with self._lock:
            self._unavailable_calls = calls

    def fail_next_create(self, fault: Fault) -> None:
        """Let the next ``create`` suffer ``fault``, ahead of what the seed says. Repeated calls line up."""
        with self._lock:
            self._ordered.append(fault)

    def land_late_writes(self) -> None:
        """Carry out now what is still on its way."""
        with self._lock:
            due, self._late = self._late, []
        self._land(due)

    def create(self, key: str, data: bytes) -> None:
        """As the wrapped store's, or StoreUnavailable with or without the object being written, at once or later."""
        fault = self._next_fault("create", key, (Fault.LOST_ACK, Fault.NEVER_LANDS, Fault.LANDS_LATE))
        match fault:
            case Fault.LOST_ACK:
                # Whether the write was accepted or refused, the caller does not get to know.
                with contextlib.suppress(AlreadyExists):
                    self._store.create(key, data)
            case Fault.LANDS_LATE:
                with self._lock:
                    self._late.append(_LateWrite(self._calls + self._late_by_calls, key, bytes(data)))
            case None:
                self._store.create(key, data)
                return
            case _:
                pass
        raise _unavailable(fault, "create", key)

    def get(self, key: str) -> bytes:
        """As the wrapped store's, or StoreUnavailable."""
        self._before_read("get", key)
        return self._store.get(key)

    def list(self, prefix: str, start_after: str = "") -> Iterator[ObjectInfo]:
        """As the wrapped store's, or StoreUnavailable, which is raised at once."""
        self._before_read("list", prefix)
        return self._store.list(prefix, start_after)

    def delete(self, keys: Iterable[str]) -> None:
        """As the wrapped store's, or StoreUnavailable with or without the objects being removed."""
        keys = list(keys)
        self._write("delete", keys[0] if keys else "", lambda: self._store.delete(keys))

    def upload(self, key: str, path: Path) -> None:
        """As the wrapped store's, or StoreUnavailable with or without the file being stored."""
        self._write("upload", key, lambda: self._store.upload(key, path))

    def download(self, key: str, path: Path) -> None:
        """As the wrapped store's, or StoreUnavailable."""
        self._before_read("download", key)
        self._store.download(key, path)

    def local_path(self, key: str) -> Path | None:
        """As the wrapped store's; reading through the path meets no faults."""
        return self._store.local_path(key)

    def _write(self, operation: str, key: str, carry_out: Callable[[], None]) -> None:
        fault = self._next_fault(operation, key, (Fault.LOST_ACK, Fault.NEVER_LANDS))
        if fault in (None, Fault.LOST_ACK):
            carry_out()
        if fault is not None:
            raise _unavailable(fault, operation, key)

    def _before_read(self, operation: str, key: str) -> None:
        fault = self._next_fault(operation, key, (Fault.UNAVAILABLE,))
        if fault is not None:
            raise _unavailable(fault, operation, key)

    def _next_fault(self, operation: str, key: str, possible: tuple[Fault, ...]) -> Fault | None:
        with self._lock:
            self._calls += 1
            call = self._calls
            due = [write for write in self._late if write.due_call <= call]
            self._late = [write for write in self._late if write.due_call > call]
            draw = random.Random(f"{self._seed}/{operation}/{key}/{self._repeats[operation, key]}")
            self._repeats[operation, key] += 1
            fault = self._pick(draw.random(), possible)
            if operation == "create" and self._ordered:
                fault = self._ordered.pop(0)
            if self._unavailable_calls:
                self._unavailable_calls -= 1
                fault = Fault.UNAVAILABLE
            slow = draw.random() < self._rates.slow or fault is Fault.SLOW
            if fault is Fault.SLOW:
                fault = None
            if slow:
                self._injected.append(InjectedFault(call, operation, key, Fault.SLOW))
            if fault is not None:
                self._injected.append(InjectedFault(call, operation, key, fault))
        self._land(due)
        if slow:
            self._sleep(self._slow_s)
        return fault

    def _pick(self, draw: float, possible: tuple[Fault, ...]) -> Fault | None:
        for fault in possible:
            rate = self._rate_of[fault]
            if draw < rate:
                return fault
            draw -= rate
        return None

    def _land(self, writes: Iterable[_LateWrite]) -> None:
        for write in writes:
            # The sender has gone: nobody hears that somebody else was faster.
            with contextlib.suppress(AlreadyExists):
                self._store.create(write.key, write.data)


def _unavailable(fault: Fault, operation: str, key: str) -> StoreUnavailable:
    return StoreUnavailable(f"injected fault {fault.value}: {operation} {key}; whether it happened is not known")
