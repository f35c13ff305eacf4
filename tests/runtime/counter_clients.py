"""A process of clients that count under fire. In a module, so that Ray's workers find it by name.

Each message is sent until it is answered, with the same id. A client that gets no answer for a while sends again, over a new
connection where another host is in charge by now; what the earlier sends are answered at last counts as well.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import rayflow
from pipelines.counter import Counter, CounterState
from rayflow.checkpoint.identity import StoreIdentity
from rayflow.runtime import cluster
from rayflow.testing.linearizability import Observed

PATIENCE_S = 2.0

R = TypeVar("R")

_actor_names = cluster.actor_names


@dataclass(frozen=True, slots=True)
class Increment:
    """A message. ``then_get``: ask for the value once it is answered."""

    counter: str
    message: str
    then_get: bool = False


@dataclass(frozen=True, slots=True)
class Work:
    """What one process does with so many threads.

    journal: Gets a line for each answer.
    generation: A file with the number of the host that clients find when they connect, see ``host_name``.
    """

    store_url: str
    increments: list[Increment]
    threads: int
    journal: Path
    generation: Path


def host_name(identity: StoreIdentity, generation: int) -> str:
    """Generation 0 is the host's usual name. Under another a second host comes into being though the first may still run.

    That is what Ray itself does when its head has lost its memory, or takes a node for dead.
    """
    name = _actor_names(identity)[0]
    return f"{name}-{generation}" if generation else name


def count(work: Work) -> None:
    """Do it all; returns once everything is answered, also what was asked again meanwhile."""
    cluster.actor_names = lambda identity: (host_name(identity, int(work.generation.read_text())), _actor_names(identity)[1])
    line = _Line(work)
    todo = _Shared(iter(work.increments))

    def client() -> None:
        for one in todo:
            line.increment(one.counter, one.message)
            if one.then_get:
                line.get(one.counter)

    with ThreadPoolExecutor(work.threads) as pool:
        clients = [pool.submit(client) for _ in range(work.threads)]
    for one in clients:
        one.result()
    line.close()


def read_journal(path: Path) -> Iterator[tuple[str, Observed]]:
    """What the clients of a process saw, with the counter that it is about."""
    for line in path.read_text().splitlines():
        counter, message, value, invoked_s, answered_s = line.split()
        yield counter, Observed(None if message == "-" else message, int(value), float(invoked_s), float(answered_s))


class _Shared(Iterator[Increment]):
    def __init__(self, increments: Iterator[Increment]) -> None:
        self._increments = increments
        self._lock = threading.Lock()

    def __next__(self) -> Increment:
        with self._lock:
            return next(self._increments)


class _Line:
    """The client of a process, and the next one when it gets no answers any more. The old one goes on listening."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._journal = os.open(work.journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._lock = threading.Lock()
        self._clients: list[rayflow.Client] = []
        self._listeners = ThreadPoolExecutor(256)
        self._late: list[Future[None]] = []
        self._connect()

    def increment(self, counter: str, message: str) -> None:
        began_s = time.monotonic()

        def note(value: int) -> None:
            self._note(counter, Observed(message, value, began_s, time.monotonic()))

        self._ask(lambda client: client.entity(Counter, counter).options(message_id=message).increment(), note)

    def get(self, counter: str) -> None:
        began_s = time.monotonic()

        def note(state: CounterState) -> None:
            self._note(counter, Observed(None, state.value, began_s, time.monotonic()))

        self._ask(lambda client: client.entity(Counter, counter).get(), note)

    def close(self) -> None:
        """Once all is answered."""
        for one in self._late:
            one.result()
        for client in self._clients:
            client.close()
        os.close(self._journal)

    def _ask(self, send: Callable[[rayflow.Client], rayflow.Call[R]], note: Callable[[R], None]) -> None:
        """Until there is an answer; those that come late to earlier tries are noted as well."""
        while True:
            client = self._clients[-1]
            call = send(client)
            try:
                return note(call.result(PATIENCE_S))
            except TimeoutError:
                self._late.append(self._listeners.submit(lambda call=call: note(call.result())))
                self._replace(client)

    def _note(self, counter: str, seen: Observed) -> None:
        line = f"{counter} {seen.message or '-'} {seen.value} {seen.invoked_s!r} {seen.answered_s!r}\n"
        os.write(self._journal, line.encode())

    def _replace(self, client: rayflow.Client) -> None:
        with self._lock:
            if client is self._clients[-1] and self._generation != self._work.generation.read_text():
                self._connect()

    def _connect(self) -> None:
        self._generation = self._work.generation.read_text()
        self._clients.append(rayflow.connect(self._work.store_url))
