"""What an output file can hold, by its suffix. Codec names are ffmpeg's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rayflow.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Container:
    """An empty set of codecs means any. ``text`` is the encoder for subtitles of text, ``attachments`` whether fonts may stay.

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


_MP4_AUDIO = ("aac", "mp3", "mp2", "ac3", "eac3", "opus", "flac", "alac", "dts")
_MP4_VIDEO = ("h264", "hevc", "av1", "vp9", "mpeg4", "mpeg2video", "vvc")
_PCM = ("pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s24be", "pcm_s32le", "pcm_s32be", "pcm_f32le", "pcm_u8", "pcm_alaw", "pcm_mulaw")
_MKV_SUBTITLES = ("subrip", "ass", "ssa", "webvtt", "hdmv_pgs_subtitle", "dvd_subtitle", "dvb_subtitle", "text")
TEXT_SUBTITLES = frozenset(("subrip", "ass", "ssa", "webvtt", "mov_text", "text"))

CONTAINERS = {
    container.suffix: container
    for container in (
        Container(
            ".mp4", frozenset(_MP4_VIDEO), frozenset(_MP4_AUDIO), frozenset(("mov_text",)), "mov_text", "aac", False, True, 0
        ),
        Container(
            ".mov", frozenset((*_MP4_VIDEO, "prores", "mjpeg", "dnxhd", "ffv1")), frozenset((*_MP4_AUDIO, *_PCM)) - {"opus", "flac"},
            frozenset(("mov_text",)), "mov_text", "aac", False, True, 0,
        ),
        Container(".mkv", frozenset(), frozenset(), frozenset(_MKV_SUBTITLES), "srt", "aac", True, False, 1000),
        Container(
            ".webm", frozenset(("vp8", "vp9", "av1")), frozenset(("opus", "vorbis")), frozenset(("webvtt",)), "webvtt", "libopus",
            False, False, 1000,
        ),
    )
}  # fmt: skip


def container_of(output: Path) -> Container:
    """The container for an output's suffix. Raises InvalidInput for one that is not supported."""
    found = CONTAINERS.get(output.suffix.lower())
    if found is None:
        raise InvalidInput(f"{output}: the output must be named {', '.join('*' + suffix for suffix in CONTAINERS)}")
    return found
