"""What is wrong with a command is told in one line that says what to do, before anything is started or written."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import pytest
import ray

from pipelines.video import sample
from pipelines.video.command import main
from tests.pipelines.conversion import clip
from tests.s3_service import serving


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One second of video."""
    return sample.make(tmp_path_factory.mktemp("videos") / "in.mp4", 1.0)


@pytest.fixture
def refused(tmp_path: Path, video: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Runs a command that must be refused, in a folder with ``in.mp4``; returns the one line that it says."""
    os.link(video, tmp_path / "in.mp4")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def refuse(*arguments: str, store: str = "store") -> str:
        before, connected = sorted(tmp_path.rglob("*")), ray.is_initialized()  # by another test
        code = main([*arguments, "--store", store])
        out, err = capfd.readouterr()
        assert (code, out) == (2, "")
        assert err.count("\n") == 1
        assert err.startswith("rayflow.encode: ")
        assert "Traceback" not in err
        assert sorted(tmp_path.rglob("*")) == before
        assert ray.is_initialized() == connected
        return err

    return refuse


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no video is named"),
        (["--sample", "in.mp4", "--codec", "libnonsense"], "no ffmpeg here has the encoder 'libnonsense'"),
        (["--sample", "new.mp4", "--codec", "libnonsense"], "no ffmpeg here has the encoder 'libnonsense'"),
        (["--sample", "new.mp4", "-o", "new.webm"], ".webm cannot hold x264 video"),
        (["absent.mp4"], "there is no such file"),
        (["."], "is not a file"),
        (["in.mp4", "--speed"], "unrecognized arguments: --speed"),
        (["in.mp4", "--crf", "good"], "invalid float value: 'good'"),
        (["in.mp4", "--crf", "99"], "crf 99 is out of range for x264: use 0 to 51"),
        (["in.mp4", "--crf", "nan", "--codec", "libaom-av1"], "must be a number"),
        (["in.mp4", "--crf", "20", "--lossless"], "exclude each other"),
        (["in.mp4", "--chunk-seconds", "0"], "must be a positive number of seconds"),
        (["in.mp4", "--split", "cleverly"], "--split 'cleverly' is unknown"),
        (["in.mp4", "--split", "0.5,7"], "split at 7 s is beyond the last frame"),
        (["in.mp4", "--workers", "0"], "--workers is 0"),
        (["in.mp4", "--threads", "0"], "threads is 0"),
        (["in.mp4", "--id", ""], "--id '' is empty"),
        (["in.mp4", "--ffmpeg-args", "-g '12"], "close every quotation mark"),
        (["in.mp4", "--ffmpeg-args", "-ss 3"], "-ss, which decides about cut or timing"),
        (["in.mp4", "--ffmpeg-args", "-bogus 1"], "does not take these settings"),
        (["in.mp4", "--preset", "warp"], "does not take these settings"),
        (["in.mp4", "--codec", "libnonsense"], "no ffmpeg here has the encoder 'libnonsense'"),
        (["in.mp4", "--audio", "libnonsense"], "no ffmpeg here has the encoder 'libnonsense'"),
        (["in.mp4", "-o", "in.mp4"], "is the source itself"),
        (["in.mp4", "-o", "out.avi"], "the output must be named *.mp4"),
        (["in.mp4", "-o", "out.webm"], ".webm cannot hold x264 video"),
        (["in.mp4", "-o", "out.webm", "--codec", "vp9", "--audio", "aac"], ".webm cannot hold aac audio"),
        (["in.mp4", "-o", "nowhere/out.mp4"], "there is no folder"),
        (["in.mp4", "-o", "."], "is a folder"),
        (["in.mp4", "-o", "/proc/out.mp4"], "cannot write the output to /proc"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_command_is_refused_in_one_line(refused, arguments: list[str], words: str) -> None:
    assert words in refused(*arguments)


def test_a_file_that_is_no_video_is_refused(refused, tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "words.mp4").write_text("words " * 1000)
    assert "is empty" in refused("empty.mp4")
    assert "cannot be read as a video" in refused("words.mp4")


def test_sound_without_pictures_is_refused(refused) -> None:
    assert "has no video stream, only audio" in refused(clip("audio-only.mp4"), "-o", "out.mp4")


def test_a_codec_that_nobody_can_decode_is_refused(refused, tmp_path: Path, video: Path) -> None:
    unknown = tmp_path / "unknown.mp4"
    unknown.write_bytes(video.read_bytes().replace(b"avc1", b"zzzz"))
    assert "no decoder for its video stream" in refused("unknown.mp4")


def test_an_output_that_is_a_link_to_the_source_is_refused(refused, tmp_path: Path) -> None:
    os.link(tmp_path / "in.mp4", tmp_path / "same.mp4")
    assert "is the source itself" in refused("in.mp4", "-o", "same.mp4")


def test_a_disk_too_small_is_noticed_before_the_work(refused, tmp_path: Path, video: Path) -> None:
    # A video with a hole behind it, as large as all that is free: the output is expected to be as large as the source.
    large = tmp_path / "large.mp4"
    large.write_bytes(video.read_bytes())
    os.truncate(large, shutil.disk_usage(tmp_path).free + 2**30)
    assert "GB are needed on the disk of" in refused("large.mp4")


def test_a_store_that_cannot_serve_is_refused(refused) -> None:
    assert "is a file; name a folder" in refused("in.mp4", store="in.mp4")
    assert "no store is called ftp://" in refused("in.mp4", store="ftp://host/x")
    assert "cannot be written" in refused("in.mp4", store="/proc/store")
    assert "memory of this process" in refused("in.mp4", store="memory://here")


def test_a_bucket_that_cannot_be_reached_is_refused(refused, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{unused.getsockname()[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
        assert "s3://bucket" in refused("in.mp4", store="s3://bucket/encodes")


def test_a_cluster_that_does_not_answer_is_refused(refused) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        assert "no Ray cluster answers at" in refused("in.mp4", "--address", f"127.0.0.1:{port}")
    with serving(lambda environ, start_response: []) as url:
        assert "did not answer as the head of a Ray cluster" in refused("in.mp4", "--address", url.removeprefix("http://"))
    assert "neither host:port nor auto" in refused("in.mp4", "--address", "somewhere")


def test_json_says_an_error_as_an_event_too(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--json", str(tmp_path / "absent.mp4")]) == 2
    out, err = capfd.readouterr()
    assert out.startswith('{"event":"error","message":"')
    assert err.startswith("rayflow.encode: ")


def test_help_documents_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {code}  " in text for code in ("0  ", "1  ", "2  ", "130"))
