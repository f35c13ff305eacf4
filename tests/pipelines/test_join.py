"""The join: everything of the source beside the video survives, and nothing is published that is not exact.

Invariants: I19.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from pipelines.video import audio, encode, index, join, plan, verify
from pipelines.video.settings import Settings
from rayflow.errors import InvalidInput
from tests.pipelines.conversion import (
    LOSSLESS,
    chapter_starts_s,
    clip,
    convert,
    encode_all,
    frames,
    generate,
    packets,
    picture,
    tone,
)

COPY = audio.AudioChoice("copy", "")
SILENT = audio.AudioChoice("none", "")


def payloads(path: Path | str, stream: int) -> list[bytes]:
    with index.open_input(str(path)) as container:
        return [bytes(p) for p in container.demux(container.streams[stream]) if p.size]


def kinds(path: Path | str) -> list[str]:
    info = index.read(str(path)).info
    return [f"{stream.kind} {stream.codec}" for stream in info.others]


def test_all_audio_and_subtitle_tracks_come_along(tmp_path: Path) -> None:
    done = convert(clip("multitrack.mp4"), replace(LOSSLESS, split=(6.3,)), tmp_path / "out.mp4")
    assert kinds(tmp_path / "out.mp4") == ["audio aac", "audio aac", "subtitle mov_text", "subtitle mov_text"]
    assert payloads(tmp_path / "out.mp4", 1) == payloads(clip("multitrack.mp4"), 1)
    assert packets(tmp_path / "out.mp4", 4)[:3] == packets(clip("multitrack.mp4"), 5)[:3]
    assert done.joined.report.audio_tracks == 2


@pytest.mark.parametrize("name", ["subs-srt.mkv", "subs-ass.mkv"])
def test_subtitles_are_kept_or_turned_into_what_the_container_holds(name: str, tmp_path: Path) -> None:
    source = clip(name)
    convert(source, replace(LOSSLESS, split=(0.5,)), tmp_path / "out.mkv")
    assert kinds(tmp_path / "out.mkv") == kinds(source)
    assert payloads(tmp_path / "out.mkv", 2) == payloads(source, 2)
    convert(source, replace(LOSSLESS, split=(0.5,)), tmp_path / "out.mp4")
    assert kinds(tmp_path / "out.mp4") == ["audio ac3", "subtitle mov_text"]


def test_chapters_metadata_language_and_disposition_are_kept(tmp_path: Path) -> None:
    source = generate(
        tmp_path / "in.mkv", "-i", clip("chapters.mkv"), "-map", "0", "-c", "copy", "-metadata", "title=Two halves",
        "-metadata:s:v:0", "language=fre", "-metadata:s:a:0", "language=ger", "-disposition:a:0", "default+comment",
    )  # fmt: skip
    for suffix in (".mkv", ".mp4"):
        convert(source, replace(LOSSLESS, split=(1.7,)), tmp_path / f"out{suffix}")
        with av.open(str(tmp_path / f"out{suffix}")) as got:
            assert got.metadata["title"] == "Two halves"
            assert [chapter["metadata"]["title"] for chapter in got.chapters()] == ["Chapter 1", "Chapter 2"]
            assert chapter_starts_s(tmp_path / f"out{suffix}") == pytest.approx(chapter_starts_s(source), abs=0.03)
            assert (got.streams.video[0].language, got.streams.audio[0].language) == ("fre", "ger")
    with av.open(str(tmp_path / "out.mkv")) as got:
        assert int(got.streams.audio[0].disposition) == 0x1 | 0x8  # default, comment


def test_attachments_stay_in_matroska_and_are_reported_elsewhere(tmp_path: Path) -> None:
    font = tmp_path / "font.ttf"
    font.write_bytes(bytes(range(256)) * 4)
    source = generate(
        tmp_path / "in.mkv", *picture(1), "-attach", str(font), "-metadata:s:t", "mimetype=application/x-truetype-font"
    )
    convert(source, LOSSLESS, tmp_path / "out.mkv")
    assert [line.split()[0] for line in kinds(tmp_path / "out.mkv")] == ["attachment"]
    done = convert(source, LOSSLESS, tmp_path / "out.mp4")
    assert any("attachment" in warning for warning in done.joined.warnings)


def test_cover_art_stays_in_mp4(tmp_path: Path) -> None:
    cover = generate(tmp_path / "cover.png", *picture(1), "-frames:v", "1")
    source = generate(
        tmp_path / "in.mp4", *picture(1), "-i", cover, "-map", "0", "-map", "1", "-c:v:0", "libx264", "-c:v:1", "copy",
        "-disposition:v:1", "attached_pic",
    )  # fmt: skip
    convert(source, replace(LOSSLESS, split=(0.4,)), tmp_path / "out.mp4")
    assert kinds(tmp_path / "out.mp4") == ["picture png"]


OFFSETS = {  # and where the sound begins against the first frame, in seconds
    "late audio": (1.3, "1.ts", *picture(3), "-itsoffset", "1.3", *tone(2), "-c:v", "libx264", "-c:a", "aac"),
    "late video": (-2.54, "2.mp4", "-itsoffset", "2.5", *picture(2), *tone(4), "-map", "0", "-map", "1", "-c:v", "libx264"),
    "11 ms": (0.011, "3.ts", *picture(3), "-itsoffset", "0.011", *tone(2), "-c:v", "libx264", "-c:a", "aac"),
    "mpeg2-1080p.ts": (0.0109,),
    "sample.flv": (0.045,),
}


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("kind", OFFSETS)
def test_audio_keeps_its_offset_to_the_picture(kind: str, suffix: str, tmp_path: Path) -> None:
    offset_s, *how = OFFSETS[kind]
    source = generate(tmp_path / str(how[0]), *map(str, how[1:])) if how else clip(kind)
    output = tmp_path / f"out{suffix}"
    convert(source, replace(LOSSLESS, split=(0.55,)), output)
    info = index.read(source).info
    wanted = packets(source, info.of_kind("audio")[0].index)[0][0] - info.video.first_pts * info.video.time_base
    assert float(wanted) == pytest.approx(offset_s, abs=0.025)  # AAC begins with a packet of padding
    made = index.read(str(output)).info
    got = packets(output, made.of_kind("audio")[0].index)[0][0] - made.video.first_pts * made.video.time_base
    assert abs(got - wanted) < Fraction(1, 10_000 if suffix == ".mp4" else 900)


@pytest.mark.parametrize("codec", ["x264", "x265", "svt-av1"])
def test_colour_and_hdr_metadata_survive(codec: str, tmp_path: Path) -> None:
    source = clip("hdr10-tags.mp4")
    preset = {"x264": "ultrafast", "x265": "ultrafast", "svt-av1": "12"}[codec]
    convert(source, Settings(codec=codec, preset=preset, filters="scale=480:-2", split=(0.5,)), tmp_path / "out.mp4")
    was, now = index.read(source).info.video, index.read(str(tmp_path / "out.mp4")).info.video
    for name in ("pixel_format", "color_primaries", "color_transfer", "color_space", "color_range", "hdr"):
        assert getattr(now, name) == getattr(was, name), name


def test_full_range_is_kept(tmp_path: Path) -> None:
    source = clip("timestamps-av.mp4")
    convert(source, Settings(preset="ultrafast", split=(7.0,)), tmp_path / "out.mp4")
    was, now = index.read(source).info.video, index.read(str(tmp_path / "out.mp4")).info.video
    assert (now.color_primaries, now.color_space, now.color_range) == (was.color_primaries, was.color_space, 2)


def test_a_rotated_source_comes_out_upright_and_is_not_turned_again(tmp_path: Path) -> None:
    convert(clip("rotated-90.mov"), LOSSLESS, tmp_path / "out.mp4")
    video = index.read(str(tmp_path / "out.mp4")).info.video
    assert (video.width, video.height, video.rotation) == (320, 568, 0)


@pytest.fixture
def few_files() -> Iterator[None]:
    """At most 128 open files, as on systems with low limits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("few_files")
