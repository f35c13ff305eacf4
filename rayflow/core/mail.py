"""Letters between workflows and entities, whatever shards they live in: each is handled exactly once, in the order sent.

A letter to an instance of the same shard is handed on within the same batch: what caused it and what it causes become durable
together. A letter to another shard is a record first, under the next number of that pair of shards, and is sent again until the
other side has it on record; that side knows the highest number it has handled. These marks are kept for ever, one pair of numbers
per pair of shards.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator

import msgspec

from rayflow.core.messages import Letter
from rayflow.core.outbox import Outbox, Post
from rayflow.core.records import Delivered, Posted, Received, Record

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Letter).decode


class KeptMail(msgspec.Struct, frozen=True, array_like=True, tag="mail"):
    """The letters to and from one other shard, as they stand in a snapshot."""

    shard: int
    sent: int
    received: int
    letters: list[tuple[int, bytes]]


def drop_up_to(letters: OrderedDict[int, bytes] | None, number: int) -> None:
    """Remove the letters up to ``number``; they are in ascending order."""
    while letters and next(iter(letters)) <= number:
        letters.popitem(last=False)


class MailState:
    """What is durable of a shard's letters."""

    def __init__(self) -> None:
        self.sent: dict[int, int] = {}
        """The last number to each shard."""
        self.received: dict[int, int] = {}
        """The highest number handled of those from each shard."""
        self.outgoing: defaultdict[int, OrderedDict[int, bytes]] = defaultdict(OrderedDict[int, bytes])
        """Letters that the other shard has not confirmed, by shard and number."""

    def apply(self, record: Posted | Received | Delivered) -> None:
        """Take in one record that has become durable."""
        if isinstance(record, Posted):
            self.sent[record.shard] = record.number
            self.outgoing[record.shard][record.number] = record.letter
        elif isinstance(record, Received):
            self.received[record.shard] = record.number
        else:
            drop_up_to(self.outgoing.get(record.shard), record.number)

    def frozen(self) -> MailState:
        """The same, not to be changed any more."""
        other = MailState()
        other.sent, other.received = dict(self.sent), dict(self.received)
        other.outgoing.update((shard, letters.copy()) for shard, letters in self.outgoing.items())
        return other

    def kept(self) -> Iterator[KeptMail]:
        """All of it, for a snapshot."""
        for shard in sorted(self.sent.keys() | self.received.keys()):
            letters = list(self.outgoing[shard].items()) if shard in self.outgoing else []
            yield KeptMail(shard, self.sent.get(shard, 0), self.received.get(shard, 0), letters)

    def restore(self, kept: KeptMail) -> None:
        """Take back a piece of a snapshot."""
        self.sent[kept.shard], self.received[kept.shard] = kept.sent, kept.received
        self.outgoing[kept.shard] = OrderedDict(kept.letters)


class Mail:
    """The letters of one shard. Pure."""

    def __init__(self, outbox: Outbox, shard: int, shard_of: Callable[[str], int], durable: MailState) -> None:
        self._outbox = outbox
        self._shard = shard
        self._shard_of = shard_of
        self._sent = dict(durable.sent)
        self._received = dict(durable.received)
        self._heard: dict[int, int] = {}
        self._confirmed: dict[int, int] = {}
        self._local: deque[Letter] = deque()
        outbox.before_close(self._record_marks)

    @classmethod
    def alone(cls, outbox: Outbox) -> Mail:
        """The letters of the only shard there is."""
        return cls(outbox, 0, lambda _: 0, MailState())

    def send(self, to: str, letter: Letter) -> None:
        """Send a letter to an entity's address or an execution's id."""
        shard = self._shard_of(to)
        if shard == self._shard:
            self._local.append(letter)
            return
        number = self._sent[shard] = self._sent.get(shard, 0) + 1
        encoded = _encode(letter)
        self._outbox.record(Posted(shard, number, encoded))
        self._outbox.effect(Post(shard, number, encoded))

    def mark(self) -> int:
        """How many letters of this shard to itself wait: for ``take_back``, before any of them is handed out."""
        return len(self._local)

    def take_back(self, mark: int, records: Iterable[Record]) -> None:
        """What was sent since was not; ``records`` are those that were taken back from the outbox."""
        while len(self._local) > mark:
            self._local.pop()
        for record in records:
            if isinstance(record, Posted):
                self._sent[record.shard] -= 1

    def next_local(self) -> Letter | None:
        """A letter of this shard to itself, to be handled now."""
        return self._local.popleft() if self._local else None

    def first_local(self) -> Letter | None:
        """What ``next_local`` will return."""
        return self._local[0] if self._local else None

    def new(self, shard: int, letters: Iterable[tuple[int, bytes]]) -> Iterator[Letter]:
        """Those letters from another shard that were not handled yet; they stay to be handled."""
        after = self._received.get(shard, 0)
        return (_decode(letter) for number, letter in letters if number > after)

    def arrived(self, shard: int, letters: Iterable[tuple[int, bytes]]) -> Iterator[Letter]:
        """Those letters from another shard that were not handled yet, in order; each counts as handled when it is handed out.

        A letter that others must come before is left out: its sender sends all that is not confirmed again.
        """
        for number, letter in letters:
            if number == self._received.get(shard, 0) + 1:
                self._received[shard] = self._heard[shard] = number
                yield _decode(letter)

    def received(self, shard: int) -> int:
        """The highest number handled of those from another shard."""
        return self._received.get(shard, 0)

    def confirmed(self, shard: int, number: int) -> None:
        """Another shard has everything up to ``number`` on record."""
        self._confirmed[shard] = number

    def _record_marks(self) -> None:
        for shard, number in self._heard.items():
            self._outbox.record(Received(shard, number))
        for shard, number in self._confirmed.items():
            self._outbox.record(Delivered(shard, number))
        self._heard.clear()
        self._confirmed.clear()
