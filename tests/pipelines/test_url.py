"""A source on a web server is encoded without a copy of it, exactly, and named well when it cannot be.

Invariants: I12, I18.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.video import source
from pipelines.video.command import main
from pipelines.video.job import Job, check_unchanged, execution_id
from pipelines.video.settings import Settings
from rayflow.errors import InvalidInput
from tests.pipelines.conversion import LOSSLESS, assert_same_frames, clip, convert, film, generate, odd_cuts, picture, tone
from tests.pipelines.web import Web, serving

ROOT = Path(__file__).parents[2]


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    """A server of the folder ``web``; the working folder is another."""
    for folder in ("web", "here"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with serving(tmp_path / "web") as made:
        yield made


@pytest.mark.ray
@pytest.mark.slow
def test_the_command_encodes_a_url_and_goes_on_by_it(web: Web, tmp_path: Path) -> None:
    original = film(tmp_path / "web" / "my film.mp4")
    url = f"{web.url}/my%20film.mp4?signature=1.5"
    command = [sys.executable, "-m", "rayflow.encode", url, "--lossless", "--preset", "ultrafast", "--split", "1.7,5.3", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAYFLOW_STORE": str(tmp_path / "store")}
    ids = set[str]()
    for _ in range(2):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stderr) == (0, "")
        last = json.loads(done.stdout.splitlines()[-1])
        assert (last["event"], last["frames"], last["chunks"]) == ("done", 250, 3)
        assert last["output"] == str(tmp_path / "here" / "my film.encoded.mp4")
        assert last["source_bytes"] == original.stat().st_size
        ids.add(last["id"])
    assert last["wall_s"] is None  # it was done before
    assert len(ids) == 1
    assert ids.pop().startswith("encode-my-film-")
    assert_same_frames(str(original), tmp_path / "here" / "my film.encoded.mp4")
    assert sorted(path.name for path in (tmp_path / "web").iterdir()) == ["my film.mp4"]


@pytest.mark.parametrize("name", ["a.ts", "a.mp4", "a.mkv"])
def test_every_frame_and_the_sound_of_a_url_are_kept_wherever_it_is_cut(name: str, web: Web, tmp_path: Path) -> None:
    local = generate(
        tmp_path / "web" / name, *picture(), "-itsoffset", "0.3", *tone(9), "-c:v", "libx264", "-preset", "veryfast",
        "-x264-params", "open-gop=1:keyint=25:bframes=3:scenecut=0",
    )  # fmt: skip
    for audio in ("copy", "aac"):
        done = convert(f"{web.url}/{name}", replace(LOSSLESS, split=(0.48, 3.0, 6.4), audio=audio), tmp_path / "out.mp4")
        assert done.joined.report.audio_tracks == 1
        assert_same_frames(local, tmp_path / "out.mp4")


def test_a_connection_that_breaks_again_and_again_costs_no_frame(web: Web, tmp_path: Path) -> None:
    local = generate(tmp_path / "web" / "a.mp4", *picture(), *tone(), "-c:v", "libx264", "-qp", "0")
    web.breaks_after = 3 * 65536
    convert(f"{web.url}/a.mp4", replace(LOSSLESS, split=(3.0, 6.4)), tmp_path / "out.mp4")
    assert web.breaks > 5
    assert_same_frames(local, tmp_path / "out.mp4")


def test_a_real_video_is_encoded_from_a_url(web: Web, tmp_path: Path) -> None:
    local = clip("phone-vfr.mp4")
    (tmp_path / "web" / "a.mp4").symlink_to(local)
    convert(f"{web.url}/a.mp4", replace(LOSSLESS, split=odd_cuts(local, (0.3, 0.7))), tmp_path / "out.mp4")
    assert_same_frames(local, tmp_path / "out.mp4")


def test_the_id_is_of_the_content_and_of_the_url(web: Web, tmp_path: Path) -> None:
    (tmp_path / "web" / "a.mp4").write_bytes(bytes(range(256)) * 10_000)
    (tmp_path / "web" / "b.mp4").write_bytes(bytes(range(256)) * 10_000)

    def job(name: str) -> Job:
        url = f"{web.url}/{name}"
        return Job(url, tmp_path / "out.mp4", Settings(), source.content_key(url))

    before = job("a.mp4")
    assert before == job("a.mp4")
    assert source.size_bytes(before.source) == 2_560_000
    assert web.sent_bytes < 3 * 8 * 65536 + 10
    assert before.content == job("b.mp4").content
    assert execution_id(before) != execution_id(job("b.mp4"))
    check_unchanged(before)
    (tmp_path / "web" / "a.mp4").write_bytes(bytes(range(256)) * 9_999 + bytes(256))
    assert before.content != job("a.mp4").content
    with pytest.raises(InvalidInput, match="changed while it was being encoded"):
        check_unchanged(before)


def test_a_server_that_fails_for_now_is_worth_another_try(web: Web) -> None:
    web.answers = {"/busy.mp4": 503, "/gone.mp4": 410}
    with pytest.raises(source.SourceUnreachable, match="answers 503"):
        source.content_key(f"{web.url}/busy.mp4")
    with pytest.raises(InvalidInput, match="answers 410"):
        source.content_key(f"{web.url}/gone.mp4")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("absent.mp4", "the server answers 404"),
        ("secret.mp4", "the server answers 403"),
        ("broken.mp4", "the server answers 500"),
        ("empty.mp4", "is empty"),
        ("words.mp4", "cannot be read as a video"),
        ("", "the server answers 404"),
    ],
)
def test_what_a_server_does_not_give_is_refused_in_one_line(
    name: str, says: str, web: Web, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "web" / "empty.mp4").touch()
    (tmp_path / "web" / "words.mp4").write_text("words " * 1000)
    web.answers = {"/secret.mp4": 403, "/broken.mp4": 500}
    _assert_refused([f"{web.url}/{name}"], says, tmp_path, capfd)


def test_a_server_that_gives_no_pieces_is_refused(web: Web, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    film(tmp_path / "web" / "a.mp4")
    web.ranges = False
    _assert_refused([f"{web.url}/a.mp4"], "no range requests): download it first", tmp_path, capfd)


def test_an_output_that_is_what_the_url_gives_is_refused(web: Web, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    served = film(tmp_path / "web" / "a.mp4")
    _assert_refused([f"{web.url}/a.mp4", "-o", str(served)], "is the source itself", tmp_path, capfd)
    film(tmp_path / "web" / "b.encoded.mp4")
    os.link(served, tmp_path / "web" / "b.mp4")
    os.chdir(tmp_path / "web")
    _assert_refused([f"{web.url}/b.mp4"], "b.encoded.mp4 is the source itself", tmp_path, capfd)


def test_a_server_that_is_not_there_is_refused(tmp_path: Path, web: Web, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/a.mp4"
        _assert_refused([url], "cannot be reached (Connection refused): check the address", tmp_path, capfd)
    _assert_refused(["http://no-such-host.invalid/a.mp4"], "cannot be reached (", tmp_path, capfd)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("s3://bucket", "names no object in a bucket: write s3://bucket/name"),
        ("gs://bucket/folder/", "names no object in a bucket"),
        ("s3://me:secret@bucket/in.mp4", "names no object in a bucket"),
        ("ftp://host/in.mp4", "a source is a file, or a URL with http://, https://, s3://"),
        ("file:///tmp/in.mp4", "name a file by its path"),
        ("http://", "the URL names no server"),
        ("http:///in.mp4", "the URL names no server"),
        ("http://[::1/in.mp4", "is not a URL"),
        ("http://host:port/in.mp4", "is not a URL"),
        ("https://me:secret@host/in.mp4", "a URL with a user or password (https://…@host)"),
    ],
)
def test_what_cannot_be_a_source_is_refused_in_one_line(
    url: str, says: str, tmp_path: Path, web: Web, capfd: pytest.CaptureFixture[str]
) -> None:
    assert "secret" not in _assert_refused([url], says, tmp_path, capfd)
    _assert_refused([url, "--sample"], "--sample makes a file", tmp_path, capfd)


def test_blanks_and_other_letters_of_a_url_are_escaped_and_read_back_in_its_name() -> None:
    url = source.check_url("http://host/Ein Film für Zoë.mp4?a=b c")
    assert url == "http://host/Ein%20Film%20f%C3%BCr%20Zo%C3%AB.mp4?a=b%20c"
    assert source.check_url(url) == url
    assert source.name_of(url) == "Ein Film für Zoë.mp4"
    assert source.name_of("http://host/a%2F..%2Fb.mp4") == "b.mp4"
    assert source.name_of("http://host/folder/") == ""


def _assert_refused(arguments: list[str], says: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> str:
    before = sorted(folder.rglob("*"))
    assert main([*arguments, "--store", str(folder / "store")]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert says in err
    assert sorted(folder.rglob("*")) == before
    return err
