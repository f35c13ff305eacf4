"""A client's way to a host: a connection if one comes about, else calls through Ray."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

from ray.exceptions import RayTaskError

from rayflow.runtime.actors import UNREACHABLE
from rayflow.runtime.channel import ConnectionLost, RemoteError, Route, reach
from rayflow.runtime.lane import CallFailed, HostUnreachable


class RayHostLink:
    """See ``rayflow.runtime.lane.HostLink``. Belongs to a loop.

    ``find_host`` blocks and returns the host's actor handle; it is asked again after ``forget``. It raises HostGone where there is
    none.
    """

    def __init__(self, find_host: Callable[[], Any]) -> None:
        self._find_host = find_host
        self._host: Any = None
        self._route: Route | None = None
        self._reaching = asyncio.Lock()

    async def begin(self) -> None:
        """Find the host before there is anything to send. What goes wrong meets the first call again."""
        with contextlib.suppress(HostUnreachable):
            await self.reach()

    async def reach(self) -> None:
        try:
            await self._reached()
        except (*UNREACHABLE, ConnectionLost) as error:
            raise HostUnreachable(str(error)) from error

    async def exchange(self, data: bytes) -> bytes:
        try:
            route = self._route or await self._reached()
            return await route.call(data)
        except RemoteError as error:
            raise CallFailed(str(error)) from error
        except RayTaskError as error:
            raise CallFailed(f"the shards' process could not carry out a call: {error.cause}") from error
        except (*UNREACHABLE, ConnectionLost) as error:
            raise HostUnreachable(str(error)) from error

    async def call(self, method: str, *args: Any) -> Any:
        try:
            return await getattr(await self._found_host(), method).remote(*args)
        except UNREACHABLE as error:
            raise HostUnreachable(str(error)) from error

    def forget(self) -> None:
        self._host, route, self._route = None, self._route, None
        if route is not None:
            route.close()

    async def _reached(self) -> Route:
        if self._route is not None:
            return self._route
        async with self._reaching:
            if self._route is None:
                self._route = await reach(await self._found_host())
            return self._route

    async def _found_host(self) -> Any:
        if self._host is None:
            self._host = await asyncio.get_running_loop().run_in_executor(None, self._find_host)
        return self._host
