"""What is to be encoded: the job, and the id that makes the same command resume the same execution."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from pipelines.video.settings import Settings
from rayflow.core import codec
from rayflow.errors import InvalidInput

_SAMPLES = 64
_SAMPLE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Job:
    """One video to encode.

    content: the source's ``content_key``: a source that changes under the job is noticed.
    max_concurrency: chunks that are encoded at a time; None: as many as the cluster has room for.
    keep_chunks: leave them in the store after success.
    """

    source: str
    output: Path
    settings: Settings
    content: str
    max_concurrency: int | None = None
    keep_chunks: bool = False


def content_key(path: str) -> str:
    """A hash of a file's size and of 64 blocks of 64 KiB spread evenly over it: nearly free for a file of any size.

    Another take, cut or encode of a video has another key. Bytes changed in place between the blocks are not seen.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            size_bytes = os.fstat(file.fileno()).st_size
            digest = hashlib.blake2b(str(size_bytes).encode(), digest_size=16)
            last = max(size_bytes - _SAMPLE_BYTES, 0)
            for at in sorted({last * index // (_SAMPLES - 1) for index in range(_SAMPLES)}):
                file.seek(at)
                digest.update(file.read(_SAMPLE_BYTES))
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()


def check_unchanged(job: Job) -> None:
    """Raises InvalidInput if the source is not the one that the job began with."""
    if content_key(job.source) != job.content:
        raise InvalidInput(f"{job.source} changed while it was being encoded; run the command again to encode what it is now")


def execution_id(job: Job) -> str:
    """The id of the job's execution: of the source's content and path, the settings and the output, not of how many run at once."""
    key = (job.source, str(job.output), job.content, job.settings, job.keep_chunks)
    name = "".join(char if char.isalnum() else "-" for char in Path(job.source).stem)[:40]
    return f"encode-{name}-{codec.fingerprint(key)[:12]}"
