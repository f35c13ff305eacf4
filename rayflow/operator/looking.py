"""Looking at a store again and again, as gently as that goes: there is no event to wait for across processes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TypeVar

from rayflow.checkpoint.store import Store
from rayflow.errors import StoreUnavailable
from rayflow.operator.display import printable

T = TypeVar("T")

FOLDER_S = 1.0
BUCKET_S = 2.0
"""How often a store is looked at where nothing else was said: a look at a bucket is a listing for each shard, which costs money."""


class Looker:
    """Looks at a store every ``interval_s`` seconds (None: as suits its kind).

    A store that cannot be reached for a moment is said once, on stderr, and so is that it is there again; at the first look it is
    an error, like everything else at any time.
    """

    def __init__(self, store: Store, interval_s: float | None) -> None:
        usual_s = BUCKET_S if store.local_path("rayflow.json") is None else FOLDER_S
        self.interval_s = usual_s if interval_s is None else interval_s
        self._looked = False
        self.trouble = ""
        """Why the store cannot be reached, as of the latest look."""

    def look(self, look: Callable[[], T]) -> T | None:
        """What ``look`` returns; None where the store cannot be reached now. Raises what ``look`` raises otherwise."""
        try:
            found = look()
        except StoreUnavailable as error:
            if not self._looked:
                raise
            if not self.trouble:
                say(f"the store cannot be reached ({error}); trying again every {self.interval_s:g} s")
            self.trouble = printable(str(error))
            return None
        if self.trouble:
            say("the store is there again")
        self._looked, self.trouble = True, ""
        return found

    def pause(self) -> None:
        """Until it is time to look again."""
        time.sleep(self.interval_s)


def say(text: str) -> None:
    """A word to the operator, beside what is asked for: one line on stderr."""
    print(f"rayflow: {printable(text)}", file=sys.stderr, flush=True)
