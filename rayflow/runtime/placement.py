"""Which host actor has which shards: the pure part, and what hosts and the dispatcher tell each other of it.

A store has one host at home, on the head, which has all shards unless nodes say that they are there for shards as well: then each
of those has a host of its own, and the shards are spread over them. It is a matter of load, never of safety: who writes is settled
by the log alone, so that an outdated placement costs a detour and nothing else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec

LABEL = "rayflow-shards"
"""The label, with the value "true", of nodes that are there for shards: nodes that stay."""


class Placement(msgspec.Struct, frozen=True, array_like=True):
    """The name of the host of each shard. ``author``: the process that decided, ``number``: how often it had until then."""

    author: str
    number: int
    hosts: tuple[str, ...]

    def shards_of(self, host: str) -> frozenset[int]:
        """The shards of that host."""
        return frozenset(shard for shard, name in enumerate(self.hosts) if name == host)

    def replaces(self, other: Placement | None) -> bool:
        """Whether this is the newer one, as far as that is known: of another author it is, for there is one at a time."""
        return other is None or self.author != other.author or self.number > other.number


class Entered(msgspec.Struct, frozen=True, array_like=True):
    """What a host says of itself when it begins, and when a new dispatcher asks.

    ``node`` is where it runs, ``code`` the version of the code that it runs. One that is ``bound`` is there for its node and goes
    with it. ``shards`` are those that it has.
    """

    name: str
    node: str
    code: str
    bound: bool
    shards: tuple[int, ...]


def spread(hosts: Sequence[str], now: Sequence[str]) -> tuple[str, ...]:
    """The host of each shard: as many shards for one as for another, or one more, and as few as possible move.

    Args:
        hosts: Names of those that may have shards; at least one.
        now: By shard, the name of the host that has it; any other name for none.
    """
    held = Counter(name for name in now if name in hosts)
    least, more = divmod(len(now), len(hosts))
    # Who has most now is best off with one more than others.
    most_first = sorted(hosts, key=lambda name: -held[name])
    room = {name: least + (place < more) for place, name in enumerate(most_first)}
    placed: list[str | None] = []
    for name in now:
        stays = room.get(name, 0) > 0
        placed.append(name if stays else None)
        if stays:
            room[name] -= 1
    free = [name for name in hosts for _ in range(room[name])]
    return tuple(name if name is not None else free.pop(0) for name in placed)


encode = msgspec.msgpack.Encoder().encode
decode_placement = msgspec.msgpack.Decoder(Placement).decode
decode_entered = msgspec.msgpack.Decoder(Entered).decode
