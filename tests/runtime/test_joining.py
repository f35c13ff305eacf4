"""Joining a cluster that runs: what cannot be joined is named, with what to do, and soon."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from rayflow.errors import RayUnavailable
from rayflow.runtime import joining
from tests.conftest import REPOSITORY
from tests.s3_service import serving

_TOKEN = "0123456789abcdef" * 4
_HEAD = """\
import sys, ray
from rayflow.runtime.cluster import RayOptions, start_or_join
ray_here = start_or_join(RayOptions("local", num_cpus=1), "token")
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
ray_here.shutdown()
"""
_JOIN = """\
import sys
import ray
from rayflow.errors import RayUnavailable
from rayflow.runtime.cluster import RayOptions, start_or_join
ray.__version__ = sys.argv[2] if len(sys.argv) > 2 else ray.__version__
try:
    start_or_join(RayOptions(sys.argv[1]), "")
except RayUnavailable as error:
    sys.exit(str(error))
"""


def test_an_address_where_nothing_listens_is_named() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(RayUnavailable, match=rf"no Ray cluster answers at {address} .*refused.*`ray start --head`"):
            joining.join(address)


def test_a_server_that_is_not_rays_is_named() -> None:
    with serving(lambda environ, start_response: []) as url:
        address = url.removeprefix("http://")
        with pytest.raises(RayUnavailable, match=rf"something listens at {address}, but did not answer .*: give the host:port"):
            joining.join(address)


def test_a_server_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "_ANSWER_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(RayUnavailable, match=rf"something listens at {address}.*within 1 s .DEADLINE_EXCEEDED"):
            joining.join(address)


@pytest.fixture
def guarded_cluster(tmp_path: Path) -> Iterator[str]:
    """The address of a cluster that wants a token."""
    command = [sys.executable, "-c", _HEAD]
    environment = _environment(tmp_path) | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": _TOKEN}
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as head:
        assert head.stdout is not None
        yield head.stdout.readline().strip()


@pytest.mark.ray
@pytest.mark.slow
def test_a_cluster_that_wants_a_token_is_joined_with_it_and_says_so_without(guarded_cluster: str, tmp_path: Path) -> None:
    def join(**environment: str) -> str:
        command = [sys.executable, "-c", _JOIN, guarded_cluster]
        return subprocess.run(
            command, env=_environment(tmp_path) | environment, stderr=subprocess.PIPE, text=True, timeout=60
        ).stderr

    wanted = f"the Ray cluster at {guarded_cluster} wants a token that this process has not: set RAY_AUTH_MODE=token"
    assert join().startswith(wanted)
    assert join(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=_TOKEN[::-1]).startswith(wanted)
    assert "set RAY_AUTH_MODE=token" in join(RAY_AUTH_MODE="token")
    assert join(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=_TOKEN) == ""


@pytest.mark.ray
@pytest.mark.slow
def test_a_cluster_of_another_version_of_ray_is_refused_with_both_named(guarded_cluster: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", _JOIN, guarded_cluster, "2.1.0"]
    environment = _environment(tmp_path) | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": _TOKEN}
    said = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, timeout=60).stderr
    python = platform.python_version()
    assert f"runs Ray {ray.__version__} and Python {python}, this process Ray 2.1.0 and Python {python}" in said
    assert f"pip install 'ray[default]=={ray.__version__}'" in said and "Traceback" not in said


def _environment(home: Path) -> dict[str, str]:
    """Without a token, whatever this process or its user has."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return kept | {"HOME": str(home), "PYTHONPATH": str(REPOSITORY)}
