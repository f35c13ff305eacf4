"""A store that is slow, loses acknowledgements, answers 503 or is away: work pauses, nothing fails, nothing runs twice.

Real parts: Ray, an S3 server, and a proxy before it that has the faults. Invariants: I1, I5, I8, I9, I17, I21.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

import rayflow
from pipelines.video.command_events import Done, Event, Notice, Retry
from rayflow.checkpoint.opening import open_store
from rayflow.checkpoint.reading import read_execution
from tests.conftest import REPOSITORY
from tests.faulty_http import Fault, FaultyProxy, faulty_proxy
from tests.pipelines.command_bench import Bench, finish, first, read_until
from tests.pipelines.command_bench import undisturbed as undisturbed_frames
from tests.pipelines.conversion import frames
from tests.runtime import flows
from tests.runtime.conftest import eventually, kill
from tests.s3_service import BUCKET

pytestmark = [pytest.mark.ray, pytest.mark.crash, pytest.mark.slow]

_LOST = 1.0
"""How long what was under way when the store went away may go on."""


@pytest.fixture
def proxy(s3_environment: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """A faulty proxy before the S3 server, in the environment of processes that are started from here."""
    with faulty_proxy(s3_environment) as made:
        monkeypatch.setenv("AWS_ENDPOINT_URL", made.url)
        yield made


@pytest.mark.parametrize(
    ("away_s", "steps", "hang"),
    [pytest.param(12.0, 60, False, id="short"), pytest.param(65.0, 90, True, id="long", marks=pytest.mark.long)],
)
def test_steps_and_a_counter_pause_while_the_store_is_away(
    proxy: FaultyProxy, s3_endpoint: str, tmp_path: Path, away_s: float, steps: int, hang: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"s3://{BUCKET}/{uuid.uuid4().hex}"
    program = [sys.executable, "-m", "tests.runtime.store_program", url, str(tmp_path), str(steps)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    environment.pop("RAY_ADDRESS", None)

    def counted() -> int:
        path = tmp_path / "acknowledged"
        return int(path.read_text()) if path.exists() else 0

    def goes_on() -> None:
        before = counted()
        eventually(lambda: counted() > before + 2, "the counter goes on", 60)

    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(program, env=environment, cwd=tmp_path, stdout=log, stderr=log)
    try:
        eventually(lambda: counted() > 2, "the counter counts", 60)
        for fault in (Fault.SLOW, Fault.LOSE, Fault.UNAVAILABLE, *([Fault.HANG] if hang else [])):
            with proxy.during(fault):
                eventually(lambda: proxy.hit > 3, f"requests that meet {fault}", 60)
            goes_on()
        begun = len(list(tmp_path.glob("stored-*")))
        assert 0 < begun < steps, "the workflow is under way"
        with proxy.during(Fault.REFUSE):
            time.sleep(_LOST)
            before = counted()
            (tmp_path / "ask").touch()
            kill(int((tmp_path / "host").read_text()))  # so that shards are opened while there is nothing to open
            with pytest.raises(rayflow.StoreUnavailable, match=BUCKET):
                rayflow.connect(url)
            time.sleep(away_s)
            assert counted() == before, "what cannot be durable is not acknowledged"
        goes_on()
        (tmp_path / "stop").touch()
        assert process.wait(90) == 0, (tmp_path / "log").read_text()[-3000:]
    finally:
        process.kill()
        process.wait()

    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    store = open_store(url)
    operations = read_execution(store, "flow").operations
    # A start that was on record and had not left the host when that was killed is an attempt that never ran.
    assert sum(len(one.attempts) - 1 for one in operations) <= 2, "two ran at a time"
    assert [len(flows.marks(tmp_path, f"stored-{index}")) for index in range(steps)] == [1] * steps
    assert (tmp_path / "result").read_text() == f"{steps} {counted()}"
    assert (tmp_path / "asked").read_text() == "timeout"


@pytest.fixture
def bench(tmp_path: Path, proxy: FaultyProxy) -> Iterator[Bench]:
    made = Bench(tmp_path, f"s3://{BUCKET}/encodes/{uuid.uuid4().hex}")
    yield made
    made.kill_all()


@pytest.mark.long
@pytest.mark.parametrize("away_s", [pytest.param(8.0, id="short"), pytest.param(65.0, id="long")])
def test_an_encode_waits_for_its_store_and_says_so(bench: Bench, proxy: FaultyProxy, away_s: float) -> None:
    hold = bench.tell("hold")
    with bench.start("--json") as process:
        before = bench.run_until_held(process)
        with proxy.during(Fault.REFUSE):
            hold.unlink()  # the last chunk is finished while there is nowhere to store it
            read_until(process, lambda events: any(_is_notice(event, "does not answer") for event in events))
            time.sleep(away_s)
        code, events, err = finish(process)
    assert (code, err) == (0, "")
    assert any(_is_notice(event, "answers again") for event in events)
    assert not [event for event in events if isinstance(event, Retry)]
    assert first(Done, events).frames == 250
    assert set(bench.attempts(before).values()) == {1}
    assert frames(str(bench.output)) == undisturbed_frames()


def _is_notice(event: Event, words: str) -> bool:
    return isinstance(event, Notice) and words in event.message
