"""What the benchmarks measure with: the machine, CPU time of process trees, the disk's limit, a Ray with a store of its own."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import rayflow

NUM_CPUS = 2
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Machine:
    """Where a benchmark ran. ``load_before`` and ``load_after`` are load averages over one minute."""

    cpu: str
    cores: int
    load_before: float
    load_after: float


def cpu_model() -> str:
    """The CPU's name as Linux gives it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "Model")):
            return line.partition(":")[2].strip()
    return "unknown"


@contextmanager
def scratch() -> Generator[Path]:
    """A folder on the disk of $TMPDIR, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="rayflow-bench-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@contextmanager
def running(folder: Path, num_cpus: int = NUM_CPUS) -> Generator[rayflow.Client]:
    """A client of a fresh store, with a Ray of its own that ends with it."""
    with rayflow.connect(folder / "store", address="local", num_cpus=num_cpus) as client:
        yield client


def creates_per_s(folder: Path, duration_s: float = 1.0) -> float:
    """What the disk allows: 1 KB files that are complete and durable once they have their name, one after the other."""
    place = folder / "limit"
    place.mkdir(exist_ok=True)
    data = os.urandom(1024)
    temporary = str(folder / "limit.tmp")
    started_s = time.perf_counter()
    count = len(os.listdir(place))
    first = count
    while time.perf_counter() - started_s < duration_s:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            os.write(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.link(temporary, place / f"{count:012d}")
        descriptor = os.open(place, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.unlink(temporary)
        count += 1
    return (count - first) / (time.perf_counter() - started_s)


def tree_cpu_s() -> float:
    """CPU seconds of this process and all its descendants, those that ended and were waited for included."""
    children: dict[int, list[int]] = {}
    used: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            fields = Path("/proc", entry, "stat").read_text().rpartition(") ")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(entry))
        used[int(entry)] = sum(int(field) for field in fields[11:15])
    total, pending = 0, [os.getpid()]
    while pending:
        process = pending.pop()
        total += used.get(process, 0)
        pending.extend(children.get(process, ()))
    return total / _TICKS_PER_S


@dataclass(slots=True)
class Spent:
    """What a block took: seconds of the clock, and CPU seconds of this process and all below it (Ray, workers, ffmpeg)."""

    wall_s: float = 0.0
    cpu_s: float = 0.0

    def add(self, other: Spent) -> None:
        """Sum up."""
        self.wall_s += other.wall_s
        self.cpu_s += other.cpu_s


@contextmanager
def spent() -> Generator[Spent]:
    """Measure a block."""
    measured = Spent()
    cpu_s, started_s = tree_cpu_s(), time.perf_counter()
    yield measured
    measured.wall_s, measured.cpu_s = time.perf_counter() - started_s, tree_cpu_s() - cpu_s


def percentile(values: list[int], share: float) -> float:
    """The value below which ``share`` (0 to 1) of the values lie."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]
