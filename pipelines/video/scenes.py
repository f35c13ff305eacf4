"""Find scene changes: where an encoder would begin a key frame of itself, so that a cut there costs no bits."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

from pipelines.video import ffmpeg
from pipelines.video.encode import cut_input, trim_filter
from pipelines.video.index import SourceInfo
from pipelines.video.plan import Chunk

_THRESHOLD = 10
"""Of ffmpeg's ``scdet``, in percent of the largest possible change between two frames: its default."""
_WIDTH = 320
"""Frames are scaled down to this width first; a scene change is large."""


def detect(source: str, info: SourceInfo, interval: Chunk, threads: int = 1) -> tuple[int, ...]:
    """Presentation times, in the stream's time base, of the frames in an interval that begin a scene. Raises
    FfmpegFailed."""
    video = info.video
    chain = (
        trim_filter(interval),
        f"scale={_WIDTH}:-2:flags=fast_bilinear",
        f"scdet=threshold={_THRESHOLD}",
        "metadata=mode=select:key=lavfi.scd.time",
    )
    binary = ffmpeg.find()
    with tempfile.TemporaryDirectory(prefix="rayflow-scenes-") as folder:
        # A list of frames with their times is a format of its own: nothing has to be parsed from the log.
        frames = Path(folder) / "frames"
        options = {
            "filter:v": ",".join(chain),
            "fps_mode": "passthrough",
            "enc_time_base": f"{video.time_base_num}:{video.time_base_den}",
            "f": "framecrc",
        }
        node = ffmpeg.target([cut_input(source, info, interval, threads)], frames, **options)
        ffmpeg.run(ffmpeg.compile_command(binary, node))
        rows = [line.split(",") for line in frames.read_text().splitlines() if line and not line.startswith("#")]
    return tuple(int(row[2]) for row in rows)


def merge(detected: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    """The scene changes of all intervals, ascending, each once."""
    return tuple(sorted({at for found in detected for at in found}))