def test_twelve_hundred_chunks_are_joined_with_few_open_files(tmp_path: Path) -> None:
    """In a time base that no microsecond fits, so that rounding would show."""
    unit = generate(
        tmp_path / "unit.mp4", *picture(0.08, "64x36", "30000/1001"), "-c:v", "libx264", "-qp", "0", "-frames:v", "2",
        "-x264-params", "stitchable=1:bframes=0", "-video_track_timescale", "30000",
    )  # fmt: skip
    source = generate(tmp_path / "in.mp4", "-stream_loop", "1199", "-i", unit, "-c", "copy", "-video_track_timescale", "30000")
    indexed = index.read(source)
    cuts = tuple(float(at * indexed.info.video.time_base) for at in indexed.packets.shown()[2::2].tolist())
    planned = plan.make(indexed, replace(LOSSLESS, split=cuts))
    first = encode.encode_chunk(source, planned.info, planned.chunks[0], LOSSLESS, tmp_path / "unit 'quoted'.mp4")
    encoded = [replace(first, name=chunk.name) for chunk in planned.chunks]
    assert len(encoded) == 1200
    done = join.join(source, planned, encoded, LOSSLESS, SILENT, None, tmp_path / "out.mp4")
    assert done.report.frames == 2400
    assert done.report.worst_time_error_s == 0.0


