from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster import nodes
from tests.cluster.hosts import Hosts, hosts, unavailable
from tests.cluster.nodes import Cluster


@pytest.fixture(scope="session")
def bucket_and_hosts(monkeypatch_session: pytest.MonkeyPatch) -> Iterator[tuple[Hosts, dict[str, str]]]:
    """Three hosts and a bucket, for all tests of a session; this process finds the bucket, too."""
    if reason := unavailable():
        pytest.skip(reason)
    from moto.server import DomainDispatcherApplication, create_backend_app

    with hosts("head", "one", "two") as made, nodes.bucket_at(made.gateway, DomainDispatcherApplication(create_backend_app)) as bucket:
        for name, value in bucket.items():
            monkeypatch_session.setenv(name, value)
        yield made, bucket


@pytest.fixture(scope="session")
def monkeypatch_session() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def cluster(bucket_and_hosts: tuple[Hosts, dict[str, str]]) -> Iterator[Cluster]:
    """A head and two workers, for the tests of a module."""
    made = nodes.start(*bucket_and_hosts, "one", "two")
    yield made
    for host in made.hosts:
        made.kill_ray(host)
