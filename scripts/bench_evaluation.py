"""The published evaluation of durable functions, video part: every case again, here, beside the published numbers."""

from __future__ import annotations

import inspect
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench_machine import NUM_CPUS, running, scratch
from bench_plain_ray import Task, results

import rayflow
from pipelines import evaluation, evaluation_media
from pipelines.evaluation import Fault, Upload
from pipelines.evaluation_media import Film, Simulated
from pipelines.video import sample
from pipelines.video.plan import Chunk

EncodeTask = Task[[Chunk, Upload, str], Any]
EncodeAll = Callable[[EncodeTask, Upload, list[Chunk]], list[Any]]


@dataclass(frozen=True, slots=True)
class Published:
    """Milliseconds with durable functions and without, in sequence."""

    durable_ms: int
    plain_ms: int


PUBLISHED = {30: Published(4_351, 2_141), 60: Published(6_870, 3_991), 95: Published(9_213, 6_228)}
PUBLISHED_COST = {30: 1.79, 60: 1.59, 95: 1.28}
PUBLISHED_LINES = 759


@dataclass(frozen=True, slots=True)
class Timing:
    """One length of video: median milliseconds of rayflow and of the same functions as plain Ray tasks."""

    media: str
    length_s: int
    chunks: int
    sequence_ms: float
    plain_sequence_ms: float
    parallel_ms: float
    plain_parallel_ms: float


@dataclass(frozen=True, slots=True)
class Case:
    """Something that goes wrong, or is repeated: how it ended, and how often each step ran."""

    media: str
    name: str
    outcome: str
    runs: str
    took_ms: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All of it. ``lines``: of the pipeline with faults and journal; ``media_lines``: of what it calls to encode."""

    cpus: int
    rounds: int
    lines: int
    media_lines: int
    timings: list[Timing]
    cases: list[Case]


def evaluate(rounds: int = 3, lengths_s: Sequence[int] = tuple(PUBLISHED)) -> Evaluation:
    """Run every case. Films are samples of 640x360, of these lengths; what goes wrong goes wrong with the first of them."""
    with scratch() as folder, running(folder) as client:
        films = {length_s: str(sample.make(folder / f"{length_s}.mp4", length_s)) for length_s in lengths_s}
        first_s = lengths_s[0]
        runner = _Runner(client, folder)
        for media in (Simulated(20, encode_s=0.0), Film(films[first_s], runner.new_folder() / "output.mp4")):  # workers are up
            runner.durable(evaluation.in_parallel, media)
            runner.plain(media, _parallel)
        timings = [
            *(runner.timing("simulated", length_s, Simulated(length_s), rounds) for length_s in lengths_s),
            *(runner.timing("real", length_s, Film(films[length_s], Path("output.mp4")), rounds) for length_s in lengths_s),
        ]
        cases = [*runner.cases("simulated", Simulated(first_s)), *runner.cases("real", Film(films[first_s], Path("output.mp4")))]
    lines, media_lines = (len(inspect.getsource(one).splitlines()) for one in (evaluation, evaluation_media))
    return Evaluation(NUM_CPUS, rounds, lines, media_lines, timings, cases)


class _Runner:
    """Runs uploads, each in a folder of its own."""

    def __init__(self, client: rayflow.Client, folder: Path) -> None:
        self._client = client
        self._folder = folder
        self._count = 0

    def new_folder(self) -> Path:
        self._count += 1
        folder = self._folder / f"run-{self._count}"
        folder.mkdir()
        return folder

    def upload(self, media: Simulated | Film, fault: Fault = Fault.NONE) -> Upload:
        folder = self.new_folder()
        placed = replace(media, output=folder / "output.mp4") if isinstance(media, Film) else media
        return Upload(placed, folder / "journal", fault)

    def durable(self, workflow: rayflow.Workflow[[Upload], list[str]], media: Simulated | Film) -> float:
        upload = self.upload(media)
        return _timed_ms(lambda: self._client.start(workflow, upload).result())

    def plain(self, media: Simulated | Film, encode_all: EncodeAll) -> float:
        """The same four functions with nothing but Ray."""
        upload = self.upload(media)

        def work() -> list[str]:
            Task(evaluation.validate.function).run(upload)
            chunks = Task(evaluation.split.function).run(upload)
            encoded = encode_all(Task(evaluation.encode.function), upload, chunks)
            return Task(evaluation.merge.function).run(upload, encoded)

        return _timed_ms(work)

    def timing(self, name: str, length_s: int, media: Simulated | Film, rounds: int) -> Timing:
        ways: list[Callable[[], float]] = [
            lambda: self.durable(evaluation.in_sequence, media),
            lambda: self.plain(media, _sequence),
            lambda: self.durable(evaluation.in_parallel, media),
            lambda: self.plain(media, _parallel),
        ]
        taken = [[way() for way in ways] for _ in range(rounds)]
        return Timing(name, length_s, len(media.split()), *(statistics.median(column) for column in zip(*taken, strict=True)))

    def cases(self, name: str, media: Simulated | Film) -> list[Case]:
        pdf = replace(media, source="slides.pdf")
        repeated = self.upload(media)
        self._client.start(evaluation.in_parallel, repeated, id=f"repeated-{name}").result()
        before = repeated.journal.read_text()
        repeat = self._case(name, "repeat under the same id", repeated, f"repeated-{name}")
        assert repeated.journal.read_text() == before
        return [
            self._case(name, "last chunk fails once", self.upload(media, Fault.LAST_CHUNK_ONCE)),
            self._case(name, "merge always fails", self.upload(media, Fault.MERGE_ALWAYS)),
            self._case(name, "unsupported format", self.upload(pdf)),
            replace(repeat, runs="none again"),
        ]

    def _case(self, media: str, name: str, upload: Upload, id: str | None = None) -> Case:
        started_s = time.perf_counter()
        try:
            result = self._client.start(evaluation.in_parallel, upload, id=id).result()
        except rayflow.ExecutionFailed as error:
            outcome = str(error).partition(" failed: ")[2].partition("\n")[0]
        else:
            outcome = f"completed with {len(result)} chunks"
        took_ms = (time.perf_counter() - started_s) * 1000
        counted = Counter(upload.journal.read_text().splitlines())
        return Case(media, name, outcome, ", ".join(f"{run} {times}x" for run, times in counted.items()), took_ms)


def _sequence(task: EncodeTask, upload: Upload, chunks: list[Chunk]) -> list[Any]:
    return [task.run(chunk, upload, chunks[-1].name) for chunk in chunks]


def _parallel(task: EncodeTask, upload: Upload, chunks: list[Chunk]) -> list[Any]:
    return results([task.start(chunk, upload, chunks[-1].name) for chunk in chunks])


def _timed_ms(work: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    work()
    return (time.perf_counter() - started_s) * 1000
