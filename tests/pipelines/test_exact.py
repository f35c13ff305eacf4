"""A lossless chunked encode decodes to the same frames, the same count and the same times as the source, wherever it is
cut.

Invariants: I18.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.video import index, plan
from pipelines.video.settings import Settings
from rayflow.errors import InvalidInput
from tests.pipelines.conversion import (
    LOSSLESS,
    assert_same_company,
    assert_same_frames,
    clip,
    convert,
    generate,
    odd_cuts,
    packets,
    picture,
    real_videos,
    tone,
)

CUTS = {  # parts of the length to cut near; fewer where decoding is slow or there is one key frame
    "bbb-30s.webm": (0.21, 0.53),
    "hdr10-tags.mp4": (0.4,),
    "rotated-90.mov": (0.6,),
}
LONG = ("bbb-30s.webm", "long-av1.mp4")


def real(*omitted: str, if_long: pytest.MarkDecorator = pytest.mark.slow) -> list[Any]:
    """Every real video, one parameter each."""
    marks = dict.fromkeys(LONG, (if_long,))
    return [pytest.param(name, marks=marks.get(name, ())) for name in real_videos() if name not in omitted]


def key_frame_cuts(source: str, most: int = 5) -> tuple[float, ...]:
    """The times of the first shown key frames after the first frame, in seconds after it."""
    indexed = index.read(source)
    video = indexed.info.video
    keys = np.intersect1d(indexed.packets.keys(), indexed.packets.shown()[1:])
    return tuple(float((at - video.first_pts) * video.time_base) for at in keys[keys > video.first_pts].tolist()[:most])


@pytest.mark.parametrize("name", real(if_long=pytest.mark.long))  # their key frames are always tried
def test_every_real_video_cut_at_odd_frames_is_exact(name: str, tmp_path: Path) -> None:
    source = clip(name)
    cuts = odd_cuts(source, CUTS.get(name, (0.05, 0.22, 0.35, 0.61, 0.98)))
    if name in LONG:  # both kinds of cuts in one encode
        keys = key_frame_cuts(source, 3)
        assert len(keys) == 3
        cuts = tuple(sorted({*cuts, *keys}))
    output = tmp_path / "out.mp4"
    done = convert(source, replace(LOSSLESS, split=cuts), output)
    assert len(done.chunks) == len(cuts) + 1
    assert_same_frames(source, output)
    assert_same_company(source, output)


@pytest.mark.parametrize("name", real(*LONG))
def test_every_real_video_cut_at_its_key_frames_is_exact(name: str, tmp_path: Path) -> None:
    source = clip(name)
    keys = key_frame_cuts(source)
    done = convert(source, replace(LOSSLESS, split=keys), tmp_path / "out.mp4")
    starts = [chunk.start_pts for chunk in done.plan.chunks]
    assert set(starts[1:]) <= set(index.read(source).packets.keys().tolist())
    assert len(starts) == len(keys) + 1
    assert_same_frames(source, tmp_path / "out.mp4")
    assert_same_company(source, tmp_path / "out.mp4")


def test_matroska_output_keeps_times_to_its_tick(tmp_path: Path) -> None:
    source = clip("phone-vfr.mp4")
    convert(source, replace(LOSSLESS, split=odd_cuts(source, (0.3, 0.7))), tmp_path / "out.mkv")
    assert_same_frames(source, tmp_path / "out.mkv", Fraction(1, 1000))


def test_key_frame_chunks_of_a_long_video_have_the_wanted_length_and_all_of_its_frames() -> None:
    indexed = index.read(clip("long-av1.mp4"))
    chunks = plan.make(indexed, replace(LOSSLESS, chunk_seconds=45.0)).chunks
    assert len(chunks) == 8
    assert {chunk.start_pts for chunk in chunks[1:]} <= set(indexed.packets.keys().tolist())
    assert sum(chunk.frames for chunk in chunks) == 21_766


def x264(params: str, *more: str) -> tuple[str, ...]:
    return ("-c:v", "libx264", "-preset", "veryfast", "-x264-params", params, *more)


GENERATED = {
    "open groups of pictures in a transport stream": (
        "a.ts", *picture(), *x264("open-gop=1:keyint=25:bframes=3:scenecut=0"),
    ),
    "intra refresh": (
        "a.ts", *picture(), *x264("intra-refresh=1:keyint=25:bframes=3"),
    ),
    "open groups of HEVC pictures in mp4": (
        "a.mp4", *picture(), "-c:v", "libx265", "-preset", "ultrafast",
        "-x265-params", "open-gop=1:keyint=25:bframes=3:log-level=none",
    ),
    "interlaced": (
        "a.ts", *picture(20), "-vf", "tinterlace=interleave_top,fieldorder=tff",
        *x264("keyint=20", "-flags", "+ilme+ildct"),
    ),
    "variable rate in a transport stream": (
        "a.ts", *picture(), "-vf", "select='not(mod(n,7))+mod(floor(n/10),2)'", "-fps_mode", "passthrough",
        *x264("keyint=20"),
    ),
    "interlaced program stream without some time stamps": (
        "a.mpg", *picture(), "-c:v", "mpeg2video", "-g", "12", "-bf", "2", "-flags", "+ilme+ildct", "-q:v", "4",
    ),
    "audio that starts late": (
        "a.ts", *picture(), "-itsoffset", "1.3", *tone(), *x264("keyint=25"),
    ),
    "video that starts late": (
        "a.mp4", "-itsoffset", "2.5", *picture(), *tone(), "-map", "0", "-map", "1", *x264("keyint=25"),
    ),
    "a gap of three seconds": (
        "a.ts", *picture(), "-vf", r"setpts=PTS+if(gt(N\,100)\,3/TB\,0)", "-fps_mode", "passthrough",
        *x264("keyint=25"),
    ),
    "AVI with packed B frames": (
        "a.avi", *picture(), "-c:v", "mpeg4", "-bf", "2", "-g", "30",
    ),
    "VP9 with hidden frames": (
        "a.webm", *picture(), "-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8", "-auto-alt-ref", "1",
        "-lag-in-frames", "16", "-g", "30",
    ),
    "every frame a key frame": (
        "a.mov", *picture(), "-c:v", "prores_ks", "-profile:v", "0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", GENERATED)
def test_generated_source_cut_at_odd_frames_and_at_key_frames_is_exact(kind: str, tmp_path: Path) -> None:
    name, *arguments = GENERATED[kind]
    source = generate(tmp_path / name, *arguments)
    for cuts in ((0.48, 3.0, 3.12, 6.4), key_frame_cuts(source)):
        done = convert(source, replace(LOSSLESS, split=cuts), tmp_path / "out.mp4")
        assert len(done.chunks) == len(cuts) + 1
        assert_same_frames(source, tmp_path / "out.mp4")
        assert_same_company(source, tmp_path / "out.mp4")


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_tracks_offsets_subtitles_chapters_and_tags_are_kept_with_the_frames(suffix: str, tmp_path: Path) -> None:
    """One source with all of it, so that no part is kept at the cost of another."""
    words = tmp_path / "words.srt"
    words.write_text("1\n00:00:00,500 --> 00:00:01,500\nfirst\n\n2\n00:00:02,000 --> 00:00:03,000\nsecond\n")
    halves = tmp_path / "halves"
    halves.write_text(
        ";FFMETADATA1\ntitle=Two halves\n[CHAPTER]\nTIMEBASE=1/1000\nSTART=0\nEND=2000\ntitle=One\n"
        "[CHAPTER]\nTIMEBASE=1/1000\nSTART=2000\nEND=4000\ntitle=Other\n"
    )
    inputs = [
        *picture(4), *tone(4), "-itsoffset", "0.733", *tone(3), "-i", str(words), "-itsoffset", "0.4", "-i", str(words),
        "-i", str(halves),
    ]  # fmt: skip
    languages = {"v:0": "fre", "a:0": "eng", "a:1": "ger", "s:0": "ita", "s:1": "spa"}
    colours = "setparams=color_primaries=bt709:color_trc=bt709:colorspace=bt709:range=tv"
    source = generate(
        tmp_path / "in.mkv", *inputs, *(word for stream in "01234" for word in ("-map", stream)), "-map_metadata", "5",
        *x264("keyint=25:open-gop=1"), "-vf", colours, "-c:a:0", "aac", "-c:a:1", "ac3", "-c:s", "srt",
        *(word for place, name in languages.items() for word in (f"-metadata:s:{place}", f"language={name}")),
    )  # fmt: skip
    info = index.read(source).info
    assert (len(info.of_kind("audio")), len(info.of_kind("subtitle")), info.chapters) == (2, 2, 2)
    assert (info.video.color_primaries, info.video.color_transfer, info.video.color_space, info.video.color_range) == (1, 1, 1, 1)
    output = tmp_path / f"out{suffix}"
    convert(source, replace(LOSSLESS, split=(0.48, 2.0, 3.12)), output)
    assert_same_frames(source, output, Fraction(0 if suffix == ".mp4" else 1, 1000))
    assert_same_company(source, output)
    with index.open_input(str(output)) as got:
        assert got.metadata["title"] == "Two halves"
        assert [chapter["metadata"]["title"] for chapter in got.chapters()] == ["One", "Other"]
        assert [stream.codec_context.name for stream in got.streams.audio] == ["aac", "ac3"]
    assert index.read(str(output)).info.video.language == "fre"


def test_edit_list_that_hides_frames_is_obeyed(tmp_path: Path) -> None:
    whole = generate(tmp_path / "whole.mp4", *picture(), *x264("keyint=50:bframes=3"))
    source = generate(tmp_path / "edited.mp4", "-ss", "1.5", "-i", whole, "-c", "copy")
    indexed = index.read(source)
    assert indexed.packets.pts.size > indexed.info.video.frames == 212
    convert(source, replace(LOSSLESS, split=(0.2, 3.0)), tmp_path / "out.mp4")
    assert_same_frames(source, tmp_path / "out.mp4")


def test_recordings_joined_end_to_end_are_encoded_in_one_piece_and_exact(tmp_path: Path) -> None:
    parts = [
        Path(generate(tmp_path / name, *picture(4), "-itsoffset", "0.7", *tone(3), *x264(params))).read_bytes()
        for name, params in (("1.ts", "keyint=25:bframes=3"), ("2.ts", "keyint=30:bframes=2"))
    ]
    source = tmp_path / "joined.ts"
    source.write_bytes(b"".join(parts))
    done = convert(str(source), replace(LOSSLESS, split=(1.0, 2.0)), tmp_path / "out.mp4")
    assert [chunk.frames for chunk in done.chunks] == [200]
    assert "backwards" in done.joined.warnings[0]
    assert_same_frames(str(source), tmp_path / "out.mp4")
    for codec in ("copy", "aac"):
        convert(str(source), replace(LOSSLESS, audio=codec), tmp_path / "out.mp4")
        with index.open_input(str(tmp_path / "out.mp4")) as container:
            video, sound = container.streams.video[0], container.streams.audio[0]
            assert float(sound.start_time * sound.time_base - video.start_time * video.time_base) == pytest.approx(0.7, abs=0.05)


def test_a_recording_that_begins_in_the_middle_of_a_group_of_pictures_is_exact_and_in_step(tmp_path: Path) -> None:
    """As what a receiver writes: the first pictures cannot be decoded, whatever tries; sound and all others keep their times."""
    whole = generate(tmp_path / "whole.ts", *picture(), *tone(), *x264("keyint=50:bframes=3:scenecut=0"), "-c:a", "aac")
    data = Path(whole).read_bytes()
    source = tmp_path / "recorded.ts"
    source.write_bytes(data[len(data) // 11 // 188 * 188 :])
    info = index.read(str(source)).info
    late_s = (int(index.read(str(source)).packets.keys()[0]) - info.video.first_pts) * info.video.time_base
    assert late_s > 0.5
    for cuts in ((4.0, 6.0), (float(late_s) / 2, 4.0)):  # the second has a first chunk without any frame
        done = convert(str(source), replace(LOSSLESS, split=cuts), tmp_path / "out.mp4")
        assert done.joined.report.lost_frames == info.video.frames - done.joined.report.frames > 10
        assert_same_frames(str(source), tmp_path / "out.mp4")
        sound_s = packets(tmp_path / "out.mp4", 1)[0][0] - packets(tmp_path / "out.mp4", 0)[0][0]
        wanted_s = packets(source, 1)[0][0] - info.video.first_pts * info.video.time_base - late_s
        assert float(sound_s) == pytest.approx(float(wanted_s), abs=1e-4)


def test_damage_over_a_whole_chunk_leaves_a_gap_and_moves_nothing(tmp_path: Path) -> None:
    whole = generate(tmp_path / "whole.mp4", *picture(), *x264("keyint=50:bframes=3:scenecut=0"))
    data = bytearray(Path(whole).read_bytes())
    with index.open_input(whole) as container:
        for packet in container.demux(container.streams.video[0]):
            if packet.pos is not None and packet.pts is not None and 4 <= packet.pts * packet.time_base < 8:
                data[packet.pos : packet.pos + packet.size] = b"\xff" * packet.size
    source = tmp_path / "damaged.mp4"
    source.write_bytes(data)
    done = convert(str(source), replace(LOSSLESS, split=(4.0, 6.0, 6.4, 9.0)), tmp_path / "out.mp4")
    assert [chunk.frames for chunk in done.chunks] == [100, 0, 0, 25, 25]
    assert done.joined.report.lost_frames == 100
    assert_same_frames(str(source), tmp_path / "out.mp4")


def test_a_stream_without_time_stamps_is_encoded_in_one_piece_and_exact(tmp_path: Path) -> None:
    source = generate(tmp_path / "raw.h264", *picture(4), *x264("keyint=25:bframes=3"))
    done = convert(source, LOSSLESS, tmp_path / "out.mp4")
    assert [chunk.frames for chunk in done.chunks] == [100]
    assert_same_frames(source, tmp_path / "out.mp4")


@pytest.mark.parametrize(
    "settings",
    [
        replace(LOSSLESS, codec="ffv1", preset=None),
        replace(LOSSLESS, codec="x265"),
        replace(LOSSLESS, codec="svt-av1", preset="10"),
        replace(LOSSLESS, codec="vp9", preset="8"),
    ],
    ids=lambda settings: settings.codec,
)
def test_every_lossless_codec_is_exact(settings: Settings, tmp_path: Path) -> None:
    source = generate(tmp_path / "a.mp4", *picture(2), *x264("keyint=25:bframes=3"))
    try:
        convert(source, replace(settings, split=(0.48, 1.2)), tmp_path / "out.mkv")
    except InvalidInput as refusal:
        pytest.skip(str(refusal))  # an older SVT-AV1
    assert_same_frames(source, tmp_path / "out.mkv", Fraction(1, 1000))


@pytest.mark.parametrize("codec", ["ffv1", "vp9"])
def test_full_range_reaches_encoders_that_do_not_know_its_pixel_format(codec: str, tmp_path: Path) -> None:
    source = generate(tmp_path / "a.mp4", *picture(1), *x264("keyint=25", "-pix_fmt", "yuvj420p"))
    assert index.read(source).info.video.pixel_format == "yuvj420p"
    convert(source, replace(LOSSLESS, codec=codec, preset=None, split=(0.48,)), tmp_path / "out.mkv")
    assert_same_frames(source, tmp_path / "out.mkv", Fraction(1, 1000))
    assert index.read(str(tmp_path / "out.mkv")).info.video.color_range == 2


def test_lossy_encoders_keep_every_time(tmp_path: Path) -> None:
    source = clip("phone-vfr.mp4")
    for codec, preset in (("x264", "veryfast"), ("x265", "ultrafast"), ("svt-av1", "12")):
        done = convert(source, replace(LOSSLESS, codec=codec, preset=preset, lossless=False, split=(1.0, 3.1)), tmp_path / "o.mp4")
        assert (done.joined.report.frames, done.joined.report.worst_time_error_s) == (167, 0.0)
