"""``cluster/local.yaml`` on three machines reached by SSH, as docs/cluster.md tells: from nothing to a finished encode."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rayflow.checkpoint.objects import BucketObject
from tests.cluster.hosts import ENVIRONMENT, REPOSITORY, Hosts, hosts, unavailable
from tests.cluster.nodes import bucket_at
from tests.pipelines.command_bench import undisturbed
from tests.pipelines.conversion import film, frames
from tests.s3_service import BUCKET

pytestmark = [pytest.mark.cluster, pytest.mark.ray, pytest.mark.slow, pytest.mark.long]


@pytest.fixture
def machines() -> Iterator[tuple[Hosts, dict[str, str]]]:
    """A desk with this project, three machines with SSH and a Python environment, and a bucket."""
    if reason := unavailable():
        pytest.skip(reason)
    with hosts("desk", "head", "one", "two") as made, bucket_at(made.gateway) as bucket:
        project = made["desk"].path("/root/rayflow")
        for name in ("rayflow", "pipelines", "cluster"):
            shutil.copytree(REPOSITORY / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md"):
            shutil.copy(REPOSITORY / name, project)
        for host in made:  # where there is no network, the environment that uv and pip would make
            host.path("/root/rayflow-env").symlink_to(ENVIRONMENT)
        yield made, bucket


def test_ray_up_makes_a_cluster_that_encodes(machines: tuple[Hosts, dict[str, str]], tmp_path: Path) -> None:
    made, bucket = machines
    desk, head = made["desk"], made["head"]
    began_s = time.monotonic()

    def say(what: str) -> None:
        print(f"{time.monotonic() - began_s:6.1f} s  {what}")

    config = desk.path("/root/rayflow/cluster/local.yaml")
    text = config.read_text()
    for before, after in (  # the three places to edit
        ("head_ip: 192.0.2.10", f"head_ip: {head.address}"),
        ("[192.0.2.11, 192.0.2.12]", f"[{made['one'].address}, {made['two'].address}]"),
        ("ssh_user: ubuntu", "ssh_user: root"),
        ("AWS_REGION=eu-central-1", f"AWS_REGION={bucket['AWS_REGION']}"),
        ("AWS_ENDPOINT_URL=https://s3.eu-central-1.amazonaws.com", f"AWS_ENDPOINT_URL={bucket['AWS_ENDPOINT_URL']}"),
        ("AWS_ACCESS_KEY_ID=\n", f"AWS_ACCESS_KEY_ID={bucket['AWS_ACCESS_KEY_ID']}\n"),
        ("AWS_SECRET_ACCESS_KEY=\n", f"AWS_SECRET_ACCESS_KEY={bucket['AWS_SECRET_ACCESS_KEY']}\n"),
    ):
        assert text.count(before) == 1, before
        text = text.replace(before, after)
    config.write_text(text)

    up = {"RAY_UP_enable_autoscaler_v2": "0", "TERM": "dumb"}
    desk.check("ray", "up", "-y", "cluster/local.yaml", environment=up, folder="/root/rayflow", timeout_s=240)
    say("ray up has returned")

    def ray_exec(command: str, timeout_s: float) -> str:
        return desk.check("ray", "exec", "cluster/local.yaml", command, environment=up, folder="/root/rayflow", timeout_s=timeout_s)

    deadline_s = time.monotonic() + 180
    while "3 local.cluster.node" not in (status := ray_exec("ray status", 60)):
        assert time.monotonic() < deadline_s, status
        time.sleep(3)
    say("both workers are there")

    film(head.path("/root/film.mp4"))
    said = ray_exec(
        f"cd rayflow && python -m rayflow.encode ~/film.mp4 --address auto --store s3://{BUCKET}/rayflow "
        f"--chunk-seconds 2.5 --json",
        120,
    )
    say("encoded")
    done = json.loads([line for line in said.splitlines() if '"done"' in line][-1])
    assert (done["frames"], done["chunks"], done["output"]) == (250, 4, "/root/film.encoded.mp4")
    assert frames(str(head.path("/root/film.encoded.mp4"))) == undisturbed()

    submitted = (
        f"python -m rayflow.encode s3://{BUCKET}/in/film.mp4 -o s3://{BUCKET}/out/film.mp4 --chunk-seconds 2.5 --address auto "
        f"--store s3://{BUCKET}/rayflow"
    )
    with pytest.MonkeyPatch.context() as patch:
        for name, value in bucket.items():
            patch.setenv(name, value)
        BucketObject(f"s3://{BUCKET}/in/film.mp4").upload(head.path("/root/film.mp4"))
        ray_exec(f"ray job submit --address http://127.0.0.1:8265 --working-dir rayflow -- {submitted}", 120)
        taken = tmp_path / "film.mp4"
        taken.write_bytes(BucketObject(f"s3://{BUCKET}/out/film.mp4").read(0, 10**9)[0])
    assert frames(str(taken)) == undisturbed()
    say("encoded by a submitted job")

    desk.check("ray", "down", "-y", "cluster/local.yaml", environment=up, folder="/root/rayflow", timeout_s=120)
    say("ray down has returned")
