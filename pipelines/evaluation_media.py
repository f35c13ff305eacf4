"""What the evaluation's pipeline encodes: a film, or a simulated one that only takes its time."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rayflow
from pipelines.video import audio, encode, index, join, plan
from pipelines.video.settings import Settings

SETTINGS = Settings(preset="ultrafast", split="fixed", chunk_seconds=10)


@dataclass(frozen=True, slots=True)
class Simulated:
    """A video of ``duration_s`` seconds; to encode a chunk of it is to sleep, as long as an encode took in the evaluation."""

    duration_s: float
    source: str = "simulated.mp4"
    encode_s: float = 0.612

    def split(self) -> list[plan.Chunk]:
        """Chunks that have a name only."""
        return [plan.Chunk(f"{number:04}", None, None, None, 0, 10.0) for number in range(math.ceil(self.duration_s / 10))]

    def encode(self, chunk: plan.Chunk) -> str:
        """Returns the chunk's name."""
        time.sleep(self.encode_s)
        return chunk.name

    def merge(self, encoded: list[Any]) -> list[str]:
        """Returns the names of the chunks in the output."""
        return encoded


@dataclass(frozen=True, slots=True)
class Film:
    """A file that is encoded to ``output``; the chunks are put beside it, on a disk that all nodes share."""

    source: str
    output: Path

    def split(self) -> list[plan.Chunk]:
        """Exact chunks. Raises InvalidInput for what is no video."""
        return list(plan.make(index.read(self.source), SETTINGS).chunks)

    def encode(self, chunk: plan.Chunk) -> encode.EncodedChunk:
        """To a file of this attempt's own: one that was given up for dead may still be writing."""
        step = rayflow.current_step()
        path = self.output.with_name(f"{step.attempt_name if step else chunk.name}.mp4")
        return encode.encode_chunk(self.source, index.read(self.source).info, chunk, SETTINGS, path)

    def merge(self, encoded: list[Any]) -> list[str]:
        """Joins and verifies; the output appears complete or not at all. Returns the names of the chunks in it."""
        made = plan.make(index.read(self.source), SETTINGS)
        chosen = audio.choose(made.info, SETTINGS, self.output)
        join.join(self.source, made, encoded, SETTINGS, chosen, None, self.output)
        return [chunk.name for chunk in encoded]
