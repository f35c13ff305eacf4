"""Messages that come again: what is answered as before, and what is refused because it cannot be told (I21)."""

from __future__ import annotations

from typing import Any

import pytest

from rayflow.core.entity import Call, Entity, done
from rayflow.core.limits import Limits
from rayflow.core.messages import Answer, Answered, CallEntity, Refused, Token
from rayflow.core.proxy import Outgoing, proxy_of
from tests.core.entity_types import Account
from tests.core.shards import Shards

HOUR_MS = 3_600_000
WINDOW_MS = Limits().sender_window_ms
MINUTE_MS = 60_000


class Post:
    """Clients that number their own messages, and send them when and how often they like, to one shard."""

    def __init__(self) -> None:
        self.shards = Shards(1)

    @property
    def now_ms(self) -> int:
        return self.shards.now_ms

    def add(self, key: str = "a", *, message_id: str = "", entity: type[Entity[Any]] = Account) -> CallEntity:
        made: list[CallEntity] = []

        def keep(sent: Outgoing) -> Call[Any]:
            made.append(self.shards.message(sent))
            return done(None)

        proxy = proxy_of(entity, key, keep)
        (proxy.options(message_id=message_id) if message_id else proxy).add(1)
        return made[0]

    def send(self, sender: str, number: int, message: CallEntity, *, heard: int = 0, sent_ms: int = 0) -> Answer:
        token = Token(sender, number, heard, sent_ms or self.now_ms)
        self.shards.owners[0].receive(token, message, self.now_ms)
        self.shards.settle()
        return self.shards.answers[token]

    def pass_time(self, others: str, hours: int) -> None:
        """Let time pass in which somebody else goes on sending."""
        number = self.shards.numbers.get(others, 0)
        for _ in range(hours * 60 // 7):
            self.shards.now_ms += 7 * MINUTE_MS
            number += 1
            self.send(others, number, self.add("other"), heard=number - 1)
        self.shards.numbers[others] = number

    def value(self, key: str = "a") -> int:
        return self.shards.ask(self.shards.entity(Account, key, sender="reader").get())


@pytest.fixture
def post() -> Post:
    return Post()


@pytest.mark.parametrize("recovered", ["", "from the log", "from a snapshot"])
def test_a_message_that_comes_again_after_hours_of_silence_is_not_carried_out_twice(post: Post, recovered: str) -> None:
    message, sent_ms = post.add(), post.now_ms
    post.send("silent", 17, message)  # and the answer gets lost
    post.pass_time("busy", hours=3)
    assert "silent" not in post.shards.owners[0].state.entities.senders, "it is not kept for ever"
    if recovered == "from a snapshot":
        post.shards.snapshot(0)
    if recovered:
        post.shards.crash(0)
    refused = post.send("silent", 17, message, sent_ms=sent_ms)
    assert isinstance(refused, Refused)
    assert refused.error == "OutcomeUnknown"
    assert "whether add, first sent 17" in refused.message
    assert "was carried out cannot be told" in refused.message
    assert "Look at the entity's state" in refused.message
    assert "with a message_id" in refused.message
    assert post.value() == 1
    assert post.send("silent", 18, post.add()) == Answered(post.shards.code.encoded(2)), "its next message is a new one"


def test_the_first_message_to_a_shard_may_have_any_number_at_any_time(post: Post) -> None:
    post.send("swept", 5, post.add())
    post.pass_time("busy", hours=5)
    for number in (1, 2, 4711):
        post.send(f"new {number}", number, post.add())
    post.send("swept", 9, post.add(), heard=8)
    assert post.value() == 5


def test_what_was_first_sent_after_all_that_is_not_known_any_more_is_carried_out_however_old_it_is(post: Post) -> None:
    """As after hours in which the store was away: nothing was handled in them."""
    post.send("gone", 1, post.add())
    sent_ms = post.now_ms + 10 * MINUTE_MS
    post.shards.now_ms += 7 * HOUR_MS
    for number in range(3):
        post.send("busy", number + 1, post.add("other"), heard=number)
        post.shards.now_ms += WINDOW_MS + 1
    assert "gone" not in post.shards.owners[0].state.entities.senders
    post.send("patient", 3, post.add(), sent_ms=sent_ms)
    assert post.value() == 2


def test_a_time_in_which_nobody_could_send_counts_for_nobody_s_silence(post: Post) -> None:
    message, sent_ms = post.add(), post.now_ms
    first = post.send("a", 1, message)
    post.shards.now_ms += 61 * MINUTE_MS
    post.send("b", 1, post.add("other"))
    assert post.send("a", 1, message, sent_ms=sent_ms) == first
    assert post.value() == 1


@pytest.mark.parametrize("ended", [False, True])
def test_a_message_with_an_id_that_comes_again_after_its_window_is_not_carried_out_twice(post: Post, ended: bool) -> None:
    message, sent_ms = post.add(message_id="order-7"), post.now_ms
    post.send("a", 1, message)
    if ended:
        post.shards.ask(post.shards.entity(Account, "a", sender="undertaker").destroy())
    post.pass_time("busy", hours=4)
    post.shards.snapshot(0)
    post.shards.crash(0)
    refused = post.send("a", 1, message, sent_ms=sent_ms)
    assert isinstance(refused, Refused)
    assert refused.error == "OutcomeUnknown"
    assert "Account.message_window_s" in refused.message
    assert post.value() == (0 if ended else 1)
    post.send("a", 2, post.add(message_id="order-7"))
    assert post.value() == (1 if ended else 2), "sent anew it is a message of its own: that is what the window means"


def test_an_owner_whose_clock_is_behind_refuses_nobody_s_first_message_and_repeats_nothing(post: Post) -> None:
    message, sent_ms = post.add(), post.now_ms
    post.send("silent", 1, message)
    post.pass_time("busy", hours=3)
    post.shards.crash(0)
    behind_ms = 10 * HOUR_MS
    post.shards.now_ms -= behind_ms
    refused = post.send("silent", 1, message, sent_ms=sent_ms - behind_ms)
    assert isinstance(refused, Refused)
    post.send("new", 1, post.add())
    assert post.value() == 2
