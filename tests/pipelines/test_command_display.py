"""What people see of an encode: on a terminal, in a log, and as JSON lines."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace
from rich.cells import cell_len
from rich.console import Console

from pipelines.video.command_events import Chunk, Done, Error, Event, Notice, Progress, Retry, Start, Stopped, Warned
from pipelines.video.command_progress import Part, Tracker
from pipelines.video.command_record import Attempt, Finished, Recorded
from pipelines.video.display import LineDisplay, LiveDisplay, duration, in_words, make_display, picture, size, timeline
from pipelines.video.encode import EncodedChunk
from pipelines.video.options import View
from pipelines.video.plan import Chunk as PlannedChunk
from pipelines.video.workflow import StoredChunk
from rayflow.checkpoint.files import File
from rayflow.core.messages import ExecutionView, StepView
from rayflow.core.records import Failure, Status

START = Start(
    id="encode-film-0123456789ab",
    store="file:///store",
    source="/videos/film.mkv",
    output="/videos/film.encoded.mp4",
    source_bytes=4_000_000,
    encoding="x265 crf 24",
    width=1920,
    height=800,
    duration_s=40.0,
    frames=1000,
    chunks=4,
    chunks_reused=1,
)
DONE = Done(
    id=START.id,
    output=START.output,
    size_bytes=1_234_567,
    source_bytes=4_000_000,
    ratio=0.3086,
    frames=1000,
    lost_frames=0,
    duration_s=40.0,
    wall_s=83.4,
    speed=0.36,
    chunks=4,
    chunks_reused=1,
)


def planned() -> tuple[PlannedChunk, ...]:
    """Four chunks of 250 frames, ten seconds each."""
    return tuple(PlannedChunk(f"{number:04}", number * 250, None, None, 250, float(Fraction(10))) for number in range(4))


def finished(name: str, size_bytes: int) -> Finished:
    """A chunk in the store."""
    path = Path(f"/scratch/{name}.mp4")
    encoded = EncodedChunk(name, path, 250, 0, size_bytes, 0, 249, "hevc", 1920, 800, "", 4.0, 5.0, "7.1")
    return Finished(StoredChunk(encoded, File(f"files/x/{name}.mp4", size_bytes, "")), 5.0)


def record(*chunks: Finished, failed: tuple[Attempt, ...] = ()) -> Recorded:
    """A running encode of which these chunks are finished."""
    by_name = {one.stored.encoded.name: one for one in chunks}
    return Recorded(Status.RUNNING, 0, None, None, None, by_name, failed, None, None)


def view(*running: tuple[str, int], failed_attempts: int = 0) -> ExecutionView:
    """What the shard says while these chunks are being encoded; frames below zero: queued."""
    steps = [
        StepView(f"encode_chunk#1/[{name}]", "encode_chunk", 1, None, {"frames": float(frames)} if frames >= 0 else {})
        for name, frames in running
    ]
    return ExecutionView(START.id, Status.RUNNING, {}, failed_attempts, 0, steps)


def tracked() -> Tracker:
    """One chunk reused, one finished here, one half done, one queued; ten seconds after the first look."""
    tracker = Tracker(1000, 40.0, 4_000_000, began_s=100.0)
    tracker.plan(planned())
    tracker.resume(record(finished("0000", 200_000)))
    tracker.see_view(view(("0001", 0), ("0002", -1), ("0003", -1)))
    tracker.progress(110.0)
    tracker.see_view(view(("0002", 125), ("0003", -1), failed_attempts=1))
    return tracker


def drawn(tracker: Tracker, width: int, height: int = 25) -> list[str]:
    """The lines of the live display, without colours."""
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, no_color=True)
    console.print(picture(START, tracker.progress(120.0), tracker.parts(), console, 0.0))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return [line.rstrip() for line in text.replace("\x1b[1m", "").replace("\x1b[2m", "").replace("\x1b[0m", "").splitlines()]


def test_the_live_display_shows_where_it_is_how_fast_and_how_large() -> None:
    tracker = tracked()
    tracker.see_record(record(finished("0000", 200_000), finished("0001", 300_000)))
    title, bar, state = drawn(tracker, 120)
    assert title.startswith("film.mkv → film.encoded.mp4  x265 crf 24  1920x800  0:40  1,000 frames")
    assert bar.endswith(" 62.5 %")
    assert (bar.count("━"), bar.count("─")) == (70, 41)
    assert state == (
        "encoding 0:20  2/4 chunks  1 running  1 failed and repeated  37.5 fps  1.50x  ETA 0:10  500 kB (25 % of the source)"
    )


@pytest.mark.parametrize("width", [1, 8, 20, 40, 80, 200])
@pytest.mark.parametrize("height", [2, 4, 10])
def test_the_live_display_keeps_within_any_terminal(width: int, height: int) -> None:
    lines = drawn(tracked(), width, height)
    assert len(lines) < height
    assert all(cell_len(line) <= width for line in lines)


@pytest.mark.parametrize(
    ("width", "title", "state"),
    [
        (
            100,
            "film.mkv → film.encoded.mp4  x265 crf 24  1920x800  0:40  1,000 frames",
            [
                "encoding 0:20  2/4 chunks  1 running  1 failed and repeated  37.5 fps  1.50x  ETA 0:10",
                "500 kB (25 % of the source)",
            ],
        ),
        (
            60,
            "film.mkv → film.encoded.mp4  x265 crf 24  1920x800  0:40",
            [
                "encoding 0:20  2/4 chunks  1 running  1 failed and repeated",
                "37.5 fps  1.50x  ETA 0:10  500 kB (25 % of the source)",
            ],
        ),
        (
            40,
            "film.mkv → film.encoded.mp4  x265 crf 24",
            [
                "encoding 0:20  2/4 chunks  1 running",
                "1 failed and repeated  37.5 fps  1.50x",
                "ETA 0:10  500 kB (25 % of the source)",
            ],
        ),
    ],
)
def test_where_there_is_less_room_all_that_is_known_takes_more_lines(width: int, title: str, state: list[str]) -> None:
    tracker = tracked()
    tracker.see_record(record(finished("0000", 200_000), finished("0001", 300_000)))
    lines = drawn(tracker, width, height=10)
    assert (lines[0], lines[2:]) == (title, state)


def test_the_path_of_the_output_is_not_broken_in_a_terminal_that_it_does_not_fit() -> None:
    console = Console(file=io.StringIO(), width=40, height=10, force_terminal=True, no_color=True)
    display = LiveDisplay(console, io.StringIO())
    path = f"/videos/{'of a long name ' * 4}.mp4"
    display.show(replace(DONE, output=path))
    display.close()
    assert path in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_terminal_of_ascii_gets_ascii() -> None:
    tracker = tracked()
    console = Console(file=io.TextIOWrapper(io.BytesIO(), encoding="ascii"), width=80, force_terminal=True, no_color=True)
    console.print(picture(START, tracker.progress(120.0), tracker.parts(), console, 0.0))
    assert "film.mkv -> film.encoded.mp4" in console.file.buffer.getvalue().decode()  # type: ignore[attr-defined]


def test_the_bar_is_the_time_line_of_the_video() -> None:
    parts = (Part(100, 100, reused=True), Part(100, 50, reused=False), Part(200, 0, reused=False))
    bar = timeline(parts, 16, ascii_only=False)
    assert bar.plain == "━━━━━━╸─────────"
    assert {str(span.style) for span in bar.spans[:4]} == {"blue"}
    assert {str(span.style) for span in bar.spans[4:6]} == {"green"}
    assert timeline(parts, 16, ascii_only=True).plain == "######>---------"


def test_a_chunk_counts_as_done_before_and_after_its_record_is_read() -> None:
    tracker = tracked()
    assert (tracker.chunks_done, tracker.chunks_reused, tracker.progress(120.0).frames_done) == (2, 1, 625)
    seen = record(finished("0000", 200_000), finished("0001", 300_000))
    assert tracker.see_record(seen) == [Chunk(name="0001", frames=250, size_bytes=300_000, wall_s=5.0, chunks_done=2, chunks=4)]
    assert tracker.see_record(seen) == []
    assert (tracker.chunks_done, tracker.progress(120.0).frames_done) == (2, 625)


def test_a_failed_attempt_is_told_once_and_one_of_an_earlier_run_not_at_all() -> None:
    early, late = (
        Attempt("encode_chunk", "0003", number, Failure("FfmpegFailed", "no space\ncommand: x"), False) for number in (1, 2)
    )
    tracker = Tracker(1000, 40.0, 4_000_000, began_s=100.0)
    tracker.resume(record(failed=(early,)))
    assert tracker.see_record(record(failed=(early, late))) == [
        Retry(step="encode_chunk", chunk="0003", attempt=2, message="no space")
    ]
    assert tracker.see_record(record(failed=(early, late))) == []


def test_plain_lines_tell_phases_and_chunks_and_not_every_poll() -> None:
    out = io.StringIO()
    display = LineDisplay(out, io.StringIO())
    tracker = tracked()
    display.show(START)
    for now_s in (120.0, 120.25, 120.5):
        display.show(tracker.progress(now_s))
    for event in tracker.see_record(record(finished("0000", 200_000), finished("0001", 300_000))):
        display.show(event)
    display.show(DONE)
    lines = out.getvalue().splitlines()
    assert len(lines) == 4  # the second and third look at it came within five seconds
    assert lines[0].endswith("x265 crf 24; 1 chunk from an earlier run")
    assert lines[1].startswith("encoding: 2/4 chunks, 1 running, 1 failed and repeated, ")
    assert lines[2].startswith("chunk 0001 done (2/4): 250 frames, 300 kB; 35.7 fps")
    assert lines[3] == (
        "/videos/film.encoded.mp4: 1.23 MB (31 % of the source), 1,000 frames, 1:23 (0.36x), verified, "
        "1 of 4 chunks from an earlier run"
    )


def test_json_lines_are_events_and_come_back_as_they_were() -> None:
    events: list[Event] = [
        START,
        tracked().progress(120.0),
        Chunk(name="0001", frames=250, size_bytes=300_000, wall_s=5.0, chunks_done=2, chunks=4),
        Retry(step="encode_chunk", chunk="0003", attempt=1, message="no space"),
        Notice("waiting"),
        Warned("no subtitles"),
        DONE,
        Error(message="chunk 0003 failed", exit_code=1, step="encode_chunk", chunk="0003", resume="again"),
        Stopped(chunks_done=2, chunks=4, exit_code=130, resume="again"),
    ]
    out, err = io.StringIO(), io.StringIO()
    display = make_display(View.JSON, out, err)
    for event in events:
        display.show(event)
    display.close()
    lines = out.getvalue().splitlines()
    assert [msgspec.json.decode(line, type=Event) for line in lines] == events
    kinds = ["start", "progress", "chunk", "retry", "notice", "warning", "done", "error", "stopped"]
    assert [msgspec.json.decode(line)["event"] for line in lines] == kinds
    assert [field.name for field in msgspec.structs.fields(Progress)] == [
        "phase", "elapsed_s", "chunks_done", "chunks_running", "chunks_queued", "chunks", "failed_attempts", "frames_done",
        "frames", "fps", "speed", "eta_s", "size_bytes", "ratio",
    ]  # fmt: skip
    assert err.getvalue().count("\n") == 2


def test_quiet_says_errors_and_how_to_go_on_only() -> None:
    out, err = io.StringIO(), io.StringIO()
    display = make_display(View.QUIET, out, err)
    for event in (START, Warned("no subtitles"), DONE, Error(message="no space", exit_code=1)):
        display.show(event)
    assert (out.getvalue(), err.getvalue()) == ("", "rayflow.encode: no space\n")


def test_a_stop_in_a_cluster_says_that_the_encode_goes_on_and_how_to_end_it() -> None:
    words = in_words(
        Stopped(
            chunks_done=1, chunks=4, exit_code=130, resume="python -m rayflow.encode a.mp4", cancel="python -m rayflow cancel x"
        )
    )
    assert "goes on in the cluster" in words
    assert "python -m rayflow cancel x" in words


def test_sizes_and_times_are_short_and_never_in_exponents() -> None:
    assert [size(value) for value in (0, 999, 1_000, 12_345, 999_499, 999_500, 41_000_000, 7_250_000_000)] == [
        "0 B", "999 B", "1.00 kB", "12.3 kB", "999 kB", "1.00 MB", "41.0 MB", "7.25 GB",
    ]  # fmt: skip
    assert [duration(value) for value in (0, 7.4, 59.6, 3599, 3723)] == ["0:00", "0:07", "1:00", "59:59", "1:02:03"]
