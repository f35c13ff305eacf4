"""What the encode command has to say, as values: every display shows the same events, each in its own way.

With ``--json`` each event is one line: an object whose ``event`` names its kind. Sizes are in bytes, times in seconds; a value that
is not known yet is null. Fields are only ever added.
"""

from __future__ import annotations

import msgspec


class Start(msgspec.Struct, frozen=True, tag_field="event", tag="start", kw_only=True):
    """The encode begins, or goes on. ``frames`` are those that the source promises; ``chunks`` is null until they are planned.

    ``chunks_reused``: finished by an earlier run. ``encoding``: codec and quality in a few words.
    """

    id: str
    store: str
    source: str
    output: str
    source_bytes: int
    encoding: str
    width: int
    height: int
    duration_s: float
    frames: int
    chunks: int | None
    chunks_reused: int


class Progress(msgspec.Struct, frozen=True, tag_field="event", tag="progress", kw_only=True):
    """How far it is. ``fps``, ``speed`` (seconds of video per second) and ``eta_s`` are of the last half minute.

    ``phase``: "starting", "indexing", "scene search", "planning", "encoding", "audio", "joining" or "cleaning up".
    ``chunks_queued``: asked for, but no worker has begun it. ``size_bytes`` and ``ratio``: of the finished chunks, and against the
    share of the source that they cover.
    """

    phase: str
    elapsed_s: float
    chunks_done: int
    chunks_running: int
    chunks_queued: int
    chunks: int | None
    failed_attempts: int
    frames_done: int
    frames: int
    fps: float | None
    speed: float | None
    eta_s: float | None
    size_bytes: int | None
    ratio: float | None


class Chunk(msgspec.Struct, frozen=True, tag_field="event", tag="chunk", kw_only=True):
    """A chunk is finished and in the store. ``chunks_done`` counts it."""

    name: str
    frames: int
    size_bytes: int
    wall_s: float
    chunks_done: int
    chunks: int | None


class Retry(msgspec.Struct, frozen=True, tag_field="event", tag="retry", kw_only=True):
    """An attempt of a step failed and is repeated. ``chunk`` is empty for steps that are not about one."""

    step: str
    chunk: str
    attempt: int
    message: str


class Notice(msgspec.Struct, frozen=True, tag_field="event", tag="notice"):
    """Something the user may want to know at once."""

    message: str


class Warned(msgspec.Struct, frozen=True, tag_field="event", tag="warning"):
    """Something about the output that the user should know; sent once, at the end."""

    message: str


class Done(msgspec.Struct, frozen=True, tag_field="event", tag="done", kw_only=True):
    """The output is there, verified against the source. ``ratio``: its size against the source's.

    ``wall_s`` and ``speed`` are those of this command, null where the work had been done before.
    """

    id: str
    output: str
    size_bytes: int
    source_bytes: int
    ratio: float
    frames: int
    lost_frames: int
    duration_s: float
    wall_s: float | None
    speed: float | None
    chunks: int | None
    chunks_reused: int
    verified: bool = True


class Error(msgspec.Struct, frozen=True, tag_field="event", tag="error", kw_only=True):
    """The encode failed, or was refused. ``step`` and ``chunk`` are empty where none is to blame; ``resume`` is a command."""

    message: str
    exit_code: int
    step: str = ""
    chunk: str = ""
    resume: str = ""


class Stopped(msgspec.Struct, frozen=True, tag_field="event", tag="stopped", kw_only=True):
    """The command was told to stop. ``resume`` is the command that goes on; ``cancel`` the one that ends work that goes on without
    this command, empty where none does."""

    chunks_done: int
    chunks: int | None
    exit_code: int
    resume: str
    cancel: str = ""


Event = Start | Progress | Chunk | Retry | Notice | Warned | Done | Error | Stopped