def test_without_exact_durations_times_drift_and_the_output_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Shows that the duration lines are needed, and that an inexact result never gets the output's name."""
    source = generate(
        tmp_path / "vfr.mp4", *picture(4), "-vf", "select='not(mod(n,7))+mod(floor(n/10),2)'",
        "-fps_mode", "passthrough", "-c:v", "libx264",
    )  # fmt: skip
    planned = plan.make(index.read(source), replace(LOSSLESS, split=(0.4, 1.32, 2.5)))
    encoded = encode_all(source, planned, LOSSLESS, tmp_path / "chunks")
    exact = join.concat_list

    def careless(made: plan.Plan, chunks: tuple[encode.EncodedChunk, ...]) -> str:
        return "\n".join(line for line in exact(made, chunks).splitlines() if not line.startswith("duration"))

    output = tmp_path / "out.mp4"
    output.write_text("what was there before")
    monkeypatch.setattr(join, "concat_list", careless)
    with pytest.raises(verify.OutputInexact, match=r"frame 0 of chunk 000\d .* is shown at"):
        join.join(source, planned, encoded, LOSSLESS, SILENT, None, output)
    assert output.read_text() == "what was there before"
    monkeypatch.undo()
    join.join(source, planned, encoded, LOSSLESS, SILENT, None, output)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chunks", "out.mp4", "vfr.mp4"]
    assert len(list((tmp_path / "chunks").iterdir())) == 4


def test_the_output_is_on_the_disk_and_verified_when_it_takes_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = generate(tmp_path / "in.mp4", *picture(1), "-c:v", "libx264")
    planned = plan.make(index.read(source), replace(LOSSLESS, split=(0.5,)))
    encoded = encode_all(source, planned, LOSSLESS, tmp_path / "chunks")
    (tmp_path / "out").mkdir()
    output = tmp_path / "out" / "film.mp4"
    order: list[str] = []
    flush, check = os.fsync, verify.verify

    def fsync(descriptor: int) -> None:
        place = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        order.append(f"{'folder' if place == output.parent else 'file'} flushed, {'named' if output.exists() else 'not named'}")
        flush(descriptor)

    def verified(*args: Any) -> verify.VerifyReport:
        order.append(f"verified, {'named' if output.exists() else 'not named'}")
        return check(*args)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(verify, "verify", verified)
    join.join(source, planned, encoded, LOSSLESS, SILENT, None, output)
    assert order == ["file flushed, not named", "verified, not named", "folder flushed, named"]


