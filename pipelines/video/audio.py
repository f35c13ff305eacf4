"""The audio of a whole file, once: copied when the video is joined, or encoded to a file beside the chunks.

Audio is never cut into chunks: each AAC or Opus encoder adds its delay, and the seams drift by tens of milliseconds in
seconds. The encoded file keeps every track's start relative to the container's start time, which is what the video is
shifted by as well.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from pipelines.video import ffmpeg
from pipelines.video.containers import Container, container_of
from pipelines.video.index import SourceInfo, open_input, start_time_us
from pipelines.video.settings import Settings
from rayflow.errors import InvalidInput

_ENCODERS = {"aac": "aac", "opus": "libopus"}
_TRIAL_S = 3
_IN_MP4 = frozenset(("aac", "opus", "mp3", "ac3", "eac3", "flac", "alac"))


@dataclass(frozen=True, slots=True)
class AudioChoice:
    """What happens to the audio. ``encoder`` is "copy" (when joining), "none", or the encoder to run ``encode_audio``
    with.

    ``suffix`` is that of the file to encode to. ``warnings`` are for the user.
    """

    encoder: str
    suffix: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EncodedAudio:
    """A file with all audio tracks, in the order of the source. ``start_us``: its first time stamp, in microseconds."""

    path: Path
    tracks: int
    start_us: int
    size_bytes: int
    cpu_s: float
    wall_s: float


def choose(info: SourceInfo, settings: Settings, output: Path) -> AudioChoice:
    """Decide between copying and encoding, for the container that ``output`` names.

    Tracks to be copied into a container that cannot hold them are encoded instead, with a warning. Raises InvalidInput
    when the encoder asked for does not exist, or its codec does not go into the container.
    """
    container = container_of(output)
    tracks = info.of_kind("audio")
    if not tracks or settings.audio == "none":
        return AudioChoice("none", "")
    if settings.audio == "copy":
        foreign = sorted({track.codec for track in tracks if not _holds(container, track.codec)})
        if not foreign and settings.audio_kbps is not None:
            raise InvalidInput(
                "the audio is copied as it is, so audio_kbps cannot be kept: name an encoder for it, or leave it out"
            )
        if not foreign:
            return AudioChoice("copy", "")
        encoder = container.audio_encoder
        warning = f"{container.suffix} cannot hold {', '.join(foreign)} audio: all audio tracks are encoded with {encoder}"
        return AudioChoice(encoder, _suffix(ffmpeg.find(encoder).encoders[encoder]), (warning,))
    encoder = _ENCODERS.get(settings.audio, settings.audio)
    codec = ffmpeg.find(encoder).encoders[encoder]
    if not _holds(container, codec):
        raise InvalidInput(f"{container.suffix} cannot hold {settings.audio} audio: use {container.audio_encoder} or write to .mkv")
    return AudioChoice(encoder, _suffix(codec))


def encode_audio(
    source: str,
    info: SourceInfo,
    choice: AudioChoice,
    settings: Settings,
    output: Path,
    on_progress: Callable[[ffmpeg.Progress], None] | None = None,
) -> EncodedAudio:
    """Encode all audio tracks of ``source`` to ``output``, named ``*choice.suffix``, replacing it. Raises
    FfmpegFailed."""
    binary = ffmpeg.find(choice.encoder)
    output.parent.mkdir(parents=True, exist_ok=True)
    tracks = info.of_kind("audio")
    node = _target(timed_input(source, info), info, choice, settings, output)
    try:
        command = with_common_clock(ffmpeg.compile_command(binary, node), info, 0)
        done = ffmpeg.run(command, on_progress)
    except BaseException:
        output.unlink(missing_ok=True)
        raise
    with open_input(str(output)) as container:
        start_us = start_time_us(container)
    return EncodedAudio(output, len(tracks), start_us, output.stat().st_size, done.cpu_s, done.wall_s)


def check(source: str, info: SourceInfo, choice: AudioChoice, settings: Settings) -> None:
    """Try the encoder out on the first seconds of the source's audio. Raises InvalidInput with what ffmpeg says."""
    if choice.encoder in ("copy", "none"):
        return
    binary = ffmpeg.find(choice.encoder)
    with tempfile.TemporaryDirectory(prefix="rayflow-trial-") as folder:
        node = _target(ffmpeg.source(source, t=_TRIAL_S), info, choice, settings, Path(folder, f"trial{choice.suffix}"))
        try:
            ffmpeg.run(ffmpeg.compile_command(binary, node))
        except ffmpeg.FfmpegFailed as failure:
            raise InvalidInput(
                f"ffmpeg {binary.version} cannot encode this audio with {choice.encoder}: {failure.reason}"
            ) from failure


def _target(original: ffmpeg.Node, info: SourceInfo, choice: AudioChoice, settings: Settings, output: Path) -> ffmpeg.Node:
    """All audio tracks of an input, encoded to a file."""
    options: dict[str, object] = {
        "c:a": choice.encoder,
        "map_metadata": "-1",
        "map_chapters": "-1",
        # Gaps in the source become silence; without this the encoder would close them and the rest would run early.
        "filter:a": "aresample=async=1" + (",aformat=channel_layouts=7.1|5.1|stereo|mono" if "opus" in choice.encoder else ""),
        "strict": "-2",
    }
    if settings.audio_kbps is not None:
        options["b:a"] = f"{settings.audio_kbps}k"
    if output.suffix == ".mp4":
        options["movie_timescale"] = 90000
    return ffmpeg.target([original[str(track.index)] for track in info.of_kind("audio")], output, **options)


def timed_input(source: str, info: SourceInfo) -> ffmpeg.Node:
    """The source with its own time stamps, less its origin.

    Left to itself ffmpeg subtracts the start of whatever streams are used, for transport streams: audio alone would
    lose its offset. Where time stamps run backwards only ffmpeg's own correction makes sense of them.
    """
    if info.uncuttable:
        return ffmpeg.source(source)
    return ffmpeg.source(source, copyts=None, itsoffset=ffmpeg.seconds(Fraction(-info.origin_us, 1_000_000)))


def with_common_clock(command: list[str], info: SourceInfo, number: int) -> list[str]:
    """A command on a source that cannot be cut, of which input ``number`` is the source, with its video in use as well.

    ffmpeg then starts and corrects the clock of all streams together; the video copied for that goes nowhere.
    """
    if not info.uncuttable:
        return command
    return [*command, "-map", f"{number}:{info.video.index}", "-c", "copy", "-f", "null", "-"]


def _holds(container: Container, codec: str) -> bool:
    return not container.audio or codec in container.audio


def _suffix(codec: str) -> str:
    return ".mp4" if codec in _IN_MP4 else ".mka"
