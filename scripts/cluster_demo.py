"""A cluster made, used and damaged before your eyes, on this machine alone: ``python scripts/cluster_demo.py``, as root.

Four hosts of their own (a desk and three machines), each with its network, files, processes and sshd, and a simulated S3. From the
desk ``ray up`` makes a cluster of the three with ``cluster/local.yaml``, over SSH, and an encode is submitted as a job. While its
chunks run, the link of the machine that holds the supervisor is cut, and later the other worker's power. The encode must end with
the frames of an undisturbed one, no finished chunk encoded twice.

Exit code 0: all of that held. 1: something did not, and is named. 77: it cannot run here, and why. Nothing is left behind, however
it ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))  # the hosts are those of the tests of a cluster

SKIPPED = 77
CHUNKS = 24
CHUNK_S = 2
_LEAST_S = 4.0
"""What each chunk takes at least: the film is tiny, so that it fits on two cores, but there must be time to lose things."""
_UP_S = 28.0
"""What the cluster takes to come up on an idle machine; where it takes longer, chunks do in proportion."""
_FFMPEG = """\
#!/bin/sh
case "$*" in *trim=start_pts=*"-c:v"*) sleep "$(cat /root/least)" ;; esac
exec "{binary}" "$@"
"""
_SETTINGS = ("--chunk-seconds", str(CHUNK_S), "--preset", "veryfast")

# The nodes' environment, beside that of the bucket: Ray gives up a silent node after ten seconds, not after a minute, and the
# launcher starts Ray again on a machine that it has not heard of for ten.
_NODES = {
    "RAYFLOW_FFMPEG": "/root/ffmpeg",
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "3",
    "AUTOSCALER_HEARTBEAT_TIMEOUT_S": "10",
}
_DESK = {"RAY_UP_enable_autoscaler_v2": "0", "TERM": "dumb"}

# The actors of a store live on the head. Here the one with the supervisors is moved, so that its machine can be lost.
_MOVE = """\
import sys, ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
import rayflow
from rayflow.runtime import cluster
with rayflow.connect(sys.argv[1], address="auto") as client:
    (node,) = [one["NodeID"] for one in ray.nodes() if one["NodeManagerHostname"] == sys.argv[2]]
    cluster.head = lambda: NodeAffinitySchedulingStrategy(node, soft=True)
    where = ""
    while where != node:  # the dispatcher makes it anew, too, and may be faster
        ray.kill(ray.get_actor(cluster.actor_names(client.identity)[0], namespace="rayflow"))
        host = cluster.find_host(client.identity, client.store.url)
        ray.get(host.code.remote())
        where = ray._private.state.actors(host._actor_id.hex())["Address"]["NodeID"]
