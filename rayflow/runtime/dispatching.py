"""What shards and the dispatcher of their steps tell each other, beside attempts and results: plain values that cross processes."""

from __future__ import annotations

import msgspec

from rayflow.checkpoint.queues import WaitingSteps
from rayflow.core.messages import StepProgress, StepResult, StepStart


class Submission(msgspec.Struct, frozen=True, array_like=True):
    """A start with Ray's options for the task (pickled: they may hold objects of Ray's)."""

    start: StepStart
    options: bytes
    alone: bool
    """Whether the attempt needs a task of its own."""
    code: str = ""
    """The code to run it with, see ``project.code_version``."""
    speculative: bool = False
    """Whether it may be run a second time while it runs, where it takes long, see ``stragglers``; then it is alone."""


class Collected(msgspec.Struct, frozen=True, array_like=True):
    """What ``collect`` returns: results by number, the latest word of steps, and which wait for what no node has."""

    results: list[tuple[int, StepResult]]
    progress: list[StepProgress]
    waiting: list[WaitingSteps] = []
