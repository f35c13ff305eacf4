"""A map under way: one operation for each item, asked for a few at a time."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from rayflow.core import codec
from rayflow.core.batch import BatchResult, ItemResult
from rayflow.core.definitions import BoundStep
from rayflow.core.futures import Operation
from rayflow.core.instance import Instance, StepRequest, quote
from rayflow.core.map_arguments import ItemArguments, MapArguments
from rayflow.core.passing import Gathering, Passed, Source
from rayflow.core.records import Blob, Function, Stored
from rayflow.errors import InvalidInput, StepFailed


class StepMap:
    """Keeps up to ``width`` items asked for and counts what comes back."""

    def __init__(
        self,
        instance: Instance,
        bound: BoundStep[..., Any],
        function: Function,
        scope: str,
        keys: list[str],
        arguments: MapArguments,
        width: int,
    ) -> None:
        self._instance = instance
        self._settings = bound.settings
        self._function = function
        self._scope = scope
        self._keys = keys
        self._arguments = arguments
        self._width = width
        self._results: list[ItemResult[Any] | None] = [None] * len(keys)
        self._kept: dict[int, Stored] = {}
        """Results that were not looked at when they came, and large ones where they are stored."""
        self._unread: set[int] = set()
        self._sources: dict[int, Source] = {}
        self._next = 0
        self._left = len(keys)
        self._asking = False
        self._asked: dict[int, str] = {}
        self._gathering: dict[int, Gathering] = {}
        self.future: Operation = instance.future()
        self.future.on_cancel = self._abandon
        self.future.items = self._pass_on
        self._ask()
        if not keys:
            nothing: BatchResult[Any] = BatchResult(())
            self.future.succeed(nothing)

    def _ask(self) -> None:
        if self._asking:
            return  # what is asked for below may fail at once, any number of times
        self._asking = True
        while self._next < len(self._keys) and len(self._asked) < self._width:
            index = self._next
            self._next += 1
            # Unique without a check: the scope is the map's own.
            self._asked[index] = f"{self._scope}[{quote(self._keys[index])}]"
            arguments = self._arguments.take(index)
            if arguments.sources:
                self._gather(index, arguments)
            else:
                self._request(index, arguments, ())
        self._asking = False

    def _gather(self, index: int, arguments: ItemArguments) -> None:
        def ask(passed: Passed) -> None:
            self._gathering.pop(index, None)
            self._request(index, arguments, passed)

        def fail(error: BaseException) -> None:
            self._gathering.pop(index, None)
            failed = error if isinstance(error, Exception) else StepFailed(f"{self._asked[index]}: an argument was given up")
            self.done(index, None, failed)

        gathering = Gathering(arguments.sources, ask, fail)
        if not gathering.over:
            self._gathering[index] = gathering

    def _request(self, index: int, arguments: ItemArguments, passed: Passed) -> None:
        own, fingerprint, shared, parts, _ = arguments
        operation = self._asked[index]
        request = StepRequest(operation, self._settings, self._function, own, fingerprint, shared=shared, parts=(*parts, *passed))
        self._instance.request(request, _Item(self, index))

    def done(self, index: int, value: Any, error: Exception | None, stored: Stored | None = None) -> None:
        """One item came back."""
        self._results[index] = ItemResult(self._keys[index], value, error)
        if isinstance(stored, Blob):
            self._kept[index] = stored
        del self._asked[index]
        self._left -= 1
        self._settle(index, stored, error)
        self._ask()
        if self._left == 0:
            if self._unread and not self.future.is_waited_for:
                self.future.succeed_later(self._batch)
            else:
                self.future.succeed(self._batch())

    def keep(self, index: int, stored: Stored) -> None:
        """One item came back, and nobody looks at it."""
        self._unread.add(index)
        self._kept[index] = stored
        self.done(index, None, None, stored)

    def is_unread(self, index: int) -> bool:
        """Whether the result of an item goes on to others, and nobody looks at it."""
        return index in self._sources and not self.future.is_waited_for

    def _batch(self) -> BatchResult[Any]:
        results: list[ItemResult[Any]] = []
        for index, one in enumerate(self._results):
            assert one is not None
            results.append(replace(one, value=self._instance.read(self._kept[index])) if index in self._unread else one)
        self._unread.clear()
        return BatchResult(tuple(results))

    def _abandon(self) -> None:
        self._next = len(self._keys)
        for gathering in self._gathering.values():
            gathering.drop()
        for operation in self._asked.values():
            self._instance.abandon(operation)
        self._asked.clear()
        for index in list(self._sources):
            self._settle(index, None, asyncio.CancelledError())

    # -- passing results on --------------------------------------------------------------------------------------------------

    def _pass_on(self) -> dict[str, Source]:
        """The items' results as those of another map, by their keys."""
        if self.future.done() and not self._unread:
            raise InvalidInput(f"{self._scope[:-1]}: this map has ended: await it and pass on its results()")
        return {key: self._source(index) for index, key in enumerate(self._keys)}

    def _source(self, index: int) -> Source:
        source = self._sources.get(index)
        if source is None:
            source = self._sources[index] = Source(f"{self._scope}[{quote(self._keys[index])}]")
            result = self._results[index]
            if result is not None:
                stored = self._kept.get(index)
                if stored is None and result.error is None:
                    stored = codec.encode(result.value)
                source.settle(stored, result.error)
        return source

    def _settle(self, index: int, stored: Stored | None, error: BaseException | None) -> None:
        source = self._sources.get(index)
        if source is not None:
            source.settle(stored, error)


class _Item:
    __slots__ = ("_index", "_map")

    def __init__(self, owner: StepMap, index: int) -> None:
        self._map = owner
        self._index = index

    @property
    def unread(self) -> bool:
        return self._map.is_unread(self._index)

    def succeed(self, value: Any, stored: Stored | None = None) -> None:
        self._map.done(self._index, value, None, stored)

    def keep(self, stored: Stored) -> None:
        self._map.keep(self._index, stored)

    def fail(self, error: Exception) -> None:
        self._map.done(self._index, None, error)
