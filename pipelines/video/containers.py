"""What an output file can hold, by its suffix. Codec names are ffmpeg's."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from pathlib import Path

from rayflow.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Container:
    """An empty set of codecs means any. ``text`` is the encoder for subtitles of text, ``attachments`` whether fonts
    may stay.

    ``tick_us``: resolution of its time stamps in microseconds, 0 when it is the stream's own.
    """

    suffix: str
    video: frozenset[str]
    audio: frozenset[str]
    subtitles: frozenset[str]
    text: str
    audio_encoder: str
    attachments: bool
    pictures: bool
    tick_us: int


_MP4_VIDEO = frozenset(("h264", "hevc", "av1", "vp9", "mpeg4", "mpeg2video", "vvc"))
_MP4_AUDIO = frozenset(("aac", "mp3", "mp2", "ac3", "eac3", "opus", "flac", "alac", "dts"))
# fmt: off
_PCM = frozenset((
    "pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s24be", "pcm_s32le", "pcm_s32be", "pcm_f32le", "pcm_u8", "pcm_alaw",
    "pcm_mulaw",
))
_MKV_SUBTITLES = frozenset((
    "subrip", "ass", "ssa", "webvtt", "hdmv_pgs_subtitle", "dvd_subtitle", "dvb_subtitle", "text",
))
# fmt: on
TEXT_SUBTITLES = frozenset(("subrip", "ass", "ssa", "webvtt", "mov_text", "text"))

_MP4 = Container(
    suffix=".mp4",
    video=_MP4_VIDEO,
    audio=_MP4_AUDIO,
    subtitles=frozenset(("mov_text",)),
    text="mov_text",
    audio_encoder="aac",
    attachments=False,
    pictures=True,
    tick_us=0,
)
_MOV = replace(
    _MP4,
    suffix=".mov",
    video=_MP4_VIDEO | {"prores", "mjpeg", "dnxhd", "ffv1"},
    audio=(_MP4_AUDIO | _PCM) - {"opus", "flac"},
)
_MKV = Container(
    suffix=".mkv",
    video=frozenset(),
    audio=frozenset(),
    subtitles=_MKV_SUBTITLES,
    text="srt",
    audio_encoder="aac",
    attachments=True,
    pictures=False,
    tick_us=1000,
)
_WEBM = replace(
    _MKV,
    suffix=".webm",
    video=frozenset(("vp8", "vp9", "av1")),
    audio=frozenset(("opus", "vorbis")),
    subtitles=frozenset(("webvtt",)),
    text="webvtt",
    audio_encoder="libopus",
    attachments=False,
)
CONTAINERS = {container.suffix: container for container in (_MP4, _MOV, _MKV, _WEBM)}


def container_of(output: Path) -> Container:
    """The container for an output's suffix. Raises InvalidInput for one that is not supported."""
    found = CONTAINERS.get(output.suffix.lower())
    if found is None:
        raise InvalidInput(f"{output}: the output must be named {', '.join('*' + suffix for suffix in CONTAINERS)}")
    return found


def partial_name(output: Path) -> Path:
    """A new hidden name beside an output, to write it under until it is complete. Never longer than a file system allows, though
    the output's name may be as long as that."""
    return output.with_name(f".{output.stem[:40]}.{secrets.token_hex(4)}.partial{output.suffix}")
