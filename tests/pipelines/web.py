"""A web server for tests: real HTTP on the loopback interface, with range requests as web servers and buckets have them."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Web:
    """A server of a folder. ``ranges``: whether it gives pieces. ``answers``: status codes for paths that it refuses.
    ``breaks_after``: bytes after which it hangs up, in the middle of an answer. ``sent_bytes`` and ``breaks`` are counted."""

    def __init__(self) -> None:
        self.url = ""
        self.ranges = True
        self.answers: dict[str, int] = {}
        self.breaks_after = 2**63
        self.sent_bytes = 0
        self.breaks = 0


class _Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, web: Web, *args: Any, **kwargs: Any) -> None:
        self._web = web
        super().__init__(*args, **kwargs)

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path in self._web.answers:
            self.send_error(self._web.answers[path])
            return
        file = Path(self.translate_path(self.path))
        if not file.is_file():
            self.send_error(404)
            return
        data = file.read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first, last = 0, len(data) - 1
        if asked is not None and self._web.ranges:
            first, last = int(asked[1]), min(int(asked[2] or last), last)
            if first > last:
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        else:
            self.send_response(200)
        if self._web.ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(last + 1 - first))
        self.end_headers()
        try:
            for at in range(first, last + 1, 65536):
                if at - first >= self._web.breaks_after:
                    self._web.breaks += 1
                    self.close_connection = True
                    return
                piece = data[at : min(at + 65536, last + 1)]
                self.wfile.write(piece)
                self._web.sent_bytes += len(piece)
        except (BrokenPipeError, ConnectionResetError):  # ffmpeg seeks by hanging up
            self.close_connection = True


@contextmanager
def serving(folder: Path) -> Iterator[Web]:
    """Serve a folder while the block runs."""
    web = Web()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, web, directory=str(folder)))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="web", daemon=True)
    thread.start()
    web.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield web
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
