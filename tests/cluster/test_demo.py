"""The demonstration of a cluster that is damaged holds what it promises, and leaves nothing behind: ``scripts/cluster_demo.py``.

It is also the test of ``cluster/local.yaml`` and of submitted jobs, as docs/cluster.md tells. Invariants: I2, I9, I13, I14.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.cluster.hosts import REPOSITORY, eventually, unavailable

_DEMO = [sys.executable, str(REPOSITORY / "scripts" / "cluster_demo.py")]
_SKIPPED = 77

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.ray,
    pytest.mark.crash,
    pytest.mark.slow,
    pytest.mark.skipif(bool(unavailable()), reason=str(unavailable())),
]


def test_an_encode_on_a_cluster_made_by_ray_up_survives_a_cut_link_and_a_dead_machine() -> None:
    done = subprocess.run(_DEMO, capture_output=True, text=True, timeout=400)
    print(done.stdout)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout[-3000:] + done.stderr[-3000:]
    timeline = re.findall(r"^ *[\d.]+ s  (.+)$", done.stdout, re.MULTILINE)
    told = (
        "ray up has returned",
        "both workers are there",
        "ray job submit -- python -m rayflow.encode s3://",
        "the link of two is cut",
        "the supervisor is started again",
        "the link of two is back",
        "one has lost its power",
        "the job has ended: 24 of 24 chunks",
        "no finished chunk was encoded again",
        "the output has the 1200 frames of an undisturbed encode",
    )
    found = iter(timeline)
    assert [words for words in told if not any(line.startswith(words) for line in found)] == []  # and in this order
    hosts = dict(re.findall(r"^(\w+) +(\d+)$", done.stdout, re.MULTILINE))
    assert set(hosts) == {"one", "two"} and sum(map(int, hosts.values())) == 24
    again = re.findall(r"^  chunk \d+: \d+ \((.+)\)$", done.stdout, re.MULTILINE)
    assert again and all(re.fullmatch(r"(lost, )+completed on (one|two)", causes) for causes in again), again
    assert done.stdout.splitlines()[-1].startswith("PASSED")


@pytest.mark.usefixtures("interruptible")
def test_a_demonstration_that_is_interrupted_leaves_nothing() -> None:
    with subprocess.Popen(_DEMO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None and process.stderr is not None
        assert "three machines are there" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, ""), rest + errors
    assert rest.splitlines()[-1] == "stopped; everything is cleaned up"
    eventually(lambda: not _left_of(process.pid), f"nothing left: {_left_of(process.pid)}")


def test_a_demonstration_that_cannot_run_says_why() -> None:
    done = subprocess.run(["unshare", "--user", *_DEMO], capture_output=True, text=True, timeout=60)  # as nobody in particular
    assert (done.returncode, done.stdout, done.stderr) == (_SKIPPED, "skipped: hosts of their own need root\n", "")


def _left_of(pid: int) -> list[str]:
    """Links, folders and processes of a demonstration that has ended; it led a session."""
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout.splitlines()
    folders = [
        str(path)
        for path in Path(tempfile.gettempdir()).iterdir()
        if path.name.startswith((f"rayflow-hosts-{pid}-", f"rayflow-demo-{pid}-"))
    ]
    session = subprocess.run(["ps", "-s", str(pid), "-o", "args="], capture_output=True, text=True).stdout.splitlines()
    return [*(line for line in links if re.search(rf"\brf[bv]{pid}\b", line)), *folders, *session]
