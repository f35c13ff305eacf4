"""Which entities stay in memory: their states count as they are now."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

import rayflow
from rayflow.core import activations, limits
from tests.core.shards import Shards


@dataclass(slots=True)
class Text:
    text: str = ""


class Page(rayflow.Entity[Text]):
    @rayflow.operation
    def write(self, text: str) -> None:
        self.state.text = text

    @rayflow.operation
    def spoil(self, text: str) -> None:
        self.state.text = text
        raise ValueError(text[:1])

    @rayflow.query
    def size(self) -> int:
        return len(self.state.text)


@pytest.fixture
def room_for_ten() -> Iterator[None]:
    """With more than ten entities of a kilobyte each some have to leave memory."""
    with limits.using(entity_bytes=10 * (activations.ACTIVE_BYTES + 4 * 1200)):
        yield


@pytest.mark.usefixtures("room_for_ten")
def test_states_that_have_grown_leave_memory_and_those_that_have_shrunk_stay() -> None:
    shards = Shards(1)
    pages = [shards.entity(Page, f"p{number}") for number in range(20)]
    active = shards.owners[0].entities.active
    for page in pages:
        shards.ask(page.size())
    assert len(active) == 20, "they are small"
    for page in pages:
        shards.ask(page.write("x" * 1100))
        held_bytes = sum(len(one.data) for one in active.values())
        assert held_bytes < 12 * 1200
    assert len(active) == 10
    for page in pages[10:]:
        shards.ask(page.write(""))
        shards.ask(page.spoil("x" * 100_000))
    for page in pages[:10]:
        shards.ask(page.write(""))
    assert len(active) == 20
    assert active.passivations >= 10
    for page in pages:
        shards.ask(page.destroy())
    shards.advance(2 * limits.current().entity_idle_ms)
    assert len(active) == 0
    assert active._bytes == 0
