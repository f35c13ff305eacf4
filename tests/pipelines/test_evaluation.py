"""The cases of a published evaluation of durable functions, with its sleeps made short and with real encodes."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import rayflow
from pipelines import evaluation
from pipelines.evaluation import Fault, Upload
from pipelines.evaluation_media import Film, Simulated
from pipelines.video import ffmpeg, index
from rayflow.core.definitions import retry_pause_ms
from rayflow.core.records import Failed, Started
from rayflow.testing import read_records

pytestmark = pytest.mark.ray

CHUNKS_BY_LENGTH_S = {30: 3, 60: 6, 95: 10}
WORKFLOWS = [evaluation.in_sequence, evaluation.in_parallel]

_numbers = itertools.count()


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[rayflow.Client]:
    with rayflow.connect(tmp_path_factory.mktemp("store"), num_cpus=2) as client:
        yield client


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Thirty seconds of video that encode in no time."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    make = ["-f", "lavfi", "-i", "testsrc=size=160x120:rate=10:duration=30", "-c:v", "libx264", "-g", "50", str(path)]
    ffmpeg.run([ffmpeg.find("libx264").path, "-hide_banner", *make])
    return str(path)


@pytest.fixture(params=["simulated", "real"])
def upload(request: pytest.FixtureRequest, film: str, tmp_path: Path) -> Upload:
    """Three chunks."""
    media = Film(film, tmp_path / "output.mp4") if request.param == "real" else Simulated(30, encode_s=0.01)
    return Upload(media, tmp_path / "journal")


def runs(upload: Upload) -> Counter[str]:
    """How often each step ran."""
    return Counter(upload.journal.read_text().splitlines())


def names(count: int) -> list[str]:
    return [f"{number:04}" for number in range(count)]


def once(count: int) -> Counter[str]:
    """Every step, run once."""
    return Counter(["validate", "split", *(f"encode {name}" for name in names(count)), "merge"])


def new_id() -> str:
    return f"evaluation-{next(_numbers)}"


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda workflow: workflow.name)
@pytest.mark.parametrize(("length_s", "chunks"), CHUNKS_BY_LENGTH_S.items())
def test_each_chunk_is_encoded_once_and_merged_in_order(
    client: rayflow.Client, tmp_path: Path, workflow: rayflow.Workflow[[Upload], list[str]], length_s: int, chunks: int
) -> None:
    upload = Upload(Simulated(length_s, encode_s=0.01), tmp_path / "journal")
    assert client.start(workflow, upload, id=new_id()).result(30) == names(chunks)
    assert runs(upload) == once(chunks)


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda workflow: workflow.name)
def test_a_real_film_is_encoded_to_the_same_frames(
    client: rayflow.Client, film: str, tmp_path: Path, workflow: rayflow.Workflow[[Upload], list[str]]
) -> None:
    upload = Upload(Film(film, tmp_path / "output.mp4"), tmp_path / "journal")
    assert client.start(workflow, upload, id=new_id()).result(30) == names(3)
    assert runs(upload) == once(3)
    assert index.read(str(tmp_path / "output.mp4")).info.video.frames == 300


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda workflow: workflow.name)
def test_a_chunk_that_fails_once_is_tried_again_and_no_other_runs_again(
    client: rayflow.Client, upload: Upload, workflow: rayflow.Workflow[[Upload], list[str]]
) -> None:
    upload = Upload(upload.media, upload.journal, Fault.LAST_CHUNK_ONCE)
    assert client.start(workflow, upload, id=new_id()).result(30) == names(3)
    assert runs(upload) == once(3) + Counter(["encode 0002"])


def test_a_merge_that_always_fails_is_given_up_on_a_schedule_known_in_advance(client: rayflow.Client, upload: Upload) -> None:
    id = new_id()
    upload = Upload(upload.media, upload.journal, Fault.MERGE_ALWAYS)
    with pytest.raises(rayflow.ExecutionFailed, match="merge#1 failed after 3 attempts: OSError: merging always fails"):
        client.start(evaluation.in_parallel, upload, id=id).result(30)
    assert runs(upload) == once(3) + Counter(["merge", "merge"])
    records = read_records(client.store, id)
    started, failures = records[0], [record for record in records if isinstance(record, Failed)]
    assert isinstance(started, Started)
    pauses_ms = [None if failed.retry_ms is None else failed.retry_ms - failed.at_ms for failed in failures]
    assert pauses_ms == [retry_pause_ms(evaluation.RETRY, started.seed, "merge#1", failed) for failed in (1, 2)] + [None]


def test_an_unsupported_format_is_refused_before_any_work_and_not_tried_again(client: rayflow.Client, tmp_path: Path) -> None:
    upload = Upload(Simulated(30, source="slides.pdf"), tmp_path / "journal")
    with pytest.raises(rayflow.ExecutionFailed, match=r"InvalidInput: slides.pdf: this format is not supported"):
        client.start(evaluation.in_parallel, upload, id=new_id()).result(30)
    assert runs(upload) == Counter(["validate"])


def test_a_file_that_is_no_video_is_refused_before_anything_is_encoded(client: rayflow.Client, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    upload = Upload(Film(str(tmp_path / "text.mp4"), tmp_path / "output.mp4"), tmp_path / "journal")
    with pytest.raises(rayflow.ExecutionFailed, match=r"InvalidInput: .*text.mp4 cannot be read as a video"):
        client.start(evaluation.in_parallel, upload, id=new_id()).result(30)
    assert runs(upload) == Counter(["validate", "split"])


def test_a_repeat_under_the_same_id_returns_the_stored_result_and_runs_nothing(client: rayflow.Client, upload: Upload) -> None:
    id = new_id()
    first = client.start(evaluation.in_parallel, upload, id=id).result(30)
    assert client.start(evaluation.in_parallel, upload, id=id).result(30) == first == names(3)
    assert runs(upload) == once(3)
    with pytest.raises(rayflow.IdInUse):
        client.start(evaluation.in_parallel, Upload(upload.media, upload.journal, Fault.MERGE_ALWAYS), id=id)
