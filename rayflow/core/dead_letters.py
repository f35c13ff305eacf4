"""Messages that could not be handled and that nobody waits for: kept, shown, and handled again when somebody asks.

There is room for many, and then for the newest: a mistake that repeats itself for months must not fill the memory.

A signal whose operation raised, a message for later that could not be handled, and a message that killed its process too often.
"""

from __future__ import annotations

import logging
from collections import OrderedDict

import msgspec

from rayflow.core import limits
from rayflow.core.entity_state import Entities as Durable
from rayflow.core.messages import CallEntity
from rayflow.core.outbox import Outbox
from rayflow.core.records import DeadLetter, Failure, Settled, Turn

_encode = msgspec.msgpack.Encoder().encode
_log = logging.getLogger("rayflow.entity")


class DeadLetters:
    """Those of one shard."""

    def __init__(self, outbox: Outbox, durable: Durable) -> None:
        self._outbox = outbox
        self._letters = OrderedDict(durable.dead)
        self._count = durable.dead_count

    def add(self, message: CallEntity, sender: str, reason: Failure, now_ms: int) -> int:
        """Keep a message; returns its number."""
        self._count += 1
        letter = DeadLetter(message.entity, now_ms, self._count, message.operation, _encode(message), sender, reason)
        self._letters[letter.number] = letter
        self._outbox.record(letter)
        _log.error(
            "%s: %s, sent by %s, could not be handled (%s: %s); it is kept as dead letter %d",
            message.entity,
            message.operation,
            sender,
            reason.type,
            reason.message,
            letter.number,
        )
        while len(self._letters) > limits.current().dead_letters:
            self._throw_away_oldest(now_ms)
        return letter.number

    def _throw_away_oldest(self, now_ms: int) -> None:
        _, oldest = self._letters.popitem(last=False)
        self._outbox.record(Settled(oldest.entity, now_ms, oldest.number))
        _log.error(
            "%s: dead letter %d, %s of %s, is thrown away: this shard keeps %d and has a newer one",
            oldest.entity,
            oldest.number,
            oldest.operation,
            oldest.sender,
            limits.current().dead_letters,
        )

    def get(self, entity: str, number: int) -> DeadLetter | None:
        """The dead letter of that number, if it is one of that entity."""
        letter = self._letters.get(number)
        return letter if letter is not None and letter.entity == entity else None

    def remove(self, letter: DeadLetter, turn: Turn, now_ms: int) -> None:
        """It was handled after all, or is not wanted. ``turn`` is the request for that."""
        del self._letters[letter.number]
        self._outbox.record(Settled(letter.entity, now_ms, letter.number, turn))
