"""Planning: chunks tile the time line, cuts lie where they serve."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import settings as budget
from hypothesis import strategies as st

from pipelines.video import plan
from pipelines.video.index import Hdr, Packets, SourceIndex, SourceInfo, VideoStream
from pipelines.video.plan import Chunk
from pipelines.video.settings import Settings
from rayflow.errors import InvalidInput


def source(
    pts: Sequence[int], keys: Collection[int], *, den: int = 1000, discard: Collection[int] = (), why: str = ""
) -> SourceIndex:
    """An index as it would be read from a file with these presentation times, key frames and discarded packets."""
    times = np.array(pts, np.int64)
    packets = Packets(
        times,
        np.sort(times),
        np.array([at in keys for at in pts]),
        np.array([at in discard for at in pts]),
        np.array([1000 + at % 7 for at in pts]),
        missing_pts=0,
    )
    shown = packets.shown()
    video = VideoStream(
        index=0, codec="h264", time_base_num=1, time_base_den=den, rate_num=25, rate_den=1, width=64, height=36,
        pixel_format="yuv420p", color_primaries=2, color_transfer=2, color_space=2, color_range=0,
        rotation=0, interlaced=False,
        hdr=Hdr(), first_pts=int(shown[0]), last_pts=int(shown[-1]), frames=int(shown.size),
        key_frames=len(keys), disposition=1,
        language="",
    )  # fmt: skip
    duration_s = float(shown[-1] - shown[0]) / den
    return SourceIndex(SourceInfo("in.mp4", "mov", 0, duration_s, video, (), 0, why, ()), packets)


def regular(seconds: int, keys_every_s: float, first: int = 0) -> SourceIndex:
    """25 frames per second, a key frame at regular distances; times in milliseconds."""
    pts = [first + 40 * number for number in range(seconds * 25)]
    return source(pts, {first + round(keys_every_s * 1000) * number for number in range(int(seconds / keys_every_s) + 1)})


@st.composite
def sources(draw: st.DrawFn) -> SourceIndex:
    gaps = draw(st.lists(st.integers(1, 9000), min_size=0, max_size=120))
    first = draw(st.integers(-5000, 5000))
    pts = [first]
    for gap in gaps:
        pts.append(pts[-1] + gap)
    keys = {pts[0], *draw(st.sets(st.sampled_from(pts)))}
    discard = draw(st.sets(st.sampled_from(pts))) - {pts[-1]}
    order = draw(st.permutations(pts)) if draw(st.booleans()) else pts
    return source(order, keys, discard=discard, den=draw(st.sampled_from((1000, 25, 90_000))))


splits = st.one_of(
    st.sampled_from(("keyframes", "scenes", "fixed", "none")),
    st.lists(st.floats(0, 4, allow_nan=False), max_size=6).map(tuple),
)


@budget(max_examples=300, deadline=None)
@given(sources(), splits, st.floats(0.05, 60), st.lists(st.integers(-5000, 50_000), max_size=5))
def test_each_frame_lies_in_exactly_one_chunk(index: SourceIndex, split: Any, chunk_s: float, scenes: list[int]) -> None:
    try:
        chunks = plan.make(index, Settings(split=split, chunk_seconds=chunk_s), tuple(sorted(scenes))).chunks
    except InvalidInput as error:
        assert "beyond the last frame" in str(error) or "more than 10,000 chunks" in str(error)
        return
    shown, keys = index.packets.shown(), index.packets.keys()
    assert chunks[0].start_pts == shown[0]
    assert chunks[-1].end_pts is None
    assert [chunk.start_pts for chunk in chunks[1:]] == [chunk.end_pts for chunk in chunks[:-1]]
    assert len({chunk.name for chunk in chunks}) == len(chunks)
    assert [chunk.name for chunk in chunks] == sorted(chunk.name for chunk in chunks)
    held = [
        int(((shown >= chunk.start_pts) & (shown < (chunk.end_pts if chunk.end_pts is not None else np.inf))).sum())
        for chunk in chunks
    ]
    assert held == [chunk.frames for chunk in chunks]
    assert min(held) > 0
    assert sum(held) == shown.size
    for chunk in chunks:
        inside = (index.packets.pts >= chunk.start_pts) & (index.packets.pts < (np.inf if chunk.end_pts is None else chunk.end_pts))
        assert chunk.source_bytes == index.packets.size[inside].sum()
    for chunk in chunks:
        if chunk.seek_pts is not None:  # one key frame lies between the seek and the chunk's start, or at it
            assert np.count_nonzero((keys > chunk.seek_pts) & (keys <= chunk.start_pts)) == 1
            assert keys[0] < chunk.seek_pts


@budget(max_examples=200, deadline=None)
@given(sources(), st.sampled_from(("keyframes", "fixed")), st.floats(0.05, 60))
def test_the_planner_never_decodes_the_source_many_times_over(index: SourceIndex, split: str, chunk_s: float) -> None:
    shown = index.packets.shown()
    assume(index.info.duration_s < plan.MOST_CHUNKS * chunk_s)
    chunks = plan.make(index, Settings(split=split, chunk_seconds=chunk_s)).chunks
    decoded = 0
    for chunk in chunks:
        end = shown.size if chunk.end_pts is None else int(np.searchsorted(shown, chunk.end_pts))
        decoded += end - (0 if chunk.seek_pts is None else int(np.searchsorted(shown, chunk.seek_pts)))
    assert decoded <= plan.DECODE_AGAIN_MOST * shown.size


def test_cuts_are_at_the_key_frames_nearest_the_wanted_length() -> None:
    chunks = plan.make(regular(100, keys_every_s=4), Settings()).chunks
    assert [chunk.start_pts for chunk in chunks] == [
        0,
        8000,
        20_000,
        28_000,
        40_000,
        48_000,
        60_000,
        68_000,
        80_000,
        88_000,
    ]
    assert chunks[3].seek_pts == 24_000


def test_a_chunk_is_never_shorter_than_three_seconds_unless_asked_for() -> None:
    for seconds in (7, 12, 33, 61):
        for wanted in (3.5, 5.0, 10.0):
            chunks = plan.make(regular(seconds, keys_every_s=0.6), Settings(chunk_seconds=wanted)).chunks
            assert min(chunk.duration_s for chunk in chunks) > 2.9, (seconds, wanted)
    assert len(plan.make(regular(12, keys_every_s=1), Settings(chunk_seconds=1.0)).chunks) == 12


def test_one_key_frame_caps_the_number_of_chunks_and_says_so() -> None:
    made = plan.make(regular(1000, keys_every_s=2000), Settings())
    assert 2 <= len(made.chunks) <= 8
    assert "1 key frame" in made.warnings[0]
    assert all(chunk.seek_pts is None for chunk in made.chunks)


@pytest.mark.parametrize("split", ["keyframes", "scenes", "fixed"])
def test_more_chunks_than_anybody_wants_are_refused_at_once(split: str) -> None:
    with pytest.raises(InvalidInput, match=r"chunk_seconds=1e-09 would make more than 10,000 chunks: give at least 0\.01"):
        plan.make(regular(100, keys_every_s=4), Settings(split=split, chunk_seconds=1e-9))


def test_fixed_cuts_are_regular_and_leave_no_stub_at_the_end() -> None:
    chunks = plan.make(regular(21, keys_every_s=5, first=-80), Settings(split="fixed")).chunks
    assert [chunk.start_pts for chunk in chunks] == [-80, 9920]
    assert [chunk.frames for chunk in chunks] == [250, 275]


def test_the_chunk_with_most_frames_and_bytes_is_handed_out_first() -> None:
    easy = Chunk("0000", 0, 250, None, 250, 10.0, source_bytes=100_000)
    hard = Chunk("0001", 250, 500, None, 250, 10.0, source_bytes=900_000)
    short = Chunk("0002", 500, 525, None, 25, 1.0, source_bytes=90_000)
    assert plan.longest_first([easy, hard, short]) == [hard, easy, short]
    alike = [replace(easy, name=name) for name in ("0000", "0001", "0002")]
    assert plan.longest_first(alike) == alike


def test_scene_changes_attract_cuts() -> None:
    chunks = plan.make(regular(30, keys_every_s=5), Settings(split="scenes"), (8520, 19_000, 19_040, 29_000)).chunks
    assert [chunk.start_pts for chunk in chunks] == [0, 8520, 19_040]


def test_own_cuts_fall_on_the_first_frame_at_or_after_the_time() -> None:
    thirds = source([number * 512 for number in range(90)], {0}, den=15_360)  # 30 frames per second
    chunks = plan.make(thirds, Settings(split=(0.333333, 1.0, 1.01, 0.0))).chunks
    assert [chunk.start_pts for chunk in chunks] == [0, 5120, 15_360, 15_872]
    with pytest.raises(InvalidInput, match=r"split at 3 s is beyond the last frame at 2\.967 s"):
        plan.make(thirds, Settings(split=(3.0,)))


def test_a_source_that_cannot_be_cut_is_one_chunk_with_the_reason() -> None:
    made = plan.make(replace(regular(100, 5), info=replace(regular(100, 5).info, uncuttable="its times are odd")), Settings())
    assert [(chunk.start_pts, chunk.end_pts, chunk.frames) for chunk in made.chunks] == [(None, None, 2500)]
    assert made.warnings == ("encoded in one piece, because its times are odd",)


def test_scene_intervals_overlap_by_the_frame_that_a_change_is_seen_against() -> None:
    first, second, *_ = plan.scene_intervals(regular(300, keys_every_s=10))
    assert first.end_pts is not None
    assert second.start_pts == first.end_pts - 40
