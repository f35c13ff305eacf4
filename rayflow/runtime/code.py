"""Stored values and user code as a process finds them: blobs in the store, functions by import path or by value."""

from __future__ import annotations

import logging
import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, cast

from rayflow.checkpoint.blobs import get_blob, put_blob
from rayflow.checkpoint.store import Store
from rayflow.core import codec, limits
from rayflow.core.code_reference import reference_of, resolve
from rayflow.core.definitions import Step, Workflow
from rayflow.core.entity_type import EntityType, type_of
from rayflow.core.recent import Recent
from rayflow.core.records import Blob, Function, Stored
from rayflow.errors import InvalidInput

_KEPT = 256

_log = logging.getLogger("rayflow")


class StoredCode:
    """Code of workflows and entities (``core.instance.Code``, ``core.entity_type.EntityCode``) over a store, with a small cache of
    blobs. Belongs to one thread."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._described: Recent[Callable[..., Any], Function] = Recent(_KEPT)
        self._loaded: Recent[Stored, Any] = Recent(_KEPT)
        """What was stored by value, by its pickle: a notebook brings some with every run of a cell."""
        self._blobs: OrderedDict[str, bytes] = OrderedDict()
        self._blob_bytes = 0
        self.pinned: dict[str, bytes] = {}
        """Blobs that are about to be read, by hash: they stay until whoever put them here takes them away."""

    def decode(self, stored: Stored) -> Any:
        return codec.decode(self.fetch(stored))

    def fetch(self, stored: Stored) -> bytes:
        """The encoded value. Blocks where it is a blob that is not in the cache."""
        if isinstance(stored, bytes):
            return stored
        data = self.pinned.get(stored.hash)
        if data is not None:
            return data
        data = self._blobs.get(stored.hash)
        if data is None:
            data = get_blob(self.store, stored)
        self.keep(stored, data)
        return data

    def keep(self, blob: Blob, data: bytes) -> None:
        """Put a blob into the cache, dropping those that were not used for longest."""
        if blob.hash in self._blobs:
            self._blobs.move_to_end(blob.hash)
            return
        self._blobs[blob.hash] = data
        self._blob_bytes += len(data)
        while self._blob_bytes > limits.current().blob_cache_bytes and len(self._blobs) > 1:
            self._blob_bytes -= len(self._blobs.popitem(last=False)[1])

    def has(self, stored: Stored) -> bool:
        """Whether ``decode`` would not block, nor ``function`` where this is code."""
        if isinstance(stored, bytes) or stored.hash in self._blobs or stored.hash in self.pinned:
            return True
        return self._loaded.get(stored) is not None

    def describe(self, function: Callable[..., Any]) -> Function:
        described = self._described.get(function)
        if described is None:
            described = self._described.put(function, describe_function(self.store, function))
        return described

    def function(self, function: Function) -> Any:
        """The object that ``describe`` described. Raises InvalidInput where it cannot be loaded."""
        if function.code is None:
            return resolve(function.name)
        loaded = self._loaded.get(function.code)
        if loaded is None:
            data = self.fetch(function.code)
            try:
                loaded = self._loaded.put(function.code, pickle.loads(data))
            except Exception as error:
                raise InvalidInput(
                    f"the code of {function.name}, stored with its execution, cannot be loaded here "
                    f"({type(error).__name__}: {error}); is the same Python and are the same packages installed?"
                ) from error
        return loaded

    def workflow(self, function: Function) -> Workflow[..., Any]:
        found = self.function(function)
        if not isinstance(found, Workflow):
            raise InvalidInput(f"{function.name} is no workflow: put @rayflow.workflow above its definition")
        return found  # pyright: ignore[reportUnknownVariableType]  # any parameters

    def entity(self, function: Function) -> EntityType:
        return type_of(self.function(function))


def describe_function(store: Store, function: Any) -> Function:
    """Code by import path where it has one; else (``__main__``, notebooks, nested functions) by value, in the store if large."""
    try:
        return Function(reference_of(function))
    except InvalidInput:
        name = f"{getattr(function, '__module__', '?')}:{getattr(function, '__qualname__', repr(function))}"
        try:
            from ray import cloudpickle

            data = cast("bytes", cloudpickle.dumps(function))  # pyright: ignore[reportPrivateImportUsage]  # as Ray documents it
        except Exception as error:
            raise InvalidInput(
                f"{name} cannot be stored with its execution ({type(error).__name__}: {error}); "
                f"move it to a module that every node can import"
            ) from error
        return Function(name, data if len(data) <= limits.current().inline_bytes else put_blob(store, data))


def plain_function(found: Any) -> Callable[..., Any]:
    """The function of a step, whether the step itself or its function was loaded."""
    return found.function if isinstance(found, Step) else found  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
