"""An encode and a counter that are under way on a cluster while something of it is lost, and what must hold in the end."""

from __future__ import annotations

import json
import subprocess
import time
import uuid
from collections.abc import Mapping

from rayflow.checkpoint.entities import list_entities
from rayflow.checkpoint.opening import open_store
from tests.cluster.hosts import Host, eventually
from tests.cluster.nodes import CHUNKS, FFMPEG, PROJECT, PYTHON, Cluster, told
from tests.pipelines.command_bench import read_attempts, undisturbed
from tests.pipelines.conversion import film, frames
from tests.s3_service import BUCKET

_VALUE = """\
import sys, rayflow
from pipelines.counter import Counter
with rayflow.connect(sys.argv[1]) as client:
    state = client.entity(Counter, "hits").get().result()
    print("told:", state.value, state.version)
"""


class UnderWay:
    """Starts both, and takes the time."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.prefix = f"{BUCKET}/{uuid.uuid4().hex}"
        self.encodes, self.counters = f"s3://{self.prefix}/encodes", f"s3://{self.prefix}/counters"
        self.counting: dict[Host, str] = {}
        self._began_s = time.monotonic()
        self._programs: list[subprocess.Popen[bytes]] = []
        self._log = ""

    def say(self, what: str) -> None:
        """Print the seconds since the begin."""
        print(f"{time.monotonic() - self._began_s:6.1f} s  {what}")

    # -- encode --------------------------------------------------------------------------------------------------------------

    def encode(self) -> subprocess.Popen[bytes]:
        """Start the encode on the head, its last chunk held."""
        for host in (self.cluster.head, *self.cluster.workers):
            host.path("/root/hold").touch()
        film(self.cluster.head.path("/root/source.mp4"))
        self.cluster.head.path("/root/source.encoded.mp4").unlink(missing_ok=True)
        return self.encode_on()

    def encode_on(self) -> subprocess.Popen[bytes]:
        """Start or continue the encode by the same command."""
        self._log = f"/tmp/encode-{uuid.uuid4().hex}.log"
        return self._start(
            self.cluster.head,
            "-m", "rayflow.encode", "/root/source.mp4", "--store", self.encodes, "--chunk-seconds", "2.5", "--json",
            log=self._log,
        )  # fmt: skip

    def wait_until_held(self, timeout_s: float = 120) -> Host:
        """Wait until all chunks but the last are finished; returns the host that works on the last."""

        def held() -> list[Host]:
            return [host for host in self.cluster.workers if host.processes(f"{FFMPEG} ") and self._chunks_done() == CHUNKS - 1]

        eventually(lambda: bool(held()), "all chunks but one", timeout_s, self.said)
        self.say("three of four chunks are finished, one is held")
        return held()[0]

    def release(self) -> None:
        for host in self.cluster.hosts:
            host.path("/root/hold").unlink(missing_ok=True)

    def wait_until_encoded(self, command: subprocess.Popen[bytes], timeout_s: float = 120) -> None:
        """Let the encode end, and check its output and that no finished chunk was encoded again."""
        self.release()
        assert command.wait(timeout_s) == 0, self.said()
        self.say("the encode is done")
        assert frames(str(self.cluster.head.path("/root/source.encoded.mp4"))) == undisturbed()
        attempts = self.attempts()
        assert [attempts[f"{number:04}"] for number in range(CHUNKS - 1)] == [1] * (CHUNKS - 1), attempts

    def attempts(self) -> Mapping[str, int]:
        return read_attempts(self.encodes, self.events()[0]["id"])

    def assert_no_chunk_again_but(self, lost: str) -> None:
        """Chunks that were finished are not encoded again. The lost one is, by a second attempt or by a second run of the first."""
        attempts = dict(self.attempts())
        assert attempts.pop(lost) in (1, 2)
        assert set(attempts.values()) == {1}

    def events(self) -> list[dict[str, str]]:
        lines = self.cluster.head.path(self._log).read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and '"start"' in line]

    def said(self) -> str:
        path = self.cluster.head.path(self._log)
        return path.read_text()[-3000:] if self._log and path.exists() else ""

    def _chunks_done(self) -> int:
        return self.said().count('"event":"chunk"')

    # -- counter -------------------------------------------------------------------------------------------------------------

    def count(self, host: Host, node: str = "") -> subprocess.Popen[bytes]:
        """Let a program on a host count, from where it had been."""
        folder = self.counting.setdefault(host, f"/root/counting-{uuid.uuid4().hex[:8]}")
        host.path(folder).mkdir(exist_ok=True)
        return self._start(host, f"{PROJECT}/count.py", self.counters, "hits", folder, *([node] if node else []))

    def acknowledged(self, host: Host) -> int:
        path = host.path(f"{self.counting[host]}/acknowledged")
        return int(path.read_text()) if path.exists() else 0

    def wait_for_counts(self, host: Host, more: int = 50, timeout_s: float = 120) -> None:
        """Until a program has been told of so many further increments."""
        enough = self.acknowledged(host) + more
        eventually(lambda: self.acknowledged(host) >= enough, f"{more} more increments", timeout_s, lambda: self._logs(host))
        self.say(f"{self.acknowledged(host)} increments from {host.name}")

    def stop_counting(self, host: Host, program: subprocess.Popen[bytes], timeout_s: float = 60) -> None:
        host.path(f"{self.counting[host]}/stop").touch()
        assert program.wait(timeout_s) == 0, self._logs(host)

    def assert_exact(self) -> None:
        """The counter has counted what its clients were told of, by a message and by the record."""
        expected = sum(self.acknowledged(host) for host in self.counting)
        said = self.cluster.drive("-c", _VALUE, self.counters)
        assert told(said) == [f"{expected} {expected}"], f"{expected}, {said.stdout[-2000:]} {said.stderr[-2000:]}"
        states = list_entities(open_store(self.counters)).entities
        assert len(states) == 1
        self.say(f"the counter is at {expected}, exactly")

    def kill_programs(self) -> None:
        """End what is connected, where it has not ended."""
        for program in self._programs:
            program.kill()
            program.wait()
        for host in self.cluster.hosts:
            for part in ("rayflow.encode", "count.py"):
                host.kill(part)

    def close(self) -> None:
        self.kill_programs()
        self.release()

    def _logs(self, host: Host) -> str:
        path = host.path("/tmp/started.log")
        return path.read_text()[-3000:] if path.exists() else ""

    def _start(self, host: Host, *arguments: str, log: str = "/tmp/started.log") -> subprocess.Popen[bytes]:
        environment = self.cluster.driver_environment
        program = host.start(PYTHON, *arguments, environment=environment, log=log)
        self._programs.append(program)
        return program
