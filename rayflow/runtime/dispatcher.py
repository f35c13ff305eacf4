"""The error kernel: a small actor that owns the Ray tasks of steps and runs no user code.

A shard's process may be crashed by the workflow code in it; the steps that it started must not die with it. So their tasks
belong to this actor, which holds each result until the shard has it on record. It is told starts at least once and starts an
attempt (execution, operation, attempt) once; a shard that comes back attaches and learns which of its attempts are gone. An older
epoch of a shard is refused, so that a stalled predecessor can neither start nor stop anything.
"""

from __future__ import annotations

import asyncio
import pickle
import secrets
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec
import ray
from ray.exceptions import NodeDiedError, RayError, TaskCancelledError

from rayflow.core.messages import StepProgress, StepResult, StepStart
from rayflow.core.records import Cause, Failure
from rayflow.errors import Fenced
from rayflow.runtime.task import run_step

_POLL_S = 20.0
_FORCE_AFTER_S = 5.0
_SUBMIT_SLICE = 50


class Submission(msgspec.Struct, frozen=True, array_like=True):
    """A start with Ray's options for the task (pickled: they may hold objects of Ray's)."""

    start: StepStart
    options: bytes


class Attempt(NamedTuple):
    """What names one attempt."""

    execution: str
    operation: str
    attempt: int


@dataclass(slots=True)
class _Shard:
    epoch: int = 0
    running: dict[Attempt, Any] = field(default_factory=dict[Attempt, Any])
    results: dict[int, StepResult] = field(default_factory=dict[int, StepResult])
    finished: dict[Attempt, int] = field(default_factory=dict[Attempt, int])
    progress: dict[Attempt, StepProgress] = field(default_factory=dict[Attempt, StepProgress])
    count: int = 0
    news: asyncio.Event = field(default_factory=asyncio.Event)


class Collected(msgspec.Struct, frozen=True, array_like=True):
    """What ``collect`` returns: results by number, and the latest word of running steps."""

    results: list[tuple[int, StepResult]]
    progress: list[StepProgress]


_encode = msgspec.msgpack.Encoder().encode
_submissions = msgspec.msgpack.Decoder(list[Submission])
_attempts = msgspec.msgpack.Decoder(list[Attempt])


