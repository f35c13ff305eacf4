"""Messages too large for a record: they are handled before their blob is written, in the batch that sends them (I17, I20)."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest

import rayflow
from rayflow.core.messages import Refused
from rayflow.core.records import INLINE_LIMIT_BYTES
from rayflow.errors import Damaged, StoreUnavailable
from tests.core.driver import Driver
from tests.core.shards import Shards

LARGE = "x" * (INLINE_LIMIT_BYTES + 1)


class Box(rayflow.Entity[list[int]]):
    @rayflow.operation
    def put(self, text: str) -> int:
        self.state.append(len(text))
        return len(self.state)

    @rayflow.operation
    def send(self, to: str, after: float) -> None:
        box = self.entity(Box, to)
        (box.options(at=timedelta(seconds=after)) if after else box).signal.put(LARGE)

    @rayflow.query
    def sizes(self) -> list[int]:
        return self.state


@rayflow.workflow
async def delivery(ctx: rayflow.Context, to: str) -> int:
    ctx.entity(Box, to).signal.put(LARGE)
    return await ctx.entity(Box, to).put(LARGE)


@rayflow.workflow
async def measuring(ctx: rayflow.Context, text: str) -> int:
    return len(text)


def test_a_start_whose_large_arguments_cannot_be_read_for_a_moment_waits_and_is_not_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver = Driver(measuring)

    def fails(error: Exception) -> Callable[[object], object]:
        def decode(stored: object) -> object:
            raise error

        return decode

    with monkeypatch.context() as patch, pytest.raises(StoreUnavailable):  # then the shard opens again, and the start comes again
        patch.setattr(driver.code, "decode", fails(StoreUnavailable("it is away")))
        driver.start(measuring, LARGE)
    driver.crash()
    with monkeypatch.context() as patch:
        patch.setattr(driver.code, "decode", fails(Damaged("blobs/ab/abc: flipped")))
        (answer,) = driver.start(measuring, LARGE)
    assert answer == Refused("Damaged", "execution x was not started: blobs/ab/abc: flipped"), "that is not who starts it to blame"
    assert (driver.log, driver.machine.live_count) == ([], 0)
    assert driver.run(measuring, LARGE) == ("completed", None, len(LARGE))


@pytest.mark.parametrize("count", [1, 7])
@pytest.mark.parametrize("after", [0.0, 0.001])
def test_a_large_signal_is_handled_wherever_its_receiver_lives(count: int, after: float) -> None:
    shards = Shards(count)
    keys = ["a", "b", "c", "d"]
    for key in keys:
        shards.entity(Box, "sender").send(key, after)
    shards.now_ms += 1  # what is for later is due before anything is written
    for owner in shards.owners:
        owner.advance(shards.now_ms)
    shards.settle()
    assert [shards.ask(shards.entity(Box, key).sizes()) for key in keys] == [[len(LARGE)]] * 4


@pytest.mark.parametrize("count", [1, 7])
def test_a_workflow_sends_large_messages_wherever_their_receiver_lives(count: int) -> None:
    shards = Shards(count)
    tokens = [shards.run(delivery, key, id=f"x{key}") for key in "abcd"]
    shards.settle()
    assert [shards.outcome(token) for token in tokens] == [2] * 4


def test_what_is_written_is_not_kept_in_memory() -> None:
    shards = Shards(1)
    shards.ask(shards.entity(Box, "sender").send("a", 0.0))
    blobs = list(shards.code.blobs.values())
    assert len(blobs) == 1
    assert not shards.owners[0].outbox.unwritten
