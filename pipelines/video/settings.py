"""How a video is to be encoded: the user's choices.

``Settings`` is what the user chooses, checked as far as that goes without ffmpeg and without the source. ``encoders``
translates it, ``encode.check`` tries it out on a few generated frames before any work is started.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from rayflow.errors import InvalidInput

CODECS = ("x264", "x265", "svt-av1", "vp9", "ffv1")
SPLITS = ("keyframes", "scenes", "fixed", "none")
SHORTEST_SENSIBLE_CHUNK_S = 3.0
"""Below this, chunks cost 2 % (x264) to 7 % (SVT-AV1) in size: only for those who ask for it."""

# fmt: off
_RESERVED = frozenset((
    "-i", "-ss", "-sseof", "-t", "-to", "-r", "-fpsmax", "-vsync", "-fps_mode", "-enc_time_base", "-time_base",
    "-copyts", "-start_at_zero", "-itsoffset", "-map", "-vf", "-filter", "-filter:v", "-filter_complex", "-lavfi",
    "-c", "-c:v", "-vcodec", "-codec", "-codec:v", "-f", "-frames", "-frames:v", "-vframes",
    "-video_track_timescale", "-pass", "-passlogfile", "-progress", "-threads", "-y", "-n", "-autorotate",
    "-noautorotate", "-an", "-vn", "-sn",
))
# fmt: on


@dataclass(frozen=True, slots=True)
class Settings:
    """What to encode to. Raises InvalidInput when made of values that cannot work.

    codec: "x264", "x265", "svt-av1", "vp9", "ffv1", or the name of any encoder of ffmpeg.
    preset: the encoder's speed setting; None takes a sane default (for vp9 it is ``-cpu-used``).
    crf: constant quality, lower is better; None takes the encoder's default. Not together with ``lossless``.
    lossless: decoded frames are equal to those of the source.
    filters: an ffmpeg filter chain for the frames of each chunk, such as "scale=1280:-2". It must give one frame out
        for each frame in, and keep its time.
    ffmpeg_args: further output options for the video encoder; they win over what is set here.
    audio: "copy", "aac", "opus", "none", or the name of any audio encoder of ffmpeg.
    audio_kbps: bit rate per audio track in kbit/s; None leaves it to the encoder.
    split: where to cut. "keyframes": near the wanted length, at key frames of the source where they serve; "scenes": at
        scene changes; "fixed": every ``chunk_seconds``; "none": one chunk; or the cut times themselves, in seconds from
        the first frame.
    chunk_seconds: wanted length of a chunk.
    threads: threads of one ffmpeg.
    """

    codec: str = "x264"
    preset: str | None = None
    crf: float | None = None
    lossless: bool = False
    filters: str = ""
    ffmpeg_args: tuple[str, ...] = ()
    audio: str = "copy"
    audio_kbps: int | None = None
    split: str | tuple[float, ...] = "keyframes"
    chunk_seconds: float = 10.0
    threads: int = 1

    def __post_init__(self) -> None:
        if not self.codec or not self.codec.replace("-", "").replace("_", "").isalnum():
            raise InvalidInput(f"codec {self.codec!r} is not a name: use one of {', '.join(CODECS)} or an ffmpeg encoder")
        if not self.audio:
            raise InvalidInput('audio is empty: use "copy", "none", "aac", "opus" or an ffmpeg encoder')
        if self.threads < 1:
            raise InvalidInput(f"threads is {self.threads}: it must be at least 1")
        if not (math.isfinite(self.chunk_seconds) and self.chunk_seconds > 0):
            raise InvalidInput(f"chunk_seconds is {self.chunk_seconds}: it must be a positive number of seconds")
        if self.audio_kbps is not None and self.audio_kbps < 1:
            raise InvalidInput(f"audio_kbps is {self.audio_kbps}: it must be at least 1")
        self._check_split()
        self._check_quality()
        for argument in self.ffmpeg_args:
            if argument in _RESERVED:
                hint = "use `filters`" if "filter" in argument or argument == "-vf" else "leave it out"
                raise InvalidInput(f"ffmpeg_args contains {argument}, which decides about cut or timing: {hint}")

    def _check_split(self) -> None:
        if isinstance(self.split, str):
            if self.split not in SPLITS:
                raise InvalidInput(f"split {self.split!r} is unknown: use one of {', '.join(SPLITS)} or a list of seconds")
        elif any(not math.isfinite(at) or at < 0 for at in self.split):
            raise InvalidInput(f"split {self.split} has a time that is negative or no number: give seconds from the first frame")

    def _check_quality(self) -> None:
        if self.lossless and self.crf is not None:
            raise InvalidInput("crf and lossless exclude each other: leave one of them out")
        if self.lossless and self.codec not in CODECS:
            raise InvalidInput(f"no lossless mode is known for {self.codec!r}: give its options as ffmpeg_args instead")
        if self.lossless and self.codec == "svt-av1" and (self.preset or "").isdigit() and int(self.preset or 0) > 10:
            raise InvalidInput("SVT-AV1 without loss cannot be decoded from preset 11 on: use 10 or lower")
        if self.crf is not None and self.codec == "ffv1":
            raise InvalidInput("ffv1 is always lossless and takes no crf: leave it out")
        worst = 63 if self.codec in ("svt-av1", "vp9") else 51
        if self.crf is not None and self.codec in CODECS and not 0 <= self.crf <= worst:
            raise InvalidInput(f"crf {self.crf:g} is out of range for {self.codec}: use 0 to {worst}")
