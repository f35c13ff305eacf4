"""A host's actor handle without Ray, for clients of ``rayflow.runtime.channel``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from rayflow.runtime.channel import encode_address


class Handle:
    """Has the methods that clients call. ``exchange``: what a call through Ray does; ``address``: what the host says of its own."""

    def __init__(self, exchange: Callable[[bytes], Awaitable[bytes]], address: Callable[[], Awaitable[Any]] | None = None) -> None:
        self._exchange = exchange
        self._address = address
        self.called_through_ray = 0
        self.exchange = _Method(self._exchanged)
        self.address = _Method(self._told)

    async def _exchanged(self, data: bytes) -> bytes:
        self.called_through_ray += 1
        return await self._exchange(data)

    async def _told(self) -> bytes:
        return encode_address(None if self._address is None else await self._address())


class _Method:
    def __init__(self, function: Callable[..., Awaitable[bytes]]) -> None:
        self.remote = function
