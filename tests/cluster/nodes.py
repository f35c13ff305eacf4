"""Ray on hosts of their own: a head without work and workers with one CPU each, and a bucket that all of them reach."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess

from pipelines.video import ffmpeg, index, plan
from pipelines.video.settings import Settings
from rayflow.checkpoint.opening import open_store
from rayflow.checkpoint.store import Store
from tests.cluster.hosts import ENVIRONMENT, REPOSITORY, Host, Hosts, eventually
from tests.pipelines.conversion import film
from tests.s3_service import BUCKET, create_bucket, one_write_at_a_time, serving

PORT = 6379
PYTHON = str(ENVIRONMENT / "bin" / "python")
PROJECT = "/root/project"
FFMPEG = "/root/ffmpeg"
"""One that waits with the last chunk of ``film`` as long as there is a file /root/hold on its host."""
CHUNKS = 4

_WRAPPER = """\
#!/bin/sh
case "$*" in
*"trim=start_pts={pts},"*) while [ -e /root/hold ]; do sleep 0.05; done ;;
esac
exec "{binary}" "$@"
"""

# A node counts as dead after about ten seconds; the defaults take half a minute, and a minute where its link is cut.
_HEALTH = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "5",
}
_STORAGE = {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": "/root/gcs"}
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_enable_metrics_collection": "0"}


@dataclass
class Cluster:
    """A Ray cluster on some of the hosts. ``bucket`` is the environment in which a process finds the bucket."""

    hosts: Hosts
    bucket: Mapping[str, str]
    head: Host
    workers: list[Host]

    @property
    def address(self) -> str:
        return f"{self.head.address}:{PORT}"

    @property
    def environment(self) -> dict[str, str]:
        """Of every process of Ray and of every driver; the project is where the driver is and nowhere else."""
        return {**self.bucket, **QUIET, "RAYFLOW_FFMPEG": FFMPEG}

    @property
    def driver_environment(self) -> dict[str, str]:
        return {**self.environment, "PYTHONPATH": PROJECT, "RAY_ADDRESS": self.address}

    def start_head(self) -> None:
        """Start Ray on the head, which has no CPU for steps and keeps what it knows on its disk."""
        self.head.check(
            *_ray_start(self.head), "--head", f"--port={PORT}", "--num-cpus=0", "--include-dashboard=false",
            environment=self.environment | _HEALTH | _STORAGE,
        )  # fmt: skip

    def start_worker(self, worker: Host) -> None:
        """Start Ray on a worker, with one CPU."""
        worker.check(
            *_ray_start(worker), f"--address={self.address}", "--num-cpus=1", environment=self.environment | _HEALTH, timeout_s=120
        )

    def kill_ray(self, host: Host) -> None:
        """SIGKILL to all that Ray has on a host, raylet first."""
        for part in ("raylet/raylet", "gcs_server", "ray"):
            host.kill(part)

    def kill(self) -> None:
        """The whole cluster; the hosts and their files stay."""
        for host in (self.head, *self.workers):
            self.kill_ray(host)

    def forget_storage(self) -> None:
        """Remove what the head keeps on its disk."""
        shutil.rmtree(self.head.path(_STORAGE["RAY_gcs_storage_path"]))

    def repair(self) -> None:
        """Links up, a head, and all workers."""
        broken = False
        for host in (self.head, *self.workers):
            broken |= host.restore()
        if not self.head.processes("gcs_server"):
            self.kill()
            self.start_head()
        for worker in self.workers:
            if not worker.processes("raylet/raylet"):
                broken = True
                self.kill_ray(worker)
                self.start_worker(worker)
        if broken:
            eventually(lambda: self.nodes_alive() == 1 + len(self.workers), "all nodes", timeout_s=90)

    def bring_ffmpeg(self) -> None:
        """Put the ffmpeg that waits on all hosts."""
        with tempfile.TemporaryDirectory() as folder:
            made = plan.make(index.read(str(film(Path(folder, "film.mp4")))), Settings(chunk_seconds=2.5))
        assert len(made.chunks) == CHUNKS
        text = _WRAPPER.format(pts=made.chunks[-1].start_pts, binary=ffmpeg.find("libx264").path)
        for host in (self.head, *self.workers):
            host.path(FFMPEG).write_text(text)
            host.path(FFMPEG).chmod(0o755)

    def drive(self, *arguments: str, timeout_s: float = 120, folder: str = "/root") -> CompletedProcess[str]:
        """Run Python on the head, as the driver of a user who logged in there."""
        return self.head.run(PYTHON, *arguments, environment=self.driver_environment, timeout_s=timeout_s, folder=folder)

    def nodes_alive(self) -> int:
        """How many nodes the head believes alive."""
        joined = "import ray; ray.init(address='auto', logging_level=40, log_to_driver=False)"
        code = f"{joined}; print(sum(n['Alive'] for n in ray.nodes()))"
        return int(self.head.check(PYTHON, "-c", code, environment=self.environment | {"RAY_ADDRESS": self.address}))

    def drain(self, host: Host, deadline_s: int) -> None:
        """Have Ray start nothing more on a node, which is to go at the latest after so many seconds."""
        joined = "import ray; ray.init(address='auto', logging_level=40, log_to_driver=False)"
        code = f"{joined}; print(*(n['NodeID'] for n in ray.nodes() if n['Alive'] and n['NodeManagerHostname'] == {host.name!r}))"
        node = self.head.check(PYTHON, "-c", code, environment=self.environment | {"RAY_ADDRESS": self.address}).strip()
        self.head.check(
            "ray", "drain-node", f"--address={self.address}", f"--node-id={node}", "--reason=DRAIN_NODE_REASON_PREEMPTION",
            "--reason-message=maintenance", f"--deadline-remaining-seconds={deadline_s}", environment=self.environment,
        )  # fmt: skip

    def store(self, prefix: str) -> Store:
        """A store in the bucket, for this process."""
        return open_store(f"s3://{BUCKET}/{prefix}")


def copy_project(host: Host) -> None:
    """Put this project on a host. Those without drivers need none."""
    target = host.path(PROJECT)
    for package in ("rayflow", "pipelines"):
        shutil.copytree(REPOSITORY / package, target / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "tests" / "cluster" / "count.py", target)


def told(done: CompletedProcess[str]) -> list[str]:
    """What a driver printed after ``told:``. Ray prints what happens to its nodes among a driver's lines."""
    return [line.removeprefix("told: ") for line in done.stdout.splitlines() if line.startswith("told: ")]


