"""``python -m rayflow``: see ``rayflow.operator.command``."""

import contextlib
import os
import sys

from rayflow.operator.command import main

if __name__ == "__main__":
    code = main()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # there is none, or nobody reads it
            stream.flush()
    # Libraries have threads of their own, which may abort a process that ends at the wrong moment. All is done and said.
    os._exit(code)
