"""What the index says of real files, and what it refuses in words that help."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.video import index
from rayflow.errors import InvalidInput
from tests.pipelines.conversion import clip, generate, picture, tone


def refusal(path: Path | str) -> str:
    with pytest.raises(InvalidInput) as caught:
        index.read(str(path))
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_what_is_no_video_is_refused_in_one_line(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "absent.mp4")
    assert "not a file" in refusal(tmp_path)
    empty = tmp_path / "empty.mp4"
    empty.touch()
    assert "is empty" in refusal(empty)
    text = tmp_path / "notes.mp4"
    text.write_text("this is not a video\n" * 400)
    assert "cannot be read as a video" in refusal(text)
    headless = tmp_path / "cut-off.mp4"
    headless.write_bytes(Path(generate(tmp_path / "whole.mp4", *picture(1))).read_bytes()[:4000])
    assert "cannot be read as a video" in refusal(headless)


def test_sound_alone_is_refused(tmp_path: Path) -> None:
    assert "no video stream, only audio" in refusal(generate(tmp_path / "tone.m4a", *tone(1)))
    assert "no video stream, only audio" in refusal(clip("audio-only.mp4"))


def test_cover_art_is_not_a_video(tmp_path: Path) -> None:
    cover = generate(tmp_path / "cover.png", *picture(1), "-frames:v", "1")
    song = generate(
        tmp_path / "song.m4a",
        *tone(1),
        "-i",
        cover,
        "-map",
        "0",
        "-map",
        "1",
        "-c:v",
        "copy",
        "-disposition:v",
        "attached_pic",
    )
    assert "no video stream" in refusal(song)
    film = generate(
        tmp_path / "film.mp4", "-i", cover, *picture(1), "-map", "0", "-map", "1",
        "-c:v:0", "copy", "-c:v:1", "libx264",
        "-disposition:v:0", "attached_pic",
    )  # fmt: skip
    info = index.read(film).info
    assert (info.video.codec, info.video.frames) == ("h264", 25)
    assert [stream.kind for stream in info.others] == ["picture"]


def test_the_default_video_stream_is_chosen(tmp_path: Path) -> None:
    source = generate(
        tmp_path / "two.mkv", *picture(1, "64x36"), *picture(1, "128x72"), "-map", "0", "-map", "1",
        "-disposition:v:0", "0", "-disposition:v:1", "default",
    )  # fmt: skip
    info = index.read(source).info
    assert (info.video.index, info.video.width) == (1, 128)
    assert "only number 1 is encoded" in info.warnings[0]


def test_inventory_of_a_file_with_many_streams() -> None:
    info = index.read(clip("multitrack.mp4")).info
    assert [(stream.index, stream.kind, stream.codec) for stream in info.others] == [
        (1, "audio", "aac"), (2, "subtitle", "mov_text"), (3, "video", "h264"),
        (4, "audio", "aac"), (5, "subtitle", "mov_text"),
    ]  # fmt: skip
    assert index.read(clip("chapters.mkv")).info.chapters == 2


def test_packets_carry_the_exact_times_of_the_file() -> None:
    indexed = index.read(clip("mpeg2-1080p.ts"))
    video = indexed.info.video
    assert (video.time_base_den, video.frames, video.key_frames, video.first_pts) == (90_000, 58, 12, 137_250)
    vfr = index.read(clip("phone-vfr.mp4"))
    assert set((vfr.packets.shown()[1:] - vfr.packets.shown()[:-1]).tolist()) == {3003, 3012, 3021}
    flv = index.read(clip("sample.flv")).info
    assert (flv.video.first_pts, flv.origin_us) == (67, 67_000)


def test_a_file_that_is_cut_short_is_noticed(tmp_path: Path) -> None:
    whole = Path(generate(tmp_path / "whole.mp4", *picture(4), "-movflags", "+faststart"))
    part = tmp_path / "part.mp4"
    part.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    info = index.read(str(part)).info
    assert 0 < info.video.frames < 100
    assert info.warnings == (f"the file is cut short: its header promises 100 frames, {info.video.frames} are there",)
    assert index.read(str(whole)).info.warnings == ()


def test_missing_time_stamps_are_generated(tmp_path: Path) -> None:
    source = generate(tmp_path / "a.mpg", *picture(), "-c:v", "mpeg2video", "-bf", "2")
    indexed = index.read(source)
    assert indexed.info.uncuttable == ""
    assert (indexed.packets.shown()[1:] - indexed.packets.shown()[:-1]).tolist() == [3600] * 249


def test_colour_hdr_rotation_and_fields_are_read() -> None:
    hdr = index.read(clip("hdr10-tags.mp4")).info.video
    assert (hdr.color_primaries, hdr.color_transfer, hdr.color_space, hdr.color_range) == (9, 16, 9, 1)
    assert hdr.hdr.primaries == (33_899, 16_099, 12_250, 35_150, 6_899, 2_600, 15_634, 16_449)
    assert (hdr.hdr.luminance_max, hdr.hdr.max_content, hdr.hdr.max_average) == (10_000_000, 1100, 180)
    assert index.read(clip("rotated-90.mov")).info.video.rotation == -90
    assert not index.read(clip("bikes.mp4")).info.video.interlaced


def test_interlaced_fields_are_noticed(tmp_path: Path) -> None:
    source = generate(
        tmp_path / "a.ts",
        *picture(2),
        "-vf",
        "tinterlace=interleave_top,fieldorder=tff",
        "-c:v",
        "libx264",
        "-flags",
        "+ilme+ildct",
    )
    assert index.read(source).info.video.interlaced


def test_a_source_can_be_read_over_http(tmp_path: Path) -> None:
    generate(tmp_path / "a.ts", *picture(1))
    script = (
        "import functools, http.server, sys\n"
        "handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=sys.argv[1])\n"
        "server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)\n"
        "print(server.server_port, flush=True)\n"
        "server.serve_forever()\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout is not None
            port = server.stdout.readline().strip()
            assert index.read(f"http://127.0.0.1:{port}/a.ts").info.video.frames == 25
            assert "cannot be read" in refusal(f"http://127.0.0.1:{port}/absent.ts")
        finally:
            server.kill()