"""


def missing() -> str | None:
    """What the demonstration lacks on this machine, or None."""
    if absent := [name for name in ("moto", "boto3", "pytest") if find_spec(name) is None]:
        return f"{', '.join(absent)} not found: pip install -e '.[dev]'"
    from tests.cluster.hosts import unavailable

    return unavailable()


def main() -> int:
    """Run it and return the exit code."""
    if reason := missing():
        print(f"skipped: {reason}")
        return SKIPPED
    signal.signal(signal.SIGTERM, _stop)
    try:
        with _machines() as demo:
            demo.run()
    except AssertionError as error:
        print(f"FAILED: {error}", flush=True)
        return 1
    except KeyboardInterrupt:
        print("stopped; everything is cleaned up", flush=True)
        return 130
    return 0


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


@contextlib.contextmanager
def _machines() -> Generator[Demo]:
    from tests.cluster.hosts import hosts
    from tests.cluster.nodes import bucket_at

    began_s = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix=f"rayflow-demo-{os.getpid()}-") as folder,
        hosts("desk", "head", "one", "two") as made,
        bucket_at(made.gateway) as bucket,
        ThreadPoolExecutor(1) as pool,
    ):
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT", "AWS_ENDPOINT_URL_S3"):
            os.environ.pop(name, None)
        os.environ.update(bucket)
        yield Demo(made, bucket, Path(folder), pool, began_s)


class Demo:
    """The machines, and what happens to them. ``machines`` are ``tests.cluster.hosts.Hosts``."""

    def __init__(self, machines: Any, bucket: Mapping[str, str], folder: Path, pool: ThreadPoolExecutor, began_s: float) -> None:
        from tests.s3_service import BUCKET

        self._machines = machines
        self._desk, self._head, self._one, self._two = (machines[name] for name in ("desk", "head", "one", "two"))
        self._bucket = bucket
        self._folder = folder
        self._pool = pool
        self._began_s = began_s
        self._root = f"s3://{BUCKET}"
        self._store = f"{self._root}/rayflow"
        self._job = _Job(self._desk.path("/tmp/job.log"))
        self.say("a desk and three machines are there, and a bucket")

    def run(self) -> None:
        """All of it. Raises AssertionError where something does not hold."""
        undisturbed = self._make_film()
        self._bring_files()
        self._ray_up()
        self._ray_exec(f"ray job submit {_AT_HEAD} --working-dir rayflow -- python move.py {self._store} two")
        assert self._two.processes("ray::ShardHost") and self._head.processes("ray::Dispatcher"), "the actors are elsewhere"
        self.say("the supervisor's actor is on two, the dispatcher on the head")
        dispatchers = {one.pid for one in self._head.processes("ray::Dispatcher")}  # their titles say what they do just now
        submitted = self._submit()
        self._wait(lambda: self._job.finished() >= 3 and self._works(self._two) and self._works(self._one), "the first chunks")
        finished_before = self._cut_supervisor()
        self._kill_worker()
        assert submitted.wait(150) == 0, f"the job failed: {self._job.tail()}"
        self.say(f"the job has ended: {self._job.finished()} of {CHUNKS} chunks")
        assert {one.pid for one in self._head.processes("ray::Dispatcher")} == dispatchers, "the dispatcher is another one"
        self._check_record(finished_before)
        self._check_output(undisturbed)
        print(f"PASSED in {time.monotonic() - self._began_s:.0f} s", flush=True)

    def say(self, what: str) -> None:
        """A line of the timeline: seconds since the begin, and what happened."""
        print(f"{time.monotonic() - self._began_s:6.1f} s  {what}", flush=True)

    # -- what is there -------------------------------------------------------------------------------------------------------

    def _make_film(self) -> Future[tuple[Any, ...]]:
        """Put a film into the bucket; the frames of an undisturbed encode of it come later."""
        from pipelines.video.settings import Settings
        from rayflow.checkpoint.objects import BucketObject
        from tests.pipelines.conversion import convert, frames, generate, picture

        film, settings = self._folder / "film.mp4", Settings(chunk_seconds=CHUNK_S, preset="veryfast")
        every = str(CHUNK_S * 25)
        generate(film, *picture(CHUNKS * CHUNK_S), "-c:v", "libx264", "-preset", "ultrafast", "-g", every, "-keyint_min", every)
        BucketObject(f"{self._root}/in/film.mp4").upload(film)

        def encode() -> tuple[Any, ...]:
            output = self._folder / "undisturbed.mp4"
            assert len(convert(str(film), settings, output).chunks) == CHUNKS
            return frames(str(output))

        return self._pool.submit(encode)

    def _bring_files(self) -> None:
        """This project to the desk, as a user has it; what `uv` would make of it to the machines, which reach no network."""
        from pipelines.video import ffmpeg
        from tests.cluster.hosts import ENVIRONMENT

        project = self._desk.path("/root/rayflow")
        for name in ("rayflow", "pipelines", "cluster"):
            shutil.copytree(REPOSITORY / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md"):
            shutil.copy(REPOSITORY / name, project)
        (project / "move.py").write_text(_MOVE)
        for host in self._machines:
            host.path("/root/rayflow-env").symlink_to(ENVIRONMENT)
            host.path("/root/ffmpeg").write_text(_FFMPEG.format(binary=ffmpeg.find("libx264").path))
            host.path("/root/ffmpeg").chmod(0o755)
        config = project / "cluster" / "local.yaml"
        config.write_text(self._edited(config.read_text()))

    def _edited(self, text: str) -> str:
        """``cluster/local.yaml`` with its three places edited."""
        bucket = self._bucket
        more = "".join(f"    export {name}={value}\n" for name, value in {"no_proxy": bucket["no_proxy"], **_NODES}.items())
        for before, after in (
            ("head_ip: 192.0.2.10", f"head_ip: {self._head.address}"),
            ("[192.0.2.11, 192.0.2.12]", f"[{self._one.address}, {self._two.address}]"),
            ("ssh_user: ubuntu", "ssh_user: root"),
            ("AWS_REGION=eu-central-1", f"AWS_REGION={bucket['AWS_REGION']}"),
            ("AWS_ENDPOINT_URL=https://s3.eu-central-1.amazonaws.com", f"AWS_ENDPOINT_URL={bucket['AWS_ENDPOINT_URL']}"),
            ("AWS_ACCESS_KEY_ID=\n", f"AWS_ACCESS_KEY_ID={bucket['AWS_ACCESS_KEY_ID']}\n"),
            ("AWS_SECRET_ACCESS_KEY=\n", f"AWS_SECRET_ACCESS_KEY={bucket['AWS_SECRET_ACCESS_KEY']}\n{more}"),
        ):
            assert text.count(before) == 1, f"cluster/local.yaml has no single {before!r} any more"
            text = text.replace(before, after)
        return text

    # -- what is done --------------------------------------------------------------------------------------------------------

    def _ray_up(self) -> None:
        began_s = time.monotonic()
        self._on_desk("ray", "up", "-y", "cluster/local.yaml")
        self.say("ray up has returned")
        deadline_s = time.monotonic() + 120
        while "3 local.cluster.node" not in (status := self._ray_exec("ray status")):
            assert time.monotonic() < deadline_s, f"the workers do not come: {status}"
            time.sleep(1)
        self.say("both workers are there")
        self._chunks_take(_LEAST_S * max(1.0, (time.monotonic() - began_s) / _UP_S))

    def _chunks_take(self, least_s: float) -> None:
        for host in (self._one, self._two):
            host.path("/root/least").write_text(f"{least_s:.1f}")

    def _submit(self) -> subprocess.Popen[bytes]:
        encode = shlex.join(
            [
                "python", "-m", "rayflow.encode", f"{self._root}/in/film.mp4", "-o", f"{self._root}/out/film.mp4", *_SETTINGS,
                "--address", "auto", "--store", self._store, "--workers", "4", "--json",
            ]
        )  # fmt: skip
        command = ("ray", "exec", "cluster/local.yaml", f"ray job submit {_AT_HEAD} --working-dir rayflow -- {encode}")
        self.say(f"ray job submit -- {encode}")
        return self._desk.start(*command, environment=_DESK, folder="/root/rayflow", log="/tmp/job.log")

    def _cut_supervisor(self) -> set[str]:
        """Cut the supervisor's machine off until another has taken over; returns the chunks that were finished before."""
        two = self._two
        raylets = two.processes("raylet/raylet")
        before = self._job.chunks()
        two.cut()
        self.say(f"the link of two is cut: the supervisor and the chunks there are out of reach ({len(before)} chunks finished)")
        places = {"head": self._head, "one": self._one}

        def owners() -> list[str]:
            return [name for name, host in places.items() if host.processes("ray::ShardHost")]

        self._wait(lambda: bool(owners()), "another supervisor")
        self.say(f"the supervisor is started again on {owners()[0]}")
        finished = self._job.finished()
        self._wait(lambda: self._job.finished() > finished, "a chunk under the new supervisor")
        self.say(f"chunks go on ({self._job.finished()} finished); the old supervisor still runs on two, cut off")
        assert two.processes("ray::ShardHost"), "the old supervisor has ended on its own"
        two.restore()
        self.say("the link of two is back")
        self._wait(lambda: two.processes("raylet/raylet") not in ([], raylets), "Ray on two once more")
        self._wait(lambda: self._works(two), "a chunk on two once more")
        self.say(f"the launcher has started Ray on two again, and it encodes ({self._job.finished()} chunks finished)")
        return before

    def _kill_worker(self) -> None:
        """Let the other worker die."""
        self._wait(lambda: self._works(self._one), "a chunk on one")
        self._chunks_take(0)  # what is to be seen has been
        self._machines.remove("one")
        self.say(f"one has lost its power, while it encoded ({self._job.finished()} chunks finished)")

    # -- what holds ----------------------------------------------------------------------------------------------------------

    def _check_record(self, finished_before: set[str]) -> None:
        from rayflow.checkpoint.opening import open_store
        from rayflow.checkpoint.reading import read_execution
        from rayflow.checkpoint.reports import OperationState

        operations = read_execution(open_store(self._store), self._job.execution()).operations
        chunks = {one.operation.partition("/[")[2].removesuffix("]"): one for one in operations if one.name == "encode_chunk"}
        assert len(chunks) == CHUNKS, f"{len(chunks)} chunks are on record"
        done = {name: [at for at in one.attempts if at.state is OperationState.COMPLETED] for name, one in chunks.items()}
        by_host = Counter(attempts[0].node for attempts in done.values())
        repeated = {name: len(one.attempts) for name, one in chunks.items() if len(one.attempts) > 1}
        print("\nhost   chunks")
        for host, count in sorted(by_host.items()):
            print(f"{host:6} {count:3}")
        print(f"attempts: {len(chunks) - len(repeated)} chunks had one, {len(repeated)} that were lost with a machine had more:")
        for name, count in sorted(repeated.items()):
            causes = [str(at.cause) if at.cause else f"completed on {at.node}" for at in chunks[name].attempts]
            print(f"  chunk {name}: {count} ({', '.join(causes)})")
        print(flush=True)
        assert all(done[name] == [one.attempts[-1]] for name, one in chunks.items()), "a chunk was encoded after it was finished"
        again = finished_before & repeated.keys()
        assert not again, f"finished chunks were encoded again: {sorted(again)}"
        assert repeated, "no chunk was lost: nothing was shown"
        self.say(f"no finished chunk was encoded again ({len(repeated)} lost ones were)")

    def _check_output(self, undisturbed: Future[tuple[Any, ...]]) -> None:
        from rayflow.checkpoint.objects import BucketObject
        from tests.pipelines.conversion import frames

        taken = self._folder / "taken.mp4"
        taken.write_bytes(BucketObject(f"{self._root}/out/film.mp4").read(0, 10**9)[0])
        wanted, got = undisturbed.result(), frames(str(taken))
        assert len(wanted) == CHUNKS * CHUNK_S * 25, f"the undisturbed encode has {len(wanted)} frames"
        assert got == wanted, "the output is not that of an undisturbed encode"
        self.say(f"the output has the {len(got)} frames of an undisturbed encode, by their hashes and times")

    # -- means ---------------------------------------------------------------------------------------------------------------

    def _on_desk(self, *command: str) -> str:
        return self._desk.check(*command, environment=_DESK, folder="/root/rayflow", timeout_s=180)

    def _ray_exec(self, command: str) -> str:
        return self._on_desk("ray", "exec", "cluster/local.yaml", command)

    def _works(self, host: Any) -> bool:
        return bool(host.processes("/root/ffmpeg -hide_banner"))

    def _wait(self, check: Callable[[], bool], what: str, timeout_s: float = 90) -> None:
        from tests.cluster.hosts import eventually

        eventually(check, what, timeout_s, self._job.tail)


_AT_HEAD = "--address http://127.0.0.1:8265"


@dataclass(frozen=True, slots=True)
class _Job:
    """What the encode's job has printed so far."""

    log: Path

    def events(self) -> list[dict[str, Any]]:
        """What the command reports with --json, between what Ray has to say."""
        if not self.log.exists():
            return []
        lines = (line.strip() for line in self.log.read_text(errors="replace").splitlines())
        return [json.loads(line) for line in lines if line.startswith('{"event":') and line.endswith("}")]

    def chunks(self) -> set[str]:
        """The finished ones, by name."""
        return {event["name"] for event in self.events() if event["event"] == "chunk"}

    def finished(self) -> int:
        """How many chunks are finished."""
        return len(self.chunks())

    def execution(self) -> str:
        """The id of the encode's execution."""
        return next(event["id"] for event in self.events() if event["event"] == "start")

    def tail(self) -> str:
        """The end of it."""
        return self.log.read_text(errors="replace")[-1500:] if self.log.exists() else ""


if __name__ == "__main__":
    sys.exit(main())
