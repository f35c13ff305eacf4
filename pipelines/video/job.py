"""What is to be encoded: the job, and the id that makes the same command resume the same execution."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipelines.video.settings import Settings
from pipelines.video.source import content_key, is_url, name_of
from rayflow.core import codec
from rayflow.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Job:
    """One video to encode.

    source: a file, or a URL, see ``source``.
    output: the file to make, or what is to be called like the object that ``deliver`` names.
    content: the source's ``content_key``: a source that changes under the job is noticed.
    max_concurrency: chunks that are encoded at a time; None: as many as the cluster has room for.
    keep_chunks: leave them in the store after success.
    deliver: where the join puts the output if its machine is not to have it: the URL of an object in a bucket, or the beginning of
        a key of the store, from where the command takes it. Empty: at ``output``, which every worker then sees.
    """

    source: str
    output: Path
    settings: Settings
    content: str
    max_concurrency: int | None = None
    keep_chunks: bool = False
    deliver: str = ""


def check_unchanged(job: Job) -> None:
    """Raises InvalidInput if the source is not the one that the job began with, SourceUnreachable."""
    if content_key(job.source) != job.content:
        raise InvalidInput(f"{job.source} changed while it was being encoded; run the command again to encode what it is now")


def execution_id(job: Job) -> str:
    """The id of the job's execution: of the source's content and path, the settings and the output, as the command names them, not
    of how many chunks are encoded at once."""
    output = job.deliver if is_url(job.deliver) else str(job.output)
    key = (job.source, output, job.content, job.settings, job.keep_chunks)
    name = "".join(char if char.isalnum() else "-" for char in Path(name_of(job.source)).stem)[:40]
    return f"encode-{name}-{codec.fingerprint(key)[:12]}"
