"""Join chunk files and everything else of the source to the output, by stream copy.

The video comes from ffmpeg's concat demuxer, which opens one chunk at a time, with the exact length of each chunk
written into its list; sound, subtitles, chapters, attachments and metadata come from the source (or an encoded audio
file). All inputs keep their time stamps and are shifted explicitly: the source by minus its container's start time, the
joined video by the same from its first frame. Left to itself ffmpeg would shift each input by the start of those of its
streams that are used.

The result is written to a temporary name beside the output, flushed, compared with the source, and only then given its
name. A join can be repeated at will; it never touches a chunk.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from pipelines.video import ffmpeg, index, verify
from pipelines.video.audio import AudioChoice, EncodedAudio, timed_input
from pipelines.video.containers import TEXT_SUBTITLES, Container, container_of
from pipelines.video.encode import EncodedChunk
from pipelines.video.encoders import encoder_name
from pipelines.video.index import SourceInfo
from pipelines.video.plan import Plan
from pipelines.video.settings import Settings
from rayflow.errors import InvalidInput

# fmt: off
_DISPOSITIONS = (  # by bit
    "default", "dub", "original", "comment", "lyrics", "karaoke", "forced", "hearing_impaired", "visual_impaired",
    "clean_effects",
)
# fmt: on


@dataclass(frozen=True, slots=True)
class Joined:
    """A finished output, verified and under its final name. ``warnings`` name what the container could not take
    over."""

    path: Path
    size_bytes: int
    report: verify.VerifyReport
    warnings: tuple[str, ...]
    cpu_s: float
    wall_s: float


def check(info: SourceInfo, settings: Settings, output: Path) -> None:
    """Raises InvalidInput when the output's container cannot hold what the video is encoded to."""
    container = container_of(output)
    encoder = encoder_name(settings)
    codec = ffmpeg.find(encoder).encoders[encoder]
    if container.video and codec not in container.video:
        raise InvalidInput(
            f"{container.suffix} cannot hold {settings.codec} video: write to .mkv, or choose another codec"
        )
    if "://" not in info.path and output.exists() and output.samefile(info.path):
        raise InvalidInput(f"{output} is the source itself: give the output another name")


def join(
    source: str,
    plan: Plan,
    encoded: Sequence[EncodedChunk],
    audio: AudioChoice,
    audio_file: EncodedAudio | None,
    output: Path,
    on_progress: Callable[[ffmpeg.Progress], None] | None = None,
) -> Joined:
    """Write ``output`` from all chunks of a plan, in its order, and the source's other streams, replacing what is
    there.

    Raises InvalidInput for chunks that do not fit together, FfmpegFailed, and OutputInexact when the result differs
    from the source; the output's name is untouched then.
    """
    _check_alike(encoded)
    binary = ffmpeg.find()
    container = container_of(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.stem}.{secrets.token_hex(4)}.partial{output.suffix}")
    listing = partial.with_suffix(".ffconcat")
    try:
        listing.write_text(concat_list(plan, encoded))
        command, warnings = _command(
            binary, source, plan, encoded[0].codec, audio, audio_file, container, listing, partial
        )
        done = ffmpeg.run(command, on_progress)
        _flush(partial)
        report = verify.verify(index.read(source), plan.chunks, encoded, audio, partial)
        size_bytes = partial.stat().st_size
        partial.replace(output)
        _flush(output.parent)
    finally:
        listing.unlink(missing_ok=True)
        partial.unlink(missing_ok=True)
    return Joined(output, size_bytes, report, (*plan.warnings, *audio.warnings, *warnings), done.cpu_s, done.wall_s)


def concat_list(plan: Plan, encoded: Sequence[EncodedChunk]) -> str:
    """The list for the concat demuxer.

    It adds durations up in whole microseconds, so each is the difference of two rounded chunk starts: errors do not add
    up.
    """
    lines = ["ffconcat version 1.0"]
    for chunk, done in zip(plan.chunks, encoded, strict=True):
        quoted = str(done.path.absolute()).replace("'", r"'\''")
        lines.append(f"file 'file:{quoted}'")
        if chunk.end_pts is not None:
            length_us = _micros(plan, chunk.end_pts) - _micros(plan, chunk.start_pts)
            lines.append(f"duration {ffmpeg.seconds(Fraction(length_us, 1_000_000))}")
    return "\n".join(lines) + "\n"


def _micros(plan: Plan, pts: int | None) -> int:
    """Time from the first frame to ``pts`` in microseconds, rounded."""
    video = plan.info.video
    return round(((pts if pts is not None else video.first_pts) - video.first_pts) * video.time_base * 1_000_000)


