"""Notices code of a workflow or an entity that does not give way: it holds up all others of its host, and nobody else can tell.

The shards of a host share one loop, so while code of one execution computes, no other goes on, no client is answered and nothing is
shown. A thread beside that loop looks once a second whose turn it is. What computes in C without letting go of the interpreter's
lock holds up this thread as well, and is noticed late or never.
"""

from __future__ import annotations

import itertools
import logging
import os
import sys
import threading
import time
import traceback
from asyncio import events

from rayflow.core import loop
from rayflow.core.turns import Turns

PATIENCE_S = 5.0
"""How long a turn may take before the first warning; each next one comes after twice the time. Turns take milliseconds."""

_LOOK_S = 1.0

_CORE = os.path.dirname(loop.__file__)
"""Where the code is that runs all turns; asyncio's own is in between for a workflow."""

_log = logging.getLogger("rayflow.watchdog")


class Watchdog:
    """Watches the turns that run in one thread."""

    def __init__(self, turns: Turns, thread_id: int) -> None:
        self._turns = turns
        self._thread_id = thread_id
        self._count = -1
        self._since_s = 0.0
        self._next_s = PATIENCE_S
        self._warned = ""
        """Who was warned of in this turn."""

    def start(self) -> None:
        """Look from now on, as long as the process lives."""
        threading.Thread(target=self._work, name="rayflow-watchdog", daemon=True).start()

    def look(self, now_s: float) -> None:
        """See whether the turn is still that of the last look, and warn if it has been for too long."""
        running, count = self._turns.running, self._turns.count
        if running is None or count != self._count:
            if self._warned:
                _log.warning("%s has given way after %.0f s", self._warned, now_s - self._since_s)
            self._count, self._since_s, self._next_s, self._warned = count, now_s, PATIENCE_S, ""
            return
        took_s = now_s - self._since_s
        if took_s < self._next_s:
            return
        stack = self._stack()
        if not stack:  # it ended just now
            return
        self._next_s *= 2
        self._warned = running.title
        own = stack[0]
        _log.warning(
            "%s has not given way for %.0f s: it is at %s:%s in %s: %s\n"
            "Until it awaits or returns, all executions and entities of this host and their clients wait. Move what takes so long "
            "to a step (await ctx.step(...)), which runs elsewhere.%s",
            running.title,
            took_s,
            own.filename,
            own.lineno,
            own.name,
            own.line,
            "".join(["\n", *traceback.format_list(stack)]).rstrip() if len(stack) > 1 else "",
        )

    def _stack(self) -> list[traceback.FrameSummary]:
        """The calls that the turn is in, the outermost of the user's code first and the innermost last; empty between two turns."""
        frame = sys._current_frames().get(self._thread_id)  # pyright: ignore[reportPrivateUsage]  # documented all the same
        if frame is None:
            return []
        calls: list[traceback.FrameSummary] = traceback.extract_stack(frame)
        turn = itertools.dropwhile(lambda one: not _runs_turns(one), calls)
        return list(itertools.dropwhile(lambda one: _runs_turns(one) or one.filename == events.__file__, turn))

    def _work(self) -> None:
        while True:
            time.sleep(_LOOK_S)
            self.look(time.monotonic())


def _runs_turns(call: traceback.FrameSummary) -> bool:
    return os.path.dirname(call.filename) == _CORE
