"""One chunk: exact or an error, never a wrong file that looks right."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.video import encode, ffmpeg, index, plan
from pipelines.video.settings import Settings
from tests.pipelines.conversion import LOSSLESS, clip, encode_all, generate, picture


@pytest.fixture(scope="module")
def open_groups(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A transport stream whose groups of pictures begin with frames that need the group before."""
    return generate(
        tmp_path_factory.mktemp("source") / "open.ts", *picture(), "-c:v", "libx264", "-preset", "veryfast",
        "-x264-params", "open-gop=1:keyint=25:bframes=3:scenecut=0",
    )  # fmt: skip


def test_a_seek_to_the_last_key_frame_loses_frames_and_is_mended(open_groups: str, tmp_path: Path) -> None:
    """Shows that the key frame before is needed, and that a seek that went wrong is noticed and not believed."""
    indexed = index.read(open_groups)
    key = int(indexed.packets.keys()[5])
    leading = int(indexed.packets.shown()[indexed.packets.shown() < key][-1])
    cut = float((leading - indexed.info.video.first_pts) * indexed.info.video.time_base)
    planned = plan.make(indexed, replace(LOSSLESS, split=(cut,)))
    hasty = replace(planned.chunks[1], seek_pts=key)
    settings = LOSSLESS
    binary = ffmpeg.find()
    raw = ffmpeg.target(
        [encode.cut_input(open_groups, indexed.info, hasty, 1)],
        "-",
        f="null",
        **{"filter:v": encode.trim_filter(hasty)},
    )
    assert ffmpeg.run(ffmpeg.compile_command(binary, raw)).frames < hasty.frames
    mended = encode.encode_chunk(open_groups, indexed.info, hasty, settings, tmp_path / "0001.mp4")
    assert (mended.frames, mended.lost_frames, mended.first_pts) == (hasty.frames, 0, 0)


def test_frames_that_filters_drop_fail_the_chunk_and_leave_no_file(open_groups: str, tmp_path: Path) -> None:
    planned = plan.make(index.read(open_groups), replace(LOSSLESS, split=(5.0,)))
    output = tmp_path / "0000.mp4"
    with pytest.raises(encode.ChunkInexact, match=r"chunk 0000 was encoded to 62 frames, but decodes to 125"):
        encode.encode_chunk(open_groups, planned.info, planned.chunks[0], replace(LOSSLESS, filters="select='mod(n,2)'"), output)
    assert not output.exists()


def test_a_damaged_file_yields_what_can_be_decoded_and_says_what_is_lost(tmp_path: Path) -> None:
    source = clip("corrupted.mp4")
    planned = plan.make(index.read(source), replace(LOSSLESS, split=(2.5,)))
    done = encode_all(source, planned, LOSSLESS, tmp_path)
    assert sum(chunk.frames for chunk in done) == 49
    assert sum(chunk.lost_frames for chunk in done) == 1


def test_what_a_chunk_reports(open_groups: str, tmp_path: Path) -> None:
    planned = plan.make(index.read(open_groups), replace(LOSSLESS, split=(4.0, 8.0)))
    seen: list[ffmpeg.Progress] = []
    chunk = planned.chunks[1]
    done = encode.encode_chunk(
        open_groups, planned.info, chunk, replace(LOSSLESS, filters="scale=96:-2"), tmp_path / "0001.mp4", seen.append
    )
    assert (done.frames, done.first_pts, done.last_pts) == (100, 0, 99 * 3600)
    assert (done.codec, done.width, done.height) == ("h264", 96, 54)
    assert done.size_bytes == done.path.stat().st_size
    assert done.cpu_s > 0
    assert done.wall_s > 0
    assert seen[-1].frames == 100
    assert seen[-1].out_time_s == pytest.approx(4.0, abs=0.1)


def test_chunks_of_different_quality_have_the_same_headers(open_groups: str, tmp_path: Path) -> None:
    planned = plan.make(index.read(open_groups), Settings(split=(5.0,)))
    fine, coarse = Settings(preset="veryfast", crf=18), Settings(preset="veryfast", crf=35)
    headers = {
        encode.encode_chunk(open_groups, planned.info, planned.chunks[0], settings, tmp_path / "0000.mp4").headers_sha256
        for settings in (fine, coarse)
    }
    assert len(headers) == 1
