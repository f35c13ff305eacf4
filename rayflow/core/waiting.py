"""What waits until the lock of an entity is free: messages of clients, letters, and others who want the lock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import msgspec

from rayflow.core.messages import Deliver, FromClient, Lock, Token, holder_of

Waiting = Deliver | Lock | FromClient
Who = str | tuple[str, int]

encode_waiting = msgspec.msgpack.Encoder().encode
decode_waiting = msgspec.msgpack.Decoder(Waiting).decode

_LETTER = ""


def client_of(token: Token) -> Who:
    """Who waits with that message."""
    return token.sender, token.number


def who_of(one: Waiting) -> Who:
    """Who waits: a message of a client, which may come again; a run that wants the lock, and may give up; else nobody to know."""
    if isinstance(one, FromClient):
        return client_of(one.token)
    return holder_of(one.caller.execution, one.caller.run) if isinstance(one, Lock) else _LETTER


def count_waiting(queue: Iterable[bytes]) -> Counter[Who]:
    """Who waits in a queue, and how often."""
    return Counter(who_of(decode_waiting(waiting)) for waiting in queue)
