"""Which messages an entity has handled before, and how they were answered: what is durable, and what is not yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

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
            return self._under_id(active, message)
        if waited:
            return None  # so this is its turn
        durable = self._durable.senders.get(token.sender)
        sender = self._senders.get(token.sender)
        if token.number > max(0 if durable is None else durable.number, 0 if sender is None else sender.number):
            return None
        turn = self.under_number(token)
        if turn is None:
            return Refused(
                "RayflowError",
                f"{active.address}: message {token.number} of {token.sender} came after later ones, or again after its answer "
                f"was dropped; whether it was handled cannot be told",
            )
        return turn

    def _under_id(self, active: Activation, message: CallEntity) -> Turn | Refused | None:
        turn = active.pending.get(message.message_id)
        if turn is None:
            row = self._durable.rows.get(active.address)
            turn = None if row is None else row.answer(message.message_id)
        if turn is not None and turn.fingerprint != message.fingerprint:
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
