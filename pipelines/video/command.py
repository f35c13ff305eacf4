"""``python -m rayflow.encode``: from a command line to a verified video, or to one line that says what to do.

The order of things: what is wrong with the command is found before Ray is started; what an earlier run did is read from the store
alone, so that a finished encode answers at once; then Ray is started or joined, and the execution is followed to its end.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import BinaryIO

import msgspec
import ray

import rayflow
from pipelines.video import command_checks as checks
from pipelines.video import command_transfer as transfer
from pipelines.video.command_events import Done, Error, Notice, Start, Stopped, Warned
from pipelines.video.command_process import OutputGone, StopRequested, catch_signals, keep_report, own_terminal, stopped_by_signals
from pipelines.video.command_progress import Tracker, brief
from pipelines.video.command_record import Reader, Recorded, usable_chunks
from pipelines.video.display import Display, counted, make_display
from pipelines.video.ffmpeg import FfmpegFailed
from pipelines.video.index import SourceInfo
from pipelines.video.job import Job, execution_id
from pipelines.video.join import Joined
from pipelines.video.options import Options, as_options, parse, view_of
from pipelines.video.plan import Chunk
from pipelines.video.settings import Settings
from pipelines.video.source import SourceUnreachable, size_bytes
from pipelines.video.workflow import StoredChunk, encode_video
from rayflow.checkpoint.opening import chosen_store, open_store
from rayflow.checkpoint.patient import PatientStore
from rayflow.checkpoint.reading import list_executions
from rayflow.checkpoint.reports import ExecutionInfo
from rayflow.checkpoint.store import Store
from rayflow.core.records import Status
from rayflow.errors import (
    ExecutionFailed,
    IdInUse,
    InvalidInput,
    NonDeterminismError,
    NotFound,
    RayflowError,
    RayUnavailable,
    StoreError,
    StoreUnavailable,
)
from rayflow.runtime.cluster import RayOptions, start_or_join
from rayflow.runtime.joining import check_address

_FAILED = 1
_REFUSED = 2
_POLL_S = 0.25
_UPLOAD_NOTICE_S = 5.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out a command line (default: that of the process) and return its exit code, see ``--help``. Prints, never raises.

    For the main thread of a process: it takes the signals that end one."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    view = view_of(words)
    options: Options | InvalidInput
    try:
        options = parse(words)
    except InvalidInput as error:
        options = error
    except SystemExit:  # after --help
        return 0
    with stopped_by_signals(), own_terminal() as (out, err, chatter):
        display = make_display(view, out, err)
        try:
            if isinstance(options, InvalidInput):
                raise options
            return _Command(options, display).run()
        except StopRequested as stop:  # before anything was started
            display.show(Notice("stopped"))
            return stop.exit_code
        except _Refused as refused:
            return _fail(display, Error(message=brief(str(refused)), exit_code=_REFUSED))
        except InvalidInput as error:
            return _fail(display, Error(message=brief(str(error)), exit_code=_REFUSED))
        except OutputGone as error:
            if error.errno != errno.EPIPE:  # else whoever read the output has seen enough
                print(f"rayflow.encode: what it has to say cannot be written: {error.strerror}", file=err)
            return _FAILED
        except Exception as error:
            return _fail(display, _unexpected(error, chatter))
        finally:
            display.close()
            if ray.is_initialized():  # a cluster that was joined: what Ray has to say at the end is not for the terminal either
                ray.shutdown()


class _Refused(RayflowError):
    """An error that is not InvalidInput but means the same here: store or cluster of the command line cannot be used."""


@dataclass(frozen=True, slots=True)
class _Beginning:
    """What the store says of the execution, and what to do: ``attach`` to it, or start it, after the run that began at ``drop_ms``
    was dropped."""

    recorded: Recorded | None
    attach: bool = False
    drop_ms: int | None = None
    kept: tuple[StoredChunk, ...] = ()


class _Command:
    def __init__(self, options: Options, display: Display) -> None:
        self._options = options
        self._display = display
        self._began_s = time.monotonic()
        self._store: Store
        self._job: Job  # as this machine sees it
        self._sent: Job  # as those who work on it see it
        self._id = ""
        self._reader: Reader
        self._tracker: Tracker
        self._source_bytes = 0
        self._running = False
        self._store_is_silent = False

    def run(self) -> int:
        """Everything; returns the exit code. Raises InvalidInput and _Refused before anything was started."""
        options = self._options
        if options.address:
            check_address(options.address)
        self._store = open_store(chosen_store(options.store))
        try:
            made = checks.make_sample(options)
        except FfmpegFailed as error:
            raise _Refused(f"cannot make the sample {options.source}: {error}") from error
        try:
            self._job = checks.plan_job(options)
            self._id = options.id or execution_id(self._job)
            self._sent = self._job
            if options.address and self._store.local_path("files/x") is None:
                self._sent = transfer.for_cluster(self._job, self._id, self._store)
            self._source_bytes = size_bytes(self._job.source)
            self._reader = Reader(self._store, self._id)
            beginning = self._begin()
            if beginning is None:
                return 0
            self._describe(beginning, made)
        except (StoreError, SourceUnreachable) as error:
            raise _Refused(str(error)) from error
        except (RayflowError, StopRequested):
            if made is not None:
                made.unlink(missing_ok=True)
            raise
        return self._encode(beginning)

    # -- before Ray ----------------------------------------------------------------------------------------------------------

    def _begin(self) -> _Beginning | None:
        """Compare the command with what is on record; None: it is done already, and has been reported."""
        try:
            recorded = self._reader.read()
        except NotFound as error:
            raise _Refused(f"{error}; --fresh starts anew") from error
        if recorded is None:
            return _Beginning(None)
        if self._options.fresh:
            return _Beginning(None, drop_ms=recorded.started_ms)
        different = [] if recorded.job is None else _different(recorded.job, self._sent)
        if different:
            raise InvalidInput(f"id {self._id!r} was used with another {', '.join(different)}: choose another --id, or add --fresh")
        if recorded.status in (Status.RUNNING, Status.SUSPENDED):
            return _Beginning(recorded, attach=True)
        if recorded.joined is None:
            kept = usable_chunks(self._store, recorded)
            how = "was cancelled" if recorded.status is Status.CANCELLED else "failed"
            self._display.show(Notice(f"the run before {how}: trying again, with {counted(len(kept), 'chunk')} that it finished"))
            left = {one.encoded.name: recorded.finished[one.encoded.name] for one in kept}
            return _Beginning(replace(recorded, finished=left), drop_ms=recorded.started_ms, kept=kept)
        joined = recorded.joined
        if self._there(joined) == joined.size_bytes:
            self._report(joined, recorded, wall_s=None)
            return None
        what = "is gone" if self._there(joined) is None else "is not the file that was written"
        self._display.show(Notice(f"{self._output()} was encoded before, but {what}: encoding again"))
        return _Beginning(None, drop_ms=recorded.started_ms)

    def _there(self, joined: Joined) -> int | None:
        """The size of what is where the output belongs; what only waits to be fetched is fetched."""
        if self._job.deliver:
            return transfer.delivered_bytes(joined, self._sent, self._store)
        whole = joined.path.is_file() and joined.path.stat().st_size == joined.size_bytes
        if not whole and transfer.delivered_bytes(joined, self._sent, self._store) == joined.size_bytes:
            transfer.take_output(joined, self._store)
        return joined.path.stat().st_size if joined.path.is_file() else None

    def _output(self) -> str:
        return self._job.deliver or str(self._job.output)

    def _describe(self, beginning: _Beginning, made_sample: Path | None) -> None:
        """Check what has not been checked by an earlier run, and tell what is going to happen."""
        recorded = beginning.recorded
        info: SourceInfo
        chunks: tuple[Chunk, ...]
        if recorded is not None and recorded.info is not None:
            info, chunks = recorded.info, () if recorded.plan is None else recorded.plan.chunks
        else:
            checks.check_store(self._store)
            made = checks.examine(self._job, self._store)
            info, chunks = made.info, made.chunks
        self._tracker = Tracker(info.video.frames, info.duration_s, self._source_bytes, self._began_s)
        self._tracker.plan(chunks)
        if recorded is not None:
            self._tracker.resume(recorded)
        if made_sample is not None:
            self._display.show(Notice(f"made the sample {made_sample}"))
        self._display.show(
            Start(
                id=self._id,
                store=self._store.url,
                source=self._job.source,
                output=self._output(),
                source_bytes=self._source_bytes,
                encoding=_encoding(self._job.settings),
                width=info.video.width,
                height=info.video.height,
                duration_s=round(info.duration_s, 3),
                frames=info.video.frames,
                chunks=self._tracker.chunks,
                chunks_reused=self._tracker.chunks_reused,
            )
        )
        if not self._options.address:
            others = [one.execution for one in _unfinished(self._store) if one.execution != self._id]
            if others:
                more = f" and {len(others) - 1} more" if len(others) > 1 else ""
                self._display.show(
                    Notice(f"unfinished in the same store, goes on as well: {others[0]}{more} (python -m rayflow cancel ends it)")
                )

    # -- with Ray ------------------------------------------------------------------------------------------------------------

    def _encode(self, beginning: _Beginning) -> int:
        options = self._options
        self._progress()
        try:
            self._upload()
            with self._connect() as client:
                catch_signals()
                try:
                    execution = self._start(client, beginning)
                    self._running = True
                    joined = self._follow(execution)
                    transfer.take_output(joined, PatientStore(self._store, on_wait=self._tell_of_silence))
                except StopRequested:
                    self._display.show(Notice("stopping; once more to stop at once"))
                    self._display.close()
                    raise
                except RayUnavailable as error:  # said at once: to disconnect from a Ray that is gone takes seconds
                    return _fail(self._display, Error(message=brief(str(error)), exit_code=_FAILED, resume=options.resume))
        except StopRequested as stop:
            if ray.is_initialized():
                ray.shutdown()
            self._display.show(
                Stopped(
                    chunks_done=self._tracker.chunks_done,
                    chunks=self._tracker.chunks,
                    exit_code=stop.exit_code,
                    resume=options.resume,
                    cancel=self._cancel_command() if self._running else "",
                )
            )
            return stop.exit_code
        except NonDeterminismError as error:
            message = f"the record of {self._id} is of another version of the code ({brief(str(error))}): --fresh starts anew"
            return _fail(self._display, Error(message=message, exit_code=_FAILED))
        except ExecutionFailed as error:
            return _fail(self._display, self._failure(error))
        except _Refused:
            raise
        except RayflowError as error:
            return _fail(self._display, Error(message=brief(str(error)), exit_code=_FAILED, resume=options.resume))
        recorded = self._reader.glance()
        for event in () if recorded is None else self._tracker.see_record(recorded):
            self._display.show(event)
        self._report(joined, recorded, wall_s=time.monotonic() - self._began_s)
        return 0

    def _upload(self) -> None:
        """Let the cluster have a source that is here, and say how far it is."""
        if self._sent.source == self._job.source:
            return
        shown_s = time.monotonic()

        def tell(done_bytes: int) -> None:
            nonlocal shown_s
            if time.monotonic() - shown_s > _UPLOAD_NOTICE_S:
                shown_s = time.monotonic()
                self._display.show(Notice(f"uploading the source: {done_bytes / self._source_bytes:.0%}"))

        if transfer.upload_source(self._job.source, self._sent, tell):
            self._display.show(Notice(f"uploaded the source to {self._sent.source}"))

    def _connect(self) -> rayflow.Client:
        options = self._options
        try:
            if options.address:
                start_or_join(RayOptions(options.address), store_id="")  # before a store is begun that nobody will use
            return rayflow.connect(
                self._store.url,
                num_cpus=_cpus(options, self._tracker.chunks),
                dashboard=options.dashboard,
                on_wait=lambda reason: self._display.show(Notice(reason)),
                output=lambda line: None,  # its display says all that there is to say
            )
        except RayUnavailable as error:
            if options.address:
                raise _Refused(str(error)) from error
            raise  # a Ray of its own that does not start: no fault of the command line's
        except RayflowError as error:
            raise _Refused(str(error)) from error
        except SystemExit as leave:  # Ray takes SIGTERM while it starts, and turns it into this
            raise StopRequested(signal.SIGTERM) from leave

    def _start(self, client: rayflow.Client, beginning: _Beginning) -> rayflow.Execution[Joined]:
        if beginning.attach:
            return client.get(self._id)
        if beginning.drop_ms is not None:
            recorded = self._reader.read()
            # Another command may have dropped it as well, and begun anew, while this one waited for its Ray to end.
            if recorded is not None and recorded.started_ms == beginning.drop_ms:
                client.get(self._id).forget()
        arguments = (self._sent, beginning.kept) if beginning.kept else (self._sent,)
        try:
            return client.start(encode_video, *arguments, id=self._id)
        except IdInUse:
            # Another command began the same encode meanwhile, perhaps with other --workers.
            recorded = self._reader.read()
            if recorded is None or recorded.job is None or _different(recorded.job, self._sent):
                raise
            return client.get(self._id)

    def _follow(self, execution: rayflow.Execution[Joined]) -> Joined:
        while True:
            try:
                return execution.result(timeout=_POLL_S)
            except TimeoutError:
                pass
            view = execution.view()
            moved_on = view is not None and self._tracker.see_view(view)
            # Chunks are told before the phase that follows them, though the record is not due to be read.
            recorded = self._reader.glance() if moved_on else self._reader.read_if_due()
            for event in () if recorded is None else self._tracker.see_record(recorded):
                self._display.show(event)
            if self._reader.unavailable is not None:
                self._tell_of_silence(self._reader.unavailable)
            elif self._store_is_silent and recorded is not None:
                self._store_is_silent = False
                self._display.show(Notice("the store answers again"))
            self._progress()

    def _tell_of_silence(self, error: StoreUnavailable) -> None:
        if not self._store_is_silent:
            self._store_is_silent = True
            self._display.show(Notice(f"the store does not answer, waiting for it; nothing is lost ({brief(str(error))})"))

    # -- reports -------------------------------------------------------------------------------------------------------------

    def _progress(self) -> None:
        self._display.draw(self._tracker.parts())
        self._display.show(self._tracker.progress(time.monotonic()))

    def _report(self, joined: Joined, recorded: Recorded | None, wall_s: float | None) -> None:
        report = joined.report
        done_before = 0.0
        chunks, reused = None, 0
        if wall_s is not None:
            chunks, reused = self._tracker.chunks, self._tracker.chunks_reused
            parts = self._tracker.parts()
            done_before = sum(part.frames for part in parts if part.reused) / max(1, sum(part.frames for part in parts))
        elif recorded is not None and recorded.plan is not None:
            chunks = reused = len(recorded.plan.chunks)
        for warning in joined.warnings:
            self._display.show(Warned(warning))
        self._display.show(
            Done(
                id=self._id,
                output=self._output(),
                size_bytes=joined.size_bytes,
                source_bytes=self._source_bytes,
                ratio=round(joined.size_bytes / self._source_bytes, 4),
                frames=report.frames,
                lost_frames=report.lost_frames,
                duration_s=round(report.duration_s, 3),
                wall_s=None if wall_s is None else round(wall_s, 3),
                speed=None if not wall_s else round(report.duration_s * (1 - done_before) / wall_s, 3),
                chunks=chunks,
                chunks_reused=reused,
            )
        )

    def _failure(self, error: ExecutionFailed) -> Error:
        """The error of the step that ended the execution, which the record knows best."""
        recorded = self._reader.glance()
        final = [] if recorded is None else [one for one in recorded.failed if one.final]
        if not final:
            return Error(message=brief(str(error)), exit_code=_FAILED, resume=self._options.resume)
        last = final[0]
        what = f"chunk {last.chunk}" if last.step == "encode_chunk" else last.step
        more = f" (and {len(final) - 1} more)" if len(final) > 1 else ""
        message = f"{what} failed after {counted(last.number, 'attempt')}{more}: {brief(last.failure.message)}"
        return Error(message=message, exit_code=_FAILED, step=last.step, chunk=last.chunk, resume=self._options.resume)

    def _cancel_command(self) -> str:
        address = self._options.address
        if not address:
            return ""
        return f"python -m rayflow cancel {shlex.join([self._id, '--store', self._store.url, '--address', address])}"


def _unfinished(store: Store) -> Sequence[ExecutionInfo]:
    try:
        return list_executions(store, status=Status.RUNNING).executions
    except InvalidInput:  # no store yet
        return ()


def _different(recorded: Job, wanted: Job) -> list[str]:
    """What differs between two jobs, in words; how many chunks are encoded at a time does not count."""
    names = [
        name
        for name in ("source", "content", "output", "deliver", "keep_chunks")
        if getattr(recorded, name) != getattr(wanted, name)
    ]
    old, new = recorded.settings, wanted.settings
    return names + [one.name for one in fields(Settings) if getattr(old, one.name) != getattr(new, one.name)]


def _encoding(settings: Settings) -> str:
    words = [settings.codec]
    if settings.lossless:
        words.append("lossless")
    if settings.crf is not None:
        words.append(f"crf {settings.crf:g}")
    if settings.preset is not None:
        words.append(f"preset {settings.preset}")
    return " ".join(words)


def _cpus(options: Options, chunks: int | None) -> int | None:
    """CPUs of a Ray of our own: as many as the wanted workers need; None leaves it to Ray. Never fewer than one step needs."""
    threads = options.settings.threads
    if options.workers is not None:
        return min(options.workers, max(2, chunks or options.workers)) * threads
    return None if threads == 1 else max(threads, len(os.sched_getaffinity(0)))


def _fail(display: Display, error: Error) -> int:
    with contextlib.suppress(OutputGone):  # the exit code still tells
        display.show(msgspec.structs.replace(error, message=as_options(error.message)))
    return error.exit_code


def _unexpected(error: Exception, chatter: BinaryIO) -> Error:
    path = keep_report(chatter, traceback.format_exc())
    return Error(message=f"{type(error).__name__}: {brief(str(error))}; the details are in {path}", exit_code=_FAILED)
