"""What the tests of the video pipeline share: real and generated sources, a whole conversion in this process, and a
decoder."""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import pytest

from pipelines.video import audio, encode, ffmpeg, index, join, plan
from pipelines.video.encoders import chunk_suffix
from pipelines.video.settings import Settings

CLIPS = Path(os.environ.get("RAYFLOW_CLIPS") or Path(__file__).parents[2].parent / "shared" / "clips")
LOSSLESS = Settings(codec="x264", preset="ultrafast", lossless=True)


def clip(name: str) -> str:
    """Path of a real clip; skips the test where the clips are not installed."""
    path = CLIPS / name
    if not path.is_file():
        pytest.skip(f"{path} is absent: set $RAYFLOW_CLIPS to the folder with the clips")
    return str(path)


def generate(output: Path, *arguments: str) -> str:
    """Make a source with ffmpeg, from options as one would type them."""
    command = [ffmpeg.find("libx264").path, "-v", "error", "-nostdin", "-y", *arguments, str(output)]
    ffmpeg.run(command)
    return str(output)


def picture(seconds: float = 10, size: str = "192x108", rate: str = "25") -> tuple[str, ...]:
    """Input options for a moving picture in which every frame differs."""
    return ("-f", "lavfi", "-i", f"testsrc2=size={size}:rate={rate}:duration={seconds}")


def tone(seconds: float = 10) -> tuple[str, ...]:
    """Input options for a sine tone."""
    return ("-f", "lavfi", "-i", f"sine=frequency=440:duration={seconds}")


@dataclass(frozen=True, slots=True)
class Conversion:
    """What a conversion went through and ended in."""

    plan: plan.Plan
    chunks: tuple[encode.EncodedChunk, ...]
    joined: join.Joined


def convert(source: str, settings: Settings, output: Path) -> Conversion:
    """Index, plan, encode each chunk in turn, encode the audio, join, verify."""
    indexed = index.read(source)
    encode.check(settings, indexed.info.video)
    join.check(indexed.info, settings, output)
    choice = audio.choose(indexed.info, settings, output)
    planned = plan.make(indexed, settings)
    folder = output.parent / f"{output.stem}-chunks"
    chunks = encode_all(source, planned, settings, folder)
    sound = None
    if choice.encoder not in ("copy", "none"):
        sound = audio.encode_audio(source, planned.info, choice, settings, folder / f"audio{choice.suffix}")
    return Conversion(planned, chunks, join.join(source, planned, chunks, settings, choice, sound, output))


def encode_all(source: str, planned: plan.Plan, settings: Settings, folder: Path) -> tuple[encode.EncodedChunk, ...]:
    """Encode each chunk of a plan in turn."""
    return tuple(
        encode.encode_chunk(source, planned.info, chunk, settings, folder / f"{chunk.name}{chunk_suffix(settings)}")
        for chunk in planned.chunks
    )


@dataclass(frozen=True, slots=True)
class Frame:
    """A decoded frame: its time in seconds after the first, and the MD5 of its pixels."""

    at_s: Fraction
    md5: str


@functools.lru_cache(maxsize=64)
def frames(path: str) -> tuple[Frame, ...]:
    """Decode a video from start to end without any cut, as the yardstick. One thread, for how damage is concealed
    depends on it."""
    info = index.read(path).info
    timing: dict[str, object] = {} if info.uncuttable else {"copyts": None}
    node = ffmpeg.source(path, fflags="+genpts", threads=1, **timing)[str(info.video.index)]
    time_base = info.video.time_base
    options = {
        "f": "framemd5",
        "fps_mode": "passthrough",
        "enc_time_base": f"{time_base.numerator}:{time_base.denominator}",
        "pix_fmt": info.video.pixel_format,
    }
    with tempfile.TemporaryDirectory() as folder:
        listing = Path(folder) / "frames"
        ffmpeg.run(ffmpeg.compile_command(ffmpeg.find(), ffmpeg.target([node], listing, **options)))
        rows = [line.split(",") for line in listing.read_text().splitlines() if line and not line.startswith("#")]
    times = [int(row[2]) * time_base for row in rows]
    return tuple(Frame(at - times[0], row[5].strip()) for at, row in zip(times, rows, strict=True))


def assert_same_frames(source: str, output: Path, tolerance_s: Fraction = Fraction(0)) -> None:
    """Every frame of the source is in the output, in order, with the same pixels, at the same time after the first."""
    wanted, got = frames(source), frames(str(output))
    assert len(got) == len(wanted)
    assert [number for number, (a, b) in enumerate(zip(wanted, got, strict=True)) if a.md5 != b.md5] == []
    assert max(abs(a.at_s - b.at_s) for a, b in zip(wanted, got, strict=True)) <= tolerance_s


def odd_cuts(source: str, places: Sequence[float]) -> tuple[float, ...]:
    """Times in the middle of a source, none of them at a key frame, given as parts of its length."""
    indexed = index.read(source)
    shown, keys = indexed.packets.shown(), set(indexed.packets.keys().tolist())
    chosen = [int(shown[int(place * (shown.size - 1))]) for place in places]
    time_base, first = indexed.info.video.time_base, int(shown[0])
    return tuple(float((at - first) * time_base) for at in chosen if at not in keys)
