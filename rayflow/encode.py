"""``python -m rayflow.encode``: encode a video in chunks, durably. A thin door to ``pipelines.video.command``."""

from __future__ import annotations

import sys

from pipelines.video.command import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
