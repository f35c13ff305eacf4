"""A crash before or after any write of any workflow in ``pipelines``: it ends with the same frames, and clears up.

Invariants: I9, I10, I17, I19.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
import shutil
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
import pytest

import pipelines
import rayflow
from pipelines import evaluation
from pipelines.evaluation import Fault, Upload
from pipelines.evaluation_counter import Fault as CounterFault
from pipelines.evaluation_counter import Order, change, change_and_exceed, change_and_take_long, long, many_steps, too_long
from pipelines.evaluation_media import Film, Simulated
from pipelines.video import ffmpeg
from pipelines.video.job import Job, content_key
from pipelines.video.settings import Settings
from pipelines.video.workflow import assemble, encode_video
from rayflow.checkpoint.store import Store
from rayflow.core.definitions import Workflow
from rayflow.testing import crash_sweep
from tests.pipelines.conversion import generate, picture, tone

FRAMES = 16
EVALUATION = [evaluation.in_sequence, evaluation.in_parallel]
COUNTER: list[Workflow[..., Any]] = [change, change_and_exceed, change_and_take_long]
SWEPT: list[Workflow[..., Any]] = [encode_video, *EVALUATION, *COUNTER, many_steps]


def clip(folder: Path, rate: int) -> str:
    """Frames of 64x36 with a tone: at one a second two chunks of the evaluation's length, at eight a second two of one second."""
    seconds = FRAMES / rate
    encoders = ("-c:v", "libx264", "-preset", "ultrafast", "-g", "4", "-c:a", "flac", "-ar", "8000")
    return generate(folder / "film.mkv", *picture(seconds, "64x36", str(rate)), *tone(seconds), *encoders)


def content(path: Path) -> list[tuple[str, int | None, int]]:
    """Every decoded frame of picture and sound, with its time and a checksum of what is in it."""
    with av.open(str(path)) as container:
        streams = [*container.streams.video, *container.streams.audio]
        return [
            (type(frame).__name__, frame.pts, zlib.crc32(frame.to_ndarray().tobytes()))
            for packet in container.demux(streams)
            for frame in packet.decode()
        ]


def pictures(frames: list[tuple[str, int | None, int]]) -> list[int]:
    return [checksum for kind, _, checksum in frames if kind == "VideoFrame"]


def read_and_clear(output: Path, store: Store) -> tuple[Any, ...]:
    """What a run has left: the content of its output, and what should be gone. The next run finds an empty folder."""
    left = content(output), [info.key for info in store.list("files/")]
    shutil.rmtree(output.parent)
    output.parent.mkdir()
    return left


