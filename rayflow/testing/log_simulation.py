"""A hostile store, step by step: what the log must survive, replayable from one seed.

``steps`` drives an operation of ``rayflow.checkpoint`` on a ``SimulatedStore`` as a generator that yields wherever its
process may stop for a moment, for very long (a stalled owner) or for ever (a crash: close the generator). Who goes on
next is up to the caller, so many owners can be interleaved at every request, and within one: a listing is no picture
of one moment, a deletion of many objects is done one by one.

The store promises what ``rayflow.checkpoint.store.Store`` promises and not more. A write may fail with
StoreUnavailable without having happened, after it has happened, or before it happens; it may happen twice, the second
time much later. So may a deletion. Everything is drawn from the ``random.Random`` that is passed in.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Callable, Generator
from dataclasses import dataclass
from random import Random
from typing import TypeAlias, TypeVar

from rayflow.checkpoint.requests import Create, Delete, Get, GetMany, List, Operation, Request
from rayflow.checkpoint.store import ObjectInfo
from rayflow.errors import AlreadyExists, NotFound, StoreError, StoreUnavailable

T = TypeVar("T")
Steps: TypeAlias = Generator[None, None, T]
"""Work that may be stopped at every ``yield`` and returns a ``T``."""


@dataclass(frozen=True, slots=True)
class Faults:
    """Odds, from 0 to 1, of what goes wrong with one request; the rest goes right.

    ``lost_ack``: a write happens but reports StoreUnavailable. ``refused``: a request does not happen and reports it.
    ``late``: a write reports it and happens at some later time. ``twice``: a write happens, and once more later.
    """

    lost_ack: float = 0.04
    refused: float = 0.02
    late: float = 0.04
    twice: float = 0.04


NO_FAULTS = Faults(lost_ack=0, refused=0, late=0, twice=0)


class SimulatedStore:
    """Objects in memory, and writes that are still on their way.

    ``objects`` may be read, ``faults`` may be changed at any time. ``on_create`` is called with key and bytes when an
    object comes into being, also by a write that lands late. ``page_size``: objects that a listing sees at one moment.
    """

    def __init__(self, random: Random, faults: Faults, on_create: Callable[[str, bytes], None], page_size: int = 3) -> None:
        self.objects: dict[str, bytes] = {}
        self._keys: list[str] = []
        self._on_the_way: list[Create | Delete] = []
        self._random = random
        self.faults = faults
        self._on_create = on_create
        self._page_size = page_size

    def land_one(self) -> None:
        """Let one of the writes that are on their way arrive, if there is any."""
        if self._on_the_way:
            self._land(self._on_the_way.pop(self._random.randrange(len(self._on_the_way))))

    def land_all(self) -> None:
        """Let all of the writes that are on their way arrive, in the order they were sent."""
        while self._on_the_way:
            self._land(self._on_the_way.pop(0))

    def perform(self, request: Request) -> Steps[object]:
        """Carry out one request, or fail as the faults have it."""
        yield
        reply = yield from self._attempt(request)
        yield
        return reply

    def _attempt(self, request: Request) -> Steps[object]:
        match request:
            case Create():
                self._write(request)
            case Get(key):
                self._maybe_refuse()
                if key not in self.objects:
                    raise NotFound(key)
                return self.objects[key]
            case GetMany(keys):
                self._maybe_refuse()
                found: dict[str, bytes | None] = {}
                for key in self._random.sample(keys, len(keys)):
                    found[key] = self.objects.get(key)
                    if self._random.random() < 0.3:
                        yield
                return tuple(found[key] for key in keys)
            case List(prefix, start_after):
                self._maybe_refuse()
                return (yield from self._list(prefix, start_after))
            case Delete(keys):
                for key in keys:
                    self._write(Delete((key,)))
                    if self._random.random() < 0.5:
                        yield
        return None

    def _list(self, prefix: str, start_after: str) -> Steps[tuple[ObjectInfo, ...]]:
        listed: list[ObjectInfo] = []
        after = max(prefix, start_after)
        while True:
            begin = bisect_right(self._keys, after)
            page = self._keys[begin : begin + self._page_size]
            for key in page:
                if not key.startswith(prefix):
                    return tuple(listed)
                listed.append(ObjectInfo(key, len(self.objects[key])))
            if len(page) < self._page_size:
                return tuple(listed)
            after = page[-1]
            yield

    def _write(self, request: Create | Delete) -> None:
        dice = self._random.random()
        faults = self.faults
        if (dice := dice - faults.refused) < 0:
            raise StoreUnavailable("refused")
        if (dice := dice - faults.late) < 0:
            self._on_the_way.append(request)
            raise StoreUnavailable("timed out, may still arrive")
        landed = self._land(request)
        if (dice := dice - faults.lost_ack) < 0:
            raise StoreUnavailable("timed out")
        if dice < faults.twice:
            self._on_the_way.append(request)
        if not landed:
            raise AlreadyExists(str(request))

    def _maybe_refuse(self) -> None:
        if self._random.random() < self.faults.refused:
            raise StoreUnavailable("refused")

    def _land(self, request: Create | Delete) -> bool:
        match request:
            case Create(key, data):
                if key in self.objects:
                    return False
                self.objects[key] = data
                insort(self._keys, key)
                self._on_create(key, data)
            case Delete(keys):
                for key in keys:
                    if self.objects.pop(key, None) is not None:
                        self._keys.remove(key)
        return True


def steps(operation: Operation[T], store: SimulatedStore) -> Steps[T]:
    """Drive ``operation`` on ``store``, stopping wherever its process may be stopped. Raises what it raises."""
    try:
        request = next(operation)
        while True:
            try:
                reply = yield from store.perform(request)
            except StoreError as error:
                request = operation.throw(error)
            else:
                request = operation.send(reply)
    except StopIteration as stop:
        return stop.value
    finally:
        operation.close()
