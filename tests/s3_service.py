"""An S3 service on the loopback interface: moto's server in this process, made as atomic as the real one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

BUCKET = "rayflow-test"


def one_write_at_a_time(application: Callable[..., Any]) -> Callable[..., Any]:
    """The simulated service checks a condition and writes in two steps; the real one does both at once."""
    lock = threading.Lock()

    def serve(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        if environ["REQUEST_METHOD"] != "PUT":
            return application(environ, start_response)
        with lock:
            return list(application(environ, start_response))

    return serve


@contextmanager
def serving(application: Callable[..., Any], address: str = "127.0.0.1") -> Iterator[str]:
    """The URL of an HTTP server for a WSGI application, by default on the loopback interface, one thread to a request."""
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log(self, type: str, message: str, *args: Any) -> None:
            pass

    server = make_server(address, 0, application, threaded=True, request_handler=Quiet)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="http-server", daemon=True)
    thread.start()
    try:
        yield f"http://{address}:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def create_bucket(endpoint: str) -> None:
    """Create the empty bucket named ``BUCKET``."""
    import boto3

    client = boto3.client(
        "s3", endpoint_url=endpoint, aws_access_key_id="test", aws_secret_access_key="test", region_name="us-east-1"
    )
    client.create_bucket(Bucket=BUCKET)
    client.close()
