"""Make a sample video: scenes that differ, movement, and a tone, so that an encoder has something to do and a viewer to
see."""

from __future__ import annotations

from pathlib import Path

from pipelines.video import ffmpeg
from pipelines.video.containers import partial_name

_SIZE = "640x360"
_RATE = 25
_SCENES = (
    f"testsrc2=size={_SIZE}:rate={_RATE}",
    f"mandelbrot=size={_SIZE}:rate={_RATE}",
    f"smptehdbars=size={_SIZE}:rate={_RATE}",
    f"gradients=size={_SIZE}:rate={_RATE}:seed=7:speed=0.05",
    f"life=size={_SIZE}:rate={_RATE}:seed=7:ratio=0.1:mold=10:life_color=white:death_color=navy",
)


def make(output: Path, duration_s: float = 30.0) -> Path:
    """Write a sample of 640x360 at 25 frames/s with a tone to ``output`` (.mp4, .mov or .mkv) and return it.

    It is made of five scenes of equal length. Raises FfmpegFailed; ``output`` appears complete or not at all.
    """
    binary = ffmpeg.find("libx264")
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_name(output)
    each_s = f"{duration_s / len(_SCENES):.3f}"
    scenes = [ffmpeg.source(f"{scene},format=yuv420p,setsar=1", f="lavfi", t=each_s) for scene in _SCENES]
    tone = ffmpeg.source(f"sine=frequency=330:beep_factor=4:duration={duration_s:.3f}", f="lavfi")
    options = {"c:v": "libx264", "preset": "veryfast", "crf": 20, "c:a": "aac", "b:a": "96k"}
    try:
        node = ffmpeg.target([ffmpeg.concatenated(scenes), tone], partial, **options)
        ffmpeg.run(ffmpeg.compile_command(binary, node))
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)
    return output
