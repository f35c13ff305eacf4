"""Encode one chunk, exactly: the frames of its interval, all of them, each at its time.

How the cut works: ffmpeg seeks to one key frame *before* the last one at or before the chunk's start, keeps the
original time stamps, and an integer ``trim`` decides which frames belong. Seeking to the last key frame itself loses
leading pictures in open groups of pictures and gives wrong frames with the right count in some; earlier decoding costs
little and decides nothing. ``setpts`` makes the times start at zero, and the time bases of encoder and track are the
source's, so no time is ever rounded.

A chunk file holds video alone. Its frames are counted against the index. Where they differ the source decides: the
interval is decoded once without any seek and counted, for damaged files hold fewer frames than packets.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from pipelines.video import ffmpeg
from pipelines.video.encoders import chunk_suffix, colour_arguments, encoder_arguments, encoder_name, is_lossless
from pipelines.video.index import SourceInfo, VideoStream, read_packets
from pipelines.video.plan import Chunk
from pipelines.video.settings import Settings
from pipelines.video.starts import Starts
from rayflow.errors import InvalidInput, RayflowError

_TRIAL_FRAMES = 8
"""Few, but enough for an encoder that looks ahead to show what it is going to do."""
_IGNORED_OPTION = "Error parsing option|Unknown option|Unknown parameter|has not been used for any stream"
"""How encoders say that they go on without an option, such as ``lossless`` of a SVT-AV1 that cannot do it."""


@dataclass(frozen=True, slots=True)
class EncodedChunk:
    """A finished chunk file. Times are in the source's time base, counted from the chunk's start.

    ``lost_frames``: frames that the index promised but the source does not yield, as in damaged files and in recordings that
    begin in the middle of a group of pictures. ``first_pts`` is 0 unless the first one is among them; a chunk of which all
    are lost has no frames, no codec and no size.
    ``headers_sha256``: hash of the codec's global headers, equal for chunks that may be joined. ``cpu_s`` and
    ``wall_s`` cover all tries.
    """

    name: str
    path: Path
    frames: int
    lost_frames: int
    size_bytes: int
    first_pts: int
    last_pts: int
    codec: str
    width: int
    height: int
    headers_sha256: str
    cpu_s: float
    wall_s: float
    ffmpeg_version: str


def first_shown(info: SourceInfo, chunk: Chunk, done: EncodedChunk) -> int:
    """When the first frame of an encoded chunk is shown in the source, in the stream's time base."""
    return done.first_pts + (info.video.first_pts if chunk.start_pts is None else chunk.start_pts)


class ChunkInexact(RayflowError):
    """A chunk has not the frames that its interval of the source holds, or they cannot be decoded."""


def check(settings: Settings, video: VideoStream) -> tuple[str, ...]:
    """Try the settings out on a few generated frames of the source's pixel format. Returns warnings for the user.

    Raises InvalidInput, with what ffmpeg says, when there is no such encoder or it does not take these options; when what
    it makes cannot be decoded; when filters do not keep the number of frames and their times; and when the encoder would
    have to convert the pixel format of a source that is to be encoded without loss. Takes about 0.2 s.
    """
    encoder = encoder_name(settings)
    binary = ffmpeg.find(encoder)
    warnings: list[str] = []
    if not settings.filters:
        taken = ffmpeg.pixel_formats(binary, encoder)
        if taken and not {video.pixel_format, _without_range(video.pixel_format)} & {*taken}:
            if is_lossless(settings):
                raise InvalidInput(
                    f"{settings.codec} cannot hold {video.pixel_format} without loss: use ffv1, or convert by "
                    f'filters="format={taken[0]}"'
                )
            warnings.append(f"{settings.codec} does not take {video.pixel_format}: the frames are converted")
    _try(binary, settings, video)
    return tuple(warnings)


