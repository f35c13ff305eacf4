"""Everything that can be found wrong before anything is started: by reading the source, and by trying the settings out.

Nothing is left behind by a refusal. Two stages: ``plan_job`` costs milliseconds and names the execution, so that one that exists is
found at once; ``examine`` reads the whole source and runs for executions that are about to start only.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from pipelines.video import audio, encode, ffmpeg, index, join, plan, sample
from pipelines.video.containers import CONTAINERS, container_of
from pipelines.video.encoders import encoder_name, is_lossless
from pipelines.video.job import Job
from pipelines.video.options import Options
from pipelines.video.plan import Plan
from pipelines.video.settings import Settings
from pipelines.video.source import bucket_object, content_key, holds_same, is_url, name_of, size_bytes
from rayflow.checkpoint.memory import MemoryStore
from rayflow.checkpoint.opening import probe
from rayflow.checkpoint.store import Store
from rayflow.errors import InvalidInput, StoreUnsuitable

_LOSSLESS_SHARE = 0.5
"""Of the raw size of the frames, as a rough estimate of what lossless encoders make of film."""
_BYTES_PER_PIXEL = 1.5


def make_sample(options: Options) -> Path | None:
    """Make the sample video if it is wanted and not there; returns it if it was made. Raises InvalidInput, FfmpegFailed."""
    path = Path(options.source)
    if not options.sample or path.exists():
        return None
    ffmpeg.find(encoder_name(options.settings))
    if path.suffix.lower() not in (".mp4", ".mov", ".mkv"):
        raise InvalidInput(f"{path}: a sample must be named *.mp4, *.mov or *.mkv")
    _check_folder(path, "sample")
    return sample.make(path)


def plan_job(options: Options) -> Job:
    """The job that the options ask for, once source and output are known to be possible. Raises InvalidInput, SourceUnreachable."""
    source = options.source
    content = content_key(source) if is_url(source) else ""  # says best what is wrong with a URL
    with index.open_input(source) as container:
        index.choose(container, source)
        sounds = [stream.codec_context.codec.canonical_name for stream in container.streams.audio]
    output = options.output or _beside(source, options.settings, sounds)
    try:
        exists = output.exists()
    except OSError as error:
        raise InvalidInput(f"{output} cannot be written ({error.strerror or error}): name another file with -o") from error
    if output.is_dir():
        raise InvalidInput(f"{output} is a folder: name a file in it with -o")
    container_of(output)
    if options.output_url:
        return _job(options, output, content)
    _check_folder(output, "output")
    if exists and (holds_same(output, content) if is_url(source) else output.samefile(source)):
        raise InvalidInput(f"{output} is the source itself: give the output another name with -o")
    return _job(options, output, content)


def _job(options: Options, output: Path, content: str) -> Job:
    content = content or content_key(options.source)
    return Job(options.source, output, options.settings, content, options.workers, options.keep, options.output_url)


def examine(job: Job, store: Store) -> Plan:
    """Read the whole source, try the settings out, look for room on the disks; returns the plan with the warnings so far.

    Raises InvalidInput, SourceUnreachable, StoreError. For the split "scenes" the plan has no chunks yet.
    """
    read = index.read(job.source)
    join.check(read.info, job.settings, job.output)
    warnings = encode.check(job.settings, read.info.video)
    audio.check(job.source, read.info, audio.choose(read.info, job.settings, job.output), job.settings)
    by_scenes = job.settings.split == "scenes" and not read.info.uncuttable
    made = plan.make(read, replace(job.settings, split="none") if by_scenes else job.settings)
    if job.deliver:
        bucket_object(job.deliver).check_writable()
    _check_space(_expected_bytes(job, made), store, job.output)
    return replace(made, chunks=() if by_scenes else made.chunks, warnings=(*warnings, *made.warnings))


def _beside(source: str, settings: Settings, sounds: Iterable[str]) -> Path:
    name = name_of(source)
    if not name:
        raise InvalidInput(f"{source} names no file to call the output after: name the output with -o")
    encoder = encoder_name(settings)
    codec = ffmpeg.find(encoder).encoders[encoder]
    mp4 = CONTAINERS[".mp4"]
    held = codec in mp4.video and (settings.audio != "copy" or mp4.audio.issuperset(sounds))
    folder = Path.cwd() if is_url(source) else Path(source).parent
    return folder / f"{Path(name).stem}.encoded{'.mp4' if held else '.mkv'}"


def _check_folder(file: Path, what: str) -> None:
    folder = file.parent
    if not folder.is_dir():
        raise InvalidInput(f"there is no folder {folder} for the {what}: make it, or name another file")
    try:
        # A file without a name where the system can do it: the one test that is true for every mount, quota and user.
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise InvalidInput(f"cannot write the {what} to {folder} ({error.strerror or error}): name a file elsewhere") from error


def _expected_bytes(job: Job, made: Plan) -> int:
    video = made.info.video
    if is_lossless(job.settings):
        return int(video.width * video.height * _BYTES_PER_PIXEL * video.frames * _LOSSLESS_SHARE)
    return size_bytes(job.source)


def _check_space(expected_bytes: int, store: Store, output: Path) -> None:
    """Chunks go to the store, the joined output beside its final name; on one disk there must be room for both."""
    chunks = store.local_path("files/x")
    needed: dict[int, tuple[Path, int]] = {}
    for place in (*(() if output.parent == Path() else (output.parent,)), *(() if chunks is None else (_existing(chunks),))):
        device = place.stat().st_dev
        _, so_far = needed.get(device, (place, 0))
        needed[device] = (place, so_far + expected_bytes)
    for place, bytes_ in needed.values():
        free = shutil.disk_usage(place).free
        if free < bytes_:
            raise InvalidInput(
                f"about {bytes_ / 1e9:.1f} GB are needed on the disk of {place}, {free / 1e9:.1f} GB are free: make room, or "
                f"put chunks (--store) and output (-o) on different disks"
            )


def _existing(path: Path) -> Path:
    return next(parent for parent in path.parents if parent.is_dir())


def check_store(store: Store) -> None:
    """Raises StoreUnsuitable for a folder that cannot be made or written, without making it, and for a bucket that cannot serve;
    StoreUnavailable."""
    if isinstance(store, MemoryStore):
        raise StoreUnsuitable(f"{store.url} is memory of this process, but Ray's processes share the store: name a folder")
    local = store.local_path("files/x")
    if local is None:
        probe(store)
        return
    folder = _existing(local)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(tempfile.TemporaryFile(dir=folder))
        except OSError as error:
            raise StoreUnsuitable(
                f"the store cannot be written in {folder} ({error.strerror or error}): name another folder with --store"
            ) from error
