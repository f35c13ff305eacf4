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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from pipelines.video import ffmpeg, index, verify
from pipelines.video.audio import AudioChoice, EncodedAudio, timed_input, with_common_clock
from pipelines.video.containers import TEXT_SUBTITLES, Container, container_of, partial_name
from pipelines.video.encode import EncodedChunk, first_shown
from pipelines.video.encoders import colour_arguments, encoder_name
from pipelines.video.index import OtherStream, SourceInfo
from pipelines.video.plan import Plan
from pipelines.video.settings import Settings
from pipelines.video.source import is_url
from rayflow.checkpoint.files import File
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
    over. ``file``: where it is in the store, if it is there and not at ``path``."""

    path: Path
    size_bytes: int
    report: verify.VerifyReport
    warnings: tuple[str, ...]
    cpu_s: float
    wall_s: float
    file: File | None = None


def check(info: SourceInfo, settings: Settings, output: Path) -> None:
    """Raises InvalidInput when the output's container cannot hold what the video is encoded to."""
    container = container_of(output)
    encoder = encoder_name(settings)
    codec = ffmpeg.find(encoder).encoders[encoder]
    if container.video and codec not in container.video:
        raise InvalidInput(f"{container.suffix} cannot hold {settings.codec} video: write to .mkv, or choose another codec")
    if not is_url(info.path) and output.exists() and output.samefile(info.path):
        raise InvalidInput(f"{output} is the source itself: give the output another name")


