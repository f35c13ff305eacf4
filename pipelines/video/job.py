"""What is to be encoded: the job, and the id that makes the same command resume the same execution."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipelines.video.settings import Settings
from pipelines.video.source import content_key, name_of
from rayflow.core import codec
from rayflow.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Job:
    """One video to encode.

    source: a file, or a URL, see ``source``.
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


def check_unchanged(job: Job) -> None:
    """Raises InvalidInput if the source is not the one that the job began with, SourceUnreachable."""
    if content_key(job.source) != job.content:
        raise InvalidInput(f"{job.source} changed while it was being encoded; run the command again to encode what it is now")


def execution_id(job: Job) -> str:
    """The id of the job's execution: of the source's content and path, the settings and the output, not of how many run at once."""
    key = (job.source, str(job.output), job.content, job.settings, job.keep_chunks)
    name = "".join(char if char.isalnum() else "-" for char in Path(name_of(job.source)).stem)[:40]
    return f"encode-{name}-{codec.fingerprint(key)[:12]}"
