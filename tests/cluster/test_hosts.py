"""The hosts that the other tests of a cluster stand on are hosts: apart from each other, and gone with who made them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import hosts
from tests.cluster.hosts import REPOSITORY, Hosts, eventually

pytestmark = [pytest.mark.cluster, pytest.mark.skipif(bool(hosts.unavailable()), reason=str(hosts.unavailable()))]

_MAKE = """
import os, sys, time
from tests.cluster.hosts import hosts
with hosts("one") as made:
    print(made["one"].pid, flush=True)
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def pair() -> Iterator[Hosts]:
    with hosts.hosts("one", "two") as made:
        yield made


def test_a_host_has_a_name_files_and_processes_of_its_own(pair: Hosts) -> None:
    one, two = pair["one"], pair["two"]
    assert (one.check("hostname"), two.check("hostname")) == ("one\n", "two\n")
    for folder in ("/tmp", "/dev/shm", "/root"):
        one.path(f"{folder}/note").write_text("here")
        assert one.check("cat", f"{folder}/note") == "here"
        assert not two.path(f"{folder}/note").exists()
        assert not Path(folder, "note").exists()
    assert "bash" in one.check("cat", "/proc/1/cmdline")
    assert one.run("test", "-e", str(REPOSITORY / "rayflow")).returncode != 0
    one.start("sleep", "1234")
    eventually(lambda: len(one.processes("sleep 1234")) > 0, "a process that was started")
    assert two.processes("sleep 1234") == []
    assert one.kill("sleep 1234") >= 1


def test_hosts_reach_each_other_by_ssh_until_the_link_is_cut(pair: Hosts) -> None:
    one, two = pair["one"], pair["two"]
    options = ("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "ConnectTimeout=1")
    ask = ("ssh", *options, "two", "hostname; command -v ray")
    assert one.check(*ask) == f"two\n{hosts.ENVIRONMENT}/bin/ray\n"
    two.cut()
    assert one.run(*ask).returncode == 255
    two.restore()
    assert one.check(*ask).startswith("two\n")


def test_a_host_that_dies_is_gone_with_its_processes_and_another_takes_its_place(pair: Hosts) -> None:
    third = pair.add("three")
    third.start("sleep", "1235")
    eventually(lambda: len(third.processes("sleep 1235")) > 0, "a process that was started")
    sleeping = third.processes("sleep 1235")[-1].pid
    pair.remove("three")
    assert not hosts.runs(sleeping)
    assert pair.add("three").processes() == []


def test_nothing_is_left_of_a_run_that_was_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", _MAKE], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as maker:
        assert maker.stdout is not None
        pid = int(maker.stdout.readline())
        maker.kill()
    eventually(lambda: not hosts.runs(pid), "the end of the host")
    hosts.remove_leftovers()
    assert f"rfb{maker.pid}" not in subprocess.run(["ip", "-o", "link"], capture_output=True, text=True).stdout
