"""A shard is opened again whatever ends it."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest

from rayflow.checkpoint.memory import MemoryStore
from rayflow.core.crashes import NoCrashes
from rayflow.core.messages import Answer
from rayflow.runtime.keeper import Keeper
from rayflow.runtime.ports import NoMeter
from rayflow.runtime.session import Open
from rayflow.runtime.shard import Shard
from tests.runtime.lives import Life


class Journal(NoCrashes):
    def pause_s(self) -> float:
        return 0

    def close(self) -> None:
        """Nobody else wants it."""


class Nobody:
    """The clients of a shard that nobody asks for anything."""

    def open_requests(self, shard: int) -> list[Open]:
        return []

    def answer(self, token: object, answer: Answer) -> None:
        raise AssertionError("nobody has asked")


@pytest.fixture(autouse=True)
def ended() -> Iterator[None]:
    yield
    Life.end_all()


def test_a_shard_that_cannot_be_made_is_made_again() -> None:
    life, tries = Life(MemoryStore()), 0

    def make() -> Shard:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise RuntimeError("can't start new thread")
        return Shard(0, life.ports)

    keeper = life.loop.call(Keeper, 0, life.store.url, make, Journal(), NoMeter(), Nobody(), Random(0))
    life.until(lambda: keeper.shard is not None)
    assert tries == 3
    left = life.loop.start(keeper.leave())
    life.until(left.done)
    assert keeper.shard is None