def join(
    source: str,
    plan: Plan,
    encoded: Sequence[EncodedChunk],
    settings: Settings,
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
    held = [(chunk, done) for chunk, done in zip(plan.chunks, encoded, strict=True) if done.frames]
    if not held:
        raise InvalidInput(f"{source}: not one frame can be decoded: check that the file is complete")
    _check_alike([done for _, done in held])
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_name(output)
    listing = partial.with_suffix(".ffconcat")
    try:
        listing.write_text(concat_list(plan, encoded))
        begin = first_shown(plan.info, *held[0])
        mapping = _map(source, plan, held[0][1].codec, begin, audio, audio_file, listing, container_of(output))
        tags = colour_arguments(settings, plan.info.video)
        done = ffmpeg.run(_command(source, mapping, tags, partial), on_progress)
        _flush(partial)
        report = verify.verify(index.read(source), plan.chunks, encoded, audio, partial)
        size_bytes = partial.stat().st_size
        partial.replace(output)
        _flush(output.parent)
    finally:
        listing.unlink(missing_ok=True)
        partial.unlink(missing_ok=True)
    warnings = (*plan.warnings, *audio.warnings, *mapping.warnings)
    return Joined(output, size_bytes, report, warnings, done.cpu_s, done.wall_s)


def concat_list(plan: Plan, encoded: Sequence[EncodedChunk]) -> str:
    """The list for the concat demuxer.

    It puts the first frame of a file where the one before ends, so each duration lasts to the next first frame, over chunks
    that hold none. It adds durations up in whole microseconds, so each is the difference of two rounded times: errors do not
    add up.
    """
    info = plan.info
    held = [(done, first_shown(info, chunk, done)) for chunk, done in zip(plan.chunks, encoded, strict=True) if done.frames]
    starts_us = [round((at - held[0][1]) * info.video.time_base * 1_000_000) for _, at in held]
    lines = ["ffconcat version 1.0"]
    for number, (done, _) in enumerate(held):
        quoted = str(done.path.absolute()).replace("'", r"'\''")
        lines.append(f"file 'file:{quoted}'")
        if number + 1 < len(held):
            lines.append(f"duration {ffmpeg.seconds(Fraction(starts_us[number + 1] - starts_us[number], 1_000_000))}")
    return "\n".join(lines) + "\n"


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


@dataclass(slots=True)
class _Mapping:
    """The output's streams as they are gathered: nodes, options for them, where their tags come from, what is left
    out."""

    info: SourceInfo
    container: Container
    original: ffmpeg.Node
    streams: list[ffmpeg.Node] = field(default_factory=list[ffmpeg.Node])
    arguments: list[str] = field(default_factory=lambda: ["-c", "copy"])
    tagged: list[tuple[str, int]] = field(default_factory=list[tuple[str, int]])
    warnings: list[str] = field(default_factory=list[str])

    def add(self, kind: str, node: ffmpeg.Node, stream: int) -> str:
        """Append a stream; ``stream`` is the one in the source that its tags come from. Returns its specifier."""
        number = sum(place.startswith(kind) for place, _ in self.tagged)
        place = f"{kind}:{number}"
        self.streams.append(node)
        self.tagged.append((place, stream))
        return place

    def video(self, chunks: ffmpeg.Node, codec: str) -> None:
        place = self.add("v", chunks["v:0"], self.info.video.index)
        # The frames are upright: a rotation copied with the stream's tags would turn them again.
        self.arguments += [
            f"-disposition:{place}",
            _disposition(self.info.video.disposition),
            "-metadata:s:v:0",
            "rotate=",
        ]
        if codec == "hevc" and not self.container.tick_us:
            self.arguments += [f"-tag:{place}", "hvc1"]  # what Apple's players look for

    def audio(self, choice: AudioChoice, encoded: EncodedAudio | None) -> None:
        if choice.encoder == "none":
            return
        sound = None if encoded is None else _sound(encoded, self.info)
        for number, track in enumerate(self.info.of_kind("audio")):
            node = self.original[str(track.index)] if sound is None else sound[f"a:{number}"]
            place = self.add("a", node, track.index)
            self.arguments += [f"-disposition:{place}", _disposition(track.disposition)]

    def subtitles(self) -> None:
        for track in self.info.of_kind("subtitle"):
            if track.codec in self.container.subtitles:
                codec = "copy"
            elif track.codec in TEXT_SUBTITLES:
                codec = self.container.text
            else:
                self._leave_out(track)
                continue
            place = self.add("s", self.original[str(track.index)], track.index)
            self.arguments += [f"-c:{place}", codec]

    def others(self) -> None:
        for kind, letter, fits in (
            ("attachment", "t", self.container.attachments),
            ("picture", "v", self.container.pictures),
            ("data", "d", False),
        ):
            for stream in self.info.of_kind(kind):
                if fits:
                    self.add(letter, self.original[str(stream.index)], stream.index)
                else:
                    self._leave_out(stream)

    def _leave_out(self, stream: OtherStream) -> None:
        self.warnings.append(
            f"{self.container.suffix} cannot hold {stream.kind} stream {stream.index} ({stream.codec}): it is left out"
        )


def _sound(encoded: EncodedAudio, info: SourceInfo) -> ffmpeg.Node:
    """The encoded audio with its own time stamps."""
    if info.uncuttable:  # without -copyts ffmpeg subtracts the start, so it is added before
        return ffmpeg.source(str(encoded.path), itsoffset=ffmpeg.seconds(Fraction(encoded.start_us, 1_000_000)))
    return ffmpeg.source(str(encoded.path), copyts=None)


def _map(
    source: str,
    plan: Plan,
    codec: str,
    begin: int,
    audio: AudioChoice,
    sound: EncodedAudio | None,
    listing: Path,
    container: Container,
) -> _Mapping:
    """Gather all streams of the output. ``begin``: when the first frame of the chunks is shown in the source."""
    info = plan.info
    shift = ffmpeg.seconds(begin * info.video.time_base - Fraction(info.origin_us, 1_000_000))
    keep_times = {} if info.uncuttable else {"copyts": None}
    chunks = ffmpeg.source(str(listing), f="concat", safe=0, auto_convert=0, itsoffset=shift, **keep_times)
    mapping = _Mapping(info, container, timed_input(source, info))
    mapping.video(chunks, codec)
    mapping.audio(audio, sound)
    mapping.subtitles()
    mapping.others()
    return mapping


def _command(source: str, mapping: _Mapping, tags: tuple[str, ...], partial: Path) -> list[str]:
    options: dict[str, object] = {}
    if not mapping.container.tick_us:
        options = {"video_track_timescale": mapping.info.video.time_base_den, "movie_timescale": 90000}
    output = ffmpeg.target(mapping.streams, partial, **options)
    command = ffmpeg.compile_command(ffmpeg.find(), output, also=mapping.original)
    number = ffmpeg.input_number(command, source)
    arguments = [*mapping.arguments, "-map_metadata", str(number), "-map_chapters", str(number)]
    # One stream whose tags are mapped by hand makes ffmpeg forget those of all others, so each is named.
    for place, stream in mapping.tagged:
        arguments += [f"-map_metadata:s:{place}", f"{number}:s:{stream}"]
    return with_common_clock([*command[:-1], *arguments, *tags, command[-1]], mapping.info, number)


def _disposition(flags: int) -> str:
    names = [name for bit, name in enumerate(_DISPOSITIONS) if flags >> bit & 1]
    return "+".join(names) or "0"


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
