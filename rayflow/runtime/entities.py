"""What ``client.entity`` returns: a proxy that sends the operations called on it as messages."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, Protocol, TypeVar, cast

from rayflow.core import codec
from rayflow.core.entity import BoundOperation, Call, Entity, EntityOperation, EntityType, address_of
from rayflow.core.messages import Answer, Answered, CallEntity, Message
from rayflow.core.records import INLINE_LIMIT_BYTES, Function, Stored
from rayflow.errors import InvalidInput, OperationFailed
from rayflow.runtime.refusal import raise_refusal

R = TypeVar("R")

_MAX_MESSAGE_ID = 200


class Line(Protocol):
    """What a proxy needs of a client."""

    def request(self, id: str, message: Message) -> Future[Answer]: ...

    def store_value(self, data: bytes) -> Stored: ...

    def decode(self, stored: Stored) -> Any: ...


class RemoteCall(Call[R]):
    """A message under way."""

    def __init__(
        self, address: str, operation: str, line: Line, answer: Future[Answer], timeout_s: float | None, signal: bool
    ) -> None:
        self._address = address
        self._operation = operation
        self._line = line
        self._answer = answer
        self._timeout_s = timeout_s
        self._signal = signal

    def result(self, timeout: float | None = None) -> R:
        wait_s = self._timeout_s if timeout is None else timeout
        try:
            return self._read(self._answer.result(wait_s))
        except FutureTimeout:
            raise self._late(wait_s) from None

    def __await__(self) -> Generator[Any, None, R]:
        return self._wait().__await__()

    async def _wait(self) -> R:
        try:
            async with asyncio.timeout(self._timeout_s):
                # Shielded: whoever gives up waiting does not take the message back, and others may wait for the same call.
                answer = await asyncio.shield(asyncio.wrap_future(self._answer))
        except TimeoutError:
            raise self._late(self._timeout_s) from None
        return self._read(answer)

    def _late(self, wait_s: float | None) -> TimeoutError:
        return TimeoutError(f"{self._address} has not answered {self._operation} after {wait_s} s; it may still do what was asked")

    def _read(self, answer: Answer) -> R:
        answered = cast("Answered", raise_refusal(answer))
        failure = answered.failure
        if failure is not None and not self._signal:
            raise OperationFailed(
                f"{self._address}: {self._operation} raised {failure.type}: {failure.message}",
                error_type=failure.type,
                remote_traceback=failure.traceback,
            )
        return cast("R", None if self._signal or answered.result is None else self._line.decode(answered.result))

    def __repr__(self) -> str:
        return f"<{self._operation} of {self._address}: {'answered' if self._answer.done() else 'under way'}>"


class EntityProxy:
    """One entity as its clients see it: its operations as methods that return a Call."""

    def __init__(self, line: Line, kind: EntityType, function: Function, key: str) -> None:
        self._line = line
        self._kind = kind
        self._function = function
        self._address = address_of(kind.name, key)
        self._message_id = ""
        self._timeout_s: float | None = None
        self._signal = False
        self._bound: dict[str, BoundOperation[..., Any]] = {}

    def options(self, *, message_id: str | None = None, timeout: float | None = None) -> EntityProxy:
        """See ``Entity.options``."""
        if message_id is not None and not (0 < len(message_id) <= _MAX_MESSAGE_ID and message_id.isprintable()):
            raise InvalidInput(
                f"message_id {message_id!r} is empty, longer than {_MAX_MESSAGE_ID} characters, or cannot be printed"
            )
        if timeout is not None and not timeout > 0:
            raise InvalidInput(f"timeout={timeout} must be a positive number of seconds")
        other = self._copy()
        other._message_id = message_id or self._message_id
        other._timeout_s = self._timeout_s if timeout is None else timeout
        return other

    @property
    def signal(self) -> EntityProxy:
        """See ``Entity.signal``."""
        other = self._copy()
        other._signal = True
        return other

    def _copy(self) -> EntityProxy:
        other = object.__new__(EntityProxy)
        other.__dict__.update(self.__dict__)
        other._bound = {}
        return other

    def __getattr__(self, name: str) -> BoundOperation[..., Any]:
        bound = self._bound.get(name)
        if bound is not None:
            return bound
        operation = self._kind.operations.get(name)
        if operation is None:
            raise AttributeError(
                f"{self._kind.name} has no operation {name!r}; it has {', '.join(sorted(self._kind.operations))}",
                name=name,
                obj=self,
            )
        bound = self._bound[name] = BoundOperation(_sender(self, operation))
        return bound

    def __repr__(self) -> str:
        return f"<entity {self._address}>"


def _sender(proxy: EntityProxy, operation: EntityOperation[..., Any]) -> Callable[[tuple[Any, ...], dict[str, Any]], Call[Any]]:
    address, line, function = proxy._address, proxy._line, proxy._function  # pyright: ignore[reportPrivateUsage]
    message_id, timeout_s, signal = proxy._message_id, proxy._timeout_s, proxy._signal  # pyright: ignore[reportPrivateUsage]

    def send(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call[Any]:
        operation.check_arguments(address, args, kwargs)
        fingerprint = ""
        if message_id:
            data, fingerprint = codec.encode_with_fingerprint((args, kwargs), label="arguments")
            fingerprint = f"{operation.name} {fingerprint}"
        else:
            data = codec.encode((args, kwargs), label="arguments")
        stored = data if len(data) <= INLINE_LIMIT_BYTES else line.store_value(data)
        message = CallEntity(address, function, operation.name, stored, message_id, fingerprint)
        return RemoteCall(address, operation.name, line, line.request(address, message), timeout_s, signal)

    return send


E = TypeVar("E", bound=Entity[Any])


def proxy(line: Line, entity: type[E], kind: EntityType, function: Function, key: str) -> E:
    """A proxy that type checkers take for the entity itself, whose operations they know to return a Call."""
    return cast("E", EntityProxy(line, kind, function, key))