def remember(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have each ffmpeg run once: the same arguments, the name of the output left out, give what they gave before.

    Only ffmpeg itself is spared; what calls it, reads its files and stores them is what it is. The join names files of its run
    among its arguments, so it is done anew every time.
    """
    known: dict[tuple[str, ...], tuple[ffmpeg.Finished, bytes | None]] = {}
    run = ffmpeg.run

    def remembering(command: Sequence[str], on_progress: Callable[[ffmpeg.Progress], None] | None = None) -> ffmpeg.Finished:
        key, output = tuple(command[:-1]), Path(command[-1])
        if key not in known:
            finished = run(command, on_progress)
            known[key] = finished, output.read_bytes() if output.is_file() else None
        finished, data = known[key]
        if data is not None:
            output.write_bytes(data)
        return finished

    monkeypatch.setattr(ffmpeg, "run", remembering)
    monkeypatch.setattr(ffmpeg, "_output", functools.cache(ffmpeg._output))


@pytest.mark.parametrize("split", ["keyframes", "scenes"])
def test_an_encode_ends_with_the_same_frames_and_leaves_nothing_in_the_store(
    split: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = clip(tmp_path, 8), tmp_path / "out" / "film.mkv"
    remember(monkeypatch)
    settings = Settings(preset="ultrafast", lossless=True, split=split, chunk_seconds=1.0, audio="aac")
    seen: list[Any] = []

    def outcome(joined: Any, store: Store) -> Any:
        seen.append((joined.report, read_and_clear(output, store)))
        return seen[-1]

    job = Job(source, output, settings, content_key(source))
    report = crash_sweep(encode_video, job, outcome=outcome)
    _, (frames, files) = seen[0]
    assert pictures(frames) == pictures(content(Path(source)))
    assert len(pictures(frames)) == FRAMES < len(frames), "there is sound, too"
    assert files == []
    assert report.attempts == {"keyframes": 6, "scenes": 8}[split], "two chunks among them"
    assert report.writes >= 14, "three files, and their deletion"
    assert len(seen) == 1 + report.crashes


def test_a_join_that_deletes_the_chunks_before_it_is_on_record_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, output = clip(tmp_path, 8), tmp_path / "out" / "film.mkv"
    remember(monkeypatch)

    def hasty(*args: Any) -> Any:
        joined = assemble.function(*args)
        step = rayflow.current_step()
        assert step is not None
        step.store.delete([info.key for info in step.store.list(step.files_prefix)])
        return joined

    job = Job(source, output, Settings(preset="ultrafast", chunk_seconds=1.0, audio="none"), content_key(source))
    with pytest.raises(
        AssertionError, match=r"a crash after write \d+ of \d+ \(files/.*\n.*completed with .*\n.*Damaged: chunk 0000 .* is gone"
    ):
        crash_sweep(encode_video, job, steps={assemble: hasty}, outcome=lambda joined, _: joined.report)


@pytest.mark.parametrize("workflow", EVALUATION, ids=lambda workflow: workflow.name)
def test_a_film_of_the_evaluation_has_the_same_frames(workflow: Workflow[..., Any], tmp_path: Path) -> None:
    output = tmp_path / "out" / "film.mp4"
    output.parent.mkdir()
    upload = Upload(Film(clip(tmp_path, 1), output), output.with_name("journal"))
    report = crash_sweep(workflow, upload, outcome=lambda names, store: (names, read_and_clear(output, store)))
    assert report.result == ["0000", "0001"]
    assert report.writes >= 6


@pytest.mark.parametrize("workflow", EVALUATION, ids=lambda workflow: workflow.name)
@pytest.mark.parametrize("fault", Fault)
def test_what_fails_in_the_evaluation_fails_or_is_tried_again_all_the_same(
    workflow: Workflow[..., Any], fault: Fault, tmp_path: Path
) -> None:
    upload = Upload(Simulated(30, encode_s=0), tmp_path / "journal", fault)

    def outcome(names: list[str], store: Store) -> list[str]:
        upload.journal.unlink()
        return names

    report = crash_sweep(workflow, upload, outcome=outcome)
    assert report.result == (None if fault is Fault.MERGE_ALWAYS else ["0000", "0001", "0002"])


@pytest.mark.parametrize("workflow", COUNTER, ids=lambda workflow: workflow.name)
def test_a_crash_at_any_write_changes_a_counter_once(workflow: Workflow[..., Any], tmp_path: Path) -> None:
    """I22. The steps that take long take no time here: how long does not matter to a crash at a write."""
    order = Order("hits", 5, tmp_path / "journal", CounterFault.ONCE if workflow is change else CounterFault.NONE)
    report = crash_sweep(workflow, order, steps={too_long: nothing, long: nothing})
    assert report.result == 5
    assert report.writes >= 4


def nothing(order: Order) -> None:
    """In place of a step that takes long."""


def test_a_crash_at_any_write_changes_no_sum() -> None:
    assert crash_sweep(many_steps, 10).result == 45


def test_every_workflow_of_the_pipelines_is_swept() -> None:
    modules = [importlib.import_module(one.name) for one in pkgutil.walk_packages(pipelines.__path__, "pipelines.")]
    found = {id(one): one for module in modules for one in vars(module).values() if isinstance(one, Workflow)}
    assert {one.name for one in found.values()} == {one.name for one in SWEPT}
