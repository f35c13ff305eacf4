"""What ``Settings`` mean in ffmpeg's words: encoder, options, and the container of a chunk.

Every chunk of a video gets the very same arguments, for the chunks are joined by stream copy. For x264 that is not
enough: it puts rate control values into the headers, so ``stitchable=1`` is always set.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.video.index import Hdr, VideoStream
from pipelines.video.settings import Settings


@dataclass(frozen=True, slots=True)
class _Encoder:
    ffmpeg_name: str
    preset_option: str = ""
    preset: str = ""
    crf_option: str = ""
    crf: float = 0
    fixed: tuple[str, ...] = ()
    lossless: tuple[str, ...] = ()
    params_option: str = ""
    params: tuple[str, ...] = ()
    lossless_params: tuple[str, ...] = ()
    threads_param: str = ""
    suffix: str = ".mp4"


_UNSPECIFIED_COLOUR = 2
_UNSPECIFIED_RANGE = 0

_ENCODERS = {
    "x264": _Encoder(
        "libx264", "-preset", "medium", "-crf", 21, lossless=("-qp", "0"), params_option="-x264-params",
        params=("stitchable=1",),
    ),
    "x265": _Encoder(
        "libx265", "-preset", "medium", "-crf", 24, params_option="-x265-params", params=("log-level=warning",),
        lossless_params=("lossless=1",), threads_param="pools",
    ),
    "svt-av1": _Encoder(
        "libsvtav1", "-preset", "8", "-crf", 32, params_option="-svtav1-params", lossless_params=("lossless=1",),
        threads_param="lp",
    ),
    "vp9": _Encoder(
        "libvpx-vp9", "-cpu-used", "2", "-crf", 32, fixed=("-b:v", "0", "-row-mt", "1"), lossless=("-lossless", "1")
    ),
    "ffv1": _Encoder("ffv1", fixed=("-level", "3", "-slicecrc", "1"), suffix=".nut"),
}  # fmt: skip

# Encoders whose streams the chunk container mp4 is known to hold; all others get NUT, which holds everything.
_MP4_ENCODERS = frozenset(
    [
        "libx264",
        "libx265",
        "libsvtav1",
        "libaom-av1",
        "librav1e",
        "libvpx-vp9",
        "h264_nvenc",
        "hevc_nvenc",
        "av1_nvenc",
        "h264_qsv",
        "hevc_qsv",
        "av1_qsv",
        "h264_vaapi",
        "hevc_vaapi",
        "av1_vaapi",
        "h264_amf",
        "hevc_amf",
        "av1_amf",
        "libopenh264",
        "libkvazaar",
    ]
)


def _known(settings: Settings) -> _Encoder | None:
    by_name = {encoder.ffmpeg_name: encoder for encoder in _ENCODERS.values()}
    return _ENCODERS.get(settings.codec) or by_name.get(settings.codec)


def encoder_name(settings: Settings) -> str:
    """The encoder's name in ffmpeg."""
    known = _known(settings)
    return known.ffmpeg_name if known else settings.codec


def chunk_suffix(settings: Settings) -> str:
    """ ".mp4", or ".nut" for streams that mp4 cannot hold."""
    known = _known(settings)
    if known is not None:
        return known.suffix
    return ".mp4" if settings.codec in _MP4_ENCODERS else ".nut"


def is_lossless(settings: Settings) -> bool:
    """Whether decoded frames are to be equal to the source's."""
    return settings.lossless or settings.codec == "ffv1"


def colour_arguments(settings: Settings, video: VideoStream) -> tuple[str, ...]:
    """Output options with the source's colour tags. Frames carry them, but not in every version of ffmpeg to every
    encoder, and NUT loses them. With filters the tags are the filters' business."""
    if settings.filters:
        return ()
    tags = (
        ("-color_primaries:v:0", video.color_primaries, _UNSPECIFIED_COLOUR),
        ("-color_trc:v:0", video.color_transfer, _UNSPECIFIED_COLOUR),
        ("-colorspace:v:0", video.color_space, _UNSPECIFIED_COLOUR),
        ("-color_range:v:0", video.color_range, _UNSPECIFIED_RANGE),
    )
    return tuple(word for option, value, unspecified in tags if value != unspecified for word in (option, str(value)))


def encoder_arguments(settings: Settings, video: VideoStream) -> tuple[str, ...]:
    """Output options of ffmpeg for the encoder, the user's own last.

    Static HDR metadata is given in words to the encoders that do not take it from the frames in every version of
    ffmpeg.
    """
    known = _known(settings)
    arguments = ["-c:v", encoder_name(settings), "-threads", str(settings.threads)]
    if known is None:
        if settings.preset is not None:
            arguments += ["-preset", settings.preset]
        if settings.crf is not None:
            arguments += ["-crf", f"{settings.crf:g}"]
        return (*arguments, *settings.ffmpeg_args)
    arguments += known.fixed
    if known.preset_option:
        arguments += [known.preset_option, settings.preset or known.preset]
    if settings.lossless:
        arguments += known.lossless
    elif known.crf_option and (settings.crf is not None or not settings.names_rate):
        arguments += [known.crf_option, f"{known.crf if settings.crf is None else settings.crf:g}"]
    # Not with filters, which may have removed the fields; not without loss, for x264 is inexact in that combination.
    if video.interlaced and known.ffmpeg_name == "libx264" and not settings.filters and not settings.lossless:
        arguments += ["-flags", "+ilme+ildct"]
    if not known.params_option:
        return (*arguments, *settings.ffmpeg_args)
    user, theirs = _take(settings.ffmpeg_args, known.params_option)
    params = [*known.params, *(known.lossless_params if settings.lossless else ())]
    if known.threads_param:
        params.append(f"{known.threads_param}={settings.threads}")
    params += _hdr_params(known.ffmpeg_name, video.hdr)
    params += theirs
    if params:
        arguments += [known.params_option, ":".join(params)]
    return (*arguments, *user)


def _take(arguments: tuple[str, ...], option: str) -> tuple[list[str], list[str]]:
    """Arguments, which are pairs, without ``option``, and the values that it had: encoders take the option once, so both sets
    must be one."""
    rest: list[str] = []
    values: list[str] = []
    for name, value in zip(arguments[::2], arguments[1::2], strict=True):
        if name == option:
            values.append(value)
        else:
            rest += [name, value]
    return rest, values


def _hdr_params(encoder: str, hdr: Hdr) -> list[str]:
    params: list[str] = []
    if encoder == "libx265":
        if hdr.primaries:
            rx, ry, gx, gy, bx, by, wx, wy = hdr.primaries
            light = f"L({hdr.luminance_max},{hdr.luminance_min})"
            params.append(f"master-display=G({gx},{gy})B({bx},{by})R({rx},{ry})WP({wx},{wy}){light}")
        if hdr.max_content or hdr.max_average:
            params.append(f"max-cll={hdr.max_content},{hdr.max_average}")
    elif encoder == "libsvtav1":
        if hdr.primaries:
            rx, ry, gx, gy, bx, by, wx, wy = (f"{value / 50000:.5f}" for value in hdr.primaries)
            light = f"L({hdr.luminance_max / 10000:.4f},{hdr.luminance_min / 10000:.4f})"
            params.append(f"mastering-display=G({gx},{gy})B({bx},{by})R({rx},{ry})WP({wx},{wy}){light}")
        if hdr.max_content or hdr.max_average:
            params.append(f"content-light={hdr.max_content},{hdr.max_average}")
    return params
