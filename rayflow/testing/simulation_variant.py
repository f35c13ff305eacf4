"""A system that lacks one rule: what the simulator must find harm in, or the rule would be idle.

A variant replaces parts of a system by subclasses, functions of the log's module, or classes that the entities of a shard are made
of, and names the properties that it must be seen to violate.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from rayflow.checkpoint import log
from rayflow.core import entities
from rayflow.core.owner import Commit
from rayflow.runtime import hosting
from rayflow.runtime.shard import Shard
from rayflow.testing.simulator import Parts


@dataclass(frozen=True, slots=True)
class Variant:
    """A rule that is off, and the harm that this must do.

    ``invariant`` is the number in ``docs/architecture.md`` of the one that breaks. ``first_seed``: where to look for rare harm.
    """

    invariant: str
    title: str
    harm: tuple[str, ...] = ()
    parts: Parts = field(default_factory=Parts)
    log: Mapping[str, Callable[..., Any]] = field(default_factory=dict[str, Callable[..., Any]])
    entities: Mapping[str, type] = field(default_factory=dict[str, type])
    hosting: Mapping[str, type] = field(default_factory=dict[str, type])
    first_seed: int = 0

    def on(self, workload: str) -> Variant:
        """The same with only that to do, which is where its harm shows soonest."""
        return replace(self, parts=replace(self.parts, workload=workload))

    @contextmanager
    def active(self) -> Generator[Parts]:
        """The parts, for runs inside this block."""
        replacements = [(log, name, one) for name, one in self.log.items()]
        replacements += [(entities, name, one) for name, one in self.entities.items()]
        replacements += [(hosting, name, one) for name, one in self.hosting.items()]
        rules = [(module, name, getattr(module, name)) for module, name, _ in replacements]
        for module, name, replacement in replacements:
            setattr(module, name, replacement)
        try:
            yield self.parts
        finally:
            for module, name, rule in rules:
                setattr(module, name, rule)


class GateOpen(Shard):
    """Effects leave before what they could have seen is durable."""

    async def _commit(self, commit: Commit) -> None:
        self._release(commit.batch.effects)
        await self._make_durable(commit)