class Dispatcher:
    """Created as a named, detached actor by ``rayflow.runtime.cluster``. All methods are idempotent."""

    def __init__(self, name: str, store_url: str) -> None:
        self._name = name
        self._store_url = store_url
        self._incarnation = secrets.token_hex(8)
        self._shards: dict[int, _Shard] = {}
        self._background: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        running = sum(len(shard.running) for shard in self._shards.values())
        return f"rayflow dispatcher ({running} steps running)"

    async def attach(self, number: int, epoch: int, expected: bytes) -> tuple[str, bytes]:
        """A shard says which attempts it believes to be running; returns this dispatcher's id and those not known here.

        Attempts that the shard does not expect any more are stopped. Raises Fenced if a later epoch has attached.
        """
        shard = self._shard(number, epoch)
        shard.epoch = epoch
        wanted = {Attempt(*one) for one in _attempts.decode(expected)}
        for attempt in list(shard.running):
            if attempt not in wanted:
                self._stop(shard, attempt)
        for attempt, index in list(shard.finished.items()):
            if attempt not in wanted:
                del shard.results[index], shard.finished[attempt]
        lost = [one for one in wanted if one not in shard.running and one not in shard.finished]
        shard.news.set()
        return self._incarnation, _encode(lost)

    async def submit(self, number: int, epoch: int, submissions: bytes) -> None:
        """Start attempts; those already known are left alone. Raises Fenced."""
        shard = self._shard(number, epoch)
        for index, submission in enumerate(_submissions.decode(submissions)):
            if index % _SUBMIT_SLICE == _SUBMIT_SLICE - 1:
                await asyncio.sleep(0)  # let results of others come in between
            start = submission.start
            attempt = Attempt(start.execution, start.operation, start.attempt)
            if attempt in shard.running or attempt in shard.finished:
                continue
            shard.running[attempt] = None
            task = asyncio.create_task(self._run(number, shard, attempt, submission))
            self._background.add(task)
            task.add_done_callback(self._background.discard)

    async def cancel(self, number: int, epoch: int, attempts: bytes) -> None:
        """Stop attempts whose results no longer count. Raises Fenced."""
        shard = self._shard(number, epoch)
        for one in _attempts.decode(attempts):
            attempt = Attempt(*one)
            if attempt in shard.running:
                self._stop(shard, attempt)
            elif (index := shard.finished.pop(attempt, None)) is not None:
                del shard.results[index]

    async def collect(self, number: int, epoch: int, incarnation: str, recorded: int, seen: int) -> bytes | None:
        """Wait for results after number ``seen``; those up to ``recorded`` are on record and dropped here.

        Returns after a while with nothing, too. None: the caller is not attached to this dispatcher. Raises Fenced.
        """
        shard = self._shard(number, epoch)
        if incarnation != self._incarnation:
            return None
        for attempt, index in list(shard.finished.items()):
            if index > recorded:
                break
            del shard.results[index], shard.finished[attempt]
        if shard.count <= seen and not shard.progress:
            shard.news.clear()
            try:
                async with asyncio.timeout(_POLL_S):
                    await shard.news.wait()
            except TimeoutError:
                pass
        self._shard(number, epoch)  # may have been fenced meanwhile
        progress = list(shard.progress.values())
        shard.progress.clear()
        results = [(index, result) for index, result in shard.results.items() if index > seen]
        return _encode(Collected(results, progress))

    async def progress(self, number: int, progress: bytes) -> None:
        """A running step says how far it is."""
        word = msgspec.msgpack.decode(progress, type=StepProgress)
        shard = self._shards.get(number)
        attempt = Attempt(word.execution, word.operation, word.attempt)
        if shard is not None and attempt in shard.running:
            shard.progress[attempt] = word
            shard.news.set()

    async def ping(self) -> int:
        """How many attempts are running."""
        return sum(len(shard.running) for shard in self._shards.values())

    def _shard(self, number: int, epoch: int) -> _Shard:
        shard = self._shards.setdefault(number, _Shard())
        if epoch < shard.epoch:
            raise Fenced(f"shard {number}: epoch {epoch} is over, epoch {shard.epoch} has attached")
        return shard

    async def _run(self, number: int, shard: _Shard, attempt: Attempt, submission: Submission) -> None:
        try:
            reference = self._submit(submission, number)
            shard.running[attempt] = reference
            result = msgspec.msgpack.decode(await reference, type=StepResult)
        except (TaskCancelledError, asyncio.CancelledError):
            result = None
        except NodeDiedError as error:  # the machine went, which is not the step's doing
            result = _crashed(attempt, Cause.LOST, error)
        except RayError as error:
            result = _crashed(attempt, Cause.CRASH, error)
        except Exception as error:  # Ray refuses the task's options
            result = _crashed(attempt, Cause.ERROR, error)
        if attempt not in shard.running:
            return  # stopped meanwhile: nobody waits for it
        del shard.running[attempt]
        shard.progress.pop(attempt, None)
        if result is None:
            result = _crashed(attempt, Cause.CRASH, RuntimeError("the task was cancelled from outside rayflow"))
        shard.count += 1
        shard.results[shard.count] = result
        shard.finished[attempt] = shard.count
        shard.news.set()

    def _submit(self, submission: Submission, number: int) -> Any:
        start = submission.start
        options: dict[str, Any] = {"num_cpus": 1} | pickle.loads(submission.options)
        name = f"{start.execution} {start.operation}"
        arguments = (_encode(start), self._store_url, self._name, number)
        if "runtime_env" in options:
            return run_step.options(name=name, **options).remote(*arguments)
        # What ``options(...).remote(...)`` comes down to, without the class that it makes at every call: a fifth of this
        # actor's work for short steps.
        return run_step._remote(arguments, {}, name=name, max_retries=0, **options)  # pyright: ignore[reportAttributeAccessIssue, reportUnknownVariableType]

    def _stop(self, shard: _Shard, attempt: Attempt) -> None:
        reference = shard.running.pop(attempt)
        shard.progress.pop(attempt, None)
        if reference is None:
            return
        ray.cancel(reference, force=False)

        async def insist() -> None:
            # A task that blocks in C code does not react to the polite way.
            _, pending = await asyncio.wait([asyncio.ensure_future(_settled(reference))], timeout=_FORCE_AFTER_S)
            if pending:
                ray.cancel(reference, force=True)

        task = asyncio.create_task(insist())
        self._background.add(task)
        task.add_done_callback(self._background.discard)


async def _settled(reference: Any) -> None:
    try:
        await reference
    except Exception:  # how it ended does not matter
        return


def _crashed(attempt: Attempt, cause: Cause, error: Exception) -> StepResult:
    failure = Failure(type(error).__name__, str(error).strip().partition("\n")[0])
    return StepResult(*attempt, cause=cause, failure=failure, retryable=cause is not Cause.ERROR)
