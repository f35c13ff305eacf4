"""What has to be right before anything can run: the store, the libraries, ffmpeg, and room on the disks."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import os
import platform
import shutil
import statistics
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import rayflow
from rayflow.checkpoint.identity import read_identity
from rayflow.checkpoint.opening import probe
from rayflow.checkpoint.store import Store
from rayflow.errors import NotFound, RayflowError

LOW_DISK_BYTES = 2**30
"""Less free space than this is a failure."""

_SAMPLES = 5
_LIBRARIES = ("ray", "pyarrow", "obstore", "av", "imageio-ffmpeg")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; ``detail`` says what was found, and what to do where it is not ``ok``."""

    subject: str
    ok: bool
    detail: str


def diagnose(store: Store) -> Iterator[Finding]:
    """Look at everything, one after the other. Writes a few small objects to the store and removes them again."""
    yield _checked("store", lambda: _probe(store))
    yield _checked("identity", lambda: _identity(store))
    yield Finding("python", True, f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield Finding("rayflow", True, rayflow.__version__)
    for library in _LIBRARIES:
        yield _library(library)
    yield from _ffmpeg()
    folder = store.local_path("rayflow.json")
    if folder is not None:
        yield _disk("disk of the store", folder.parent)
    yield _disk("disk for temporary files", Path(tempfile.gettempdir()))


def _checked(subject: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(subject, True, look())
    except RayflowError as error:
        return Finding(subject, False, f"{type(error).__name__}: {error}")


def _probe(store: Store) -> str:
    probe(store)
    keys = [f"probe/{uuid.uuid4().hex}" for _ in range(_SAMPLES)]
    try:
        create_ms = [_timed_ms(lambda key=key: store.create(key, bytes(1024))) for key in keys]
        get_ms = [_timed_ms(lambda key=key: store.get(key)) for key in keys]
        list_ms = _timed_ms(lambda: list(store.list("probe/")))
    finally:
        with contextlib.suppress(RayflowError):  # a few bytes left over do no harm; the failure to report is the first one
            store.delete(keys)
    return (
        f"{store.url} enforces conditional writes; 1 KiB takes {statistics.median(create_ms):.1f} ms to create and "
        f"{statistics.median(get_ms):.1f} ms to read, a listing {list_ms:.1f} ms"
    )


def _timed_ms(work: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    work()
    return (time.perf_counter() - began_s) * 1000


def _identity(store: Store) -> str:
    try:
        identity = read_identity(store)
    except NotFound:
        return "a new store; the first rayflow.connect begins it"
    return f"{identity.store_id}, {identity.shards} shards, format {identity.format}"


def _library(name: str) -> Finding:
    try:
        return Finding(name, True, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, False, f"not installed; pip install {name}")


def _ffmpeg() -> Iterator[Finding]:
    """Those that the video pipeline chooses from, in its order."""
    override = os.environ.get("RAYFLOW_FFMPEG")
    candidates = [("$RAYFLOW_FFMPEG", override)] if override else [("PATH", shutil.which("ffmpeg")), ("imageio-ffmpeg", _bundled())]
    used = ""
    for origin, path in candidates:
        version = _ffmpeg_version(path) if path else None
        if path is None:
            detail = "none"
        elif version is None:
            detail = f"{path} does not run"
        else:
            detail = f"{path}, version {version}"
            used = used or path
        yield Finding(f"ffmpeg of {origin}", True, detail)
    if used:
        yield Finding("ffmpeg", True, f"{used} is used")
    else:
        yield Finding("ffmpeg", False, "none that runs; install ffmpeg or the package imageio-ffmpeg, and look at $RAYFLOW_FFMPEG")


def used_ffmpeg() -> str:
    """The version of the ffmpeg that the video pipeline uses here; "" where none runs."""
    override = os.environ.get("RAYFLOW_FFMPEG")
    candidates = [override] if override else [shutil.which("ffmpeg"), _bundled()]
    return next((version for path in candidates if path and (version := _ffmpeg_version(path))), "")


def _bundled() -> str | None:
    try:
        return str(importlib.import_module("imageio_ffmpeg").get_ffmpeg_exe())
    except (ImportError, RuntimeError):
        return None


def _ffmpeg_version(path: str) -> str | None:
    try:
        done = subprocess.run([path, "-version"], capture_output=True, text=True, errors="replace", timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    words = done.stdout.split(maxsplit=3)
    return words[2] if words[:2] == ["ffmpeg", "version"] and len(words) > 2 else None


def _disk(subject: str, folder: Path) -> Finding:
    while not folder.exists():
        folder = folder.parent
    try:
        free_bytes = shutil.disk_usage(folder).free
    except OSError as error:
        return Finding(subject, False, f"{folder}: {error.strerror}")
    ok = free_bytes >= LOW_DISK_BYTES
    return Finding(subject, ok, f"{free_bytes / 2**30:.1f} GiB free in {folder}" + ("" if ok else "; make room"))
