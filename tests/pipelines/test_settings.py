"""Settings that cannot work are refused with what to do instead; those that can are put into ffmpeg's words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.video import encode, index
from pipelines.video.encoders import chunk_suffix, encoder_arguments, encoder_name
from pipelines.video.settings import Settings
from rayflow.errors import InvalidInput
from tests.pipelines.conversion import convert, frames, generate, picture


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"codec": "x264; rm"}, "use one of x264, x265, svt-av1, vp9, ffv1"),
        ({"crf": 60}, "use 0 to 51"),
        ({"codec": "svt-av1", "crf": 64}, "use 0 to 63"),
        ({"crf": 20, "lossless": True}, "leave one of them out"),
        ({"codec": "ffv1", "crf": 20}, "takes no crf"),
        ({"codec": "mpeg4", "lossless": True}, "give its options as ffmpeg_args"),
        ({"codec": "svt-av1", "lossless": True, "preset": "12"}, "use 10 or lower"),
        ({"split": "often"}, "use one of keyframes, scenes, fixed, none"),
        ({"split": (1.0, -2.0)}, "seconds from the first frame"),
        ({"split": (float("nan"),)}, "seconds from the first frame"),
        ({"chunk_seconds": 0}, "must be a positive number"),
        ({"threads": 0}, "at least 1"),
        ({"audio_kbps": 0}, "at least 1"),
        ({"audio": ""}, "audio is empty"),
        ({"ffmpeg_args": ("-vf", "scale=2:2")}, "use `filters`"),
        ({"ffmpeg_args": ("-r", "30")}, "leave it out"),
        ({"ffmpeg_args": ("-r:v:0", "30")}, "leave it out"),
        ({"ffmpeg_args": ("-c:v:0", "libx265")}, "leave it out"),
        ({"ffmpeg_args": ("-x264-params",)}, "its value is missing"),
        ({"ffmpeg_args": ("other.mp4",)}, "where an option is expected"),
        ({"ffmpeg_args": ("-g", "12", "other.mp4")}, "where an option is expected"),
        ({"ffmpeg_args": ("-shortest", "other.mp4")}, "leave it out"),
        ({"ffmpeg_args": ("-report",)}, "says nothing to the video encoder"),
        ({"ffmpeg_args": ("-vstats_file", "x")}, "says nothing to the video encoder"),
        ({"ffmpeg_args": ("-crf", "30"), "lossless": True}, "is to be lossless"),
        ({"ffmpeg_args": ("-pix_fmt", "yuv420p"), "lossless": True}, "is to be lossless"),
        ({"ffmpeg_args": ("-x264-params", "keyint=9:crf=30"), "lossless": True}, "is to be lossless"),
        ({"ffmpeg_args": ("-crf", "30"), "crf": 20}, "given by itself as well"),
        ({"ffmpeg_args": ("-preset", "slow"), "preset": "fast"}, "given by itself as well"),
        ({"codec": "ffv1", "preset": "slow"}, "has no presets"),
        ({"preset": ""}, "preset is empty"),
        ({"codec": "libx264", "crf": 99}, "use 0 to 51"),
        ({"audio": "none", "audio_kbps": 64}, "leave one of them out"),
        ({"threads": 100_000}, "at most 256"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(values: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput, match=words) as caught:
        Settings(**values)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> index.VideoStream:
    return index.read(generate(tmp_path_factory.mktemp("source") / "a.mp4", *picture(1))).info.video


def test_every_known_codec_is_accepted_by_the_encoder(video: index.VideoStream) -> None:
    for codec in ("x264", "x265", "svt-av1", "vp9", "ffv1", "mpeg4"):
        assert encode.check(Settings(codec=codec), video) == (), codec


def test_options_that_the_encoder_refuses_or_ignores_are_found_before_any_work(video: index.VideoStream) -> None:
    refused: list[dict[str, Any]] = [
        {"preset": "warp"},
        {"codec": "no-such-encoder"},
        {"ffmpeg_args": ("-no_such_option", "1")},
        {"codec": "x265", "ffmpeg_args": ("-x265-params", "nonsense=1")},
        {"ffmpeg_args": ("-x264-params", "nonsense=1")},
        {"filters": "no_such_filter"},
        {"filters": "select='mod(n,2)'"},
        {"filters": "crop=500:400"},
        {"codec": "mpeg4", "crf": 20},
    ]
    for values in refused:
        with pytest.raises(InvalidInput):
            encode.check(Settings(**values), video)


@pytest.mark.parametrize("chain", ["setpts=2*PTS", "fps=25", "setpts=N/25/TB", "fps=50", "trim=end_frame=3", "tpad=1"])
def test_filters_that_move_frames_are_found_before_any_work(video: index.VideoStream, chain: str) -> None:
    with pytest.raises(InvalidInput, match="use only what gives one frame for each, at its time"):
        encode.check(Settings(filters=chain), video)
    assert encode.check(Settings(filters="setpts=PTS-STARTPTS,hqdn3d,scale=96:-2"), video) == ()


def test_odd_sizes_are_tried_as_such(video: index.VideoStream) -> None:
    odd = replace(video, width=405, height=721)
    for settings in (Settings(codec="vp9"), Settings(codec="ffv1"), Settings(filters="crop=trunc(iw/2)*2:trunc(ih/2)*2")):
        assert encode.check(settings, odd) == ()
    with pytest.raises(InvalidInput, match=r"405x721"):
        encode.check(Settings(codec="mpeg1video", filters="crop=iw:ih*2"), odd)


def test_what_an_encoder_makes_but_nobody_can_decode_is_found_before_any_work(tmp_path: Path) -> None:
    """As SVT-AV1 without loss from preset 11 on, in versions up to now."""
    source = generate(tmp_path / "a.mp4", *picture(2), "-c:v", "libx264")
    settings = Settings(codec="svt-av1", preset="12", ffmpeg_args=("-svtav1-params", "lossless=1"), split=(1.0,))
    try:
        encode.check(settings, index.read(source).info.video)
    except InvalidInput as error:
        assert "cannot be decoded" in str(error) or "does not know an option" in str(error)
    else:
        convert(source, settings, tmp_path / "out.mp4")
        assert len(frames(str(tmp_path / "out.mp4"))) == 50


def test_filters_are_tried_at_the_size_of_the_source(video: index.VideoStream) -> None:
    assert encode.check(Settings(filters=f"crop={video.width}:{video.height - 8},scale=64:-2"), video) == ()
    wide = replace(video, width=1920, height=1080)
    assert encode.check(Settings(filters="crop=1920:800", preset="ultrafast"), wide) == ()


def test_pixel_formats_are_never_converted_behind_the_users_back(tmp_path: Path) -> None:
    source = generate(tmp_path / "a.mkv", *picture(1), "-c:v", "ffv1", "-pix_fmt", "yuv444p12le")
    video = index.read(source).info.video
    assert "does not take yuv444p12le" in encode.check(Settings(codec="svt-av1"), video)[0]
    with pytest.raises(InvalidInput, match="cannot hold yuv444p12le without loss"):
        encode.check(Settings(codec="svt-av1", lossless=True), video)
    assert encode.check(Settings(codec="ffv1"), video) == ()
    assert encode.check(Settings(codec="svt-av1", filters="format=yuv420p10le"), video) == ()


def test_own_encoder_parameters_are_added_to_those_that_joining_needs(video: index.VideoStream) -> None:
    arguments = encoder_arguments(Settings(ffmpeg_args=("-x264-params", "keyint=48:scenecut=0", "-tune", "film")), video)
    assert arguments[-4:] == ("-x264-params", "stitchable=1:keyint=48:scenecut=0", "-tune", "film")
    assert encoder_arguments(Settings(codec="x265", threads=3), video)[-1].endswith("pools=3")


def test_a_rate_of_ones_own_takes_the_place_of_the_default_quality(tmp_path: Path) -> None:
    source = generate(tmp_path / "a.mp4", *picture(4, "640x360"), "-c:v", "libx264", "-crf", "10")
    sizes = {
        rate: convert(source, Settings(preset="veryfast", ffmpeg_args=("-b:v", rate)), tmp_path / "out.mp4").joined.size_bytes
        for rate in ("100k", "400k")
    }
    assert sizes["400k"] > 2 * sizes["100k"]


def test_chunks_go_to_mp4_where_it_holds_the_codec() -> None:
    assert [chunk_suffix(Settings(codec=codec)) for codec in ("x264", "svt-av1", "ffv1", "libx265", "mpeg2video")] == [
        ".mp4", ".mp4", ".nut", ".mp4", ".nut",
    ]  # fmt: skip
    assert encoder_name(Settings(codec="hevc_nvenc")) == "hevc_nvenc"
