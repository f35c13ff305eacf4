from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray

import rayflow
from rayflow.checkpoint import reading
from rayflow.core.records import Completed, Failed, Record, Retried, Scheduled
from rayflow.runtime.cluster import actor_names
from rayflow.runtime.task import NAMESPACE


@pytest.fixture
def client(ray_session: None, tmp_path: Path) -> Iterator[rayflow.Client]:
    """A client of a store of its own; its actors go with the test."""
    client = rayflow.connect(tmp_path / "store", shards=2)
    yield client
    client.close()
    for name in actor_names(client.identity):
        with contextlib.suppress(ValueError):
            ray.kill(ray.get_actor(name, namespace=NAMESPACE))


def eventually(check: Callable[[], bool], what: str, timeout_s: float = 20.0) -> None:
    """Wait for something that another process does."""
    deadline_s = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < deadline_s, f"not within {timeout_s} s: {what}"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether a process runs, zombies not counted."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def actor_pid(client: rayflow.Client, name: str) -> int:
    """The process of the client's "host" or "dispatcher"."""
    host, dispatcher = actor_names(client.identity)
    handle = ray.get_actor({"host": host, "dispatcher": dispatcher}[name], namespace=NAMESPACE)
    return ray.get(handle.__ray_call__.remote(lambda self: __import__("os").getpid()))


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


@dataclass(frozen=True)
class Attempts:
    """What the store says of an execution's steps: attempts begun, outcomes recorded."""

    begun: dict[str, int]
    completed: list[str]
    failed: list[Failed]


def attempts(client: rayflow.Client, execution: str) -> Attempts:
    """Read from the store alone."""
    records = read_records(client, execution)
    begun: dict[str, int] = {}
    for record in records:
        if isinstance(record, Scheduled) and record.kind == "step":
            begun[record.operation] = 1
        elif isinstance(record, Retried):
            begun[record.operation] = record.attempt
    completed = [record.operation for record in records if isinstance(record, Completed)]
    return Attempts(begun, completed, [record for record in records if isinstance(record, Failed)])


def read_records(client: rayflow.Client, execution: str) -> list[Record]:
    """All records of an execution, from the store alone."""
    return list(reading.read_records(client.store, execution))
