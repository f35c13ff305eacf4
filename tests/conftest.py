"""What tests share: one Ray per session, one S3 service, and the clips."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.limits import limit, pytest_runtest_teardown, pytest_timeout_set_timer
from tests.s3_service import create_bucket, one_write_at_a_time, serving

__all__ = ("pytest_runtest_teardown", "pytest_timeout_set_timer")

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.hookimpl(tryfirst=True)  # before the one in which xdist looks for groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With two workers, tests that start a Ray run in two rows, one at a time in each.

    All that uses the Ray of the session is for one worker: another would wait for that Ray to its end. Tests on hosts of their own
    and those of the command wait more than they work, so that others may run beside them.
    """
    for item in items:
        limit(item)
        if item.get_closest_marker("cluster") or item.get_closest_marker("ray"):
            uses_session = "ray_session" in getattr(item, "fixturenames", ())
            apart = not uses_session and item.path.parent.name in ("cluster", "pipelines")
            item.add_marker(pytest.mark.xdist_group("apart" if apart else "ray"))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Groups that are not kept together cost minutes of waiting, and nothing else would say why."""
    if session.config.getoption("loadgroup", False):
        torn = [item.nodeid for item in session.items if item.get_closest_marker("xdist_group") and "@" not in item.nodeid]
        if torn:
            pytest.exit(f"this pytest-xdist does not keep groups together with pytest {pytest.__version__}: {torn[0]} has none", 4)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One Ray for all tests that need one; each test has a store, and so actors, of its own."""
    from rayflow.runtime.cluster import RayOptions, start_or_join

    ray = start_or_join(RayOptions(address="local", num_cpus=2), "tests")
    yield
    if ray is not None:
        ray.shutdown()


@pytest.fixture
def interruptible() -> Iterator[None]:
    """What the test starts can be interrupted, also where the tests run as a background job, which ignores interrupts.

    Processes inherit that a signal is ignored, and not that it is handled. This one goes on ignoring it.
    """
    previous = signal.getsignal(signal.SIGINT)
    if previous is signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda number, frame: None)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.fixture(scope="session")
def s3_application() -> Callable[..., Any]:
    """An S3 service as a WSGI application."""
    from moto.server import DomainDispatcherApplication, create_backend_app

    return one_write_at_a_time(DomainDispatcherApplication(create_backend_app))


@pytest.fixture(scope="session")
def s3_endpoint(s3_application: Callable[..., Any]) -> Iterator[str]:
    """The URL of an S3 service with one empty bucket named ``BUCKET``."""
    with serving(s3_application) as endpoint:
        create_bucket(endpoint)
        yield endpoint


@pytest.fixture
def s3_environment(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The environment of a process that is to use the S3 service; returns its URL."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "do-not-tell-anyone")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    return s3_endpoint


@pytest.fixture
def clips() -> Path:
    """The folder of real clips. Skips where it is absent."""
    folder = Path(os.environ.get("RAYFLOW_CLIPS", REPOSITORY.parent / "shared" / "clips"))
    if not folder.is_dir():
        pytest.skip(f"no clips at {folder}; set RAYFLOW_CLIPS to a folder that has them")
    return folder
