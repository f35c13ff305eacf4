"""Compare an output with its source, by packets: the frames, their times, the sound beside them.

Of the video only the first frames of every chunk are decoded, see ``starts``, so this costs little beside the encoding and runs
before the output takes its final name. Times are compared relative to the first frame, for a muxer may shift all streams of a
file together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from pathlib import Path
from typing import cast

import numpy as np
from av.video.stream import VideoStream
from numpy.typing import NDArray

from pipelines.video.audio import AudioChoice
from pipelines.video.containers import container_of
from pipelines.video.encode import EncodedChunk, first_shown
from pipelines.video.index import SourceIndex, choose, open_input, read_packets
from pipelines.video.plan import Chunk
from pipelines.video.starts import Starts
from rayflow.errors import RayflowError

_COPIED_AUDIO_TOLERANCE_S = 0.0085
"""Two ticks of Matroska, and 6.5 ms: ffmpeg 5.1 counts the delay of Opus twice there. Later versions are exact to the
tick."""
_ENCODED_AUDIO_TOLERANCE_S = 0.05
"""Encoders pad the start and fill the last packet: this and one packet."""


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What was compared. ``worst_time_error_s`` is over all frames; ``audio_offset_error_s`` over all tracks, of their
    starts against the first frame; ``duration_s`` is from the first frame to the last."""

    frames: int
    lost_frames: int
    worst_time_error_s: float
    duration_s: float
    audio_tracks: int
    audio_offset_error_s: float


class OutputInexact(RayflowError):
    """The output does not hold the source's frames at their times, or its sound is displaced. The output was not
    published."""


def verify(
    index: SourceIndex, chunks: Sequence[Chunk], encoded: Sequence[EncodedChunk], audio: AudioChoice, output: Path
) -> VerifyReport:
    """Compare ``output`` with the source. Raises OutputInexact that names the first chunk and frame that differ."""
    video = index.info.video
    with open_input(str(output)) as container:
        number = choose(container, str(output))
        stream = container.streams[number]
        tick_s = Fraction(stream.time_base or 1)
        held = [done for done in encoded if done.frames]
        starts = Starts(cast(VideoStream, stream).codec_context, [0, *accumulate(done.frames for done in held[:-1])])
        packets = read_packets(container, number, str(output), starts.see)
        starts.finish()
    shown = np.sort(packets.pts[~packets.discard])
    _check_count(chunks, encoded, shown.size, output)
    for place, reason in starts.bad.items():
        raise OutputInexact(
            f"{output}: the video cannot be decoded at the start of chunk {held[place].name} ({reason}): encode to .mkv, or choose "
            f"another codec"
        )
    # The first frames that the source promises may be among those that nobody can decode.
    begin = next(first_shown(index.info, chunk, done) for chunk, done in zip(chunks, encoded, strict=True) if done.frames)
    late_s = float((begin - video.first_pts) * video.time_base)
    worst_s = 0.0
    if not index.info.uncuttable:
        tolerance_s = Fraction(container_of(output).tick_us, 1_000_000) + Fraction(1, 1_000_000)
        if tick_s <= video.time_base and tick_s >= Fraction(1, 1_000_000) and not container_of(output).tick_us:
            tolerance_s = Fraction(0)
        worst_s = _check_times(index, chunks, encoded, _relative_s(shown, tick_s) + late_s, float(tolerance_s), output)
    audio_error_s = _check_audio(index, audio, output, float(shown[0] * tick_s) - late_s)
    return VerifyReport(
        frames=int(shown.size),
        lost_frames=sum(chunk.lost_frames for chunk in encoded),
        worst_time_error_s=worst_s,
        duration_s=float(int(shown[-1] - shown[0]) * tick_s),
        audio_tracks=0 if audio.encoder == "none" else len(index.info.of_kind("audio")),
        audio_offset_error_s=audio_error_s,
    )


def _relative_s(pts: NDArray[np.int64], tick_s: Fraction) -> NDArray[np.float64]:
    return (pts - pts[0]).astype(np.float64) * tick_s.numerator / tick_s.denominator


def _check_count(chunks: Sequence[Chunk], encoded: Sequence[EncodedChunk], frames: int, output: Path) -> None:
    if [chunk.name for chunk in chunks] != [done.name for done in encoded]:
        raise OutputInexact(f"{output}: the chunks that were joined are not those of the plan, in its order")
    expected = sum(done.frames for done in encoded)
    if frames != expected:
        raise OutputInexact(f"{output} holds {frames} frames, its chunks {expected}: join again; if it stays, encode to .mkv")


