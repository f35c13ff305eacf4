"""How many messages that could not be handled are kept."""

from __future__ import annotations

import logging

import pytest

from rayflow.core import limits
from tests.core.entity_types import Account, demand
from tests.core.shards import Shards


def test_of_dead_letters_the_newest_are_kept_and_it_is_said_which_were_thrown_away(caplog: pytest.LogCaptureFixture) -> None:
    """I24."""
    caplog.set_level(logging.ERROR, "rayflow.entity")
    shards = Shards(1)
    with limits.using(dead_letters=5):
        for number in range(40):
            shards.run(demand, f"a{number}", 1, id=f"flow{number}")
            shards.settle()
            if number == 20:
                shards.snapshot(0)
            if number in (22, 30):
                shards.crash(0)
    dead = shards.owners[0].state.entities.dead
    assert [letter.entity for letter in dead.values()] == [f"Account/a{number}" for number in range(35, 40)]
    thrown = [record.message for record in caplog.records if "is thrown away" in record.message]
    assert len(thrown) == 35
    assert thrown[0] == ("Account/a0: dead letter 1, take of flow0, is thrown away: this shard keeps 5 and has a newer one")
    assert shards.ask(shards.entity(Account, "a39").get()) == 0
