from __future__ import annotations

from typing import Any, cast

import msgspec

from rayflow.core.messages import CallEntity, SettleDeadLetter
from rayflow.core.records import Blob, DeadLetter, Failure, Function, encode_record
from rayflow.errors import NotFound
from rayflow.testing.simulation_correspondents import Asked
from rayflow.testing.simulation_judge import Judge
from rayflow.testing.simulation_traces import LETTER_LOST
from rayflow.testing.simulation_world import World


class NothingIsThere:
    """The values of a system that has written none of them."""

    def decode(self, stored: Any) -> Any:
        raise NotFound("blobs/00/00")


def test_a_dead_letter_whose_message_is_not_in_the_store_is_a_violation_and_may_be_asked_for() -> None:
    judge = Judge(World(0))
    judge.entities.traces.code = cast("Any", NothingIsThere())
    message = CallEntity("Counter/a", Function("tests:Counter"), "add", Blob("00", 1), "", "", 0)
    letter = DeadLetter("Counter/a", 1000, 1, "add", msgspec.msgpack.encode(message), "Counter/b", Failure("Unlucky", "", ""))
    judge.entities.written(0, [letter], [encode_record(letter)])
    assert dict(judge.violations) == {LETTER_LOST: 1}
    assert judge.entities.dead_letters() == [letter]
    judge.entities.asked("client", 1, Asked(SettleDeadLetter("Counter/a", 1, 1000, False)))
