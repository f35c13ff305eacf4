"""What has become of every message of a simulation: what the judges of entities, of letters and of locks know in common."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from rayflow.core.messages import CallEntity, Caller, Deliver, FromClient, Lock

if TYPE_CHECKING:
    from rayflow.runtime.code import StoredCode
    from rayflow.testing.simulation_correspondents import Asked

TURN_LOST = "an acknowledged turn is lost"
HANDLED_TWICE = "a message is handled twice"
LETTER_LOST = "a letter is lost"
DISORDER = "messages of one sender are handled out of order"
WRONG_ANSWER = "an answer of an entity contradicts the log"
HALF = "a turn counts in part"
LATE = "what is due later does not come"
EARLY = "what is due later comes too early, or twice"
TWO_ANSWERS = "one message id gets two answers"
WRONG_TOTAL = "a state is not the sum of its turns"
SHARED = "two workflows have one lock at once"
BETWEEN = "somebody comes between what a lock keeps together"
STUCK = "a lock is not free after its workflow has ended"
DEADLY = "what has killed its process too often is tried again"

ENTITY_PROPERTIES = (
    TURN_LOST,
    HANDLED_TWICE,
    LETTER_LOST,
    DISORDER,
    WRONG_ANSWER,
    HALF,
    LATE,
    EARLY,
    TWO_ANSWERS,
    WRONG_TOTAL,
    SHARED,
    BETWEEN,
    STUCK,
    DEADLY,
)

decode_call = msgspec.msgpack.Decoder(CallEntity).decode
decode_waiting = msgspec.msgpack.Decoder(Deliver | Lock | FromClient).decode


def key_of(tag: str) -> str:
    """What a message is known by, whether others may overtake it or not."""
    return tag.replace("~", "#")


@dataclass(slots=True)
class Segment:
    """What one segment says, by the keys of messages."""

    shard: int
    left: dict[str, None] = field(default_factory=dict[str, None])
    """Sent by turns in it."""
    posted: dict[str, None] = field(default_factory=dict[str, None])
    handled: dict[str, None] = field(default_factory=dict[str, None])
    raised: dict[str, None] = field(default_factory=dict[str, None])
    kept: dict[str, None] = field(default_factory=dict[str, None])
    """Put off until later, or until a lock is free."""
    removed: dict[str, None] = field(default_factory=dict[str, None])
    """Taken from what was put off until later."""
    settled: dict[str, None] = field(default_factory=dict[str, None])
    """Were dead letters."""

    def accounts_for(self, key: str) -> bool:
        """Whether something has become of a message here."""
        return key in self.handled or key in self.raised or key in self.kept


class Traces:
    """Every message by its key, over a whole run."""

    def __init__(self) -> None:
        self.code: StoredCode
        self.expected: dict[str, None] = {}
        """What must still happen: messages that are to be handled, reminders that are to come once."""
        self.by_key: dict[str, Asked] = {}
        """What clients have sent."""
        self.departed: dict[str, None] = {}
        """Sent by a turn that counts."""
        self.handled: dict[str, str] = {}
        """With the address of who did."""
        self.raised: dict[str, None] = {}
        self.again: Counter[str] = Counter()
        """How often somebody wanted it handled that was a dead letter."""
        self.gone: dict[str, None] = {}
        """Was to be handled later by an entity that has been ended."""
        self.calls: dict[Caller, str] = {}
        """What workflows wait for, with the key of the message."""

    def key(self, message: CallEntity) -> str:
        """The key of a message; empty: it has no tag."""
        args = self.arguments(message)
        return key_of(args[0]) if args else ""

    def arguments(self, message: CallEntity) -> tuple[Any, ...]:
        """What a message says."""
        return self.code.decode(message.arguments)[0]

    def leaves(self, key: str, segment: Segment) -> None:
        """A turn in this segment has sent this message."""
        self.departed[key] = segment.left[key] = None
        if key not in self.handled and key not in self.raised:
            self.expected[key] = None

    def is_gone(self, key: str) -> None:
        """Whoever was to handle this later has been ended."""
        self.gone[key] = None
        self.expected.pop(key, None)
