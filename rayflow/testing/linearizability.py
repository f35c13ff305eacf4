"""Whether what the clients of a counter saw can have happened one call after the other.

A history is *linearizable* if each call can be given one moment between its invocation and its answer, such that a counter that
does the calls in the order of these moments gives the same answers. Searching for such an order takes exponential time in general.
Here the answers give the order away: each increment adds one and returns the new value, so the increment that returned 5 is the
fifth, and a get that returned 5 lies between it and the sixth. What is left to check is that this order exists and that it agrees
with time: a call that was over before another began is not behind it. So the check is exact, and costs a sort.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Observed:
    """One call of one counter as its client saw it: from when until when, and the answer.

    message: Of an increment by one, its message id. A message that was sent again counts once, whoever sent it. None: a get.
    value: The value after the increment, or the one that the get returned.
    invoked_s, answered_s: By one clock for all clients; ``time.monotonic`` is that for all processes of a machine.
    """

    message: str | None
    value: int
    invoked_s: float
    answered_s: float

    def __str__(self) -> str:
        what = "a get" if self.message is None else f"increment {self.message!r}"
        return f"{what} (answered {self.value}, {self.invoked_s:.6f} s to {self.answered_s:.6f} s)"


def violations(calls: Iterable[Observed]) -> list[str]:
    """What is wrong with the history of one counter that began at 0; empty for a linearizable one.

    Every increment that may have had an effect must be among ``calls``, that is, be repeated until it is answered.
    """
    found: list[str] = []
    increments: dict[str, Observed] = {}
    gets: list[Observed] = []
    for call in calls:
        if call.message is None:
            gets.append(call)
            continue
        same = increments.setdefault(call.message, call)
        if same.value != call.value:
            found.append(f"applied twice: {same} was sent again and answered {call.value}")
        # It had its effect before the first answer to any of its sends, and not before the first of them.
        invoked_s, answered_s = min(same.invoked_s, call.invoked_s), min(same.answered_s, call.answered_s)
        increments[call.message] = Observed(call.message, same.value, invoked_s, answered_s)
    return found + _values(list(increments.values()), gets) + _order([*increments.values(), *gets])


def _values(increments: list[Observed], gets: list[Observed]) -> list[str]:
    """The increments were answered 1 to n, each once, and no get saw anything else than 0 to n."""
    found: list[str] = []
    count = len(increments)
    answered: dict[int, Observed] = {}
    for call in increments:
        if not 1 <= call.value <= count:
            found.append(f"out of range: {call}, of {count} increments")
        other = answered.setdefault(call.value, call)
        if other is not call:
            found.append(f"an update was lost: {other} and {call} got the same answer")
    found.extend(f"out of range: {call}, of {count} increments" for call in gets if not 0 <= call.value <= count)
    return found


def _order(calls: list[Observed]) -> list[str]:
    """No call was over before one began that the answers put before it."""
    found: list[str] = []
    ordered = sorted(calls, key=_rank)
    latest: Observed | None = None
    """Of the calls with a lower rank, the one that was invoked last."""
    same_rank: list[Observed] = []
    for call in ordered:
        if same_rank and _rank(same_rank[0]) != _rank(call):
            latest = max([*same_rank, *([latest] if latest else [])], key=lambda one: one.invoked_s)
            same_rank = []
        same_rank.append(call)
        if latest is not None and call.answered_s < latest.invoked_s:
            found.append(f"out of order: {call} was over before {latest} began, but comes after it by the answers")
    return found


def _rank(call: Observed) -> tuple[int, bool]:
    return call.value, call.message is None
