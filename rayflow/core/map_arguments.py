"""The arguments of the items of a map: each item's own, and those that all items share, which are encoded and stored once.

What an item is asked for with is the same as if it were asked for alone: its fingerprint, too, which is on record.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, cast

from rayflow.core import codec, limits
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
    """Those of one item, encoded. Where others are ``shared``, they come behind those in ``own``."""

    own: bytes
    fingerprint: str
    shared: Shared | None


class MapArguments:
    """Those of all items: ``step(item, *args)``. Raises CodecError, naming the place, if some part cannot be stored."""

    def __init__(self, items: Iterable[object], args: tuple[object, ...]) -> None:
        label = "arguments"
        whole = _Frame((None, *args), label)
        self._items = [codec.encode_for_fingerprint(item, label=f"{label}[0][0]") for item in items]
        self._whole = self._own = whole
        size_bytes = len(whole.after)
        self._shared: Shared | None = None
        if size_bytes > limits.current().inline_bytes or (
            size_bytes > _WORTH_SHARING_BYTES and size_bytes * len(self._items) > _MANY_BYTES
        ):
            self._shared = Shared(codec.encode(args, label=label))
            self._own = _Frame((None,), label)
            whole.after = b""

    def take(self, index: int) -> ItemArguments:
        """Those of one item; they are not kept here any more."""
        item, compared = self._items[index]
        self._items[index] = (b"", b"")
        own = self._own.before + item[1:] + self._own.after
        return ItemArguments(own, self._whole.fingerprint(compared[1:]), self._shared)


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

    def fingerprint(self, item: bytes) -> str:
        """Of the arguments with this item."""
        digest = self._digest.copy()
        digest.update(item)
        digest.update(self._compared_after)
        return digest.hexdigest()


def joined(own: Stored, shared: Stored | None, decode: Callable[[Stored], Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a step: positional and by name."""
    args, kwargs = cast("tuple[tuple[Any, ...], dict[str, Any]]", decode(own))
    return (args if shared is None else (*args, *decode(shared))), kwargs
