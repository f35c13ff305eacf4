"""A store that is used for long, with its limits as they are: many short workflows and counter operations.

The program is killed and begins again ten times. What each life took shows whether all goes slower the more there is.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import msgspec
from soak_bounds import BASE_BYTES, MEMORY, bytes_in
from soak_trouble import below, resident_bytes

import rayflow
from pipelines.counter import Counter
from rayflow.checkpoint.entities import list_entities
from rayflow.checkpoint.local import LocalStore
from rayflow.checkpoint.reading import list_executions
from rayflow.testing.soak_checker import DOUBLED, GONE, LOST_EFFECT, OUTCOME, UNENDED, Violation
from rayflow.testing.soak_workload import short

LIVES = 10
WORKFLOWS = 100_000
OPERATIONS = 1_000_000
COUNTERS = 100
AT_ONCE = 10_000

BYTES_PER_EXECUTION = 5_000
"""Of memory, for good: what is kept of one that has ended."""


class Life(msgspec.Struct, frozen=True):
    """What one life took. ``first_s``: from the start of the program until the shard has answered."""

    first_s: float
    workflows_s: float
    operations_s: float
    host_bytes: int
    wrong: list[str]


def live(store: Path, life: int, workflows: int, operations: int) -> Life:
    """One life of the program."""
    began_s = time.monotonic()
    client = rayflow.connect(store, address="local")
    client.entity(Counter, "first").increment().result()
    first_s, wrong = time.monotonic() - began_s, list[str]()
    began_s = time.monotonic()
    for first in range(0, workflows, AT_ONCE):
        ids = [f"life-{life}-{first + index}" for index in range(min(AT_ONCE, workflows - first))]
        for id, execution in zip(ids, client.start_many(short, [(id, (id,), {}) for id in ids]), strict=True):
            if (came_to := execution.result()) != id:
                wrong.append(f"execution {id} came to {came_to}")
    workflows_s = time.monotonic() - began_s
    began_s = time.monotonic()
    counters = [client.entity(Counter, f"c{number}") for number in range(COUNTERS)]
    for first in range(0, operations, AT_ONCE):
        calls = [counters[index % COUNTERS].increment() for index in range(min(AT_ONCE, operations - first))]
        answers = [call.result() for call in calls]
        base = (life * operations + first) // COUNTERS
        wrong += [
            f"counter c{index % COUNTERS} answered {answer}"
            for index, answer in enumerate(answers)
            if answer != base + index // COUNTERS + 1
        ]
    operations_s = time.monotonic() - began_s
    host_bytes = max((resident_bytes(one.pid) for one in below([os.getpid()]) if one.role == "host"), default=0)
    return Life(first_s, workflows_s, operations_s, host_bytes, wrong[:10])


def run(folder: Path, share: float) -> list[Violation]:
    """All lives; prints a line for each. ``share`` of the size."""
    store = folder / "store"
    workflows, operations = round(WORKFLOWS * share / LIVES), round(OPERATIONS * share / LIVES)
    found: list[Violation] = []
    print(f"{'life':>4} {'first answer':>13} {'workflows':>18} {'operations':>20} {'host':>9} {'store':>9}")
    for life in range(LIVES):
        arguments = [str(store), str(life), str(workflows), str(operations)]
        program = subprocess.Popen([sys.executable, __file__, *arguments], stdout=subprocess.PIPE)
        assert program.stdout is not None
        line = program.stdout.readline()
        program.kill()
        program.wait()
        if not line:
            return [*found, Violation(UNENDED, f"life {life} of the program ended by itself")]
        one = msgspec.json.decode(line, type=Life)
        found += [Violation(OUTCOME, f"life {life}: {what}") for what in one.wrong]
        if one.host_bytes > BASE_BYTES + BYTES_PER_EXECUTION * workflows * (life + 1):
            found.append(Violation(MEMORY, f"the host took {one.host_bytes:,} bytes in life {life}"))
        print(
            f"{life + 1:>4} {one.first_s:>11.1f} s {one.workflows_s:>8.1f} s {workflows / one.workflows_s:>5,.0f}/s"
            f" {one.operations_s:>8.1f} s {operations / one.operations_s:>7,.0f}/s"
            f" {one.host_bytes / 2**20:>6.0f} MB {bytes_in(store) / 2**20:>6.1f} MB",
            flush=True,
        )
    return found + _judge(store, workflows * LIVES, operations * LIVES // COUNTERS)


def _judge(folder: Path, workflows: int, each: int) -> list[Violation]:
    store, found = LocalStore(folder), list[Violation]()
    began_s = time.monotonic()
    listing = list_executions(store)
    print(f"     {time.monotonic() - began_s:.1f} s to list {listing.total:,} executions")
    if listing.total != workflows:
        found.append(Violation(GONE, f"{listing.total:,} executions of {workflows:,}"))
    found += [Violation(UNENDED, f"{one.execution} is {one.status}") for one in listing.executions if one.status != "completed"][:5]
    values = {one.key: one.state["value"] for one in list_entities(store, entity_type="Counter", prefix="c").entities}
    for key in (f"c{number}" for number in range(COUNTERS)):
        if values.get(key) != each:
            found.append(
                Violation(LOST_EFFECT if values.get(key, 0) < each else DOUBLED, f"{key} is {values.get(key)}, not {each}")
            )
    return found


def main() -> None:
    """One life, in a process of its own."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("numbers", type=int, nargs=3, help="life, workflows, operations")
    options = parser.parse_args()
    life = live(options.store, *options.numbers)
    print(msgspec.json.encode(life).decode(), flush=True)
    time.sleep(3600)  # until it is killed


if __name__ == "__main__":
    main()