def _check_times(
    index: SourceIndex,
    chunks: Sequence[Chunk],
    encoded: Sequence[EncodedChunk],
    got_s: NDArray[np.float64],
    tolerance_s: float,
    output: Path,
) -> float:
    """Largest error, in seconds. Frames that a damaged source does not yield are skipped in its time line."""
    shown = index.packets.shown()
    wanted_s = _relative_s(shown, index.info.video.time_base)
    place = taken = 0
    worst = 0.0
    for chunk, done in zip(chunks, encoded, strict=True):
        wanted = wanted_s[place : place + chunk.frames]
        got = got_s[taken : taken + done.frames]
        if done.lost_frames:
            after = np.searchsorted(wanted, got).clip(max=wanted.size - 1)
            before = (after - 1).clip(min=0)
            wanted = np.where(got - wanted[before] < wanted[after] - got, wanted[before], wanted[after])
        errors = np.abs(wanted - got)
        # a float of a time of day is good to a few picoseconds; a tick never is shorter than a nanosecond
        wrong = np.flatnonzero(errors > tolerance_s + 1e-9)
        if wrong.size:
            first = int(wrong[0])
            raise OutputInexact(
                f"{output}: frame {first} of chunk {chunk.name} (frame {taken + first} of the video) is shown at "
                f"{got[first]:.6f} s, in the source at {wanted[first]:.6f} s: encode that chunk again"
            )
        worst = max(worst, float(errors.max(initial=0.0)))
        place += chunk.frames
        taken += done.frames
    return worst


def _check_audio(index: SourceIndex, audio: AudioChoice, output: Path, first_frame_s: float) -> float:
    """Largest displacement of a track's start against the first frame, in seconds."""
    tracks = index.info.of_kind("audio")
    if audio.encoder == "none" or index.info.uncuttable:
        return 0.0
    with open_input(str(output)) as container:
        written = [stream.index for stream in container.streams.audio]
    if len(written) != len(tracks):
        raise OutputInexact(f"{output} has {len(written)} audio tracks, the source {len(tracks)}: join again")
    source_first_s = float(index.info.video.first_pts * index.info.video.time_base)
    worst = 0.0
    source_spans, output_spans = (
        _spans(index.info.path, [track.index for track in tracks]),
        _spans(str(output), written),
    )
    for number, was, now in zip(written, source_spans, output_spans, strict=True):
        copied = audio.encoder == "copy"
        tolerance_s = _COPIED_AUDIO_TOLERANCE_S if copied else _ENCODED_AUDIO_TOLERANCE_S + max(was.longest_s, now.longest_s)
        if copied and was.packets != now.packets:
            raise OutputInexact(
                f"{output}: audio track {number} has {now.packets} packets, in the source {was.packets}: join again"
            )
        for name, before, after in (("starts", was.start_s, now.start_s), ("ends", was.end_s, now.end_s)):
            error = abs((after - first_frame_s) - (before - source_first_s))
            if error > tolerance_s:
                raise OutputInexact(
                    f"{output}: audio track {number} {name} {after - first_frame_s:.4f} s after the first frame, "
                    f"in the source {before - source_first_s:.4f} s: encode to .mkv, or choose another audio codec"
                )
            if name == "starts":
                worst = max(worst, error)
    return worst


@dataclass(frozen=True, slots=True)
class _Span:
    packets: int
    start_s: float
    end_s: float
    longest_s: float


def _spans(path: str, streams: list[int]) -> list[_Span]:
    """The spans of several streams, from one pass over the file."""
    times: dict[int, list[int]] = {stream: [] for stream in streams}
    with open_input(path) as container:
        ticks_s = [Fraction(container.streams[stream].time_base or 1) for stream in streams]
        for packet in container.demux(*(container.streams[stream] for stream in streams)):
            if packet.pts is not None:
                times[packet.stream_index].append(packet.pts)
    return [_span(np.sort(np.array(times[stream], np.int64)), tick_s) for stream, tick_s in zip(streams, ticks_s, strict=True)]


def _span(pts: NDArray[np.int64], tick_s: Fraction) -> _Span:
    if not pts.size:
        return _Span(0, 0.0, 0.0, 0.0)
    first, last, longest = (float(int(at) * tick_s) for at in (pts[0], pts[-1], np.diff(pts).max(initial=0)))
    return _Span(int(pts.size), first, last, longest)
