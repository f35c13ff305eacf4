"""What Ray says when it has ended a task's process because the node was running out of memory, in a sentence. Pure.

Ray's own report is two pages long, and its form is nobody's promise: what is not found in it is left out.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_NODE = re.compile(r"Memory on the node \(IP: ([^,)]+)")
_IN_USE = re.compile(r"\bwas ([\d.]+) ?GB\b.*? / ([\d.]+) ?GB")
_KILLED = (
    re.compile(r"Selected to kill: \(.*?task name=(.*?), required resources=.*?actual memory used=([\d.]+) ?GB"),
    re.compile(r"\bname=([^,]*), pid=\d+, memory used=([\d.]+) ?GB"),  # until Ray 2.55
)
_LARGEST = re.compile(r"Top \d+ memory users:.*\n\d+\s+([\d.]+)\s+(.+)")

_ADVICE = "have it use less, or say how much it needs (memory=, in bytes), so that Ray runs fewer at a time"


class _Process(NamedTuple):
    name: str
    gb: float


def explain(report: str, task: str) -> str:
    """Which node, how much was in use, and how much of it by the task whose name begins with ``task``, or else by whom."""
    node, in_use = _NODE.search(report), _IN_USE.search(report)
    own, largest = _own(report, task), _largest(report)
    ended = "Ray ended its process" + (f", which had {own.gb:g} GB," if own else "")
    full = (f"node {node[1]}" if node else "its node") + " was running out of memory"
    uses = [f"{in_use[1]} of {in_use[2]} GB in use"] if in_use else []
    if largest and (own is None or largest.gb > own.gb):
        uses.append(f"{largest.gb:g} by {largest.name}")
    details = f" ({', '.join(uses)})" if uses else ""
    return f"{ended} because {full}{details}: {_ADVICE}"


def _own(report: str, task: str) -> _Process | None:
    killed = [_Process(found[1], float(found[2])) for pattern in _KILLED for found in pattern.finditer(report)]
    named = [one for one in killed if f"{one.name} ".startswith(f"{task} ")]
    # Ray names a process by the first task that it was there for, which may have been another step's.
    return named[0] if named else killed[0] if len(killed) == 1 else None


def _largest(report: str) -> _Process | None:
    found = _LARGEST.search(report)
    return _Process(found[2].strip(), float(found[1])) if found else None
