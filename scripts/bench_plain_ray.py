"""Functions as plain Ray tasks, for what rayflow is compared with. The type checker sees every call of them: a signature that
changes is found before a benchmark is run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, ParamSpec, TypeVar, cast

import ray

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Started(Generic[R]):
    """A task that was started, and what it is going to return."""

    reference: Any


class Task(Generic[P, R]):
    """A function to be run by Ray."""

    def __init__(self, function: Callable[P, R]) -> None:
        self._remote: Callable[..., Any] = cast("Any", ray).remote(function).remote

    def start(self, *args: P.args, **kwargs: P.kwargs) -> Started[R]:
        """Start it and return at once."""
        return Started(self._remote(*args, **kwargs))

    def run(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Start it and wait for its result."""
        return results([self.start(*args, **kwargs)])[0]


def results(started: Sequence[Started[R]]) -> list[R]:
    """Wait for all."""
    return cast("Any", ray).get([one.reference for one in started])
