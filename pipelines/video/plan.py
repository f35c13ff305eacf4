"""Where to cut: from the packets of a source and the settings to chunks that tile its time line exactly.

Pure. A chunk is a half-open interval [start, end) of presentation times in the stream's time base, so each frame lies
in exactly one chunk whatever its time; cuts lie on the time of a frame. A cut need not be at a key frame: the encoder
is told where to seek to and drops what it decodes before the cut. Cuts near key frames only save that decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from pipelines.video.index import SourceIndex, SourceInfo
from pipelines.video.settings import SHORTEST_SENSIBLE_CHUNK_S, Settings
from rayflow.errors import InvalidInput

SCENE_INTERVAL_S = 60.0
MOST_CHUNKS = 10_000
"""A day in chunks of ten seconds. More are refused: each is a process to start and a file to keep."""
DECODE_AGAIN_MOST = 4.0
"""How often, at most, the frames of the source may be decoded over all chunks when the planner chooses the cuts."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of the video stream: frames with ``start_pts`` <= pts < ``end_pts``, in the stream's time base.

    ``start_pts`` is None for a source that cannot be cut: the one chunk is then whatever ffmpeg reads. ``end_pts`` is
    None for the last chunk. ``seek_pts`` is the key frame to start decoding at, None for the start of the file.
    ``frames`` is the number to expect, ``duration_s`` the length (of the last chunk: up to its last frame), for
    display; ``source_bytes`` is what the packets of its interval take in the source.
    """

    name: str
    start_pts: int | None
    end_pts: int | None
    seek_pts: int | None
    frames: int
    duration_s: float
    source_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """How a source is to be encoded. ``warnings`` are for the user."""

    info: SourceInfo
    chunks: tuple[Chunk, ...]
    warnings: tuple[str, ...]


def make(index: SourceIndex, settings: Settings, scenes: tuple[int, ...] = ()) -> Plan:
    """Cut a source into chunks. ``scenes`` are presentation times of scene changes, for the split "scenes".

    Raises InvalidInput for cut times that no chunk can begin at, and for too many chunks.
    """
    info = index.info
    warnings = list(info.warnings)
    if info.uncuttable:
        if settings.split != "none":
            warnings.append(f"encoded in one piece, because {info.uncuttable}")
        return Plan(info, (Chunk("0000", None, None, None, info.video.frames, info.duration_s),), tuple(warnings))
    shown = np.unique(index.packets.shown())
    cuts = _cuts(index, settings, shown, scenes, warnings)
    return Plan(info, _chunks(index, cuts), tuple(warnings))


def longest_first(chunks: Sequence[Chunk]) -> list[Chunk]:
    """The order in which to hand chunks to workers: the one with most work first, so that no long one is left for the
    end, when the other workers have nothing to do.

    Work is told from the share of frames and the share of the source's bytes: a scene that was hard to encode for
    whoever made the source is hard again. Longest first ends within 4/3 of the best order (Graham, Bounds on
    multiprocessing timing anomalies, 1969).
    """
    frames = sum(chunk.frames for chunk in chunks) or 1
    source_bytes = sum(chunk.source_bytes for chunk in chunks) or 1
    return sorted(chunks, key=lambda chunk: -(chunk.frames / frames + chunk.source_bytes / source_bytes))


def scene_intervals(index: SourceIndex) -> tuple[Chunk, ...]:
    """Intervals to look for scene changes in, side by side, with ``scenes.detect``. Empty for a source that cannot be
    cut.

    Each but the first begins one frame early, for a change needs the frame before it.
    """
    if index.info.uncuttable:
        return ()
    intervals = make(index, Settings(split="keyframes", chunk_seconds=SCENE_INTERVAL_S)).chunks
    shown = np.unique(index.packets.shown())
    before = [int(shown[np.searchsorted(shown, chunk.start_pts or 0) - 1]) for chunk in intervals[1:]]
    return (intervals[0], *(replace(chunk, start_pts=at) for chunk, at in zip(intervals[1:], before, strict=True)))


def _cuts(
    index: SourceIndex, settings: Settings, shown: NDArray[np.int64], scenes: tuple[int, ...], warnings: list[str]
) -> NDArray[np.int64]:
    """Presentation times of the frames that begin a chunk, the first frame excepted; ascending and distinct."""
    none = np.empty(0, np.int64)
    video = index.info.video
    if settings.split == "none" or shown.size < 2:
        return none
    if not isinstance(settings.split, str):
        return _explicit(settings.split, shown, video.time_base)
    step = Fraction(settings.chunk_seconds) / video.time_base
    length = int(shown[-1] - shown[0])
    if length > MOST_CHUNKS * step:
        least_s = float(length * video.time_base) / MOST_CHUNKS
        raise InvalidInput(
            f"chunk_seconds={settings.chunk_seconds:g} would make more than {MOST_CHUNKS:,} chunks: give at least {least_s:.2g}"
        )
    if settings.split == "fixed":
        count = int(length // step) + 1
        if count > 1 and length - (count - 1) * step < min(step, Fraction(SHORTEST_SENSIBLE_CHUNK_S) / video.time_base) / 2:
            count -= 1
        wanted = [shown[0] + step * number for number in range(1, count)]
        anchors = none
    else:
        count = max(1, round(length / step))
        wanted = [shown[0] + Fraction(length * number, count) for number in range(1, count)]
        anchors = np.array(scenes, np.int64) if settings.split == "scenes" else index.packets.keys()
        anchors = np.intersect1d(anchors, shown[1:])
    while True:
        cuts = _snap(wanted, shown, anchors, _reach(Fraction(length, max(1, len(wanted) + 1)), video.time_base))
        decoded = _decoded_frames(index, cuts)
        if not wanted or decoded <= DECODE_AGAIN_MOST * shown.size:
            break
        if len(wanted) + 1 == count:
            warnings.append(
                f"{video.key_frames} key frame(s) in {index.info.duration_s:.0f} s: chunks are decoded from far before "
                f"their start, so there are fewer and longer ones than asked for"
            )
        fewer = max(1, int(len(wanted) * 0.8))
        wanted = [shown[0] + Fraction(length * number, fewer) for number in range(1, fewer)]
    return cuts


def _explicit(seconds: tuple[float, ...], shown: NDArray[np.int64], time_base: Fraction) -> NDArray[np.int64]:
    """The first frame at or after each time. Half a microsecond of tolerance lets 1/3 s written as 0.333333 name its
    frame."""
    cuts: list[int] = []
    for at in seconds:
        wanted = int(shown[0]) + (Fraction(at) - Fraction(1, 2_000_000)) / time_base
        place = int(np.searchsorted(shown, -(-wanted.numerator // wanted.denominator)))
        if place >= shown.size:
            last_s = float(int(shown[-1] - shown[0]) * time_base)
            raise InvalidInput(f"split at {at:g} s is beyond the last frame at {last_s:.3f} s: give an earlier time")
        cuts.append(int(shown[place]))
    return np.setdiff1d(np.array(cuts, np.int64), shown[:1])


def _reach(chunk_pts: Fraction, time_base: Fraction) -> Fraction:
    """How far a cut may move to meet a key frame: never so far that two cuts come closer than the shortest sensible
    chunk."""
    shortest = Fraction(SHORTEST_SENSIBLE_CHUNK_S) / time_base
    if chunk_pts <= shortest:
        return chunk_pts / 4
    return min(chunk_pts / 3, max((chunk_pts - shortest) / 2, chunk_pts / 8))


def _snap(wanted: list[Fraction], shown: NDArray[np.int64], anchors: NDArray[np.int64], reach: Fraction) -> NDArray[np.int64]:
    """For each wanted time the nearest anchor within reach, else the first frame at or after it."""
    cuts: list[int] = []
    for at in wanted:
        place = int(np.searchsorted(anchors, float(at)))
        near = [int(anchor) for anchor in anchors[max(0, place - 1) : place + 1] if abs(int(anchor) - at) <= reach]
        if near:
            cuts.append(min(near, key=lambda anchor: abs(anchor - at)))
        else:
            cuts.append(int(shown[min(int(np.searchsorted(shown, -(-at.numerator // at.denominator))), shown.size - 1)]))
    return np.setdiff1d(np.array(cuts, np.int64), shown[:1])


def _seek(keys: NDArray[np.int64], start: int) -> int | None:
    """One key frame before the last one at or before ``start``; None if that is the first of the file, or there is
    none."""
    place = int(np.searchsorted(keys, start, side="right")) - 2
    return int(keys[place]) if place > 0 else None


def _decoded_frames(index: SourceIndex, cuts: NDArray[np.int64]) -> int:
    """Frames that all chunks together decode."""
    shown, keys = index.packets.shown(), index.packets.keys()
    ends = [*np.searchsorted(shown, cuts), shown.size]
    seeks = [None, *(_seek(keys, int(cut)) for cut in cuts)]
    starts = [0 if seek is None else int(np.searchsorted(shown, seek)) for seek in seeks]
    return sum(int(end) - start for start, end in zip(starts, ends, strict=True))


def _chunks(index: SourceIndex, cuts: NDArray[np.int64]) -> tuple[Chunk, ...]:
    shown, keys = index.packets.shown(), index.packets.keys()
    starts = [int(shown[0]), *(int(cut) for cut in cuts)]
    bytes_of = np.bincount(
        np.searchsorted(starts, index.packets.pts, side="right"), index.packets.size, minlength=len(starts) + 1
    ).astype(np.int64)
    places = [*(int(place) for place in np.searchsorted(shown, starts)), int(shown.size)]
    time_base = index.info.video.time_base
    width = max(4, len(str(len(starts) - 1)))
    chunks: list[Chunk] = []
    for number, start in enumerate(starts):
        end = starts[number + 1] if number + 1 < len(starts) else None
        length = (end if end is not None else int(shown[-1])) - start
        chunks.append(
            Chunk(
                name=f"{number:0{width}}",
                start_pts=start,
                end_pts=end,
                seek_pts=_seek(keys, start) if number else None,
                frames=places[number + 1] - places[number],
                duration_s=float(length * time_base),
                source_bytes=int(bytes_of[number + 1]),
            )
        )
    return tuple(chunks)