def _ray_start(host: Host) -> tuple[str, ...]:
    return (
        "ray", "start", f"--node-ip-address={host.address}", f"--object-store-memory={100 * 2**20}",
        "--disable-usage-stats", "--min-worker-port=20000", "--max-worker-port=20500",
    )  # fmt: skip


@contextmanager
def bucket_at(address: str) -> Iterator[dict[str, str]]:
    """Serve a bucket at an address of this machine; the environment in which a process finds it."""
    from moto.server import DomainDispatcherApplication, create_backend_app

    application = DomainDispatcherApplication(create_backend_app)
    with serving(one_write_at_a_time(application), address) as endpoint:
        create_bucket(endpoint)
        yield {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "do-not-tell-anyone",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": endpoint,
            "no_proxy": address,
        }


def start(hosts: Hosts, bucket: Mapping[str, str], *workers: str) -> Cluster:
    """Start Ray on the host "head" and on ``workers``, all at once after the head."""
    made = Cluster(hosts, bucket, hosts["head"], [hosts[name] for name in workers])
    made.bring_ffmpeg()
    made.start_head()
    for worker in made.workers:
        made.start_worker(worker)
    eventually(lambda: made.nodes_alive() == 1 + len(workers), "all nodes", timeout_s=90)
    copy_project(made.head)
    return made
