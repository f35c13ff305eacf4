"""What is in a source: its streams, and every packet of the video stream, without decoding it.

``read`` opens the file with PyAV, reads each packet's time stamps and flags once (21,766 packets take 0.1 s) and
decodes a single frame, for what only a frame tells: pixel format, field order, HDR metadata, rotation. ``SourceInfo``
is plain and small and travels with the plan; ``SourceIndex`` adds the packets as arrays and stays in the process that
plans or verifies.

Times are integers in the video stream's own time base wherever frames are told apart; seconds are for display only.
"""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, cast

import av
import av.error
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.sidedata.sidedata import SideData as SideDatum
from av.sidedata.sidedata import SideDataContainer
from av.sidedata.sidedata import Type as SideData
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from pipelines.video.ffmpeg import URL_OPTIONS
from pipelines.video.source import SourceUnreachable, is_url, openable
from rayflow.errors import InvalidInput

_DEFAULT, _ATTACHED_PICTURE = 0x1, 0x400  # AV_DISPOSITION_*
_TIME_STAMPS_MAY_JUMP = 0x200  # AVFMT_TS_DISCONT
_INTERLACED_FIELD_ORDERS = (2, 3, 4, 5)  # AV_FIELD_TT, BB, TB, BT
NO_TIME = -(2**63)
_FRAMES_TRIED = 300
"""Packets to try for one that decodes: a stream may start in the middle of a group of pictures, but not much longer."""


@dataclass(frozen=True, slots=True)
class Hdr:
    """Static HDR metadata. Chromaticities in steps of 1/50000, luminance in steps of 1/10000 cd/m², light levels in
    cd/m².

    ``primaries``: x and y of red, green, blue, then of the white point; empty when there is no mastering display.
    """

    primaries: tuple[int, ...] = ()
    luminance_min: int = 0
    luminance_max: int = 0
    max_content: int = 0
    max_average: int = 0


@dataclass(frozen=True, slots=True)
class VideoStream:
    """The stream to encode. Colour tags are ffmpeg's numbers, 2 or 0 meaning unspecified; ``rotation`` is in degrees.

    ``first_pts`` and ``last_pts`` are of frames that are shown. ``frames`` counts packets that are not discarded: the
    number of frames to expect, which a damaged file may miss.
    """

    index: int
    codec: str
    time_base_num: int
    time_base_den: int
    rate_num: int
    rate_den: int
    width: int
    height: int
    pixel_format: str
    color_primaries: int
    color_transfer: int
    color_space: int
    color_range: int
    rotation: int
    interlaced: bool
    hdr: Hdr
    first_pts: int
    last_pts: int
    frames: int
    key_frames: int
    disposition: int
    language: str

    @property
    def time_base(self) -> Fraction:
        """Seconds per tick of a presentation time."""
        return Fraction(self.time_base_num, self.time_base_den)


@dataclass(frozen=True, slots=True)
class OtherStream:
    """A stream that is copied from the source: "audio", "subtitle", "attachment", "picture" (cover art), "data" or
    "video"."""

    index: int
    kind: str
    codec: str
    language: str
    disposition: int


@dataclass(frozen=True, slots=True)
class SourceInfo:
    """A source without its packets.

    ``origin_us`` is the moment that all its streams are placed relative to, in microseconds: the container's start
    time. ``uncuttable`` says why the video must be encoded in one piece; empty when it can be cut.
    """

    path: str
    format: str
    origin_us: int
    duration_s: float
    video: VideoStream
    others: tuple[OtherStream, ...]
    chapters: int
    uncuttable: str
    warnings: tuple[str, ...]

    def of_kind(self, kind: str) -> tuple[OtherStream, ...]:
        """The other streams of one kind, in the order of the file."""
        return tuple(stream for stream in self.others if stream.kind == kind)


@dataclass(frozen=True, slots=True)
class Packets:
    """The packets of one stream in file order; all arrays have the same length; ``size`` is in bytes.

    A ``dts`` may be NO_TIME, as those of the first packets in Matroska; ``missing_pts`` counts the packets without any
    time.
    """

    pts: NDArray[np.int64]
    dts: NDArray[np.int64]
    key: NDArray[np.bool_]
    discard: NDArray[np.bool_]
    size: NDArray[np.int64]
    missing_pts: int

    def shown(self) -> NDArray[np.int64]:
        """Presentation times of the frames to expect, ascending."""
        return np.sort(self.pts[~self.discard])

    def keys(self) -> NDArray[np.int64]:
        """Presentation times of the key frames, ascending."""
        return np.sort(self.pts[self.key])


@dataclass(frozen=True, slots=True)
class SourceIndex:
    """A source and the packets of its video stream."""

    info: SourceInfo
    packets: Packets


