"""Whatever goes wrong with one entity stays with that one: its class, its state, what it sends.

Invariants: I20, I25.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

import rayflow
from rayflow.core.entity_type import EntityType
from rayflow.core.messages import Answered, CancelExecution, Refused
from rayflow.core.records import Failure, Function
from rayflow.errors import InvalidInput
from tests.core.entity_types import Account, Alarm, hold
from tests.core.shards import Shards

broken: set[str] = set()
"""What does not work just now."""


@dataclass
class Fragile:
    number: int = 0

    def __post_init__(self) -> None:
        if "state" in broken:
            raise ValueError("the state cannot be made")


class Vase(rayflow.Entity[Fragile]):
    def __init__(self, key: str = "") -> None:
        if "name" in broken:
            raise InvalidInput("no file \udc80")
        if "new" in broken:
            raise ValueError("nothing can be made")
        super().__init__(key)

    @rayflow.operation
    def add(self, by: int, fail: str = "") -> int:
        self.state.number += by
        if fail:
            broken.add(fail)
            raise ValueError("broken")
        return self.state.number

    @rayflow.operation
    def tell(self, other: str) -> None:
        self.state.number += 100
        self.entity(Account, other).signal.add(1)

    @rayflow.operation
    def wake(self, after: float) -> None:
        self.remind("wake", after=after)

    def reminded(self, name: str, missed: int) -> None:
        self.state.number += 1000


@pytest.fixture
def shards() -> Any:
    broken.clear()
    yield Shards()
    broken.clear()


def failed(answer: Any, said: str) -> bool:
    return isinstance(answer, Failure) and said in answer.message


def test_an_end_after_which_nothing_new_can_be_made_has_not_been(shards: Shards) -> None:
    vase = shards.entity(Vase, "a")
    assert shards.ask(vase.add(3)) == 3
    broken.add("new")
    assert failed(shards.ask(vase.destroy()), "nothing can be made")
    assert shards.ask(vase.add(1)) == 4
    assert shards.ask(shards.entity(Account, "b").add(1)) == 1
    broken.clear()
    shards.ask(vase.destroy())
    assert shards.ask(vase.add(1)) == 1


def test_what_is_said_of_a_message_that_is_refused_can_be_sent(shards: Shards) -> None:
    broken.add("name")
    answer = shards.ask(shards.entity(Vase, "a").add(3))
    assert answer == Refused("InvalidInput", "no file \\udc80")
    assert msgspec.msgpack.encode(answer), "else no answer reaches that client any more"


def test_a_state_that_cannot_be_read_back_after_a_failure_is_read_with_the_next_message(shards: Shards) -> None:
    vase = shards.entity(Vase, "a")
    assert shards.ask(vase.add(3)) == 3
    assert failed(shards.ask(vase.add(1, "state")), "broken")
    assert failed(shards.ask(vase.add(1)), "the state cannot be made")
    assert shards.ask(shards.entity(Account, "b").add(1)) == 1
    broken.clear()
    assert shards.ask(vase.add(1)) == 4


def test_a_signal_for_a_class_that_nobody_could_find_fails_the_turn_as_a_whole(
    shards: Shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    vase = shards.entity(Vase, "a")
    describe = shards.code.describe

    def cannot(function: Any) -> Function:
        raise rayflow.InvalidInput(f"{function.__name__} cannot be found")

    monkeypatch.setattr(shards.code, "describe", cannot)
    assert failed(shards.ask(vase.tell("b")), "Account cannot be found")
    monkeypatch.setattr(shards.code, "describe", describe)
    assert shards.ask(vase.add(1)) == 1
    assert shards.ask(shards.entity(Account, "b").get()) == 0


def test_a_reminder_of_what_cannot_be_made_again_disturbs_nobody(shards: Shards, monkeypatch: pytest.MonkeyPatch) -> None:
    shards.ask(shards.entity(Vase, "a").wake(5))
    shards.crash(0)

    def cannot(function: Function) -> EntityType:
        raise TypeError("this module does not work here")

    monkeypatch.setattr(shards.code, "entity", cannot)
    shards.advance(10_000)
    monkeypatch.undo()
    shards.ask(shards.entity(Alarm, "b").set("once", after=5))
    shards.advance(10_000)
    assert len(shards.ask(shards.entity(Alarm, "b").rung())) == 1


def test_the_lock_of_an_entity_without_code_is_freed_and_who_waited_for_it_is_told(
    shards: Shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards.run(hold, "a", 1000.0)
    shards.settle()
    waiting = shards.entity(Account, "a").add(7).result()
    shards.settle()
    assert waiting not in shards.answers
    loads = shards.code.entity

    def cannot(function: Function) -> EntityType:
        if function.name.endswith("Account"):
            raise rayflow.InvalidInput("Account cannot be loaded")
        return loads(function)

    del shards.sent[waiting]  # it does not come again: it waits in the queue
    monkeypatch.setattr(shards.code, "entity", cannot)
    shards.crash(0)
    shards.tell(CancelExecution("x", "asked"))
    shards.settle()
    answer = shards.answers[waiting]
    assert not isinstance(answer, Answered)
    assert "Account cannot be loaded" in answer.message  # type: ignore[union-attr]
    assert shards.ask(shards.entity(Vase, "b").add(1)) == 1
    monkeypatch.undo()
    assert isinstance(shards.ask(shards.entity(Account, "a").get()), int), "the lock is free"
