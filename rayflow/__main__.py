"""``python -m rayflow``: see ``rayflow.operator.command``."""

import sys

from rayflow.operator.command import main

if __name__ == "__main__":
    sys.exit(main())