def open_input(path: str) -> InputContainer:
    """Open a file or URL for reading, missing time stamps generated. Raises InvalidInput with the reason, SourceUnreachable."""
    if not is_url(path):
        try:
            facts = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            raise InvalidInput(f"{path}: there is no such file: check the path") from None
        except OSError as error:
            raise InvalidInput(f"{path} cannot be read: {error.strerror or error}") from error
        if not stat.S_ISREG(facts.st_mode):
            raise InvalidInput(f"{path} is not a file: name a single video")
        if facts.st_size == 0:
            raise InvalidInput(f"{path} is empty: copy it again from where it came")
    try:
        options = {"fflags": "genpts", **(URL_OPTIONS if is_url(path) else {})}
        return av.open(openable(path), options=options, metadata_errors="replace")
    except (av.error.FFmpegError, OSError, ValueError) as error:
        _blame_server(path, error)
        if isinstance(error, PermissionError):
            raise InvalidInput(f"{path} cannot be read: {_words(error)}") from error
        raise InvalidInput(f"{path} cannot be read as a video ({_words(error)}): check that it is one and is complete") from error


def read(path: str) -> SourceIndex:
    """Index a source. Raises InvalidInput for what cannot be encoded: no file, no video stream, no decoder, no
    frame."""
    with open_input(path) as container:
        stream = choose(container, path)
        frame = _first_frame(container, stream, path)
    with open_input(path) as container:
        packets = read_packets(container, stream, path)
        if packets.pts.size == 0 or bool(packets.discard.all()):
            raise InvalidInput(f"{path}: stream {stream} holds no frame: check that the file is complete")
        info = _describe(container, path, stream, packets, frame)
    return SourceIndex(info, packets)


def choose(container: InputContainer, path: str) -> int:
    """Index of the video stream to encode: the one marked default, else the first. Cover art is not a video."""
    videos = [s for s in container.streams.video if not int(s.disposition) & _ATTACHED_PICTURE]
    if not videos:
        held = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        raise InvalidInput(f"{path} has no video stream, only {held}: give a file with video")
    chosen = next((s for s in videos if int(s.disposition) & _DEFAULT), videos[0])
    if chosen.codec_context is None:  # pyright: ignore[reportUnnecessaryComparison] -- PyAV's stubs deny it, a missing decoder makes it
        raise InvalidInput(f"{path}: no decoder for its video stream {chosen.index}: convert it with the tool that made it")
    return chosen.index


def read_packets(container: InputContainer, stream: int, path: str, see: Callable[[Packet[Any]], None] | None = None) -> Packets:
    """All packets of one stream; ``see`` is called with each. Raises InvalidInput if the file cannot be read to its end."""
    pts: list[int] = []
    dts: list[int] = []
    key: list[bool] = []
    discard: list[bool] = []
    size: list[int] = []
    missing_pts = 0
    try:
        for packet in container.demux(container.streams[stream]):
            if packet.pts is None and packet.dts is None and packet.size == 0:
                continue  # the flush packet at the end
            if see is not None:
                see(packet)
            at = packet.pts if packet.pts is not None else packet.dts
            missing_pts += at is None
            pts.append(at if at is not None else (pts[-1] if pts else 0))
            dts.append(packet.dts if packet.dts is not None else NO_TIME)
            key.append(packet.is_keyframe)
            discard.append(packet.is_discard)
            size.append(packet.size)
    except av.error.FFmpegError as error:
        _blame_server(path, error)
        raise InvalidInput(
            f"{path} cannot be read beyond packet {len(pts)} of stream {stream} ({_words(error)}): "
            f"remux what is left of it with `ffmpeg -i FILE -c copy NEW.mkv`"
        ) from error
    return Packets(
        np.array(pts, np.int64),
        np.array(dts, np.int64),
        np.array(key, np.bool_),
        np.array(discard, np.bool_),
        np.array(size, np.int64),
        missing_pts,
    )


def _blame_server(path: str, error: Exception) -> None:
    """Raises SourceUnreachable if it may be a server's fault that something cannot be read, and not that of what it holds."""
    if is_url(path) and not isinstance(error, av.error.InvalidDataError | av.error.HTTPClientError):
        raise SourceUnreachable(f"{path} cannot be read on ({_words(error)}): try again later") from error


def _first_frame(container: InputContainer, stream: int, path: str) -> VideoFrame:
    reason = "none of its first packets holds a whole one"
    for packet in itertools.islice(container.demux(container.streams[stream]), _FRAMES_TRIED):
        try:
            for frame in packet.decode():
                if isinstance(frame, VideoFrame):
                    return frame
        except av.error.FFmpegError as error:
            reason = _words(error)
    codec = container.streams[stream].codec_context.name
    raise InvalidInput(f"{path}: no frame of its {codec} video can be decoded ({reason}): check that the file is complete")


