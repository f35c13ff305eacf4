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

_SAME_ENCODER = {"libx264": "x264", "libx265": "x265", "libsvtav1": "svt-av1", "libvpx-vp9": "vp9"}
_MOST_THREADS = 256

# fmt: off
_OF_TIMING = frozenset((
    "-i", "-ss", "-sseof", "-t", "-to", "-r", "-fpsmax", "-vsync", "-fps_mode", "-enc_time_base", "-time_base",
    "-copyts", "-start_at_zero", "-itsoffset", "-itsscale", "-output_ts_offset", "-map", "-vf", "-filter", "-filter_script",
    "-filter_complex", "-filter_complex_script", "-lavfi", "-s", "-c", "-vcodec", "-codec", "-f", "-frames", "-vframes", "-fs",
    "-video_track_timescale", "-pass", "-passlogfile", "-threads", "-autorotate", "-noautorotate", "-an", "-vn", "-sn", "-dn",
    "-shortest", "-stream_loop", "-max_error_rate", "-xerror", "-re", "-readrate", "-copyinkf",
))
_OF_THE_RUN = frozenset((
    "-y", "-n", "-progress", "-report", "-stats", "-nostats", "-v", "-loglevel", "-hide_banner", "-vstats", "-vstats_file",
    "-benchmark", "-benchmark_all", "-dump", "-hex", "-bitexact", "-psnr", "-qphist", "-attach", "-dump_attachment", "-sdp_file",
    "-stdin", "-nostdin", "-timelimit",
))
_OF_RATE = frozenset(("-crf", "-qp", "-q", "-qscale", "-b", "-cq", "-global_quality"))
_OF_QUALITY = _OF_RATE | {"-lossless", "-pix_fmt"}
_PARAMS_OF_QUALITY = frozenset(("crf", "qp", "q", "bitrate", "tbr", "rc", "lossless"))
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
        if self.threads > _MOST_THREADS:
            raise InvalidInput(f"threads is {self.threads}: it must be at most {_MOST_THREADS}")
        if self.audio_kbps is not None and self.audio_kbps < 1:
            raise InvalidInput(f"audio_kbps is {self.audio_kbps}: it must be at least 1")
        if self.audio_kbps is not None and self.audio == "none":
            raise InvalidInput("audio_kbps is given, but there is to be no audio: leave one of them out")
        if self.preset is not None and (not self.preset or self.family == "ffv1"):
            raise InvalidInput("ffv1 has no presets: leave it out" if self.preset else "preset is empty: leave it out")
        self._check_split()
        self._check_quality()
        self._check_ffmpeg_args()

    @property
    def family(self) -> str:
        """The codec by its name in ``CODECS``, even if it is called by that of its encoder."""
        return _SAME_ENCODER.get(self.codec, self.codec)

    @property
    def names_rate(self) -> bool:
        """Whether ``ffmpeg_args`` choose rate or quality; beside a crf x264 would not look at them."""
        return any(option.partition(":")[0] in _OF_RATE for option in self.ffmpeg_args[::2])

    def _check_split(self) -> None:
        if isinstance(self.split, str):
            if self.split not in SPLITS:
                raise InvalidInput(f"split {self.split!r} is unknown: use one of {', '.join(SPLITS)} or a list of seconds")
        elif any(not math.isfinite(at) or at < 0 for at in self.split):
            raise InvalidInput(f"split {self.split} has a time that is negative or no number: give seconds from the first frame")

    def _check_quality(self) -> None:
        family = self.family
        if self.lossless and self.crf is not None:
            raise InvalidInput("crf and lossless exclude each other: leave one of them out")
        if self.lossless and family not in CODECS:
            raise InvalidInput(f"no lossless mode is known for {self.codec!r}: give its options as ffmpeg_args instead")
        if self.lossless and family == "svt-av1" and (self.preset or "").isdigit() and int(self.preset or 0) > 10:
            raise InvalidInput("SVT-AV1 without loss cannot be decoded from preset 11 on: use 10 or lower")
        if self.crf is not None and family == "ffv1":
            raise InvalidInput("ffv1 is always lossless and takes no crf: leave it out")
        worst = 63 if family in ("svt-av1", "vp9") else 51
        if self.crf is not None and family in CODECS and not 0 <= self.crf <= worst:
            raise InvalidInput(f"crf {self.crf:g} is out of range for {self.codec}: use 0 to {worst}")

    def _check_ffmpeg_args(self) -> None:
        """Pairs of an option and its value, and nothing that says other things than the settings do: a word that is neither would
        be the name of a further output, which ffmpeg would write."""
        pairs = list(zip(self.ffmpeg_args[::2], self.ffmpeg_args[1::2], strict=False))
        for option in self.ffmpeg_args[::2]:
            name = option.partition(":")[0]
            if not (name.startswith("-") and name[1:2].isalpha()):
                raise InvalidInput(f"ffmpeg_args has {option!r} where an option is expected: give pairs such as -g 48 -tune film")
            if name in _OF_TIMING:
                hint = "use `filters`" if "filter" in name or name in ("-vf", "-s") else "leave it out"
                raise InvalidInput(f"ffmpeg_args contains {option}, which decides about cut or timing: {hint}")
            if name in _OF_THE_RUN:
                raise InvalidInput(f"ffmpeg_args contains {option}, which says nothing to the video encoder: leave it out")
            if self.lossless and name in _OF_QUALITY:
                raise InvalidInput(f"ffmpeg_args contains {option}, but the encode is to be lossless: leave one of them out")
            if (name == "-crf" and self.crf is not None) or (name == "-preset" and self.preset is not None):
                raise InvalidInput(f"ffmpeg_args contains {option}, which is given by itself as well: leave one of them out")
        if len(self.ffmpeg_args) % 2:
            raise InvalidInput(f"ffmpeg_args ends with {self.ffmpeg_args[-1]}: its value is missing")
        for option, value in pairs if self.lossless else ():
            named = {part.partition("=")[0] for part in value.split(":")} if option.endswith("-params") else set[str]()
            if named & _PARAMS_OF_QUALITY:
                raise InvalidInput(
                    f"ffmpeg_args contains {option} {value}, but the encode is to be lossless: leave one of them out"
                )
