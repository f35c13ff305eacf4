"""Memory that was needed for a moment: reading a snapshot takes several times the space of what is kept of it."""

from __future__ import annotations

import contextlib
import ctypes
import sys


def give_back() -> None:
    """Return what is free to the operating system, which Arrow and the C library would keep for later."""
    arrow = sys.modules.get("pyarrow")
    if arrow is not None:
        arrow.default_memory_pool().release_unused()
    with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)
