"""What the tests of the video pipeline share: real and generated sources, a whole conversion in this process, and a
decoder."""

from __future__ import annotations

import functools
import os
import shutil
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
SOUND_ALONE = "audio-only.mp4"
LOSSLESS = Settings(codec="x264", preset="ultrafast", lossless=True)


def clip(name: str) -> str:
    """Path of a real clip; skips the test where the clips are not installed."""
    path = CLIPS / name
    if not path.is_file():
        pytest.skip(f"{path} is absent: set $RAYFLOW_CLIPS to the folder with the clips")
    return str(path)


def real_videos() -> list[str]:
    """Every video in the folder of clips, whatever it holds; where there is none, one name that ``clip`` skips."""
    names = sorted(path.name for path in CLIPS.iterdir() if path.suffix != ".md") if CLIPS.is_dir() else ["(every clip)"]
    return [name for name in names if name != SOUND_ALONE]


def film(output: Path) -> Path:
    """Ten seconds of film in 250 frames of 640x272 with key frames every two to three seconds, as mp4: a real one where the
    clips are installed, else a generated one."""
    if (CLIPS / "bikes.mp4").is_file():
        shutil.copyfile(CLIPS / "bikes.mp4", output)
    else:
        generate(output, *picture(size="640x272"), "-c:v", "libx264", "-g", "60", "-keyint_min", "50")
    return output


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


def frames(path: str) -> tuple[Frame, ...]:
    """Decode a video from start to end without any cut, as the yardstick. One thread, for how damage is concealed
    depends on it."""
    return _frames(path, os.stat(path).st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _frames(path: str, changed_ns: int) -> tuple[Frame, ...]:
    info = index.read(path).info
    timing: dict[str, object] = {} if info.uncuttable else {"copyts": None}
    node = ffmpeg.source(path, fflags="+genpts", threads=1, **timing)[str(info.video.index)]
    time_base = info.video.time_base
    options = {
        "f": "framemd5",
        "fps_mode": "passthrough",
        "enc_time_base": f"{time_base.numerator}:{time_base.denominator}",
        "pix_fmt": info.video.pixel_format,
        "max_error_rate": 1,
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


def assert_same_company(source: str, output: Path) -> None:
    """What is beside the frames is in the output too: colour and HDR tags, sound and subtitles with their languages, each track
    where it was against the first frame, chapters where they were."""
    was, now = index.read(source).info, index.read(str(output)).info
    for name in ("color_primaries", "color_transfer", "color_space", "hdr"):
        assert getattr(now.video, name) == getattr(was.video, name), name
    # H.264 that says nothing else of its colours cannot say "limited range" either: saying nothing means that
    assert max(now.video.color_range, 1) == max(was.video.color_range, 1)
    for kind in ("audio", "subtitle"):
        tracks, kept = was.of_kind(kind), now.of_kind(kind)
        assert [_language(track) for track in kept] == [_language(track) for track in tracks]
        if was.uncuttable:
            continue  # ffmpeg's own correction decides about its times
        for track, copy in zip(tracks, kept, strict=True):
            encoded = kind == "audio" and track.codec != copy.codec
            wanted_s, got_s = _offset_s(source, was, track), _offset_s(str(output), now, copy)
            # ticks of both containers; subtitles in mp4 come in milliseconds; an encoder pads the start
            assert abs(got_s - wanted_s) <= (0.03 if encoded else 0.0015), (kind, track.index, wanted_s, got_s)
    assert chapter_starts_s(output) == pytest.approx(chapter_starts_s(source), abs=0.03)


def chapter_starts_s(path: Path | str) -> list[float]:
    """When the chapters begin, in seconds after the first frame."""
    video = index.read(str(path)).info.video
    with index.open_input(str(path)) as container:
        starts = [chapter["start"] * chapter["time_base"] for chapter in container.chapters()]
    return [float(at - video.first_pts * video.time_base) for at in starts]


def packets(path: Path | str, stream: int) -> list[tuple[Fraction, int]]:
    """Time in seconds and size of each packet of a stream that is not empty."""
    with index.open_input(str(path)) as container:
        tick = Fraction(container.streams[stream].time_base or 1)
        return [(p.pts * tick, p.size) for p in container.demux(container.streams[stream]) if p.pts is not None and p.size]


def _offset_s(path: str, info: index.SourceInfo, track: index.OtherStream) -> float:
    # mp4 fills the time between subtitles with empty ones, of two bytes
    first = next(at for at, size in packets(path, track.index) if track.kind != "subtitle" or size > 2)
    return float(first - info.video.first_pts * info.video.time_base)


def _language(track: index.OtherStream) -> str:
    return "" if track.language == "und" else track.language


def odd_cuts(source: str, places: Sequence[float]) -> tuple[float, ...]:
    """Times in the middle of a source, none of them at a key frame, given as parts of its length."""
    indexed = index.read(source)
    shown, keys = indexed.packets.shown(), set(indexed.packets.keys().tolist())
    chosen = [int(shown[int(place * (shown.size - 1))]) for place in places]
    time_base, first = indexed.info.video.time_base, int(shown[0])
    return tuple(float((at - first) * time_base) for at in chosen if at not in keys)
