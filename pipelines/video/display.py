"""How the encode command reports: a live display on a terminal, plain lines elsewhere, JSON lines, or errors alone.

All of them take the same events. The live display's bar is the video's time line: each column is a stretch of it, filled as far as
its frames are encoded, so that one sees the workers move through their chunks and what an earlier run had done.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol, TextIO

import msgspec
from msgspec.structs import replace
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from pipelines.video.command_events import Chunk, Done, Error, Event, Notice, Progress, Retry, Start, Stopped, Warned
from pipelines.video.command_progress import Part
from pipelines.video.options import View
from pipelines.video.source import name_of

_LINE_INTERVAL_S = 5.0
_JSON_INTERVAL_S = 1.0
_WIDEST = 120


class Display(Protocol):
    """Where events go. Used from one thread."""

    def show(self, event: Event) -> None:
        """Report one event."""
        ...

    def draw(self, parts: Sequence[Part]) -> None:
        """The chunks as they are, before the Progress event that goes with them."""
        ...

    def close(self) -> None:
        """Leave the terminal as it was found."""
        ...


def make_display(view: View, out: TextIO, err: TextIO) -> Display:
    """The display for a choice and a pair of streams. Errors go to ``err`` whatever the choice."""
    if view is View.JSON:
        return JsonDisplay(out, err)
    if view is View.QUIET:
        return QuietDisplay(err)
    console = Console(file=out, highlight=False, soft_wrap=False)
    return LiveDisplay(console, err) if console.is_terminal and not console.is_dumb_terminal else LineDisplay(out, err)


class QuietDisplay:
    """Errors, and how to go on after a stop."""

    def __init__(self, err: TextIO) -> None:
        self._err = err

    def show(self, event: Event) -> None:
        if isinstance(event, Error | Stopped):
            print(in_words(event), file=self._err, flush=True)

    def draw(self, parts: Sequence[Part]) -> None:
        pass

    def close(self) -> None:
        pass


class JsonDisplay(QuietDisplay):
    """One JSON object per event and line, as ``pipelines.video.command_events`` documents; progress once a second."""

    def __init__(self, out: TextIO, err: TextIO) -> None:
        super().__init__(err)
        self._out = out
        self._next_s = 0.0

    def show(self, event: Event) -> None:
        if isinstance(event, Progress):
            if time.monotonic() < self._next_s:
                return
            self._next_s = time.monotonic() + _JSON_INTERVAL_S
        super().show(event)
        print(msgspec.json.encode(event).decode(), file=self._out, flush=True)


class LineDisplay(QuietDisplay):
    """Plain lines: one for each change of phase and each finished chunk, and one every few seconds in between."""

    def __init__(self, out: TextIO, err: TextIO) -> None:
        super().__init__(err)
        self._out = out
        self._phase = ""
        self._next_s = 0.0
        self._last: Progress | None = None

    def show(self, event: Event) -> None:
        now_s = time.monotonic()
        if isinstance(event, Progress):
            self._last = event
            if event.phase == self._phase and (now_s < self._next_s or event.phase != "encoding"):
                return
            self._phase = event.phase
            self._print(f"{event.phase}: {summary(event)}" if event.frames_done else event.phase)
        elif isinstance(event, Chunk):
            rate = "" if self._last is None else summary(replace(self._last, chunks=None, failed_attempts=0, size_bytes=None))
            self._print(f"{in_words(event)}; {rate}".rstrip("; "))
        elif isinstance(event, Error | Stopped):
            super().show(event)
            return
        else:
            self._print(in_words(event))
            return
        self._next_s = now_s + _LINE_INTERVAL_S

    def _print(self, line: str) -> None:
        print(line, file=self._out, flush=True)


class LiveDisplay(QuietDisplay):
    """A title, a bar and what is known, drawn again and again; they give way to one line at the end."""

    def __init__(self, console: Console, err: TextIO) -> None:
        super().__init__(err)
        self._console = console
        self._start: Start | None = None
        self._progress: Progress | None = None
        self._parts: Sequence[Part] = ()
        self._seen_s = time.monotonic()
        self._live = Live(get_renderable=self._render, console=console, refresh_per_second=4, transient=True)
        self._live.start()

    def show(self, event: Event) -> None:
        if isinstance(event, Start):
            self._start = event
        elif isinstance(event, Progress):
            self._progress, self._seen_s = event, time.monotonic()
        elif isinstance(event, Error | Stopped):
            self.close()
            super().show(event)
        elif not isinstance(event, Chunk):  # the bar shows chunks
            if isinstance(event, Done):
                self.close()
            style = "yellow" if isinstance(event, Warned | Retry) else "dim" if isinstance(event, Notice) else ""
            # Breaking lines is left to the terminal where a break between words would be one in the path: it is there to be copied.
            long = isinstance(event, Done) and cell_len(event.output) >= self._console.width
            self._console.print(Text(in_words(event), style=style), soft_wrap=long)

    def draw(self, parts: Sequence[Part]) -> None:
        self._parts = parts

    def close(self) -> None:
        self._live.stop()

    def _render(self) -> RenderableType:
        if self._progress is None:
            return Text("starting", style="dim")
        waited_s = time.monotonic() - self._seen_s
        return picture(self._start, self._progress, self._parts, self._console, waited_s)


def picture(start: Start | None, progress: Progress, parts: Sequence[Part], console: Console, waited_s: float) -> RenderableType:
    """The live display: what is done, how far it is, how fast, in as many lines as that takes in a terminal of this width.

    ``waited_s``: since ``progress`` was true.
    """
    width = min(console.width, _WIDEST)
    ascii_only = console.options.ascii_only
    lines: list[Text] = []
    if start is not None:
        names = f"{name_of(start.source)} {'->' if ascii_only else '→'} {start.output.rpartition('/')[2]}"
        facts = (start.encoding, f"{start.width}x{start.height}", duration(start.duration_s), f"{start.frames:,} frames")
        title = _line()
        title.append(names, style="bold")
        title.append(_fitting([f"  {fact}" for fact in facts], width - cell_len(names)), style="dim")
        lines.append(title)
    percent = f"{100 * progress.frames_done / progress.frames:5.1f} %" if progress.frames else ""
    if parts:
        lines.append(
            Text.assemble(timeline(parts, max(1, width - len(percent) - 1), ascii_only), " ", (percent, "bold"), no_wrap=True)
        )
    state = _line()
    state.append("starting Ray" if progress.phase == "starting" else progress.phase, style="bold cyan")
    state.append(f" {duration(progress.elapsed_s + waited_s)}", style="dim")
    for fact in known(progress) if progress.phase == "encoding" or progress.chunks_done else ():
        if state.cell_len + 2 + cell_len(fact) <= width:
            state.append(f"  {fact}")
        else:
            lines.append(state)
            state = _line()
            state.append(fact)
    return Group(*[*lines, state][: console.height - 1])  # the cursor has a line of its own


def _line() -> Text:
    return Text(no_wrap=True, overflow="ellipsis")


def _fitting(words: Sequence[str], room: int) -> str:
    """The first of the words, as many as there is room for."""
    kept = ""
    for word in words:
        if cell_len(kept + word) > room:
            break
        kept += word
    return kept


def timeline(parts: Sequence[Part], width: int, ascii_only: bool) -> Text:
    """The video from left to right in ``width`` columns, each filled as far as the frames in it are encoded."""
    total = max(1, sum(part.frames for part in parts))
    done = [0.0] * width
    reused = [0.0] * width
    active = [False] * width
    start = 0
    for part in parts:
        for where, frames in ((done, part.frames_done), (reused, part.frames_done if part.reused else 0)):
            _fill(where, start * width / total, (start + frames) * width / total)
        if 0 < part.frames_done < part.frames:
            active[min(width - 1, int((start + part.frames_done) * width / total))] = True
        start += part.frames
    bar = Text(no_wrap=True)
    full, head, empty = ("#", ">", "-") if ascii_only else ("━", "╸", "─")
    for column in range(width):
        if done[column] >= 0.5:
            bar.append(full, style="blue" if reused[column] >= 0.5 else "green")
        elif active[column]:
            bar.append(head, style="bright_green")
        else:
            bar.append(empty, style="bright_black")
    return bar


def _fill(columns: list[float], begin: float, end: float) -> None:
    """Add the share of each column that lies in [begin, end)."""
    for column in range(int(begin), min(len(columns), int(end) + 1)):
        columns[column] += max(0.0, min(end, column + 1) - max(begin, column))


def known(progress: Progress) -> list[str]:
    """Chunks, speed, time left and size, each in a few words; what is not known is left out."""
    words: list[str] = []
    if progress.chunks:
        words.append(f"{progress.chunks_done}/{progress.chunks} chunks")
    if progress.chunks and progress.phase == "encoding":
        words.append(f"{progress.chunks_running} running")
    if progress.failed_attempts:
        words.append(f"{progress.failed_attempts} failed and repeated")
    if progress.fps is not None:
        words.append(f"{three_digits(progress.fps)} fps")
    if progress.speed is not None:
        words.append(f"{three_digits(progress.speed)}x")
    if progress.eta_s is not None:
        words.append(f"ETA {duration(progress.eta_s)}")
    if progress.size_bytes is not None and progress.ratio is not None:
        words.append(f"{size(progress.size_bytes)} ({100 * progress.ratio:.0f} % of the source)")
    return words


def summary(progress: Progress) -> str:
    """What is known, in one line."""
    return ", ".join(known(progress))


def in_words(event: Event) -> str:
    """An event in one line for people."""
    match event:
        case Start():
            facts = f"{event.width}x{event.height}, {duration(event.duration_s)}, {event.frames:,} frames"
            reused = f"; {counted(event.chunks_reused, 'chunk')} from an earlier run" if event.chunks_reused else ""
            return f"{event.source} ({facts}) -> {event.output}, {event.encoding}{reused}"
        case Progress():
            return f"{event.phase}: {summary(event)}"
        case Chunk():
            count = f"{event.chunks_done}/{event.chunks or '?'}"
            return f"chunk {event.name} done ({count}): {event.frames:,} frames, {size(event.size_bytes)}"
        case Retry():
            what = f"chunk {event.chunk}" if event.chunk else event.step
            return f"{what}: attempt {event.attempt} failed and is repeated: {event.message}"
        case Notice():
            return event.message
        case Warned():
            return f"warning: {event.message}"
        case Done():
            return _done(event)
        case Error():
            resume = f"; to try again, keeping finished chunks: {event.resume}" if event.resume else ""
            return f"rayflow.encode: {event.message}{resume}"
        case Stopped():
            if event.cancel:
                return f"left alone: the encode goes on in the cluster. To look again: {event.resume}   To end it: {event.cancel}"
            done = f" after {event.chunks_done} of {event.chunks} chunks" if event.chunks else ""
            return f"stopped{done}. To go on: {event.resume}"


def _done(event: Done) -> str:
    parts = [f"{event.output}: {size(event.size_bytes)} ({100 * event.ratio:.0f} % of the source)", f"{event.frames:,} frames"]
    if event.lost_frames:
        parts.append(f"{event.lost_frames} not in the damaged source")
    if event.wall_s is None:
        parts.append("verified: encoded before, nothing to do")
        return ", ".join(parts)
    speed = f" ({three_digits(event.speed)}x)" if event.speed is not None else ""
    parts += [f"{duration(event.wall_s)}{speed}", "verified"]
    if event.chunks_reused:
        parts.append(f"{event.chunks_reused} of {event.chunks} chunks from an earlier run")
    return ", ".join(parts)


def counted(number: int, what: str) -> str:
    """``1 chunk``, ``2 chunks``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """``0:07``, ``12:34`` or ``1:02:03``."""
    whole = max(0, round(seconds))
    hours, minutes = whole // 3600, whole % 3600 // 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def size(size_bytes: int) -> str:
    """With three significant digits, in powers of 1000 as ffmpeg and disks count."""
    if size_bytes < 1000:
        return f"{size_bytes} B"
    value = size_bytes / 1000
    for unit in ("kB", "MB", "GB"):
        if value < 999.5:
            return f"{three_digits(value)} {unit}"
        value /= 1000
    return f"{three_digits(value)} TB"


def three_digits(value: float) -> str:
    """``0.34``, ``1.52``, ``17.3``, ``1041``: never in exponent notation."""
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"
