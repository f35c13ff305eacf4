"""Whether the first frames of a chunk can be decoded: of its file once it is encoded, and of the output at every joint.

Packets that are all there, with all their times, may still hold nothing that decodes: SVT-AV1 without loss from preset 11 on, an
encoder whose stream a container does not really carry, headers that do not fit. What decodes at its first frames was made by an
encoder that works; damage that comes later is found by the hash of the stored file. The last frames are not looked at: decoding
them means decoding from the last key frame on, which costs 2 to 8 % of encoding them with the usual presets, and 15 % with the
fastest. The first three packets cost 0.1 to 0.4 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import av.error
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext

PACKETS = 3
"""The first packets depend on none after them, whatever the order in which they are shown."""


class Starts:
    """Decodes the first packets of each chunk while somebody reads the stream: give ``see`` every packet, in file order.

    ``begins``: the numbers, counted from 0, of the packets that begin a chunk, ascending. Afterwards ``bad`` holds the places in
    ``begins`` of the chunks that cannot be decoded at their start, with the reason.
    """

    def __init__(self, decoder: VideoCodecContext, begins: Sequence[int]) -> None:
        decoder.thread_count = 1  # with more, frames come later and starting them costs more than these few take
        self.bad: dict[int, str] = {}
        self._decoder = decoder
        self._begins = begins
        self._number = 0
        self._chunk = -1
        self._fed = PACKETS
        self._frames = 0

    def see(self, packet: Packet[Any]) -> None:
        """The next packet of the stream."""
        following = self._chunk + 1
        if following < len(self._begins) and self._begins[following] == self._number:
            self.finish()
            self._chunk, self._fed, self._frames = following, 0, 0
        self._number += 1
        if self._fed < PACKETS:
            self._fed += 1
            self._decode(packet)
            if self._fed == PACKETS:
                self._end()

    def finish(self) -> None:
        """There are no more packets."""
        if self._fed < PACKETS:
            self._fed = PACKETS
            self._end()

    def _end(self) -> None:
        self._decode(None)
        self._decoder.flush_buffers()
        if not self._frames:
            self.bad.setdefault(self._chunk, "it yields no frame")

    def _decode(self, packet: Packet[Any] | None) -> None:
        if self._chunk in self.bad:
            return
        try:
            frames = self._decoder.decode(packet)
        except av.error.FFmpegError as error:
            self.bad[self._chunk] = error.strerror or str(error)
            return
        self._frames += len(frames)
        if any(frame.is_corrupt for frame in frames):
            self.bad[self._chunk] = "it decodes with errors"
