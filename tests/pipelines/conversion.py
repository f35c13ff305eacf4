"""Runs the whole machinery in this process, and decodes files to compare them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import pytest

from pipelines.video import audio, encode, ffmpeg, index, join, plan
from pipelines.video.encoders import chunk_suffix
from pipelines.video.settings import Settings

CLIPS = Path(os.environ.get("RAYFLOW_CLIPS") or Path(__file__).parents[2].parent / "shared" / "clips")


def clip(name: str) -> str:
    """Path of a real clip; skips the test where the clips are not installed."""
    path = CLIPS / name
    if not path.is_file():
        pytest.skip(f"{path} is absent: set $RAYFLOW_CLIPS to the folder with the clips")
    return str(path)


@dataclass(frozen=True, slots=True)
class Conversion:
    """What a conversion went through and ended in."""

    plan: plan.Plan
    chunks: tuple[encode.EncodedChunk, ...]
    joined: join.Joined


def convert(source: str, settings: Settings, output: Path, scenes: tuple[int, ...] = ()) -> Conversion:
    """Index, plan, encode each chunk in turn, encode the audio, join, verify."""
    indexed = index.read(source)
    encode.check(settings, indexed.info.video)
    join.check(indexed.info, settings, output)
    choice = audio.choose(indexed.info, settings, output)
    planned = plan.make(indexed, settings, scenes)
    folder = output.parent / f"{output.stem}-chunks"
    chunks = tuple(
        encode.encode_chunk(source, planned.info, chunk, settings, folder / f"{chunk.name}{chunk_suffix(settings)}")
        for chunk in planned.chunks
    )
    sound = None
    if choice.encoder not in ("copy", "none"):
        sound = audio.encode_audio(source, planned.info, choice, settings, folder / f"audio{choice.suffix}")
    return Conversion(planned, chunks, join.join(source, planned, chunks, choice, sound, output))


@dataclass(frozen=True, slots=True)
class Frame:
    """A decoded frame: its time in seconds after the first, and the MD5 of its pixels."""

    at_s: Fraction
    md5: str


def frames(path: str, pixel_format: str = "", *, stream: int | None = None, regular: bool = True) -> list[Frame]:
    """Decode a video from start to end without any cut, as the yardstick."""
    indexed = index.read(path)
    video = indexed.info.video
    options: dict[str, object] = {"fflags": "+genpts", "threads": 1}
    if regular:
        options["copyts"] = None
    node = ffmpeg.source(path, **options)[str(video.index if stream is None else stream)]
    written = {
        "f": "framemd5",
        "fps_mode": "passthrough",
        "enc_time_base": f"{video.time_base_num}:{video.time_base_den}",
    }
    if pixel_format:
        written["pix_fmt"] = pixel_format
    command = ffmpeg.compile_command(ffmpeg.find(), ffmpeg.target([node], "pipe:1", **written))
    command = [word for word in command if word not in ("-progress",)]
    command.remove("pipe:1")
    text = ffmpeg._output(*command)  # pyright: ignore[reportPrivateUsage]
    rows = [line.split(",") for line in text.splitlines() if line and not line.startswith("#")]
    times = [int(row[2]) * video.time_base for row in rows]
    return [Frame(at - times[0], row[5].strip()) for at, row in zip(times, rows, strict=True)]
