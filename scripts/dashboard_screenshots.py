"""Pictures of Ray's dashboard while an encode and a counter run: those of docs/dashboard.md, made anew.

    python scripts/dashboard_screenshots.py [--output docs/images] [--only actors] [--seconds 90]

Starts an encode with a Ray and a dashboard of its own, counts beside it, opens the pages in a headless Chromium and takes a picture
of each once it shows what it is about; a page that does not is an error. All that was started ends with it. Takes about a minute,
and needs Chromium (Debian: apt-get install chromium), but no network.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import aiohttp
import ray

import rayflow
from pipelines.counter import Counter
from pipelines.video import sample
from rayflow.runtime.cluster import actor_names
from rayflow.runtime.task import NAMESPACE

REPOSITORY = Path(__file__).resolve().parent.parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTH, HEIGHT = 1360, 800
_PAGE_S = 45.0
_START_S = 90.0
_SETTLE_S = 1.5
_EXECUTION = "movie"


class Failed(Exception):
    """No pictures; the message says why."""


@dataclass(frozen=True)
class Page:
    """A page of the dashboard. ``shows`` are words that are on it once it is ready.

    ``table``: of a table that is to be opened first, its title, and the words in the name by which its rows are chosen.
    """

    name: str
    path: str
    shows: tuple[str, ...]
    table: tuple[str, str] | None = None
    height: int = HEIGHT


def pages(client: rayflow.Client) -> list[Page]:
    """What there is to see of a store's host, dispatcher, steps and drivers."""
    url = client.store.url
    host, dispatcher = actor_names(client.identity)
    actor = cast("Any", ray.get_actor(host, namespace=NAMESPACE))
    actor_id, job_id = cast("list[str]", ray.get(actor.__ray_call__.remote(_ids)))
    return [
        Page("jobs", "/jobs", ("rayflow.encode", "RUNNING"), height=640),
        Page("actors", "/actors", (host, dispatcher, f"rayflow host of {url}", f"rayflow dispatcher of {url}"), height=560),
        Page("actor", f"/actors/{actor_id}", (f"rayflow host of {url}", host), height=570),
        Page("tasks", f"/jobs/{job_id}", (f"{_EXECUTION} encode_chunk", "RUNNING"), ("Task Table", _EXECUTION), height=640),
        Page("cluster", "/cluster", ("ALIVE", "CPU"), height=560),
    ]


def _ids(_: object) -> list[str]:
    context = ray.get_runtime_context()
    return [str(context.get_actor_id()), str(context.get_job_id())]


@contextmanager
def encoding(folder: Path, seconds: float) -> Generator[tuple[Path, int]]:
    """An encode that takes its time, with a dashboard; yields its store and its process."""
    source = sample.make(folder / "movie.mp4", seconds)
    command = [
        sys.executable, "-m", "rayflow.encode", str(source), "--store", str(folder / "store"), "--id", _EXECUTION,
        "--dashboard", "--workers", "2", "--preset", "veryslow", "--crf", "12", "--chunk-seconds", "5", "--quiet",
    ]  # fmt: skip
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        try:
            yield folder / "store", process.pid
        finally:
            process.terminate()  # it ends its Ray, and the steps with it
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


@contextmanager
def counting(folder: Path, encode_pid: int) -> Generator[tuple[rayflow.Client, str]]:
    """A client of the same store in the Ray of the encode, after it has counted, and where the dashboard is."""
    deadline_s = time.monotonic() + _START_S

    def wait() -> None:
        if time.monotonic() > deadline_s:
            raise Failed(f"the encode had no step running within {_START_S:.0f} s")
        time.sleep(0.2)

    while (address := _ray_of(encode_pid)) is None or not list(folder.glob("shards/000/log/*")):
        wait()
    context = ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
    try:
        with rayflow.connect(folder) as client:
            for _ in range(50):
                client.entity(Counter, "hits").increment().result()
            while (view := client.view(_EXECUTION)) is None or not any("encode_chunk" in step.name for step in view.running):
                wait()
            yield client, f"http://{context.dashboard_url}"
    finally:
        ray.shutdown()


