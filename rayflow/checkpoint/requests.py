"""What a protocol asks of a store, as values, and the driver that carries it out.

A protocol is a generator that yields these requests and is sent the replies; a request that fails has its StoreError
thrown in. So the protocol itself does no I/O, and the same code runs on a real store (``run``) and in a simulation
that stops it at every request (``rayflow.testing.log_simulation``).
"""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, TypeAlias, TypeVar

from rayflow.checkpoint.store import Store
from rayflow.errors import NotFound, StoreError

T = TypeVar("T")

_PARALLEL_GETS = 32


@dataclass(frozen=True, slots=True)
class Create:
    """``Store.create``. Reply: None."""

    key: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Get:
    """``Store.get``. Reply: bytes."""

    key: str


@dataclass(frozen=True, slots=True)
class GetMany:
    """Some objects (at least one), in any order or at once. Reply: a tuple of bytes, or None where nothing is."""

    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class List:
    """``Store.list``. Reply: a tuple of ObjectInfo.

    It need not be a picture of one moment, but what was there all the while shows; and when an object was deleted
    after one with a later key had been created, at least one of the two shows.
    """

    prefix: str
    start_after: str = ""


@dataclass(frozen=True, slots=True)
class Delete:
    """``Store.delete``. Reply: None."""

    keys: tuple[str, ...]


Request: TypeAlias = Create | Get | GetMany | List | Delete
Operation: TypeAlias = Generator[Request, Any, T]
"""A protocol step by step: yields requests, is sent each reply or has a StoreError thrown in, returns a ``T``."""


def run(operation: Operation[T], store: Store, parallel: int = _PARALLEL_GETS) -> T:
    """Carry out ``operation`` on ``store`` and return its result; blocks. Raises what the operation raises.

    So many objects are read at once at the most, in threads.
    """
    try:
        request = next(operation)
        while True:
            try:
                reply = _perform(request, store, parallel)
            except StoreError as error:
                request = operation.throw(error)
            else:
                request = operation.send(reply)
    except StopIteration as stop:
        return stop.value
    finally:
        operation.close()


def _perform(request: Request, store: Store, parallel: int) -> object:
    match request:
        case Create(key, data):
            return store.create(key, data)
        case Get(key):
            return store.get(key)
        case GetMany(keys):
            share = -(-len(keys) // parallel)
            shares = [keys[begin : begin + share] for begin in range(0, len(keys), share)]
            if len(shares) == 1:
                return tuple(_get_all(store, keys))
            with ThreadPoolExecutor(len(shares)) as pool:
                return tuple(chain.from_iterable(pool.map(partial(_get_all, store), shares)))
        case List(prefix, start_after):
            return tuple(store.list(prefix, start_after))
        case Delete(keys):
            return store.delete(keys)


def _get_all(store: Store, keys: tuple[str, ...]) -> list[bytes | None]:
    return [_get_or_none(store, key) for key in keys]


def _get_or_none(store: Store, key: str) -> bytes | None:
    try:
        return store.get(key)
    except NotFound:
        return None
