"""Audio is copied or encoded once for the whole file, and stays in step with the picture."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from pipelines.video import audio, index
from pipelines.video.settings import Settings
from rayflow.errors import InvalidInput
from tests.pipelines.conversion import LOSSLESS, clip, convert, generate, picture

BEEP_S = 1.0


def first_sound_s(path: str | Path) -> float:
    """When the first loud sample is heard, in seconds after the first video frame."""
    info = index.read(str(path)).info
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        for frame in container.decode(stream):
            assert frame.pts is not None
            assert stream.time_base is not None
            level = np.abs(frame.to_ndarray().astype(np.float64)).max(axis=0)
            loud = np.flatnonzero(level > 0.2)
            if loud.size:
                at = frame.pts * stream.time_base + Fraction(int(loud[0]), frame.sample_rate)
                return float(at - info.video.first_pts * info.video.time_base)
    raise AssertionError("silence")


@pytest.fixture(scope="module")
def beep(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A video whose sound starts at a known moment, after a second of silence."""
    return generate(
        tmp_path_factory.mktemp("beep") / "in.mp4", *picture(4), "-f", "lavfi", "-i",
        f"sine=frequency=1000:duration=4,volume=8,volume=0:enable='lt(t,{BEEP_S})'",
        "-c:v", "libx264", "-c:a", "aac", "-b:a", "192k",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("codec", "suffix"), [("copy", ".mp4"), ("aac", ".mp4"), ("aac", ".mkv"), ("opus", ".mkv"), ("opus", ".mp4")]
)
def test_sound_is_heard_at_its_moment(codec: str, suffix: str, beep: str, tmp_path: Path) -> None:
    output = tmp_path / f"out{suffix}"
    convert(beep, replace(LOSSLESS, audio=codec, split=(1.5, 3.0)), output)
    assert first_sound_s(output) == pytest.approx(first_sound_s(beep), abs=0.008)


def test_what_the_container_cannot_hold_is_encoded_with_a_warning(tmp_path: Path) -> None:
    info = index.read(clip("bbb-30s.webm")).info
    choice = audio.choose(info, Settings(), tmp_path / "out.mp4")
    assert (choice.encoder, choice.suffix) == ("aac", ".mp4")
    assert choice.warnings == (".mp4 cannot hold vorbis audio: all audio tracks are encoded with aac",)
    assert audio.choose(info, Settings(), tmp_path / "out.mkv").encoder == "copy"
    assert audio.choose(index.read(clip("subs-srt.mkv")).info, Settings(), tmp_path / "o.webm").encoder == "libopus"


def test_choices_that_cannot_work_are_refused(tmp_path: Path) -> None:
    info = index.read(clip("timestamps-av.mp4")).info
    with pytest.raises(InvalidInput, match=r"\.webm cannot hold aac audio: use libopus or write to \.mkv"):
        audio.choose(info, Settings(audio="aac"), tmp_path / "out.webm")
    with pytest.raises(InvalidInput, match="no-such"):
        audio.choose(info, Settings(audio="no-such"), tmp_path / "out.mp4")
    assert audio.choose(info, Settings(audio="none"), tmp_path / "out.mp4").encoder == "none"
    assert audio.choose(index.read(clip("bikes.mp4")).info, Settings(audio="aac"), tmp_path / "out.mp4").encoder == "none"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (Settings(audio="opus", audio_kbps=100_000), "libopus: .*bit rate 100000000 bps is unsupported"),
        (Settings(audio="libx264"), "cannot encode this audio with libx264: Invalid encoder type"),
    ],
    ids=["bit rate", "encoder of video"],
)
def test_audio_settings_are_tried_out_before_any_work(settings: Settings, words: str, beep: str, tmp_path: Path) -> None:
    info = index.read(beep).info
    with pytest.raises(InvalidInput, match=words):
        audio.check(beep, info, audio.choose(info, settings, tmp_path / "out.mkv"), settings)
    good = Settings(audio="opus", audio_kbps=64)
    audio.check(beep, info, audio.choose(info, good, tmp_path / "out.mkv"), good)
    assert list(tmp_path.iterdir()) == []


def test_every_track_is_encoded_and_keeps_its_language(tmp_path: Path) -> None:
    convert(clip("multitrack.mp4"), replace(LOSSLESS, audio="opus", audio_kbps=32, split="none"), tmp_path / "out.mkv")
    with av.open(str(tmp_path / "out.mkv")) as got:
        assert [(stream.codec_context.name, stream.language) for stream in got.streams.audio] == [("opus", "eng")] * 2


def test_surround_sound_goes_into_opus(tmp_path: Path) -> None:
    source = generate(
        tmp_path / "in.mkv", *picture(1), "-f", "lavfi",
        "-i", "anoisesrc=duration=1:amplitude=0.1,aformat=channel_layouts=5.1(side)",
        "-c:v", "libx264", "-c:a", "ac3",
    )  # fmt: skip
    convert(source, replace(LOSSLESS, audio="opus", split="none"), tmp_path / "out.mkv")
    with av.open(str(tmp_path / "out.mkv")) as got:
        assert got.streams.audio[0].layout.nb_channels == 6
