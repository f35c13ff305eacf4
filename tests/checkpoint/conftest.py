"""Stores to test with: one of each kind, the bucket served by a real HTTP server on the loopback interface."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rayflow.checkpoint.bucket import BucketStore
from rayflow.checkpoint.local import LocalStore
from rayflow.checkpoint.memory import MemoryStore
from rayflow.checkpoint.store import Store
from rayflow.testing.faulty_store import FaultyStore

BUCKET = "rayflow-test"


def _one_write_at_a_time(application: Callable[..., Any]) -> Callable[..., Any]:
    # The simulated service checks a condition and writes in two steps; the real one does both at once.
    lock = threading.Lock()

    def serve(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        if environ["REQUEST_METHOD"] != "PUT":
            return application(environ, start_response)
        with lock:
            return list(application(environ, start_response))

    return serve


@contextmanager
def serving(application: Callable[..., Any]) -> Iterator[str]:
    """The URL of an HTTP server for a WSGI application on the loopback interface, one thread to a request."""
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log(self, type: str, message: str, *args: Any) -> None:
            pass

    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=Quiet)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="http-server", daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="session")
def s3_application() -> Callable[..., Any]:
    """An S3 service as a WSGI application."""
    from moto.server import DomainDispatcherApplication, create_backend_app

    return _one_write_at_a_time(DomainDispatcherApplication(create_backend_app))


@pytest.fixture(scope="session")
def s3_endpoint(s3_application: Callable[..., Any]) -> Iterator[str]:
    """The URL of an S3 service with one empty bucket named ``BUCKET``."""
    with serving(s3_application) as endpoint:
        _create_bucket(endpoint)
        yield endpoint


def _create_bucket(endpoint: str) -> None:
    import boto3

    client = boto3.client(
        "s3", endpoint_url=endpoint, aws_access_key_id="test", aws_secret_access_key="test", region_name="us-east-1"
    )
    client.create_bucket(Bucket=BUCKET)
    client.close()


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
def s3_store(s3_environment: str) -> BucketStore:
    """An empty store in the bucket, under a prefix of its own."""
    return BucketStore("s3", BUCKET, f"team/{uuid.uuid4().hex}")


@pytest.fixture(params=["memory", "local", "s3", "faulty"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store of each kind; the faulty one without faults, which must be as good as what it wraps."""
    match request.param:
        case "memory":
            return MemoryStore()
        case "faulty":
            return FaultyStore(MemoryStore())
        case "local":
            return LocalStore(tmp_path / "store")
        case _:
            return request.getfixturevalue("s3_store")
