"""What large values cost the host's process and the store on a Ray, where they only go from step to step and where they are read.

Invariant: I16.
"""

from __future__ import annotations

import hashlib
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

import rayflow
from tests.runtime import flows
from tests.runtime.conftest import actor_pid

pytestmark = [pytest.mark.ray, pytest.mark.skipif(sys.platform != "linux", reason="peaks of memory are read from /proc")]

T = TypeVar("T")

MIB = 2**20
LARGE = 50 * MIB
LITTLE = 15 * MIB
"""What a host may take beside values: its heap grows by chance."""


def kib(pid: int, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


def peak_of_host(client: rayflow.Client, work: Callable[[], T]) -> tuple[int, T]:
    """By how many bytes the host's memory was larger, at its peak, than it was before; and what the work returned."""
    pid = actor_pid(client, "host")
    Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak counts from now on
    before = kib(pid, "VmRSS")
    done = work()
    return (kib(pid, "VmHWM") - before) * 1024, done


def in_store(client: rayflow.Client) -> int:
    return sum(info.size_bytes for info in client.store.list(""))


def warm(client: rayflow.Client) -> None:
    """What a first execution brings into the host's memory is no matter of values."""
    client.start(flows.passing_on, 100, id="small").result(60)


def test_a_large_result_that_only_goes_on_is_stored_once_and_never_in_the_memory_of_the_host(client: rayflow.Client) -> None:
    warm(client)
    peak, told = peak_of_host(client, lambda: client.start(flows.passing_on, LARGE, id="passing").result(60))
    print(f"peak {peak / MIB:.1f} MiB, store {in_store(client) / MIB:.2f} MiB")
    assert told == hashlib.sha256(random.Random(1).randbytes(LARGE)).hexdigest()
    assert peak < LITTLE
    assert LARGE < in_store(client) < LARGE + MIB


def test_a_large_result_that_is_awaited_and_goes_on_is_stored_once(client: rayflow.Client) -> None:
    warm(client)
    peak, _ = peak_of_host(client, lambda: client.start(flows.awaiting_and_passing_on, LARGE, id="awaiting").result(60))
    print(f"peak {peak / MIB:.1f} MiB, store {in_store(client) / MIB:.2f} MiB")
    assert peak < 2 * LARGE + LITTLE, "as it is stored, and as the code has it"
    assert LARGE < in_store(client) < LARGE + MIB


def test_results_of_a_map_that_only_go_on_are_never_in_the_memory_of_the_host(client: rayflow.Client) -> None:
    warm(client)
    peak, told = peak_of_host(client, lambda: client.start(flows.mapping_on, LARGE // 5, 6, id="mapping").result(60))
    print(f"peak {peak / MIB:.1f} MiB, store {in_store(client) / MIB:.2f} MiB")
    assert told == [hashlib.sha256(random.Random(seed).randbytes(LARGE // 5)).hexdigest() for seed in range(6)]
    assert peak < LITTLE
    assert 6 * (LARGE // 5) < in_store(client) < 6 * (LARGE // 5) + MIB
