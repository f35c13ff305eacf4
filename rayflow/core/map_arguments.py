"""The arguments of the items of a map: each item's own, and those that all items share, which are encoded and stored once.

What an item is asked for with is the same as if it were asked for alone: its fingerprint, too, which is on record.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple

from rayflow.core import codec, limits
from rayflow.core.passing import Part, Parts, Place, Source, fingerprint_with, part, split
from rayflow.core.records import Stored

_WORTH_SHARING_BYTES = 4096
"""Less travels with each item: to read it from the store would take longer."""

_MANY_BYTES = 2**20


class Shared:
    """Arguments that several steps have. ``stored`` puts them into the store when that is first needed."""

    __slots__ = ("_data", "_stored")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._stored: Stored | None = None

    def stored(self, store: Callable[[bytes], Stored]) -> Stored:
        """Where they are. ``store`` is called once: what it returns stays true as long as whoever calls this."""
        if self._stored is None:
            self._stored, self._data = store(self._data), b""
        return self._stored


class ItemArguments(NamedTuple):
    """Those of one item, encoded. Where others are ``shared``, they come behind those in ``own``; ``parts`` are stored apart, and
    ``sources`` are to come."""

    own: bytes
    fingerprint: str
    shared: Shared | None
    parts: Parts = ()
    sources: Mapping[Place, Source] = {}


class _Item(NamedTuple):
    """``fingerprint`` is that of all arguments, or what the item is compared by, which may be shorter."""

    own: bytes
    fingerprint: str | bytes
    part: Part | None = None
    source: Source | None = None


_NOTHING = b"\xc0"
"""None, encoded."""


class MapArguments:
    """Those of all items: ``step(item, *args)``. Raises CodecError, naming the place, if some part cannot be stored.

    Items and arguments may be sources. ``known``: hashes of blobs that are in the store.
    """

    def __init__(self, items: Iterable[object], args: tuple[object, ...], known: Collection[str] = ()) -> None:
        label = "arguments"
        limit = limits.current()
        self._sources: dict[Place, Source] = {place: one for place, one in enumerate(args, 1) if isinstance(one, Source)}
        args = tuple(None if isinstance(one, Source) else one for one in args)
        whole = self._whole = self._own = _Frame((None, *args), label)
        self._parts: Parts = ()
        if len(whole.after) > limit.inline_bytes:
            no_kwargs: dict[str, object] = {}
            _, self._parts = split(codec.encode(((None, *args), no_kwargs), label=label), known)
            places = {place for place, _ in self._parts}
            args = tuple(None if place in places else one for place, one in enumerate(args, 1))
            self._own = _Frame((None, *args), label)
            whole.after = b""
        self._items = [self._item(item, known, f"{label}[0][0]") for item in items]
        size_bytes = len(self._own.after)
        self._shared: Shared | None = None
        if size_bytes > limit.inline_bytes or (size_bytes > _WORTH_SHARING_BYTES and size_bytes * len(self._items) > _MANY_BYTES):
            self._shared = Shared(codec.encode(args, label=label))
            self._own = _Frame((None,), label)

    def _item(self, item: object, known: Collection[str], label: str) -> _Item:
        if isinstance(item, Source):
            return _Item(_NOTHING, _NOTHING, source=item)
        data, compared = codec.encode_for_fingerprint(item, label=label)
        if len(data) <= limits.current().inline_bytes:
            return _Item(data[1:], compared[1:])
        # Large ones are not kept here twice, nor at all where they are in the store.
        return _Item(_NOTHING, self._whole.fingerprint(memoryview(compared)[1:]), part(memoryview(data)[1:], known))

    def take(self, index: int) -> ItemArguments:
        """Those of one item; they are not kept here any more."""
        item = self._items[index]
        self._items[index] = _Item(b"", b"")
        own = self._own.before + item.own + self._own.after
        fingerprint = item.fingerprint
        if isinstance(fingerprint, bytes):
            fingerprint = self._whole.fingerprint(fingerprint)
        parts = self._parts if item.part is None else ((0, item.part), *self._parts)
        sources = self._sources if item.source is None else {0: item.source, **self._sources}
        if sources:
            fingerprint = fingerprint_with(fingerprint, sources)
        return ItemArguments(own, fingerprint, self._shared, parts, sources)


class _Frame:
    """What stands before and after an item in encoded arguments, of which ``args`` are an example: its item is None."""

    def __init__(self, args: tuple[object, ...], label: str) -> None:
        no_kwargs: dict[str, object] = {}
        others = [None] * (len(args) - 1)
        data, compared = codec.encode_for_fingerprint((args, no_kwargs), label=label)
        nothing, instead = (codec.encode(((one, *others), no_kwargs)) for one in (None, False))
        place = next(index for index, (a, b) in enumerate(zip(nothing, instead, strict=True)) if a != b)
        self.before, self.after = data[:place], data[place + 1 :]
        self._compared_after = compared[place + 1 :]
        self._digest = hashlib.blake2b(self.before, digest_size=codec.FINGERPRINT_BYTES)

    def fingerprint(self, item: bytes | memoryview) -> str:
        """Of the arguments with this item."""
        digest = self._digest.copy()
        digest.update(item)
        digest.update(self._compared_after)
        return digest.hexdigest()
