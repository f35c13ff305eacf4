"""What the log holds: the durable events of executions, and the values that they carry.

A record is written once and read for ever, so fields are only added at the end, with a default, and tags never change their
meaning. Times are whole milliseconds since 1970 UTC, taken by the shard's process: they order nothing, they inform and they feed
``ctx.now()``. Everything here is a plain value; encoding is msgpack, arrays without field names.

The *events* are what reaches the workflow's code, in the order of the log: Started, Completed, Failed (once final), Elapsed, Woke
and CancelRequested. The others note what the code did in answer (Scheduled, Abandoned, Finished) or what happened around it.
"""

from __future__ import annotations

import hashlib
from enum import StrEnum

import msgspec

INLINE_LIMIT_BYTES = 64 * 1024
"""Encoded values over this size leave the log for a blob."""


class Blob(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A value outside the log: an object named by the hash of its content."""

    hash: str
    size_bytes: int


Stored = bytes | Blob
"""An encoded value: the bytes themselves, or where they are."""


class Function(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Code by name (``module:qualname``) or, when it has no importable name, by value: ``code`` is its pickle."""

    name: str
    code: Stored | None = None


class Failure(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An exception, as text of bounded size: type name, message, traceback. See ``rayflow.core.failures``, where they are made.

    ``error`` is what is kept of the exception itself, so that its type can be raised again; empty where nobody will.
    """

    type: str
    message: str
    traceback: str = ""
    error: bytes = b""


class Cause(StrEnum):
    """Why an attempt failed; it decides what a retry costs."""

    ERROR = "error"
    """The step raised. Counts towards ``max_attempts`` and is retried only if the type is among ``retry_on``."""
    TIMEOUT = "timeout"
    """It took longer than its time-out. Counts, is retried."""
    CRASH = "crash"
    """The process that ran it died. Counts, is retried."""
    LOST = "lost"
    """Whoever knew of it is gone (dispatcher, cluster). Not the step's fault: retried, without counting."""


class Status(StrEnum):
    """The state of an execution. The last three are final."""

    RUNNING = "running"
    SUSPENDED = "suspended"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Usage(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Where and how long an attempt ran; ``cpu_s`` includes the child processes that it waited for."""

    started_ms: int
    ended_ms: int
    cpu_s: float = 0.0
    node: str = ""


class Started(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="start"):
    """An execution begins. ``fingerprint`` is that of the arguments; ``seed`` feeds ``ctx.random`` and ``ctx.uuid4()``."""

    execution: str
    at_ms: int
    workflow: Function
    version: str
    arguments: Stored
    fingerprint: str
    seed: int


class Scheduled(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="sched"):
    """The code asked for an operation. For a step this is also the start of attempt 1."""

    execution: str
    at_ms: int
    operation: str
    kind: str
    name: str
    fingerprint: str
    due_ms: int = 0


class Completed(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="done"):
    """A step returned, or an entity has answered a call; ``failure`` is what the called operation raised, with no result.

    ``unread``: the code has passed the result on to other steps and did not look at it when it came.
    """

    execution: str
    at_ms: int
    operation: str
    attempt: int
    result: Stored
    usage: Usage
    failure: Failure | None = None
    unread: bool = False


class Failed(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="fail"):
    """An attempt failed. The next one starts at ``retry_ms``; None: there is none, and the code gets the error."""

    execution: str
    at_ms: int
    operation: str
    attempt: int
    cause: Cause
    failure: Failure
    retry_ms: int | None
    usage: Usage | None = None


class Retried(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="retry"):
    """A further attempt of a step starts."""

    execution: str
    at_ms: int
    operation: str
    attempt: int


class Elapsed(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="wait"):
    """A durable timer fired."""

    execution: str
    at_ms: int
    operation: str


class Woke(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="wake"):
    """Time passed for asyncio's own timers (``asyncio.timeout``, ``asyncio.sleep``) in the workflow's code."""

    execution: str
    at_ms: int


class CancelRequested(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="cancel"):
    """Somebody asked to cancel the execution; its code gets CancelledError and may clean up."""

    execution: str
    at_ms: int
    reason: str


class Abandoned(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="drop"):
    """The code no longer waits for this operation; whatever still runs for it is stopped and its result ignored."""

    execution: str
    at_ms: int
    operation: str


class Suspended(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="susp"):
    """The code cannot go on: it does not match its record, or cannot be loaded; then it is tried again at every recovery.

    Or it has ended its process too often: then ``code`` names it, and it is tried again once that has changed. ``unstarted``: not
    even its first turn has come to an end, so there is nothing on record of what it asked for then.
    """

    execution: str
    at_ms: int
    failure: Failure
    code: str = ""
    unstarted: bool = False


class Resumed(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="resume"):
    """The code goes on: it was mended, or somebody has asked that it be tried again."""

    execution: str
    at_ms: int


class Kept(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="keep"):
    """A step returned, or an entity answered, while the code could not go on. Completed follows when it can."""

    execution: str
    at_ms: int
    operation: str
    attempt: int
    result: Stored
    usage: Usage
    failure: Failure | None = None


class Finished(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="end"):
    """The execution ended."""

    execution: str
    at_ms: int
    status: Status
    result: Stored | None
    failure: Failure | None


class Forgotten(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="forget"):
    """Somebody asked to drop the execution and its result; its id is free again."""

    execution: str
    at_ms: int


class Turn(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One message that an entity has handled, and its answer: ``result`` or ``failure``.

    It is found again by ``message_id`` where the sender gave one, else by ``sender`` and ``number``: the sender's own count of what
    it sent to this shard. All that the sender numbered up to ``heard`` is answered and not asked for again.
    """

    message_id: str
    fingerprint: str
    result: Stored | None
    failure: Failure | None = None
    sender: str = ""
    number: int = 0
    heard: int = 0


class Timer(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Something that an entity is to do later: ``due_ms`` (0: no more), then every ``every_ms`` (0: once).

    With a ``message`` it is a message that was sent to be handled then, by ``sender``; else it is a reminder of that name.
    """

    name: str
    due_ms: int
    every_ms: int = 0
    message: bytes = b""
    sender: str = ""


class Handled(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="turn"):
    """An entity handled messages, one after the other; ``state`` is what they left behind, None: it did not change.

    ``changes`` counts, over the entity's life, the turns that changed its state. ``window_ms``: how long answers are kept.
    ``timers`` are those that were set, changed or removed. ``destroyed``: all that was before is gone, answers excepted. ``events``
    are what an event-sourced entity has emitted, encoded; without a ``state`` beside them they are applied to the one before.

    ``holder`` is who has locked it from now on ("": nobody, None: as before). What waits for that lock is a queue: ``taken`` were
    taken from its front, then ``deferred`` were put at its end; or ``queue`` takes its place.
    """

    entity: str
    at_ms: int
    kind: Function
    state: bytes | None
    state_version: int
    changes: int
    window_ms: int
    turns: list[Turn]
    timers: list[Timer] = []
    destroyed: bool = False
    events: list[bytes] = []
    holder: str | None = None
    taken: int = 0
    deferred: list[bytes] = []
    queue: list[bytes] | None = None


class Posted(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="post"):
    """A letter to an instance of another shard, the ``number``-th to that shard."""

    shard: int
    number: int
    letter: bytes


class Received(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="recv"):
    """All letters from another shard up to ``number`` have been handled."""

    shard: int
    number: int


class Delivered(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="sent"):
    """Another shard has all letters up to ``number`` on record."""

    shard: int
    number: int


WorkflowRecord = (
    Started
    | Scheduled
    | Completed
    | Failed
    | Retried
    | Elapsed
    | Woke
    | CancelRequested
    | Abandoned
    | Suspended
    | Resumed
    | Kept
    | Finished
    | Forgotten
)


class DeadLetter(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="dead"):
    """A message that could not be handled and that nobody waits for: the ``number``-th such of this shard, kept until it is.

    ``message`` is encoded as it travelled, ``sender`` is whose it was, ``reason`` why it is here.
    """

    entity: str
    at_ms: int
    number: int
    operation: str
    message: bytes
    sender: str
    reason: Failure


class Settled(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="settled"):
    """A dead letter was handled after all, or was thrown away. ``turn`` is the request for that and its answer."""

    entity: str
    at_ms: int
    number: int
    turn: Turn | None = None


EntityRecord = Handled | DeadLetter | Settled

MailRecord = Posted | Received | Delivered

Record = WorkflowRecord | EntityRecord | MailRecord

Event = Started | Completed | Failed | Elapsed | Woke | CancelRequested
"""The records that reach the workflow's code."""


class Summary(msgspec.Struct, frozen=True, array_like=True, gc=False, tag="sum"):
    """All that is kept in memory of an execution that ended: enough to answer who asks for it or starts it again."""

    execution: str
    workflow: str
    version: str
    fingerprint: str
    started_ms: int
    finished_ms: int
    status: Status
    result: Stored | None
    failure: Failure | None
    history: str = ""
    """Key of the Parquet file with its records; empty while they are still in the log."""


def summarise(started: Started, finished: Finished) -> Summary:
    """The summary of an execution from its first record and its last."""
    return Summary(
        started.execution,
        started.workflow.name,
        started.version,
        started.fingerprint,
        started.at_ms,
        finished.at_ms,
        finished.status,
        finished.result,
        finished.failure,
    )


def large_values(record: Record) -> list[Blob]:
    """The large values that the code of a workflow reads when it is replayed through this record."""
    if isinstance(record, Started):
        named: tuple[Stored | None, ...] = (record.arguments, record.workflow.code)
    elif isinstance(record, Kept) or (isinstance(record, Completed) and not record.unread):
        named = (record.result,)
    else:
        return []
    return [one for one in named if isinstance(one, Blob)]


_HASH = b"\xd9\x40"
"""How msgpack begins a text of 64 characters, as the hash of a blob is one."""


def may_name_blob(encoded: bytes) -> bool:
    """Whether an encoded value may have a blob in it; decoding it tells for sure."""
    return _HASH in encoded


def digest(data: bytes) -> str:
    """The name of a blob with this content: SHA-256, hexadecimal."""
    return hashlib.sha256(data).hexdigest()


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Record)


def encode_record(record: Record) -> bytes:
    """The bytes of a record as they stand in the log."""
    return _encoder.encode(record)


def decode_record(data: bytes) -> Record:
    """The record in ``data``. Raises msgspec.DecodeError for anything else; callers know which object to name."""
    return _decoder.decode(data)
