"""The durable encode: a supervising workflow over the functions of this package.

What a step writes counts once the log names it: chunks get a name of their own per attempt, so that an attempt given up for dead
cannot touch the file of its successor. The join is a step like any other and reads finished chunks from the store.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import os
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ParamSpec, TypeVar

import rayflow
from pipelines.video import audio, encode, ffmpeg, index, join, metrics, plan, scenes
from pipelines.video.audio import AudioChoice, EncodedAudio
from pipelines.video.encode import EncodedChunk
from pipelines.video.encoders import chunk_suffix
from pipelines.video.ffmpeg import FfmpegFailed
from pipelines.video.job import Job, check_unchanged
from pipelines.video.join import Joined
from pipelines.video.plan import Chunk, Plan
from pipelines.video.source import bucket_object, is_url, was_away
from rayflow.checkpoint.files import File, fetch_file, put_file, verify_file
from rayflow.checkpoint.private import private_folder
from rayflow.checkpoint.scratch import Scratch
from rayflow.checkpoint.store import Store
from rayflow.errors import Damaged, NotFound

P = ParamSpec("P")
R = TypeVar("R")

_RETRY = rayflow.Retry(max_attempts=3, initial_s=1.0, max_s=30.0)


def _waiting_for_source(step: Callable[P, R]) -> Callable[P, R]:
    """What fails while the source's server is away is done again once it is back, within the same attempt."""

    @functools.wraps(step)
    def patient(*args: P.args, **kwargs: P.kwargs) -> R:
        while True:
            try:
                return step(*args, **kwargs)
            except Exception:
                if not any(was_away(one.source) for one in args if isinstance(one, Job)):
                    raise

    return patient


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is known before anything is encoded."""

    plan: Plan
    audio: AudioChoice
    intervals: tuple[Chunk, ...]


@dataclass(frozen=True, slots=True)
class StoredChunk:
    """An encoded chunk and the file in the store that holds it."""

    encoded: EncodedChunk
    file: File


@dataclass(frozen=True, slots=True)
class StoredAudio:
    """The encoded audio and the file in the store that holds it."""

    encoded: EncodedAudio
    file: File


@rayflow.step(retry=_RETRY)
@_waiting_for_source
def prepare(job: Job) -> Prepared:
    """Index the source, try the settings out, plan the chunks."""
    check_unchanged(job)
    read = index.read(job.source)
    join.check(read.info, job.settings, job.output)
    warnings = encode.check(job.settings, read.info.video)
    by_scenes = job.settings.split == "scenes"
    chunks = plan.make(read, replace(job.settings, split="none") if by_scenes else job.settings)
    intervals = plan.scene_intervals(read) if by_scenes else ()
    chosen = audio.choose(read.info, job.settings, job.output)
    audio.check(job.source, read.info, chosen, job.settings)
    return Prepared(replace(chunks, warnings=(*warnings, *chunks.warnings)), chosen, intervals)


@rayflow.step(retry=_RETRY)
@_waiting_for_source
def find_scenes(interval: Chunk, job: Job, prepared: Prepared) -> tuple[int, ...]:
    """Look for scene changes in one interval."""
    return scenes.detect(job.source, prepared.plan.info, interval, job.settings.threads)


@rayflow.step(retry=_RETRY)
def plan_by_scenes(job: Job, found: list[tuple[int, ...]], warnings: tuple[str, ...]) -> Plan:
    """Plan the chunks once all scene changes are known."""
    made = plan.make(index.read(job.source), job.settings, scenes.merge(found))
    return replace(made, warnings=(*warnings, *(one for one in made.warnings if one not in warnings)))


@rayflow.step(retry=_RETRY, speculative=True)
@_waiting_for_source
def encode_chunk(chunk: Chunk, job: Job, made: Plan) -> StoredChunk:
    """Encode one chunk and put it into the store."""
    told = metrics.encoding(job.settings.family)

    def report(progress: ffmpeg.Progress) -> None:
        _report(progress)
        told.progress(progress)

    with _output(chunk_suffix(job.settings)) as (store, key, path):
        _report(ffmpeg.Progress(0, 0.0, 0.0, 0))  # ffmpeg says nothing for a while: without this the chunk would seem to be queued
        encoded = encode.encode_chunk(job.source, made.info, chunk, job.settings, path, report)
        stored = StoredChunk(encoded, put_file(store, key, path))
        told.finished(chunk, encoded, stored.file.size_bytes)
        return stored


@rayflow.step(retry=_RETRY)
@_waiting_for_source
def encode_audio(job: Job, prepared: Prepared) -> StoredAudio:
    """Encode the audio of the whole file and put it into the store."""
    with _output(prepared.audio.suffix) as (store, key, path):
        encoded = audio.encode_audio(job.source, prepared.plan.info, prepared.audio, job.settings, path, _report)
        return StoredAudio(encoded, put_file(store, key, path))


@rayflow.step(retry=_RETRY)
@_waiting_for_source
def assemble(job: Job, made: Plan, chosen: AudioChoice, chunks: list[StoredChunk], sound: StoredAudio | None) -> Joined:
    """Join chunks, audio and what else the source has; verify the result; give it its name."""
    check_unchanged(job)
    store = _store()
    with tempfile.TemporaryDirectory(prefix="rayflow-join-", dir=_scratch(store).folder) as folder:
        local = _fetch_chunks(store, chunks, folder)
        local_sound = None if sound is None else replace(sound.encoded, path=_fetch(store, sound.file, folder))
        if not job.deliver:
            return join.join(job.source, made, local, job.settings, chosen, local_sound, job.output, _report)
        path = Path(folder, f"output{job.output.suffix}")
        joined = join.join(job.source, made, local, job.settings, chosen, local_sound, path, _report)
        if is_url(job.deliver):
            bucket_object(job.deliver).upload(path)
            return replace(joined, path=job.output)
        key = f"{job.deliver}{_step().attempt_name}{job.output.suffix}"
        return replace(joined, path=job.output, file=put_file(store, key, path))


def _fetch_chunks(store: Store, chunks: list[StoredChunk], folder: str) -> list[EncodedChunk]:
    """The chunks with local paths. Raises Damaged, with the keys of all that are missing or not what was stored (I7): who tries
    again encodes those anew, see ``command_record.usable_chunks``."""
    local: list[EncodedChunk] = []
    damaged: list[tuple[str, str]] = []
    for one in chunks:
        try:
            local.append(replace(one.encoded, path=_fetch(store, one.file, folder)))
        except (Damaged, NotFound) as error:
            damaged.append((one.encoded.name, f"{one.file.key}: {error}"))
    if damaged:
        names = ", ".join(name for name, _ in damaged)
        details = "\n".join(text for _, text in damaged)
        raise Damaged(f"chunk {names} in {store.url} is gone or no longer what was stored\n{details}")
    return local


def _fetch(store: Store, file: File, folder: str) -> Path:
    """As ``fetch_file``, the content checked in a folder as well: reading it takes 0.03 % of the time that encoding it took, 0.8 %
    without loss."""
    path = fetch_file(store, file, folder)
    if store.local_path(file.key) is not None:
        verify_file(file, path)
    return path


@rayflow.step(retry=_RETRY)
def remove_files() -> None:
    """Delete all that the attempts of this execution put into the store, now that the output is there."""
    store = _store()
    store.delete([info.key for info in store.list(_step().files_prefix)])


@rayflow.workflow(version="1")
async def encode_video(ctx: rayflow.Context, job: Job, kept: tuple[StoredChunk, ...] = ()) -> Joined:
    """Encode a video in chunks. ``kept``: chunks that an execution of the same job finished before it failed."""
    prepared = await ctx.step(prepare, job)
    made = prepared.plan
    cpus = job.settings.threads
    if prepared.intervals:
        found = await ctx.map(
            find_scenes.options(num_cpus=cpus), prepared.intervals, job, prepared, key=_name, max_concurrency=job.max_concurrency
        )
        made = await ctx.step(plan_by_scenes, job, found.results(), made.warnings)
    by_name = {one.encoded.name: one for one in kept}
    finished = {chunk.name: by_name[chunk.name] for chunk in made.chunks if _is_of(by_name.get(chunk.name), chunk)}
    missing = plan.longest_first([chunk for chunk in made.chunks if chunk.name not in finished])
    sound: StoredAudio | None = None
    task = None
    try:
        async with asyncio.TaskGroup() as group:
            if prepared.audio.encoder not in ("copy", "none"):
                task = group.create_task(_sound(ctx, job, prepared))
            batch = await ctx.map(
                encode_chunk.options(num_cpus=cpus), missing, job, made, key=_name, max_concurrency=job.max_concurrency
            )
            finished.update((one.encoded.name, one) for one in batch.results())
    except ExceptionGroup as group:
        raise group.exceptions[0] from None  # of the step that failed first: the execution ends with its message
    if task is not None:
        sound = task.result()
    joined = await ctx.step(assemble, job, made, prepared.audio, [finished[chunk.name] for chunk in made.chunks], sound)
    if not job.keep_chunks:
        await ctx.step(remove_files)
    return joined


async def _sound(ctx: rayflow.Context, job: Job, prepared: Prepared) -> StoredAudio:
    return await ctx.step(encode_audio, job, prepared)


def _name(chunk: Chunk) -> str:
    return chunk.name


def _is_of(stored: StoredChunk | None, chunk: Chunk) -> bool:
    return stored is not None and stored.encoded.frames + stored.encoded.lost_frames == chunk.frames


def _step() -> rayflow.StepContext:
    step = rayflow.current_step()
    if step is None:
        raise RuntimeError("this step keeps files in the store of its execution: it runs in a workflow only")
    return step


def _store() -> Store:
    return _step().store


@functools.cache
def _scratch_in(root: str) -> Scratch:
    return Scratch(root)


def _scratch(store: Store) -> Scratch:
    """Where to put files before they are stored: beside a store in a folder (storing is then a link), else the system's."""
    beside = store.local_path("files/x")
    root = private_folder("rayflow-files") if beside is None else beside.parent.parent
    return _scratch_in(str(root))


@contextmanager
def _output(suffix: str) -> Generator[tuple[Store, str, Path]]:
    """The store, a key unique to this attempt, and a scratch file to write; the file is gone afterwards."""
    step = _step()
    store = step.store
    path = Path(_scratch(store).new_path()).with_suffix(suffix)
    try:
        yield store, f"{step.files_prefix}{step.attempt_name}{suffix}", path
    except FfmpegFailed as error:
        if os.strerror(errno.ENOSPC) in f"{error} {error.reason}":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path.parent)) from error
        raise
    finally:
        path.unlink(missing_ok=True)


def _report(progress: ffmpeg.Progress) -> None:
    step = rayflow.current_step()
    if step is not None:
        step.report(frames=progress.frames, speed=progress.speed, size_bytes=progress.size_bytes)