def test_chunks_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    source = generate(tmp_path / "in.mp4", *picture(2), "-c:v", "libx264")
    planned = plan.make(index.read(source), replace(LOSSLESS, split=(1.0,)))
    good = encode_all(source, planned, LOSSLESS, tmp_path / "good")
    other = encode_all(source, planned, Settings(preset="slow"), tmp_path / "other")
    small = encode_all(source, planned, replace(LOSSLESS, filters="scale=96:-2"), tmp_path / "small")
    with pytest.raises(InvalidInput, match="different codec headers"):
        join.join(source, planned, (good[0], other[1]), LOSSLESS, SILENT, None, tmp_path / "out.mp4")
    with pytest.raises(InvalidInput, match="changes its size"):
        join.join(source, planned, (good[0], small[1]), LOSSLESS, SILENT, None, tmp_path / "out.mp4")
    with pytest.raises(verify.OutputInexact, match="not those of the plan"):
        join.join(source, planned, (good[1], good[0]), LOSSLESS, SILENT, None, tmp_path / "out.mp4")
    assert not (tmp_path / "out.mp4").exists()


def test_a_chunk_that_cannot_be_decoded_at_its_start_is_named(tmp_path: Path) -> None:
    """All its packets are there, with their times: only decoding tells."""
    source = generate(tmp_path / "in.mp4", *picture(4), "-c:v", "libx264")
    settings = Settings(preset="veryfast", split=(1.0, 2.0, 3.0))
    planned = plan.make(index.read(source), settings)
    for suffix in (".mp4", ".mkv"):
        encoded = encode_all(source, planned, settings, tmp_path / "chunks")
        victim = encoded[2].path
        with index.open_input(str(victim)) as container:
            first = next(packet for packet in container.demux(container.streams.video[0]))
            place = first.pos + first.size // 2
        data = bytearray(victim.read_bytes())
        data[place] ^= 0x10
        victim.write_bytes(data)
        with pytest.raises(verify.OutputInexact, match="cannot be decoded at the start of chunk 0002"):
            join.join(source, planned, encoded, settings, SILENT, None, tmp_path / f"out{suffix}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chunks", "in.mp4"]


def test_chunks_of_different_quality_play_as_one(tmp_path: Path) -> None:
    """Rate control may give each chunk its own quality: what each holds must decode to the same frames after the
    join."""
    source = generate(tmp_path / "in.mp4", *picture(2), "-c:v", "libx264")
    planned = plan.make(index.read(source), replace(LOSSLESS, split=(1.0,)))
    fine, coarse = (encode_all(source, planned, Settings(crf=crf, preset="veryfast"), tmp_path / str(crf)) for crf in (20, 40))
    join.join(source, planned, (fine[0], coarse[1]), LOSSLESS, SILENT, None, tmp_path / "out.mp4")
    got = [frame.md5 for frame in frames(str(tmp_path / "out.mp4"))]
    assert got == [frame.md5 for part in (fine[0], coarse[1]) for frame in frames(str(part.path))]


def test_containers_refuse_what_they_cannot_hold(tmp_path: Path) -> None:
    source = generate(tmp_path / "in.mp4", *picture(1), "-c:v", "libx264")
    info = index.read(source).info
    with pytest.raises(InvalidInput, match=r"\.mp4 cannot hold ffv1 video"):
        join.check(info, Settings(codec="ffv1"), tmp_path / "out.mp4")
    with pytest.raises(InvalidInput, match=r"\.webm cannot hold x264 video"):
        join.check(info, Settings(), tmp_path / "out.webm")
    with pytest.raises(InvalidInput, match=r"must be named \*\.mp4, \*\.mov, \*\.mkv, \*\.webm"):
        join.check(info, Settings(), tmp_path / "out.wmv")
    with pytest.raises(InvalidInput, match="is the source itself"):
        join.check(info, Settings(), Path(source))


def test_the_report_tells_what_was_compared(tmp_path: Path) -> None:
    source = clip("timestamps-av.mp4")
    done = convert(source, replace(LOSSLESS, split=(3.3,)), tmp_path / "out.mp4")
    report = done.joined.report
    assert (report.frames, report.lost_frames, report.worst_time_error_s, report.audio_tracks) == (932, 0, 0.0, 1)
    assert report.duration_s == pytest.approx(15.5167, abs=1e-4)
    assert np.isclose(report.audio_offset_error_s, 0.0, atol=1e-4)
    assert done.joined.size_bytes == (tmp_path / "out.mp4").stat().st_size
