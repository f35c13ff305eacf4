"""What waits for a lock costs as much as it is, however much waits there already."""

from __future__ import annotations

import pytest

from rayflow.core import entities, waiting
from rayflow.core.messages import Answered, Refused, Token
from tests.core.entity_types import Account, hold
from tests.core.shards import Shards

COUNT = 300


class Decoded:
    """Counts what is decoded of queues."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        decode = waiting.decode_waiting

        def counted(data: bytes) -> waiting.Waiting:
            self.count += 1
            return decode(data)

        for module in (waiting, entities):
            monkeypatch.setattr(module, "decode_waiting", counted)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Decoded:
    return Decoded(monkeypatch)


def test_a_message_that_waits_for_a_lock_does_not_look_at_all_others_that_do(decoded: Decoded) -> None:
    shards = Shards(1)
    shards.run(hold, "a", 1000.0)
    shards.settle()
    account = shards.entity(Account, "a")
    for _ in range(COUNT):
        account.add(1)
        shards.settle()
    assert decoded.count == 0
    waiting_now = dict(shards.sent)
    for token, message in waiting_now.items():  # as after a client has begun a new line
        shards.owners[0].receive(token, message, shards.now_ms)
    shards.settle()
    assert len(shards.owners[0].state.entities.rows["Account/a"].queue) == COUNT
    shards.advance(1_000_000)
    assert decoded.count == COUNT, "each once, when it is its turn"
    assert shards.ask(account.get()) == COUNT + 100


def test_what_waits_is_known_after_a_crash_and_when_it_has_had_its_turn(decoded: Decoded) -> None:
    shards = Shards(1)
    shards.run(hold, "a", 1000.0)
    shards.settle()
    sent = [shards.entity(Account, "a").add(1).result() for _ in range(3)]
    shards.settle()
    for _ in range(2):
        shards.crash(0)  # and all three come again
        shards.settle()
    assert len(shards.owners[0].state.entities.rows["Account/a"].queue) == 3
    shards.advance(1_000_000)
    assert [shards.answers[token] for token in sent] == [Answered(shards.code.encoded(101 + number)) for number in range(3)]
    again = Token(sent[2].sender, sent[2].number, 0)
    shards.owners[0].receive(again, shards.sent[sent[2]], shards.now_ms)
    shards.settle()
    assert not isinstance(shards.answers[again], Refused)
    assert shards.ask(shards.entity(Account, "a").get()) == 103


def test_many_that_end_while_others_wait_do_not_look_at_all_of_them(decoded: Decoded) -> None:
    shards = Shards(1)
    shards.run(hold, "a", 1000.0, id="first")
    shards.settle()
    for number in range(COUNT):
        shards.run(hold, "a", 0.0, id=f"flow{number}")
    shards.settle()
    shards.advance(1_000_000)
    assert shards.ask(shards.entity(Account, "a").get()) == 100 * (COUNT + 1)
    assert decoded.count <= 2 * COUNT