def _describe(container: InputContainer, path: str, index: int, packets: Packets, frame: VideoFrame) -> SourceInfo:
    stream = container.streams.video[[s.index for s in container.streams.video].index(index)]
    context = stream.codec_context
    shown = packets.shown()
    side = {data.type for data in _side_data(frame)}
    warnings: list[str] = []
    if side & {SideData.DOVI_RPU_BUFFER, SideData.DOVI_METADATA}:
        warnings.append("Dolby Vision metadata is not carried over: the output is its base layer")
    if side & {SideData.DYNAMIC_HDR_PLUS, SideData.DYNAMIC_HDR_VIVID}:
        warnings.append("dynamic HDR metadata is not carried over: the output has the static values only")
    if stream.frames > packets.pts.size:
        warnings.append(f"the file is cut short: its header promises {stream.frames} frames, {packets.pts.size} are there")
    others = tuple(_others(container, index))
    if any(other.kind == "video" for other in others):
        warnings.append(f"of several video streams only number {index} is encoded; the others are left out")
    time_base = Fraction(stream.time_base or 1)
    span = int(shown[-1] - shown[0]) * time_base
    rate = Fraction(stream.average_rate or stream.guessed_rate or 0)
    video = VideoStream(
        index=index,
        codec=context.codec.canonical_name,
        time_base_num=time_base.numerator,
        time_base_den=time_base.denominator,
        rate_num=rate.numerator,
        rate_den=rate.denominator,
        width=frame.width,
        height=frame.height,
        pixel_format=frame.format.name,
        color_primaries=int(frame.color_primaries),
        color_transfer=int(frame.color_trc),
        color_space=int(frame.colorspace),
        color_range=int(frame.color_range),
        rotation=frame.rotation,
        interlaced=frame.interlaced_frame or context.field_order in _INTERLACED_FIELD_ORDERS,
        hdr=_hdr(frame),
        first_pts=int(shown[0]),
        last_pts=int(shown[-1]),
        frames=int(shown.size),
        key_frames=int(packets.key.sum()),
        disposition=int(stream.disposition),
        language=stream.language or "",
    )
    return SourceInfo(
        path=path,
        format=container.format.name,
        origin_us=_origin_us(container),
        duration_s=float(shown.size / rate) if packets.missing_pts and rate else float(span + (1 / rate if rate else 0)),
        video=video,
        others=others,
        chapters=len(container.chapters()),
        uncuttable=_uncuttable(packets),
        warnings=tuple(warnings),
    )


def _origin_us(container: InputContainer) -> int:
    """ffmpeg 5.1 takes an offset of just the start time of a transport stream for its own and "corrects" it by the
    streams in use, so that late audio would move to the start. One microsecond, less than a tick, makes the offset
    another."""
    start_us = start_time_us(container)
    return start_us - 1 if container.format.flags & _TIME_STAMPS_MAY_JUMP else start_us


def start_time_us(container: InputContainer) -> int:
    """The first time stamp of a container in microseconds, 0 if it is not known."""
    return cast("int | None", container.start_time) or 0  # PyAV declares int, but gives None


def _others(container: InputContainer, chosen: int) -> Iterable[OtherStream]:
    for stream in container.streams:
        if stream.index == chosen:
            continue
        kind = str(stream.type)
        if kind == "video" and int(stream.disposition) & _ATTACHED_PICTURE:
            kind = "picture"
        context = getattr(stream, "codec_context", None)
        yield OtherStream(
            stream.index,
            kind,
            context.codec.canonical_name if context else "",
            stream.language or "",
            int(stream.disposition),
        )


def _uncuttable(packets: Packets) -> str:
    if packets.missing_pts:
        return f"{packets.missing_pts} of its {packets.pts.size} packets have no time stamp"
    backwards = np.flatnonzero(np.diff(packets.dts[packets.dts != NO_TIME]) < 0)
    if backwards.size:
        return (
            f"its time stamps run backwards after packet {int(backwards[0])}, as in recordings joined end to end; to "
            f"encode it in parallel, remux it first: `ffmpeg -i IN -c copy OUT.mkv`"
        )
    return ""


def _hdr(frame: VideoFrame) -> Hdr:
    primaries: tuple[int, ...] = ()
    darkest = brightest = max_content = max_average = 0
    for data in _side_data(frame):
        if data.type == SideData.MASTERING_DISPLAY_METADATA:
            # AVMasteringDisplayMetadata: ten AVRational (R, G, B, white: x, y; min, max luminance), then two flags
            numbers = np.frombuffer(bytes(data), np.int32)
            pairs = zip(numbers[0:20:2], numbers[1:20:2], strict=True)
            values = [Fraction(int(over), int(under)) if under else Fraction(0) for over, under in pairs]
            if numbers[20]:
                primaries = tuple(round(value * 50000) for value in values[:8])
            if numbers[21]:
                darkest, brightest = round(values[8] * 10000), round(values[9] * 10000)
        elif data.type == SideData.CONTENT_LIGHT_LEVEL:
            levels = np.frombuffer(bytes(data), np.uint32)
            max_content, max_average = int(levels[0]), int(levels[1])
    return Hdr(primaries, darkest, brightest, max_content, max_average)


def _words(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error)


def _side_data(frame: VideoFrame) -> list[SideDatum]:
    """PyAV declares a TypedDict, but gives a container that iterates over its entries."""
    return list(cast(SideDataContainer, frame.side_data))
