"""The evaluation's numbers as sections of a Markdown page, each between two markers."""

from __future__ import annotations

from pathlib import Path

from bench_evaluation import PUBLISHED, PUBLISHED_COST, PUBLISHED_LINES, Evaluation, Timing
from bench_evaluation_counter import CounterEvaluation
from bench_machine import Machine

_MARKS = {Evaluation: "evaluation", CounterEvaluation: "evaluation-counter"}
END = "<!-- end -->"


def write_section(page: Path, result: Evaluation | CounterEvaluation, machine: Machine, date: str) -> None:
    """Replace what stands between the markers. Raises ValueError where the page has no markers."""
    begin = f"<!-- begin: written by scripts/bench.py {_MARKS[type(result)]} --write -->"
    text = page.read_text()
    before, found, rest = text.partition(begin)
    _, end, after = rest.partition(END)
    if not found or not end:
        raise ValueError(f"{page} has no section to replace: it needs the lines {begin} and {END}")
    section = _section(result, machine, date) if isinstance(result, Evaluation) else _counter_section(result, machine, date)
    page.write_text(f"{before}{begin}\n{section}\n{END}{after}")


def _counter_section(result: CounterEvaluation, machine: Machine, date: str) -> str:
    lines = [
        f"Measured {date} UTC on {machine.cpu}, {machine.cores} cores (load average {machine.load_before:.1f} before, "
        f"{machine.load_after:.1f} after), {result.cpus} CPUs given to Ray.",
        "",
        "| case | published | here |",
        "|---|---|---|",
        *(f"| {one.name} | {one.published} | {one.here} |" for one in result.cases),
        "",
        f"Code: the counter has {result.lines} lines, the workflows around it with their faults and their journal "
        f"{result.workflow_lines}.",
    ]
    return "\n".join(lines)


def _section(result: Evaluation, machine: Machine, date: str) -> str:
    lines = [
        f"Measured {date} UTC on {machine.cpu}, {machine.cores} cores (load average {machine.load_before:.1f} before, "
        f"{machine.load_after:.1f} after), {result.cpus} CPUs given to Ray; medians of {result.rounds} rounds, in which the ways "
        f"take turns.",
        "",
        "Simulated encodes (each chunk sleeps 612 ms), milliseconds:",
        "",
        *_timings([one for one in result.timings if one.media == "simulated"]),
        "",
        "The published numbers, for comparison (in sequence; parallel did not work there), milliseconds:",
        "",
        "| video | durable | plain | time, durable / plain | cost, durable / plain |",
        "|---|---|---|---|---|",
        *(
            f"| {length_s} s | {one.durable_ms:,} | {one.plain_ms:,} | {one.durable_ms / one.plain_ms:.2f} "
            f"| {PUBLISHED_COST[length_s]} |"
            for length_s, one in PUBLISHED.items()
        ),
        "",
        "Real encodes (640x360, x264 ultrafast, exact cuts, joined and verified), milliseconds:",
        "",
        *_timings([one for one in result.timings if one.media == "real"]),
        "",
        "What goes wrong (30 s, 3 chunks, in parallel):",
        "",
        "| case | encodes | outcome | how often each step ran | took |",
        "|---|---|---|---|---|",
        *(f"| {one.name} | {one.media} | {one.outcome} | {one.runs} | {one.took_ms:,.0f} ms |" for one in result.cases),
        "",
        f"Code: the pipeline with its faults and its journal has {result.lines} lines, the encodes that it calls (real and "
        f"simulated) {result.media_lines}; published: {PUBLISHED_LINES}.",
    ]
    return "\n".join(lines)


def _timings(timings: list[Timing]) -> list[str]:
    return [
        "| video | chunks | in sequence: rayflow | plain Ray | ratio | in parallel: rayflow | plain Ray | ratio |",
        "|---|---|---|---|---|---|---|---|",
        *(
            f"| {one.length_s} s | {one.chunks} | {one.sequence_ms:,.0f} | {one.plain_sequence_ms:,.0f} "
            f"| {one.sequence_ms / one.plain_sequence_ms:.3f} | {one.parallel_ms:,.0f} | {one.plain_parallel_ms:,.0f} "
            f"| {one.parallel_ms / one.plain_parallel_ms:.3f} |"
            for one in timings
        ),
    ]