def _check_alike(encoded: Sequence[EncodedChunk]) -> None:
    first = encoded[0]
    for chunk in encoded[1:]:
        if (chunk.width, chunk.height) != (first.width, first.height):
            raise InvalidInput(
                f"chunk {chunk.name} is {chunk.width}x{chunk.height}, chunk {first.name} {first.width}x{first.height}: "
                f'the source changes its size; give one with filters="scale=W:H"'
            )
        if chunk.headers_sha256 != first.headers_sha256:
            raise InvalidInput(
                f"chunks {first.name} (by ffmpeg {first.ffmpeg_version}) and {chunk.name} (by {chunk.ffmpeg_version}) "
                f"have different codec headers and cannot be joined: encode both with the same settings and ffmpeg"
            )


def _command(
    binary: ffmpeg.Binary,
    source: str,
    plan: Plan,
    codec: str,
    audio: AudioChoice,
    audio_file: EncodedAudio | None,
    container: Container,
    listing: Path,
    partial: Path,
) -> tuple[list[str], list[str]]:
    """The command of the join, and warnings about what it leaves out."""
    info = plan.info
    warnings: list[str] = []
    shift = info.video.first_pts * info.video.time_base - Fraction(info.origin_us, 1_000_000)
    placed = {"copyts": None, "itsoffset": ffmpeg.seconds(shift)} if not info.uncuttable else {}
    chunks = ffmpeg.source(str(listing), f="concat", safe=0, auto_convert=0, **placed)
    original = timed_input(source, info)
    streams: list[ffmpeg.Node] = [chunks["v:0"]]
    # One stream whose tags are mapped by hand makes ffmpeg forget those of all others, so each is named.
    described = [("v:0", info.video.index)]
    arguments = [
        "-c",
        "copy",
        "-max_muxing_queue_size",
        "4096",
        "-disposition:v:0",
        _disposition(info.video.disposition),
    ]

    tracks = info.of_kind("audio")
    if audio.encoder == "copy":
        streams += [original[str(track.index)] for track in tracks]
    elif audio_file is not None:
        sound = ffmpeg.source(str(audio_file.path), **({"copyts": None} if not info.uncuttable else {}))
        streams += [sound[f"a:{number}"] for number in range(len(tracks))]
        for number, track in enumerate(tracks):
            arguments += [f"-disposition:a:{number}", _disposition(track.disposition)]
    if audio.encoder != "none":
        described += [(f"a:{number}", track.index) for number, track in enumerate(tracks)]

    texts = 0
    for track in info.of_kind("subtitle"):
        if track.codec in container.subtitles:
            arguments += [f"-c:s:{texts}", "copy"]
        elif track.codec in TEXT_SUBTITLES:
            arguments += [f"-c:s:{texts}", container.text]
        else:
            warnings.append(f"{container.suffix} cannot hold {track.codec} subtitles: stream {track.index} is left out")
            continue
        streams.append(original[str(track.index)])
        described.append((f"s:{texts}", track.index))
        texts += 1
    others = (
        ("attachment", "t", 0, container.attachments),
        ("picture", "v", 1, container.pictures),
        ("data", "d", 0, False),
    )
    for kind, letter, first, fits in others:
        for number, stream in enumerate(info.of_kind(kind), first):
            if fits:
                streams.append(original[str(stream.index)])
                described.append((f"{letter}:{number}", stream.index))
            else:
                warnings.append(
                    f"{container.suffix} takes no {kind} streams: stream {stream.index} ({stream.codec}) is left out"
                )

    options: dict[str, object] = {"max_interleave_delta": 0}
    if not container.tick_us:
        options |= {"video_track_timescale": info.video.time_base_den, "movie_timescale": 90000}
        if codec == "hevc":  # what Apple's players look for
            options["tag:v:0"] = "hvc1"
    command = ffmpeg.compile_command(binary, ffmpeg.target(streams, partial, **options), also=original)
    number = str(ffmpeg.input_number(command, source))
    arguments += ["-map_metadata", number, "-map_chapters", number]
    for place, stream in described:
        arguments += [f"-map_metadata:s:{place}", f"{number}:s:{stream}"]
    # The frames are upright already: a rotation copied with the stream's tags would turn them again.
    arguments += ["-metadata:s:v:0", "rotate="]
    return [*command[:-1], *arguments, command[-1]], warnings


def _disposition(flags: int) -> str:
    names = [name for bit, name in enumerate(_DISPOSITIONS) if flags >> bit & 1]
    return "+".join(names) or "0"


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
