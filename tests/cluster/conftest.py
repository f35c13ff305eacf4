from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster import nodes
from tests.cluster.hosts import Hosts, hosts, unavailable
from tests.cluster.nodes import Cluster


@pytest.fixture(scope="session")
def made_hosts() -> Iterator[Hosts]:
    """Three hosts for all tests of a session."""
    if reason := unavailable():
        pytest.skip(reason)
    with hosts("head", "one", "two") as made:
        yield made


@pytest.fixture(scope="session")
def bucket(made_hosts: Hosts) -> Iterator[dict[str, str]]:
    """The environment of a bucket that all hosts reach, and this process too."""
    with nodes.bucket_at(made_hosts.gateway) as environment, pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT", "AWS_ENDPOINT_URL_S3"):
            patch.delenv(name, raising=False)
        for name, value in environment.items():
            patch.setenv(name, value)
        yield environment


@pytest.fixture(scope="session")
def session_cluster(made_hosts: Hosts, bucket: dict[str, str]) -> Iterator[Cluster]:
    made = nodes.start(made_hosts, bucket, "one", "two")
    yield made
    made.kill()


@pytest.fixture
def cluster(session_cluster: Cluster) -> Cluster:
    """A head and two workers; what the test before broke is made whole again."""
    session_cluster.repair()
    return session_cluster
