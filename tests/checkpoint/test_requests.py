from __future__ import annotations

import threading
from typing import Any

import pytest

from rayflow.checkpoint.requests import Create, Delete, Get, GetMany, List, Operation, run
from rayflow.checkpoint.store import ObjectInfo
from rayflow.errors import AlreadyExists, NotFound, StoreError


class Objects:
    """What ``run`` needs of a store. ``all_at_once``: a get waits until this many are under way."""

    def __init__(self, objects: dict[str, bytes], all_at_once: int = 1) -> None:
        self.objects = objects
        self._gate = threading.Barrier(all_at_once)

    def create(self, key: str, data: bytes) -> None:
        if key in self.objects:
            raise AlreadyExists(key)
        self.objects[key] = data

    def get(self, key: str) -> bytes:
        self._gate.wait(timeout=5)
        try:
            return self.objects[key]
        except KeyError:
            raise NotFound(key) from None

    def list(self, prefix: str, start_after: str = "") -> list[ObjectInfo]:
        keys = sorted(key for key in self.objects if key.startswith(prefix) and key > start_after)
        return [ObjectInfo(key, len(self.objects[key])) for key in keys]

    def delete(self, keys: tuple[str, ...]) -> None:
        for key in keys:
            self.objects.pop(key, None)


def all_requests() -> Operation[list[Any]]:
    replies: list[Any] = []
    for request in (
        Create("a/2", b"two"),
        Create("a/2", b"again"),
        Get("a/2"),
        Get("a/3"),
        List("a/"),
        List("a/", "a/1"),
        Delete(("a/1", "a/9")),
        GetMany(("a/2", "a/1")),
    ):
        try:
            replies.append((yield request))
        except StoreError as error:
            replies.append(type(error))
    return replies


def test_every_request_is_answered_by_the_store_and_its_errors_are_thrown_in() -> None:
    assert run(all_requests(), Objects({"a/1": b"one"})) == [
        None,
        AlreadyExists,
        b"two",
        NotFound,
        (ObjectInfo("a/1", 3), ObjectInfo("a/2", 3)),
        (ObjectInfo("a/2", 3),),
        None,
        (b"two", None),
    ]


def test_many_gets_are_under_way_at_once_and_come_back_in_the_order_of_the_keys() -> None:
    def many(keys: tuple[str, ...]) -> Operation[tuple[bytes | None, ...]]:
        return (yield GetMany(keys))

    keys = tuple(f"k{number}" for number in range(64))
    store = Objects({key: key.encode() for key in keys[1:]}, all_at_once=32)
    assert run(many(keys), store) == (None, *(key.encode() for key in keys[1:]))


def test_an_operation_is_closed_when_the_store_breaks() -> None:
    closed: list[bool] = []

    def operation() -> Operation[None]:
        try:
            yield Create("a", b"")
        finally:
            closed.append(True)

    class Broken(Objects):
        def create(self, key: str, data: bytes) -> None:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(operation(), Broken({}))
    assert closed
