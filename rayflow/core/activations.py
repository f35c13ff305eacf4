"""Which entities of a shard are in memory: those used lately, as far as there is room."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from rayflow.core import limits
from rayflow.core.activation import Activation

ACTIVE_BYTES = 2048


class Activations:
    """By address, least recently used first. ``activations`` and ``passivations`` count how many came and went."""

    def __init__(self) -> None:
        self._by_address: OrderedDict[str, Activation] = OrderedDict()
        self._bytes = 0
        self.activations = self.passivations = 0

    def __len__(self) -> int:
        return len(self._by_address)

    def get(self, address: str) -> Activation | None:
        """To look at."""
        return self._by_address.get(address)

    def values(self) -> Iterable[Activation]:
        """All of them."""
        return self._by_address.values()

    def use(self, address: str) -> Activation | None:
        """For a message: it counts as used."""
        found = self._by_address.get(address)
        if found is not None:
            self._by_address.move_to_end(address)
        return found

    def add(self, active: Activation) -> None:
        """One that was not in memory is now."""
        self._by_address[active.address] = active
        self.measure(active)
        self.activations += 1

    def measure(self, active: Activation) -> None:
        """The state of one of them may have grown or shrunk."""
        size = ACTIVE_BYTES + 4 * len(active.data)  # decoded a state takes more than encoded, and both are there
        self._bytes += size - active.counted_bytes
        active.counted_bytes = size

    def passivate(self, now_ms: int) -> None:
        """Drop what was not used for long, and beyond the high-water mark what was not used for longest.

        Nothing with work in hand: what is not durable yet, or not recorded, stays.
        """
        limit = limits.current()
        while self._by_address:
            address, oldest = next(iter(self._by_address.items()))
            if self._bytes <= limit.entity_bytes and now_ms - oldest.used_ms < limit.entity_idle_ms:
                break
            if not oldest.settled:
                break  # it is soon: its record is on the way
            del self._by_address[address]
            self._bytes -= oldest.counted_bytes
            self.passivations += 1

    def next_idle_ms(self, now_ms: int) -> int | None:
        """When to look again, if nothing happens until then."""
        oldest = next(iter(self._by_address.values()), None)
        return None if oldest is None else max(oldest.used_ms + limits.current().entity_idle_ms, now_ms + 1000)
