"""What has to be right on every node of a Ray cluster before anything can run there. Pure: from what each node said to findings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rayflow.operator.diagnosis import LOW_DISK_BYTES, Finding
from rayflow.operator.display import NOTHING, Column

SKEW_LIMIT_S = 1.0
"""A clock that is certainly further from the caller's is a failure: times in records and timers are those of the shards' node."""

COLUMNS = (
    Column("node"),
    Column("ray", gives_way=3),
    Column("python", gives_way=4),
    Column("rayflow", gives_way=6),
    Column("ffmpeg", gives_way=5),
    Column("store"),
    Column("clock", numeric=True, gives_way=1),
    Column("free GiB", numeric=True, gives_way=2),
)


@dataclass(frozen=True, slots=True)
class Versions:
    """What runs in a process."""

    ray: str
    python: str
    rayflow: str


@dataclass(frozen=True, slots=True)
class NodeReport:
    """What a node of the cluster said of itself, or, in ``unanswered``, why it said nothing.

    ``ffmpeg`` is the version of the one that is used there, "" where none runs; ``store_error`` is "" where the store is reached
    and enforces conditional writes. ``skew_s`` is how far its clock is ahead of the caller's, give or take ``skew_uncertainty_s``.
    ``free_bytes`` is of the disk with temporary files.
    """

    node: str
    versions: Versions | None = None
    ffmpeg: str = ""
    store_error: str = ""
    skew_s: float = 0.0
    skew_uncertainty_s: float = 0.0
    free_bytes: int = 0
    unanswered: str = ""


def skew(sent_s: float, read_s: float, received_s: float) -> tuple[float, float]:
    """How far a clock that said ``read_s`` is ahead, in seconds, and the uncertainty of that.

    ``sent_s`` and ``received_s`` are of the caller's clock, around the question. The clock was read at some moment between the two:
    at their middle, give or take half of the time between them.
    """
    return read_s - (sent_s + received_s) / 2, max(received_s - sent_s, 0.0) / 2


def row(report: NodeReport) -> Sequence[str]:
    """A node as cells below ``COLUMNS``."""
    versions = report.versions
    if report.unanswered or versions is None:
        return (report.node, *[NOTHING] * 4, "no answer", NOTHING, NOTHING)
    clock = f"{report.skew_s:+.2f}±{report.skew_uncertainty_s:.2f}s"
    return (
        report.node,
        versions.ray,
        versions.python,
        versions.rayflow,
        report.ffmpeg or "none",
        "FAILED" if report.store_error else "ok",
        clock,
        f"{report.free_bytes / 2**30:.1f}",
    )


def findings(reports: Sequence[NodeReport], caller: Versions) -> list[Finding]:
    """What is wrong, node by node, each with what to do; where nothing is, that."""
    found = [Finding(report.node, False, problem) for report in reports for problem in _problems(report, caller)]
    if not reports:
        found.append(Finding("cluster", False, "it has no node that is alive: see `ray status`"))
    elif not found:
        found.append(Finding("cluster", True, f"{len(reports)} nodes, nothing wrong"))
    return found


def _problems(report: NodeReport, caller: Versions) -> list[str]:
    versions = report.versions
    if report.unanswered or versions is None:
        return [f"no answer ({report.unanswered}): see its logs, and that rayflow's requirements are installed there"]
    problems: list[str] = []
    for name, there, here in (
        ("Ray", versions.ray, caller.ray),
        ("Python", versions.python, caller.python),
        ("rayflow", versions.rayflow, caller.rayflow),
    ):
        if there != here:
            problems.append(f"{name} {there}, here {here}: use one version on all nodes")
    if not report.ffmpeg:
        problems.append("no ffmpeg that runs: install ffmpeg or the package imageio-ffmpeg there, for encodes")
    if report.store_error:
        problems.append(f"store: {report.store_error}")
    if abs(report.skew_s) - report.skew_uncertainty_s > SKEW_LIMIT_S:
        ahead = "ahead of" if report.skew_s > 0 else "behind"
        problems.append(
            f"its clock is {abs(report.skew_s):.1f} s (give or take {report.skew_uncertainty_s:.2f} s) {ahead} the one here: "
            f"have both set by NTP"
        )
    if report.free_bytes < LOW_DISK_BYTES:
        problems.append(f"{report.free_bytes / 2**30:.1f} GiB free for temporary files: make room")
    return problems
