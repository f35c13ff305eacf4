"""What an encode tells Prometheus, from the step that encodes: see docs/metrics.md.

Only within Ray: where the step is called as a function, or runs in a test's memory, nothing is told and Ray is not imported.
"""

from __future__ import annotations

import functools
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.video import ffmpeg
from pipelines.video.encode import EncodedChunk
from pipelines.video.plan import Chunk

if TYPE_CHECKING:
    from ray.util.metrics import Counter, Gauge


@dataclass(frozen=True, slots=True)
class Metric:
    """One name; ``labels`` are all that it has."""

    name: str
    kind: str
    unit: str
    meaning: str
    labels: tuple[str, ...] = ("codec",)


CHUNKS = Metric("rayflow_encoder_chunks_total", "counter", "chunks", "Chunks encoded and put into the store.")
FRAMES = Metric(
    "rayflow_encoder_frames_total",
    "counter",
    "frames",
    "Frames encoded, counted while a chunk is under way: those of attempts that fail, too.",
)
LOST_FRAMES = Metric(
    "rayflow_encoder_lost_frames_total",
    "counter",
    "frames",
    "Frames that the index of a source promised and the source does not yield.",
)
FPS = Metric(
    "rayflow_encoder_fps",
    "gauge",
    "frames per second",
    "Frames per second of the chunk under way in a process; gone soon after it.",
)
READ_BYTES = Metric("rayflow_encoder_read_bytes_total", "counter", "bytes", "Bytes of encoded chunks in their source.")
WRITTEN_BYTES = Metric("rayflow_encoder_written_bytes_total", "counter", "bytes", "Bytes of encoded chunks in the store.")
CPU_SECONDS = Metric(
    "rayflow_encoder_cpu_seconds_total", "counter", "seconds", "CPU time of ffmpeg for encoded chunks, on all cores together."
)

METRICS = (CHUNKS, FRAMES, LOST_FRAMES, FPS, READ_BYTES, WRITTEN_BYTES, CPU_SECONDS)


@functools.cache
def _counter(metric: Metric) -> Counter:
    from ray.util.metrics import Counter

    return Counter(metric.name, metric.meaning, metric.labels)


@functools.cache
def _gauge(metric: Metric) -> Gauge:
    from ray.util.metrics import Gauge

    return Gauge(metric.name, metric.meaning, metric.labels)


class Encoding:
    """A chunk under way. Of those that take in its progress only one at a time is in a process."""

    def __init__(self, codec: str) -> None:
        self._tags = {"codec": codec}
        self._frames = 0
        self._began_s = time.monotonic()
        for metric in METRICS:
            if metric.kind == "counter":
                self._begin(metric)

    def progress(self, progress: ffmpeg.Progress) -> None:
        """So much of the chunk is done; it may begin anew."""
        if progress.frames < self._frames:
            self._frames, self._began_s = 0, time.monotonic()
        self._count(FRAMES, progress.frames - self._frames)
        self._frames = progress.frames
        _gauge(FPS).set(self._frames / max(time.monotonic() - self._began_s, 1e-3), self._tags)

    def finished(self, chunk: Chunk, encoded: EncodedChunk, size_bytes: int) -> None:
        """It is in the store."""
        self._count(CHUNKS, 1)
        self._count(FRAMES, encoded.frames - self._frames)
        self._count(LOST_FRAMES, encoded.lost_frames)
        self._count(READ_BYTES, chunk.source_bytes)
        self._count(WRITTEN_BYTES, size_bytes)
        self._count(CPU_SECONDS, encoded.cpu_s)

    def _begin(self, metric: Metric) -> None:
        """Have it be there before anything is counted, or that would not be seen to increase it."""
        _counter(metric).inc(sys.float_info.min, self._tags)

    def _count(self, metric: Metric, by: float) -> None:
        if by > 0:
            _counter(metric).inc(by, self._tags)


class _Untold(Encoding):
    """Nobody listens."""

    def _begin(self, metric: Metric) -> None: ...

    def _count(self, metric: Metric, by: float) -> None: ...

    def progress(self, progress: ffmpeg.Progress) -> None: ...


def encoding(codec: str) -> Encoding:
    """A chunk that is about to be encoded."""
    ray = sys.modules.get("ray")
    return Encoding(codec) if ray is not None and ray.is_initialized() else _Untold(codec)
