"""Ray's own words about workers and nodes, kept off the terminal of a program that rayflow has connected to it."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from ray._private import worker


def keep_ray_quiet() -> None:
    """Have Ray print nothing of what befalls workers and nodes.

    It prints a paragraph to a driver's stdout for every worker that died, whatever ``log_to_driver`` says. Rayflow mends that, and
    says in a line what became of a step. The switch is one that Ray has for its debugger; where a version has none, the paragraphs
    are printed, and that is all.
    """
    worker._worker_logs_enabled = False  # pyright: ignore[reportPrivateUsage]


@contextmanager
def quiet_ray() -> Generator[None]:
    """Quiet for as long: a Ray that the program starts afterwards is its own business."""
    keep_ray_quiet()
    try:
        yield
    finally:
        worker._worker_logs_enabled = True  # pyright: ignore[reportPrivateUsage]
