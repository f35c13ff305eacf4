"""A courier in a thread of its own, for programs whose code has no event loop, or another one."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any, cast

from rayflow.errors import RayflowError
from rayflow.runtime.courier import Courier
from rayflow.runtime.host_link import RayHostLink
from rayflow.runtime.lane import HostGone

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # on macOS that one goes on while the machine sleeps, too


class CourierThread(Courier):
    """Thread-safe.

    Args:
        home: The name of the host at home.
        find_host: Returns the actor handle of the host at home, which it creates where there is none.
        find_other: Returns the handle of another host, by name. Raises ValueError where there is none.
    """

    def __init__(self, home: str, find_host: Callable[[], Any], find_other: Callable[[str], Any]) -> None:
        self._home_link = RayHostLink(find_host)

        def link(name: str) -> RayHostLink:
            if name == home:
                return self._home_link

            def find() -> Any:
                try:
                    return find_other(name)
                except ValueError as error:
                    raise HostGone(name) from error

            return RayHostLink(find)

        super().__init__(home, link, asyncio.new_event_loop(), clock_ms=lambda: time.clock_gettime_ns(_CLOCK) // 1_000_000)
        self._thread = threading.Thread(target=self._work, name="rayflow-client", daemon=True)
        self._thread.start()

    def begin(self) -> None:
        """Have the host at home found, or made, although nobody asks for anything yet."""
        asyncio.run_coroutine_threadsafe(self._home_link.begin(), self.loop)

    def call(self, method: str, *args: Any) -> Any:
        """Call the host at home directly, for what may be lost: views and statistics. Blocks."""
        return asyncio.run_coroutine_threadsafe(self.home.call(method, *args), self.loop).result()

    def close(self) -> None:
        """Stop; what is still open is not answered any more."""
        self.fail(RayflowError("the client was closed; what it had started goes on"))
        self._thread.join(timeout=5)

    def fail(self, error: RayflowError) -> None:
        """Stop, and tell all who wait, now or later, why."""
        self.refuse(error)
        with contextlib.suppress(RuntimeError):  # stopped already
            self.loop.call_soon_threadsafe(self._stop)

    def _stop(self) -> None:
        for task in asyncio.all_tasks(self.loop):
            task.cancel()

    def _work(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_until_complete(self.run())
        except asyncio.CancelledError:
            pass
        except ExceptionGroup as group:
            error = _first(group)
            self.refuse(RayflowError(f"the connection to the shards broke ({type(error).__name__}: {error}); connect again"))
        finally:
            self.loop.run_until_complete(_wind_up())
            self.loop.close()


async def _wind_up() -> None:
    """Let what was cancelled and closed come to its end: a socket is closed one turn of the loop later."""
    for _ in range(2):
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await asyncio.sleep(0)


def _first(error: Exception) -> Exception:
    """What really went wrong."""
    while isinstance(error, ExceptionGroup):
        error = cast("ExceptionGroup[Exception]", error).exceptions[0]
    return error
