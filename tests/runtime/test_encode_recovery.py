"""A real encode while the processes under it are killed: what was finished stays, and the output is the same (I9, I13)."""

from __future__ import annotations

import hashlib
from pathlib import Path

import av
import pytest

import rayflow
from pipelines.video.job import Job
from pipelines.video.settings import Settings
from pipelines.video.source import content_key
from pipelines.video.workflow import encode_video
from tests.runtime.conftest import actor_pid, alive, attempts, eventually, kill

pytestmark = [pytest.mark.ray, pytest.mark.crash]


def job_for(source: Path, output: Path) -> Job:
    settings = Settings(preset="slower", split=(1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0))
    return Job(str(source), output, settings, content_key(str(source)))


def frames(path: Path) -> str:
    digest = hashlib.sha256()
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            digest.update(frame.to_ndarray().tobytes())
    return digest.hexdigest()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {}


def ffmpegs(parents: set[int] | None = None) -> dict[int, int]:
    """Running encoders of chunks of this test's clip, with their parents."""
    found: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
            parent = int((folder / "stat").read_text().rpartition(") ")[2].split()[1])
        except OSError:
            continue
        if b"ffmpeg" in command and b"bikes.mp4" in command and b"libx264" in command and alive(int(folder.name)):
            found[int(folder.name)] = parent
    return found


@pytest.mark.parametrize("victim", ["nobody", "host", "dispatcher", "worker", "ffmpeg"])
def test_a_killed_process_costs_at_most_the_chunks_that_were_running(
    client: rayflow.Client, clips: Path, tmp_path: Path, undisturbed: dict[str, str], victim: str
) -> None:
    source, output = tmp_path / "bikes.mp4", tmp_path / "out.mp4"
    source.write_bytes((clips / "bikes.mp4").read_bytes())
    execution = client.start(encode_video, job_for(source, output), id="film")
    eventually(lambda: len(_chunks(client)) >= 2, "two chunks are done", 60)
    before = _chunks(client)
    if victim in ("host", "dispatcher"):
        kill(actor_pid(client, victim))
    elif victim != "nobody":
        eventually(lambda: bool(ffmpegs()), "an encoder runs")
        encoder, worker = next(iter(ffmpegs().items()))
        kill(encoder if victim == "ffmpeg" else worker)
    joined = execution.result(60)
    assert joined.report.frames == 250
    seen = attempts(client, "film")
    assert all(seen.begun[one] == 1 for one in before), "finished chunks are not encoded again"
    again = [one for one, count in seen.begun.items() if count > 1]
    assert len(again) <= {"nobody": 0, "host": 0, "dispatcher": 10 - len(before), "worker": 1, "ffmpeg": 1}[victim]
    assert undisturbed.setdefault("frames", frames(output)) == frames(output)
    eventually(lambda: not ffmpegs(), "no encoder is left")


def _chunks(client: rayflow.Client) -> list[str]:
    return [one for one in attempts(client, "film").completed if one.startswith("encode_chunk")]
