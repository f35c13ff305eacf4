"""What is wrong with a command is told in one line that says what to do, before anything is started or written."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray

from pipelines.video import sample
from pipelines.video.command import main
from rayflow.checkpoint.opening import open_store
from tests.conftest import REPOSITORY
from tests.pipelines.conversion import clip
from tests.s3_service import BUCKET, serving


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One second of video."""
    return sample.make(tmp_path_factory.mktemp("videos") / "in.mp4", 1.0)


def _children() -> set[str]:
    """The processes that this one has started and that are still there."""
    return {pid for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()}


@pytest.fixture
def refused(tmp_path: Path, video: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Runs a command that must be refused, in a folder with ``in.mp4``; returns the one line that it says."""
    os.link(video, tmp_path / "in.mp4")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def refuse(*arguments: str, store: str = "store") -> str:
        before, children = sorted(tmp_path.rglob("*")), _children()
        connected = ray.is_initialized()  # by another test
        code = main([*arguments, "--store", store])
        out, err = capfd.readouterr()
        assert (code, out) == (2, "")
        assert err.count("\n") == 1
        assert err.startswith("rayflow.encode: ")
        assert "Traceback" not in err
        assert sorted(tmp_path.rglob("*")) == before
        assert _children() <= children
        assert connected or not ray.is_initialized()
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
        ([""], "is not a file"),
        (["-"], "there is no such file"),
        (["/dev/null"], "is not a file"),
        (["in.mp4/in.mp4"], "there is no such file"),
        (["x" * 300 + ".mp4"], "File name too long"),
        (["new\nline.mp4"], r"the name 'new\nline.mp4' has control characters"),
        (["red\x1b[31m.mp4"], "has control characters"),
        (["latin\udcff.mp4"], "is no UTF-8: rename the file"),
        (["in.mp4", "other.mp4"], "unrecognized arguments: other.mp4"),
        (["in.mp4", "--speed"], "unrecognized arguments: --speed"),
        (["in.mp4", "--crf", "good"], "invalid float value: 'good'"),
        (["in.mp4", "--crf", "99"], "crf 99 is out of range for x264: use 0 to 51"),
        (["in.mp4", "--crf", "nan", "--codec", "libaom-av1"], "must be a number"),
        (["in.mp4", "--crf", "20", "--lossless"], "exclude each other"),
        (["in.mp4", "--crf", "-1"], "crf -1 is out of range"),
        (["in.mp4", "--crf", "1e999"], "must be a number"),
        (["in.mp4", "--codec", "mpeg4", "--crf", "20"], "does not know an option"),
        (["in.mp4", "--codec", "ffv1", "--preset", "slow"], "ffv1 has no presets"),
        (["in.mp4", "--preset", ""], "preset is empty"),
        (["in.mp4", "--codec", "../x"], "is not a name"),
        (["in.mp4", "--codec", "copy"], "no ffmpeg here has the encoder 'copy'"),
        (["in.mp4", "--codec", "aac", "-o", "out.mkv"], "Invalid encoder type 'aac'"),
        (["in.mp4", "--chunk-seconds", "0"], "--chunk-seconds is 0.0: it must be a positive number of seconds"),
        (["in.mp4", "--chunk-seconds", "-1"], "must be a positive number of seconds"),
        (["in.mp4", "--chunk-seconds", "nan"], "must be a positive number of seconds"),
        (["in.mp4", "--chunk-seconds", "1e-9"], "would make more than 10,000 chunks"),
        (["in.mp4", "--split", "cleverly"], "--split 'cleverly' is unknown"),
        (["in.mp4", "--split", ""], "--split '' is unknown"),
        (["in.mp4", "--split", "0.2,,0.5"], "--split '0.2,,0.5' is unknown"),
        (["in.mp4", "--split", "-1"], "has a time that is negative"),
        (["in.mp4", "--split", "nan,inf"], "has a time that is negative or no number"),
        (["in.mp4", "--split", "0.5,7"], "split at 7 s is beyond the last frame"),
        (["in.mp4", "--workers", "0"], "--workers is 0"),
        (["in.mp4", "--workers", "all"], "invalid int value: 'all'"),
        (["in.mp4", "--threads", "0"], "threads is 0"),
        (["in.mp4", "--threads", "1000000"], "at most 256"),
        (["in.mp4", "--id", ""], "--id '' is empty"),
        (["in.mp4", "--id", "  "], "--id '  ' is empty"),
        (["in.mp4", "--id", "a\nb"], "cannot be printed"),
        (["in.mp4", "--ffmpeg-args", "-g '12"], "close every quotation mark"),
        (["in.mp4", "--ffmpeg-args", "-ss 3"], "-ss, which decides about cut or timing"),
        (["in.mp4", "--ffmpeg-args=-c:v:0 libx265"], "-c:v:0, which decides about cut or timing"),
        (["in.mp4", "--ffmpeg-args=-shortest other.mp4"], "-shortest, which decides about cut or timing"),
        (["in.mp4", "--ffmpeg-args=other.mp4"], "--ffmpeg-args has 'other.mp4' where an option is expected"),
        (["in.mp4", "--ffmpeg-args=-g 12 other.mp4"], "where an option is expected"),
        (["in.mp4", "--ffmpeg-args=-report"], "-report, which says nothing to the video encoder"),
        (["in.mp4", "--ffmpeg-args=-crf 30", "--lossless"], "is to be lossless"),
        (["in.mp4", "--ffmpeg-args=-crf 30", "--crf", "20"], "given by itself as well"),
        (["in.mp4", "--ffmpeg-args", "-bogus 1"], "does not take these settings: Unrecognized option 'bogus'"),
        (["in.mp4", "--ffmpeg-args=-bsf:v noise"], "cannot be decoded from its first frame on"),
        (["in.mp4", "--preset", "warp"], "does not take these settings: x264 [error]: invalid preset 'warp'"),
        (["in.mp4", "--filters", "fps=60"], "--filters 'fps=60' turn 8 frames into"),
        (["in.mp4", "--filters", "setpts=2*PTS"], "--filters 'setpts=2*PTS' move frames in time"),
        (["in.mp4", "--filters", "split"], "does not take these settings"),
        (["in.mp4", "--filters", ","], "No such filter: ''"),
        (["in.mp4", "--codec", "libnonsense"], "no ffmpeg here has the encoder 'libnonsense'"),
        (["in.mp4", "--audio", "libnonsense"], "no ffmpeg here has the encoder 'libnonsense'"),
        (["in.mp4", "--audio", ""], "audio is empty"),
        (["in.mp4", "--audio", "none", "--audio-kbps", "64"], "there is to be no audio"),
        (["in.mp4", "--audio-kbps", "64"], "the audio is copied as it is"),
        (["in.mp4", "--audio", "opus", "--audio-kbps", "99999"], "bit rate 99999000 bps is unsupported"),
        (["in.mp4", "--audio", "libx264", "-o", "out.mkv"], "cannot encode this audio with libx264"),
        (["in.mp4", "-o", "in.mp4"], "is the source itself"),
        (["in.mp4", "-o", "tmp/../in.mp4"], "is the source itself"),
        (["in.mp4", "-o", "out/"], "-o out/ is a folder"),
        (["in.mp4", "-o", ""], "is a folder"),
        (["in.mp4", "-o", "x" * 300 + ".mp4"], "File name too long"),
        (["in.mp4", "-o", "in.mp4/out.mp4"], "there is no folder"),
        (["in.mp4", "-o", "out\n.mp4"], "has control characters"),
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


def test_a_name_that_looks_like_an_option_is_explained(refused, tmp_path: Path) -> None:
    assert "unrecognized arguments: -in.mp4; see" in refused("-in.mp4")
    os.link(tmp_path / "in.mp4", tmp_path / "-in.mp4")
    assert "if that is the video, name it ./-in.mp4" in refused("-in.mp4")


def test_a_name_too_long_for_the_output_beside_it_is_explained(refused, tmp_path: Path) -> None:
    os.link(tmp_path / "in.mp4", tmp_path / f"{'x' * 250}.mp4")
    assert "File name too long): name another file with -o" in refused(f"{'x' * 250}.mp4")


def test_a_pipe_and_a_link_to_nowhere_are_no_videos(refused, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    (tmp_path / "gone.mp4").symlink_to("nowhere.mp4")
    assert "is not a file" in refused("pipe.mp4")
    assert "Too many levels of symbolic links" in refused("loop.mp4")
    assert "there is no such file" in refused("gone.mp4")


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


def test_a_bucket_without_conditional_writes_is_refused_and_nothing_stays_in_it(
    refused, s3_application: Callable[..., Any], s3_environment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def careless(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        environ.pop("HTTP_IF_NONE_MATCH", None)
        return s3_application(environ, start_response)

    before = list(open_store(f"s3://{BUCKET}").list(""))
    with serving(careless) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        said = refused("in.mp4", store=f"s3://{BUCKET}/encodes")
        assert "accepted a second create of the same key" in said
        assert "Use a local or NFS folder" in said
        assert list(open_store(f"s3://{BUCKET}").list("")) == before


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


@pytest.mark.parametrize("redirection", [">/dev/full", ">&-", "2>&-", "2>/dev/full", ">&- 2>&-"])
@pytest.mark.parametrize("words", ["absent.mp4", "--json absent.mp4"])
def test_streams_that_take_nothing_change_no_exit_code(tmp_path: Path, words: str, redirection: str) -> None:
    command = ["/bin/sh", "-c", f'exec "$0" -m rayflow.encode {words} {redirection}', sys.executable]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert ("there is no such file" in done.stderr) == ("2>" not in redirection)
    assert list(tmp_path.iterdir()) == []


def test_help_documents_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {code}  " in text for code in ("0  ", "1  ", "2  ", "130"))
