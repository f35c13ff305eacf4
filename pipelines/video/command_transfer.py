"""What the command carries between this machine and a cluster whose store is a bucket: the source there, the output back.

The machines of a cluster share the bucket and nothing else. A source that is a file of this machine is put into the store once,
beside the chunks of its execution, and is removed with them; workers read from there what they need. The output is joined and
verified on one of them, and this command takes it from the store to its name.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pipelines.video.job import Job
from pipelines.video.join import Joined
from pipelines.video.source import bucket_object, is_url, key_once_uploaded
from rayflow.checkpoint.files import fetch_file, name_part, prefix_of
from rayflow.checkpoint.store import Store
from rayflow.errors import NotFound


def for_cluster(job: Job, execution: str, store: Store) -> Job:
    """The job as the machines of a cluster see it: no file of this machine in it."""
    if not job.deliver:
        job = replace(job, deliver=f"outputs/{name_part(execution)}/")
    if is_url(job.source):
        return job
    content = key_once_uploaded(Path(job.source))
    key = f"{prefix_of(execution)}source-{content}{Path(job.source).suffix.lower()}"
    return replace(job, source=f"{store.url}/{name_part(key, '/')}", content=content)


def upload_source(file: str, sent: Job, on_progress: Callable[[int], None]) -> bool:
    """Put the file where the cluster looks for it, unless it is there; returns whether it was put. Raises StoreError."""
    there = bucket_object(sent.source)
    size_bytes = os.stat(file).st_size
    try:
        if there.size_bytes() == size_bytes:  # it appears whole or not at all, and its name tells its content
            return False
    except NotFound:
        pass
    there.upload(Path(file), on_progress)
    return True


def delivered_bytes(joined: Joined, sent: Job, store: Store) -> int | None:
    """The size of the output where it was delivered to, and not yet taken from; None where there is none. Raises StoreError."""
    if joined.file is not None:
        found = [info.size_bytes for info in store.list(joined.file.key) if info.key == joined.file.key]
        return found[0] if found else None
    try:
        return bucket_object(sent.deliver).size_bytes() if is_url(sent.deliver) else None
    except NotFound:
        return None


def take_output(joined: Joined, store: Store) -> None:
    """Bring the output from the store to its name on this machine, checked by its hash, and remove it there. Raises StoreError."""
    if joined.file is None:
        return
    target = joined.path
    folder = target.with_name(f".{target.stem}.{secrets.token_hex(4)}.partial")
    folder.mkdir()
    try:
        fetched = fetch_file(store, joined.file, folder)
        fetched.replace(target)
        descriptor = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    finally:
        for left in folder.iterdir():
            left.unlink()
        folder.rmdir()
    place = joined.file.key.rpartition("/")[0] + "/"
    store.delete([info.key for info in store.list(place)])
