"""Fetches what steps print and workflows log from the dispatcher, see ``output``, and shows what concerns this program."""

from __future__ import annotations

import atexit
import contextlib
import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from ray.exceptions import RayError

from rayflow.runtime.actors import existing_actor
from rayflow.runtime.output import Heard, Line, decode_heard, decode_lines

_AGAIN_S = 0.5
_LAST_S = 1.0

_log = logging.getLogger("rayflow")

Output = Callable[[Line], None]


class Listener:
    """Shows the lines of those executions that ``concerns`` accepts, until ``close``.

    Args:
        dispatcher: Its name.
        show: Called in a thread of the listener's, with one line after the other.
        concerns: Told an execution's id.
        late: Whether what was said before ``begin`` is left out.
    """

    def __init__(self, dispatcher: str, show: Output, concerns: Callable[[str], bool], *, late: bool) -> None:
        self._name, self._show, self._concerns = dispatcher, show, concerns
        self._incarnation, self._seen = "", -1 if late else 0
        self._replies: queue.SimpleQueue[Future[bytes] | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._lost = False
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Listen from now on. The dispatcher is there."""
        if self._thread is not None or self._closing.is_set():
            return
        try:
            actor = existing_actor(self._name)
        except ValueError:  # gone already; whoever makes it again begins again
            return
        if not hasattr(actor, "listen"):  # made by a version that tells nothing
            return
        self._ask(actor)
        self._thread = threading.Thread(target=self._work, args=(actor,), name="rayflow-listener", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def close(self) -> None:
        """Show what has been said up to now, and stop."""
        atexit.unregister(self.close)
        self._closing.set()
        self._replies.put(None)
        if self._thread is not None:
            self._thread.join(2 * _LAST_S)

    def abandon(self) -> None:
        """Stop, for Ray is gone."""
        self._lost = True
        self._closing.set()
        self._replies.put(None)

    def _ask(self, actor: Any, *, wait: bool = True) -> Future[bytes]:
        future: Future[bytes] = actor.listen.remote(self._incarnation, self._seen, wait).future()
        if wait:
            future.add_done_callback(self._replies.put)
        return future

    def _work(self, actor: Any) -> None:
        while (reply := self._replies.get()) is not None:
            try:
                self._take(decode_heard(reply.result()))
            except RayError:
                if self._closing.wait(_AGAIN_S):
                    return
                # Of the same name, but perhaps another one.
                with contextlib.suppress(ValueError, RayError):
                    actor = existing_actor(self._name)
            self._ask(actor)
        if self._lost:
            return
        with contextlib.suppress(RayError, TimeoutError):
            self._take(decode_heard(self._ask(actor, wait=False).result(_LAST_S)))

    def _take(self, heard: Heard) -> None:
        self._incarnation, self._seen = heard.incarnation, heard.number
        if heard.missed:
            self._show_one(Line("rayflow", "", "too much is printed to show all of it: see the logs of its processes"))
        for lines in heard.lists:
            for line in decode_lines(lines):
                if self._concerns(line.execution):
                    self._show_one(line)

    def _show_one(self, line: Line) -> None:
        try:
            self._show(line)
        except Exception:  # of the program's; the next line may be to its liking
            _log.exception("a line of %s could not be shown", line.execution)