def _try(binary: ffmpeg.Binary, settings: Settings, video: VideoStream) -> None:
    """Encode a few generated frames and look at the result. They come at irregular times, which filters must keep."""
    # Only filters care about the size, and a small picture is quicker; encoders care about what is left over.
    width, height = (video.width, video.height) if settings.filters else (320 + video.width % 8, 240 + video.height % 8)
    if video.rotation % 180:
        width, height = height, width
    tick = max(1, round(Fraction(1, 25) / video.time_base))
    times = f"settb={video.time_base_num}/{video.time_base_den},setpts={tick}*N*(N+1)/2"
    node = ffmpeg.source(f"testsrc2=size={width}x{height}:rate=25:duration={_TRIAL_FRAMES / 25}", f="lavfi")
    chain = ",".join(filter(None, (f"format={video.pixel_format}", times, settings.filters)))
    options: dict[str, object] = {"filter:v": chain, **_timing(video, chunk_suffix(settings))}
    arguments = [*colour_arguments(settings, video), *encoder_arguments(settings, video)]
    with tempfile.TemporaryDirectory(prefix="rayflow-trial-") as folder:
        output = Path(folder, f"trial{chunk_suffix(settings)}")
        command = ffmpeg.compile_command(binary, ffmpeg.target([node], output, **options), arguments)
        try:
            done = ffmpeg.run(command)
        except ffmpeg.FfmpegFailed as failure:
            odd = f" (the video is {video.width}x{video.height})" if video.width % 2 or video.height % 2 else ""
            raise InvalidInput(f"ffmpeg {binary.version} does not take these settings: {failure.reason}{odd}") from failure
        ignored = [line for line in done.tail.splitlines() if re.search(_IGNORED_OPTION, line)]
        if ignored:
            raise InvalidInput(f"{settings.codec} of ffmpeg {binary.version} does not know an option: {' | '.join(ignored)}")
        blamed = f"filters={settings.filters!r}" if settings.filters else "ffmpeg_args"
        kept = "use only what gives one frame for each, at its time"
        if done.frames != _TRIAL_FRAMES:
            raise InvalidInput(f"{blamed} turn {_TRIAL_FRAMES} frames into {done.frames}: {kept}")
        try:
            made = _examine("trial", video.time_base, output, done, binary.version)
        except ChunkInexact as error:
            raise InvalidInput(f"these settings do not work: {error}") from error
    if (made.first_pts, made.last_pts) != (0, tick * (_TRIAL_FRAMES - 1) * _TRIAL_FRAMES // 2):
        raise InvalidInput(f"{blamed} move frames in time: {kept}")


def encode_chunk(
    source: str,
    info: SourceInfo,
    chunk: Chunk,
    settings: Settings,
    output: Path,
    on_progress: Callable[[ffmpeg.Progress], None] | None = None,
) -> EncodedChunk:
    """Encode one chunk of ``source`` to ``output``, replacing it; its suffix must be ``chunk_suffix(settings)``.

    Give each attempt an output name of its own: a lost attempt may still be writing. Raises FfmpegFailed when ffmpeg
    fails, ChunkInexact when the frames are not those of the interval; the output file is gone then.
    """
    if output.suffix != chunk_suffix(settings):
        raise InvalidInput(f"{output}: a chunk of {settings.codec} must be named *{chunk_suffix(settings)}")
    binary = ffmpeg.find(encoder_name(settings))
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        encoded = _encode(binary, source, info, chunk, settings, output, on_progress)
        if encoded.frames == chunk.frames:
            return encoded
        spent = _count(binary, source, info, replace(chunk, seek_pts=None))
        held = spent.frames
        encoded = replace(encoded, cpu_s=encoded.cpu_s + spent.cpu_s, wall_s=encoded.wall_s + spent.wall_s)
        if encoded.frames != held and chunk.seek_pts is not None:
            again = _encode(binary, source, info, replace(chunk, seek_pts=None), settings, output, on_progress)
            encoded = replace(again, cpu_s=encoded.cpu_s + again.cpu_s, wall_s=encoded.wall_s + again.wall_s)
        if encoded.frames != held:
            raise ChunkInexact(
                f"{source}: chunk {chunk.name} was encoded to {encoded.frames} frames, but decodes to "
                f"{held} (the index promised {chunk.frames}): check `filters` and `ffmpeg_args`, which must keep every "
                f"frame"
            )
        return replace(encoded, lost_frames=chunk.frames - held)
    except BaseException:
        output.unlink(missing_ok=True)
        raise


def _encode(
    binary: ffmpeg.Binary,
    source: str,
    info: SourceInfo,
    chunk: Chunk,
    settings: Settings,
    output: Path,
    on_progress: Callable[[ffmpeg.Progress], None] | None,
) -> EncodedChunk:
    video = info.video
    relabel = _relabel_filter(video, ffmpeg.pixel_formats(binary, encoder_name(settings)))
    options: dict[str, object] = {
        "filter:v": ",".join(filter(None, (trim_filter(chunk), _rebase_filter(chunk), relabel, settings.filters))),
        "map_metadata": "-1",
        "map_chapters": "-1",
        "max_error_rate": 1,  # what cannot be decoded is told by the number of frames
        **_timing(video, output.suffix),
    }
    node = ffmpeg.target([cut_input(source, info, chunk, settings.threads)], output, **options)
    command = ffmpeg.compile_command(binary, node, [*colour_arguments(settings, video), *encoder_arguments(settings, video)])
    done = ffmpeg.run(command, _in_media_time(chunk, on_progress))
    return _examine(chunk.name, video.time_base, output, done, binary.version)


def _timing(video: VideoStream, suffix: str) -> dict[str, object]:
    """Output options that keep every time of the source in a chunk file."""
    options: dict[str, object] = {
        "fps_mode": "passthrough",
        "enc_time_base": f"{video.time_base_num}:{video.time_base_den}",
    }
    if suffix == ".mp4":
        options["video_track_timescale"] = video.time_base_den
    return options


def _in_media_time(chunk: Chunk, on_progress: Callable[[ffmpeg.Progress], None] | None) -> Callable[[ffmpeg.Progress], None] | None:
    """Tell time and speed by the frames that are done: with original time stamps ffmpeg's own numbers mean nothing."""
    if on_progress is None:
        return None
    began_s = time.monotonic()

    def tell(progress: ffmpeg.Progress) -> None:
        done_s = chunk.duration_s * progress.frames / chunk.frames
        on_progress(replace(progress, out_time_s=done_s, speed=done_s / max(time.monotonic() - began_s, 1e-3)))

    return tell


def cut_input(source: str, info: SourceInfo, chunk: Chunk, threads: int) -> ffmpeg.Node:
    """The video stream of the source, from where a chunk must be decoded, as an ffmpeg-python node."""
    options: dict[str, object] = {"fflags": "+genpts", "threads": threads}
    if chunk.start_pts is not None:
        options["copyts"] = None
    if chunk.seek_pts is not None:
        options |= {
            "seek_timestamp": 1,
            "noaccurate_seek": None,
            "ss": ffmpeg.seconds(chunk.seek_pts * info.video.time_base),
        }
    return ffmpeg.source(source, **options)[str(info.video.index)]


def trim_filter(chunk: Chunk) -> str:
    """The filter that lets the frames of a chunk through."""
    if chunk.start_pts is None:
        return "null"
    end = "" if chunk.end_pts is None else f":end_pts={chunk.end_pts}"
    return f"trim=start_pts={chunk.start_pts}{end}"


def _rebase_filter(chunk: Chunk) -> str:
    """The filter that makes the chunk's start time zero."""
    return "setpts=PTS-STARTPTS" if chunk.start_pts is None else f"setpts=PTS-({chunk.start_pts})"


def _relabel_filter(video: VideoStream, taken: tuple[str, ...]) -> str:
    """Full range is a pixel format of its own in old decoders. An encoder that takes only the plain one gets the same
    samples under that name; ffmpeg 5.1, left to itself, would squeeze them into limited range."""
    plain = _without_range(video.pixel_format)
    if plain == video.pixel_format or video.pixel_format in taken or plain not in taken:
        return ""
    return f"scale=in_range=full:out_range=full,format={plain}"


def _without_range(pixel_format: str) -> str:
    return pixel_format.replace("yuvj", "yuv")


def _count(binary: ffmpeg.Binary, source: str, info: SourceInfo, chunk: Chunk) -> ffmpeg.Finished:
    """Decode a chunk's interval and nothing else."""
    options = {"filter:v": trim_filter(chunk), "fps_mode": "passthrough", "f": "null", "max_error_rate": 1}
    node = ffmpeg.target([cut_input(source, info, chunk, 1)], "-", **options)
    return ffmpeg.run(ffmpeg.compile_command(binary, node))


def _examine(name: str, source_tick_s: Fraction, output: Path, done: ffmpeg.Finished, version: str) -> EncodedChunk:
    """Read the chunk file back, by packets, and decode its first frames."""
    empty = EncodedChunk(
        name=name,
        path=output,
        frames=0,
        lost_frames=0,
        size_bytes=output.stat().st_size,
        first_pts=0,
        last_pts=0,
        codec="",
        width=0,
        height=0,
        headers_sha256="",
        cpu_s=done.cpu_s,
        wall_s=done.wall_s,
        ffmpeg_version=version,
    )
    if not done.frames:  # ffmpeg then has never opened the encoder, and what it wrote has no stream
        return empty
    with av.open(str(output)) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        ticks = Fraction(stream.time_base or 1) / source_tick_s
        starts = Starts(context, [0])
        shown = np.sort(read_packets(container, stream.index, str(output), starts.see).pts)
        starts.finish()
        for reason in starts.bad.values():
            raise ChunkInexact(
                f"chunk {name} was encoded, but cannot be decoded from its first frame on ({reason}): use another codec, preset or "
                f"`ffmpeg_args`"
            )
        return replace(
            empty,
            frames=int(shown.size),
            first_pts=round(int(shown[0]) * ticks) if shown.size else 0,
            last_pts=round(int(shown[-1]) * ticks) if shown.size else 0,
            codec=context.codec.canonical_name,
            width=context.width,
            height=context.height,
            headers_sha256=hashlib.sha256(bytes(context.extradata or b"")).hexdigest(),
        )
