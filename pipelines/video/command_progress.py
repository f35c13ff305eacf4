"""From what a client sees of a running encode to how far it is. Pure: values and the time in, values out."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from pipelines.video.command_events import Chunk, Event, Progress, Retry
from pipelines.video.command_record import Finished, Recorded, step_and_chunk
from pipelines.video.plan import Chunk as PlannedChunk
from rayflow.core.messages import ExecutionView

_WINDOW_S = 30.0
_SHORTEST_WINDOW_S = 2.0
_PHASES = {
    "prepare": "indexing",
    "find_scenes": "scene search",
    "plan_by_scenes": "planning",
    "encode_chunk": "encoding",
    "encode_audio": "audio",
    "assemble": "joining",
    "remove_files": "cleaning up",
}
_ORDER = ("encode_chunk", "encode_audio", "find_scenes", "plan_by_scenes", "prepare", "assemble", "remove_files")


@dataclass(frozen=True, slots=True)
class Part:
    """One chunk for the bar. ``reused``: finished by an earlier run."""

    frames: int
    frames_done: int
    reused: bool


class Tracker:
    """What is known of one encode while it runs.

    ``frames``, ``duration_s``, ``source_bytes``: of the source. ``began_s``: when the command began; times are of one monotonic
    clock, in seconds.
    """

    def __init__(self, frames: int, duration_s: float, source_bytes: int, began_s: float) -> None:
        self._frames = frames
        self._duration_s = duration_s
        self._source_bytes = source_bytes
        self._began_s = began_s
        self._planned: dict[str, PlannedChunk] = {}
        self._finished: dict[str, Finished] = {}
        self._reused: frozenset[str] = frozenset()
        self._running: dict[str, int] = {}
        self._gone: set[str] = set()
        self._queued = 0
        self._failed_attempts = 0
        self._retries_told = 0
        self._phase = "starting"
        self._samples: deque[tuple[float, int]] = deque()

    def plan(self, chunks: tuple[PlannedChunk, ...]) -> None:
        """The chunks are planned."""
        self._planned = {chunk.name: chunk for chunk in chunks}

    def resume(self, recorded: Recorded) -> None:
        """Take over what was there when the command began: those chunks count as reused, those failures as told."""
        self._absorb(recorded)
        self._reused = frozenset(self._finished)
        self._retries_told = len(recorded.failed)

    def see_record(self, recorded: Recorded) -> list[Event]:
        """What the store has on record; returns the events that it brings."""
        known = set(self._finished)
        self._absorb(recorded)
        events: list[Event] = []
        for name in sorted(set(self._finished) - known):
            one = self._finished[name]
            count = len(known) + len([event for event in events if isinstance(event, Chunk)]) + 1
            encoded = one.stored.encoded
            events.append(
                Chunk(
                    name=name,
                    frames=encoded.frames,
                    size_bytes=encoded.size_bytes,
                    wall_s=round(one.wall_s, 3),
                    chunks_done=count,
                    chunks=self.chunks,
                )
            )
        for failed in recorded.failed[self._retries_told :]:
            if not failed.final:
                message = brief(failed.failure.message)
                events.append(Retry(step=failed.step, chunk=failed.chunk, attempt=failed.number, message=message))
        self._retries_told = max(self._retries_told, len(recorded.failed))
        return events

    def see_view(self, view: ExecutionView) -> bool:
        """What the shard says of the running execution; returns whether it is in another phase than before."""
        open_steps = {step.name for step in view.running}
        before, self._phase = self._phase, next((_PHASES[name] for name in _ORDER if name in open_steps), self._phase)
        running: dict[str, int] = {}
        self._queued = 0
        seen: set[str] = set()
        for step in view.running:
            name, chunk = step_and_chunk(step.operation)
            if name != "encode_chunk":
                continue
            seen.add(chunk)
            if step.progress:
                running[chunk] = int(step.progress.get("frames", 0))
            else:
                self._queued += 1
        # A chunk that is no longer under way is finished, though its record may not have been read yet.
        self._gone.update(name for name in self._running if name not in seen)
        self._gone -= seen
        self._running = running
        self._failed_attempts = view.failed_attempts
        return self._phase != before

    @property
    def chunks(self) -> int | None:
        """How many there are; None before they are planned."""
        return len(self._planned) or None

    @property
    def chunks_done(self) -> int:
        """How many are finished, reused ones included."""
        return len(self._finished.keys() | self._gone)

    @property
    def chunks_reused(self) -> int:
        """How many were finished when the command began."""
        return len(self._reused)

    def parts(self) -> tuple[Part, ...]:
        """All chunks in the order of the video."""
        done = self._finished.keys() | self._gone
        return tuple(
            Part(one.frames, one.frames if name in done else min(one.frames, self._running.get(name, 0)), name in self._reused)
            for name, one in self._planned.items()
        )

    def progress(self, now_s: float) -> Progress:
        """How far it is."""
        parts = self.parts()
        frames_done = sum(part.frames_done for part in parts) if parts else sum(self._running.values())
        fps = self._rate(now_s, frames_done)
        rate = self._frames / self._duration_s if self._duration_s else 0.0
        encoded = [one.stored.encoded for one in self._finished.values()]
        size_bytes = sum(one.size_bytes for one in encoded)
        covered = sum(one.frames for one in encoded) / self._frames if self._frames else 0.0
        return Progress(
            phase=self._phase,
            elapsed_s=round(now_s - self._began_s, 3),
            chunks_done=self.chunks_done,
            chunks_running=len(self._running),
            chunks_queued=self._queued,
            chunks=self.chunks,
            failed_attempts=self._failed_attempts,
            frames_done=frames_done,
            frames=self._frames,
            fps=None if fps is None else round(fps, 2),
            speed=None if fps is None or not rate else round(fps / rate, 3),
            eta_s=None if not fps else round((self._frames - frames_done) / fps, 1),
            size_bytes=size_bytes or None,
            ratio=round(size_bytes / (self._source_bytes * covered), 4) if covered and self._source_bytes else None,
        )

    def _absorb(self, recorded: Recorded) -> None:
        self._finished.update(recorded.finished)
        self._gone -= recorded.finished.keys()
        if recorded.plan is not None and not self._planned:
            self.plan(recorded.plan.chunks)

    def _rate(self, now_s: float, frames_done: int) -> float | None:
        """Frames per second over the window. Before the first frame of this run there is none."""
        if self._phase != "encoding":
            self._samples.clear()
            return None
        self._samples.append((now_s, frames_done))
        while now_s - self._samples[0][0] > _WINDOW_S:
            self._samples.popleft()
        first_s, first = self._samples[0]
        if now_s - first_s < _SHORTEST_WINDOW_S or frames_done <= first:
            return None
        return (frames_done - first) / (now_s - first_s)


def brief(message: str) -> str:
    """The first line of an error's message, which says what happened; the lines after it are for logs."""
    return message.strip().partition("\n")[0]
