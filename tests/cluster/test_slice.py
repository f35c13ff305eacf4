"""A cluster of three hosts that share a bucket and nothing else: steps, entities and whole encodes work there as on one machine.

Invariants: I12, I18, I19.
"""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import pytest

from rayflow.checkpoint.objects import BucketObject
from rayflow.checkpoint.opening import open_store
from rayflow.checkpoint.reading import read_execution
from tests.cluster.nodes import Cluster, told
from tests.pipelines.command_bench import undisturbed
from tests.pipelines.conversion import film, frames
from tests.s3_service import BUCKET

pytestmark = [pytest.mark.cluster, pytest.mark.ray, pytest.mark.slow]

_COUNT = """\
import rayflow, ray
from pipelines.counter import Counter
from rayflow.runtime.cluster import actor_names
with rayflow.connect("s3://{store}", shards=1) as client:
    values = [call.result() for call in [client.entity(Counter, "hits").increment() for _ in range(20)]]
    print("told:", values[-1], len(set(values)))
    nodes = {{node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes()}}
    where = lambda self: __import__("ray").get_runtime_context().get_node_id()
    print("told:", *(nodes[ray.get(ray.get_actor(name).__ray_call__.remote(where))] for name in actor_names(client.identity)))
"""

_FLOW = """\
import socket, time
import rayflow
from helpers.words import word

@rayflow.step
def where(number: int) -> str:
    time.sleep(0.5)
    return f"{word()} {socket.gethostname()}"

@rayflow.workflow(version="1")
async def spread(ctx: rayflow.Context, count: int) -> list[str]:
    return (await ctx.map(where, range(count), key=str)).results()
"""
_RUN = """\
import rayflow, flow
with rayflow.connect("s3://{store}", shards=1) as client:
    for line in client.start(flow.spread, 6).result(timeout=100):
        print("told:", line)
"""


@pytest.fixture
def store() -> str:
    """Bucket and prefix of a store of the test's own."""
    return f"{BUCKET}/{uuid.uuid4().hex}"


def test_a_counter_counts_and_its_actors_live_on_the_head(cluster: Cluster, store: str) -> None:
    for expected in (20, 40):
        done = cluster.drive("-c", _COUNT.format(store=store))
        assert told(done) == [f"{expected} 20", "head head"], done.stdout[-2000:] + done.stderr[-2000:]


def test_the_drivers_modules_reach_the_workers_and_a_change_of_them_too(cluster: Cluster, store: str) -> None:
    project = cluster.head.path("/root/mine")
    (project / "helpers").mkdir(parents=True, exist_ok=True)
    (project / "helpers" / "__init__.py").touch()
    (project / "flow.py").write_text(_FLOW)
    for word in ("first", "second"):
        (project / "helpers" / "words.py").write_text(f"def word():\n    return {word!r}\n")
        done = cluster.drive("-c", _RUN.format(store=store), folder="/root/mine")
        assert set(told(done)) == {f"{word} one", f"{word} two"}, done.stdout[-2000:] + done.stderr[-2000:]


def test_a_file_of_the_drivers_machine_is_encoded_and_the_output_is_there(cluster: Cluster, store: str) -> None:
    source = film(cluster.head.path("/root/my film.mp4"))
    sources: list[str] = []
    for again in (False, True):
        done, events = _encode(cluster, "my film.mp4", "--store", f"s3://{store}")
        assert (done["output"], done["frames"], done["chunks"]) == ("/root/my film.encoded.mp4", 250, 4)
        assert done["source_bytes"] == source.stat().st_size
        assert (done["wall_s"] is None) == again
        sources += [event["message"] for event in events if "uploaded the source to" in event.get("message", "")]
    assert len(sources) == 1
    assert frames(str(cluster.head.path("/root/my film.encoded.mp4"))) == undisturbed()
    operations = read_execution(open_store(f"s3://{store}"), done["id"]).operations
    assert {one.name for one in operations} == {"prepare", "encode_chunk", "assemble", "remove_files"}
    nodes = {attempt.node for one in operations for attempt in one.attempts}
    assert nodes <= {"one", "two"} and nodes
    left = [info.key for info in open_store(f"s3://{store}").list("") if not info.key.startswith(("shards/", "history/"))]
    assert left == ["rayflow.json"]
    assert not [path for path in cluster.head.path("/root").iterdir() if "partial" in path.name]