def _ray_of(pid: int) -> str | None:
    """The address of the Ray that a process has started, told from the command line of its raylet."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, _, fields = status.read_text().partition(" (")[2].rpartition(") ")
            if name == "raylet" and int(fields.split()[1]) == pid:
                command = Path(status.parent, "cmdline").read_text().split("\0")
                return next(word.partition("=")[2] for word in command if word.startswith("--gcs-address="))
    return None


class Browser:
    """A headless Chromium, spoken to by its DevTools protocol."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._number = 0

    async def command(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Have a command carried out; returns its result."""
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        while True:
            message = cast("dict[str, Any]", await self._socket.receive_json(timeout=_PAGE_S))
            if message.get("id") == self._number:
                if "error" in message:
                    raise Failed(f"{method}: {message['error']}")
                return cast("dict[str, Any]", message["result"])

    async def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        return (await self.command("Runtime.evaluate", expression=expression, returnByValue=True))["result"].get("value")

    async def picture(self, url: str, page: Page) -> bytes:
        """A page as PNG, once it shows what it is about."""
        height = page.height
        await self.command("Emulation.setDeviceMetricsOverride", width=WIDTH, height=height, deviceScaleFactor=1, mobile=False)
        await self.command("Page.navigate", url="about:blank")
        await self.command("Page.navigate", url=f"{url}/#{page.path}")
        deadline_s = time.monotonic() + _PAGE_S
        if page.table is not None:
            await self._open_table(*page.table, deadline_s)
        while missing := [words for words in page.shows if words not in str(await self.evaluate(_TEXT))]:
            if time.monotonic() > deadline_s:
                text = str(await self.evaluate(_TEXT))
                raise Failed(f"the page {page.path} does not show {missing} within {_PAGE_S:.0f} s, but:\n{text[:2000]}")
            await asyncio.sleep(0.2)
        await asyncio.sleep(_SETTLE_S)
        if page.table is not None:
            await self.evaluate(_SCROLL % page.table[0])
            await asyncio.sleep(_SETTLE_S)
        taken = await self.command("Page.captureScreenshot", format="png", optimizeForSpeed=False)
        return base64.b64decode(taken["data"])

    async def _open_table(self, title: str, name: str, deadline_s: float) -> None:
        for step in (_CLICK % title, _FOCUS):
            while not await self.evaluate(step):
                if time.monotonic() > deadline_s:
                    raise Failed(f"there is no {title} with a filter by name")
                await asyncio.sleep(0.5)
        await self.command("Input.insertText", text=name)
        for kind in ("keyDown", "keyUp"):
            await self.command("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13)


# Names that are cut on the page are whole in what explains them.
_TEXT = (
    "document.body ? document.body.innerText + [...document.querySelectorAll('[aria-label]')].map(e => e.ariaLabel).join(' ') : ''"
)
_FIND = "[...document.querySelectorAll('#root *')].filter(e => e.textContent.trim() == '%s').pop()"
_CLICK = f"(e => e ? (e.click(), true) : false)({_FIND})"
_SCROLL = f"{_FIND}?.scrollIntoView()"
_FOCUS = """
(e => e ? (e.scrollIntoView(), e.focus(), true) : false)(
  [...document.querySelectorAll('label')].filter(e => e.textContent.trim() == 'Name')
    .map(e => e.parentElement.querySelector('input')).filter(e => e)[0])
"""


async def take(url: str, wanted: list[Page], output: Path) -> None:
    """Take pictures of pages of the dashboard at ``url``."""
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        raise Failed("there is no Chromium: install it (Debian: apt-get install chromium)")
    with tempfile.TemporaryDirectory(prefix="rayflow-browser-", ignore_cleanup_errors=True) as profile:
        process = await asyncio.create_subprocess_exec(
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--no-proxy-server",
            "--disable-background-networking", "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank",
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            port = await _port(Path(profile, "DevToolsActivePort"))
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                    targets = cast("list[dict[str, str]]", await answer.json())
                target = next(one["webSocketDebuggerUrl"] for one in targets if one["type"] == "page")
                async with session.ws_connect(target, max_msg_size=0) as socket:
                    for page in wanted:
                        png = await Browser(socket).picture(url, page)
                        path = output / f"dashboard-{page.name}.png"
                        path.write_bytes(png)
                        print(f"{path}: {len(png) / 1000:.0f} kB, shows {', '.join(page.shows)}", flush=True)
        finally:
            process.terminate()
            await process.wait()


async def _port(file: Path) -> int:
    deadline_s = time.monotonic() + _START_S
    while not file.exists() or not file.read_text().strip():
        if time.monotonic() > deadline_s:
            raise Failed(f"Chromium did not start within {_START_S:.0f} s")
        await asyncio.sleep(0.05)
    return int(file.read_text().split()[0])


def main() -> int:
    """Exit code 0, or 1 with the reason on stderr."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, default=REPOSITORY / "docs" / "images", help="folder for the pictures")
    parser.add_argument("--only", action="append", metavar="NAME", help="of jobs, actors, actor, tasks, cluster (default: all)")
    parser.add_argument("--seconds", type=float, default=90, help="length of the video (default: 90)")
    options = parser.parse_args()
    os.environ.pop("RAY_ADDRESS", None)
    os.environ["RAY_AUTH_MODE"] = "disabled"  # of the Ray that is started here: else its dashboard asks for a token first
    options.output.mkdir(parents=True, exist_ok=True)
    try:
        with (
            tempfile.TemporaryDirectory(prefix="rayflow-pictures-") as folder,
            encoding(Path(folder), options.seconds) as (store, pid),
            counting(store, pid) as (client, url),
        ):
            wanted = [page for page in pages(client) if not options.only or page.name in options.only]
            asyncio.run(take(url, wanted, options.output))
    except Failed as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
