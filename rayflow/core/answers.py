"""Which messages an entity has handled before, and how they were answered: what is durable, and what is not yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rayflow.core import limits
from rayflow.core.activation import Activation
from rayflow.core.entity_state import Entities as Durable
from rayflow.core.messages import CallEntity, Refused, Token
from rayflow.core.records import Turn


@dataclass(slots=True)
class _Sender:
    """What is not durable yet of a sender's numbers."""

    number: int = 0
    pending: dict[int, Turn] = field(default_factory=dict[int, Turn])


class Answers:
    """For all entities of a shard. Those under a message id are with the entity, those under a sender's number are here."""

    def __init__(self, durable: Durable) -> None:
        self._durable = durable
        self._senders: dict[str, _Sender] = {}

    def seen(self, active: Activation, token: Token, message: CallEntity, *, waited: bool) -> Turn | Refused | None:
        """The turn that handled this very message before. ``waited``: it comes out of the queue of a lock."""
        if message.message_id:
            return self._under_id(active, token, message)
        if waited:
            return None  # so this is its turn
        durable = self._durable.senders.get(token.sender)
        sender = self._senders.get(token.sender)
        if durable is None and sender is None:
            if self._may_be_dropped(active, token, self._durable.forgotten_ms(), limits.current().sender_window_ms):
                return _unknown(active, token, message, "what was answered to this client then is not kept any more")
            return None
        if token.number > max(0 if durable is None else durable.number, 0 if sender is None else sender.number):
            return None
        turn = self.under_number(token)
        return _unknown(active, token, message, "it came after later ones of this client") if turn is None else turn

    def _may_be_dropped(self, active: Activation, token: Token, forgotten_ms: int, window_ms: int) -> bool:
        """Whether this message, which is not known, may be one of those that were handled up to then and are not known any more.

        An answer is kept for the window. Clocks of two owners may differ by a part of that.
        """
        if not token.sent_ms:
            return False
        age_ms, differ_ms = active.used_ms - token.sent_ms, window_ms // 12
        return age_ms >= window_ms - differ_ms and token.sent_ms <= forgotten_ms + differ_ms

    def _under_id(self, active: Activation, token: Token, message: CallEntity) -> Turn | Refused | None:
        turn = active.pending.get(message.message_id)
        if turn is None:
            row = self._durable.rows.get(active.address)
            turn = None if row is None else row.answer(message.message_id)
        if turn is None:
            if self._may_be_dropped(active, token, self._durable.forgotten_ms(active.address), active.type.message_window_ms):
                return _unknown(
                    active, token, message, f"answers under message ids are kept for at least {active.type.name}.message_window_s"
                )
            return None
        if turn.fingerprint != message.fingerprint:
            return Refused(
                "IdInUse",
                f"{active.address}: message id {message.message_id!r} was used for another operation or other arguments; "
                f"choose another id",
            )
        return turn

    def under_number(self, token: Token) -> Turn | None:
        """The turn that handled this message without an id, if its answer is kept."""
        sender = self._senders.get(token.sender)
        turn = None if sender is None else sender.pending.get(token.number)
        durable = self._durable.senders.get(token.sender)
        return durable.answers.get(token.number) if turn is None and durable is not None else turn

    def remember(self, turn: Turn) -> None:
        """A message without an id has been handled."""
        sender = self._senders.get(turn.sender)
        if sender is None:
            sender = self._senders[turn.sender] = _Sender()
        sender.number = max(sender.number, turn.number)
        sender.pending[turn.number] = turn

    def durable(self, turns: Sequence[Turn]) -> None:
        """These are durable now, and part of what was given to the constructor."""
        for turn in turns:
            if not turn.message_id:
                sender = self._senders[turn.sender]
                sender.pending.pop(turn.number, None)
                if not sender.pending:
                    del self._senders[turn.sender]


def _unknown(active: Activation, token: Token, message: CallEntity, why: str) -> Refused:
    since = "" if not token.sent_ms else f", first sent {max(active.used_ms - token.sent_ms, 0) // 60_000} minutes ago,"
    advice = "" if message.message_id else "; with a message_id a message can be sent again without being handled twice"
    return Refused(
        "OutcomeUnknown",
        f"{active.address}: whether {message.operation}{since} was carried out cannot be told: {why}. It was not carried out now. "
        f"Look at the entity's state, and send it as a new message if it is still wanted{advice}",
    )