def test_an_object_of_a_bucket_is_encoded_to_an_object_and_no_secret_is_recorded(
    cluster: Cluster, store: str, tmp_path: Path
) -> None:
    name = "a film? #1 100%.mp4"
    BucketObject(f"s3://{store}/in/{name}").upload(film(tmp_path / "film.mp4"))
    output = f"s3://{store}/out/{name}"
    for again in (False, True):
        done, events = _encode(cluster, f"s3://{store}/in/{name}", "-o", output, "--store", f"s3://{store}/store")
        assert (done["output"], done["frames"], done["chunks"]) == (output, 250, 4)
        assert (done["wall_s"] is None) == again
        assert "ignature" not in json.dumps(events)
    taken = tmp_path / "taken.mp4"
    taken.write_bytes(BucketObject(output).read(0, 10**9)[0])
    assert frames(str(taken)) == undisturbed()
    everything = open_store(f"s3://{store}/store")
    assert not [info.key for info in everything.list("") if b"X-Amz-Signature" in everything.get(info.key)]


def test_diagnose_asks_every_node_and_says_which_cannot_reach_the_store(cluster: Cluster, store: str) -> None:
    done = cluster.drive("-m", "rayflow", "diagnose", "--store", f"s3://{store}", "--json")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    nodes = {line["node"]: line for line in lines if "node" in line}
    assert sorted(nodes) == ["head (head)", "one", "two"], done.stderr[-2000:]
    for node in nodes.values():
        assert (node["unanswered"], node["store_error"], node["versions"]) == ("", "", nodes["one"]["versions"])
        assert node["ffmpeg"] and node["free_bytes"] > 0
        assert abs(node["skew_s"]) <= node["skew_uncertainty_s"] + 0.1, "all hosts share the clock of the machine"
    assert (done.returncode, lines[-1]["detail"]) == (0, "3 nodes, nothing wrong")
    done = cluster.drive("-m", "rayflow", "diagnose", "--store", "s3://no-such-bucket-here/x")
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr
    assert [f"FAILED  {node}: store: " in done.stdout for node in nodes] == [True] * 3
    assert cluster.bucket["AWS_SECRET_ACCESS_KEY"] not in done.stdout + done.stderr


def test_what_is_wrong_with_an_object_is_said_before_anything_starts(cluster: Cluster, store: str, tmp_path: Path) -> None:
    url = f"s3://{store}/film.mp4"
    for arguments, words in (
        ((url, "-o", "s3://no-such-bucket-here/x.mp4"), "no such object"),
        (("s3://no-such-bucket-here/x.mp4",), "there is no such bucket"),
        ((f"{url}/",), "names no object in a bucket"),
    ):
        said = cluster.drive("-m", "rayflow.encode", *arguments, "--store", f"s3://{store}/store")
        assert (said.returncode, said.stdout) == (2, "")
        assert words in said.stderr and "Traceback" not in said.stderr
    BucketObject(url).upload(film(tmp_path / "film.mp4"))
    said = cluster.drive("-m", "rayflow.encode", url, "-o", "s3://no-such-bucket-here/x.mp4", "--store", f"s3://{store}/store")
    assert (said.returncode, "there is no such bucket" in said.stderr) == (2, True)
    assert list(open_store(f"s3://{store}/store").list("")) == []


def _encode(cluster: Cluster, *arguments: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    done = cluster.drive("-m", "rayflow.encode", *arguments, "--chunk-seconds", "2.5", "--json", timeout_s=120)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout[-2000:] + done.stderr[-2000:]
    assert [line for line in done.stdout.splitlines() if not line.startswith('{"event":')] == []
    events = [json.loads(line) for line in done.stdout.splitlines()]
    return events[-1], events
