"""The pipeline of a published evaluation of durable functions: validate, split in chunks of 10 s, encode, merge."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import rayflow
from pipelines.evaluation_media import Film, Simulated
from pipelines.video.plan import Chunk

RETRY = rayflow.Retry(max_attempts=3, initial_s=0.1)
Fault = Enum("Fault", "NONE LAST_CHUNK_ONCE MERGE_ALWAYS")  # what goes wrong on purpose


@dataclass(frozen=True, slots=True)
class Upload:
    """A video to encode; every run of a step leaves a line in ``journal``."""

    media: Simulated | Film
    journal: Path
    fault: Fault = Fault.NONE

    def note(self, run: str) -> int:
        """Add a line; returns how often it is there now."""
        with self.journal.open("a+") as file:
            file.write(f"{run}\n")
            file.seek(0)
            return file.read().splitlines().count(run)


@rayflow.step
def validate(upload: Upload) -> None:
    """Refuse what cannot be encoded, before any work."""
    upload.note("validate")
    if Path(upload.media.source).suffix not in (".mp4", ".mkv", ".webm"):
        raise rayflow.InvalidInput(f"{upload.media.source}: this format is not supported; give .mp4, .mkv or .webm")


@rayflow.step
def split(upload: Upload) -> list[Chunk]:
    """Cut at every 10 s."""
    upload.note("split")
    return upload.media.split()


@rayflow.step(retry=RETRY)
def encode(chunk: Chunk, upload: Upload, last: str) -> Any:
    """Encode one chunk."""
    runs = upload.note(f"encode {chunk.name}")
    if upload.fault is Fault.LAST_CHUNK_ONCE and chunk.name == last and runs == 1:
        raise OSError(f"chunk {chunk.name} fails once")
    return upload.media.encode(chunk)


@rayflow.step(retry=RETRY)
def merge(upload: Upload, encoded: list[Any]) -> list[str]:
    """Make one video of all chunks; returns their names."""
    upload.note("merge")
    if upload.fault is Fault.MERGE_ALWAYS:
        raise OSError("merging always fails")
    return upload.media.merge(encoded)


@rayflow.workflow
async def in_sequence(ctx: rayflow.Context, upload: Upload) -> list[str]:
    await ctx.step(validate, upload)
    chunks = await ctx.step(split, upload)
    return await ctx.step(merge, upload, [await ctx.step(encode, chunk, upload, chunks[-1].name) for chunk in chunks])


@rayflow.workflow
async def in_parallel(ctx: rayflow.Context, upload: Upload) -> list[str]:
    await ctx.step(validate, upload)
    chunks = await ctx.step(split, upload)
    return await ctx.step(merge, upload, (await ctx.map(encode, chunks, upload, chunks[-1].name)).results())
