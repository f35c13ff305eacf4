"""Calls of a client to entities, and their answers."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, Protocol, TypeVar, cast

from rayflow.core.entity import Call
from rayflow.core.messages import Answer, Answered
from rayflow.core.proxy import Outgoing
from rayflow.core.records import Stored
from rayflow.errors import OperationFailed
from rayflow.runtime.refusal import raise_refusal

R = TypeVar("R")


def raise_failure(address: str, operation: str, answered: Answered) -> None:
    """Raises OperationFailed if the operation raised."""
    failure = answered.failure
    if failure is not None:
        raise OperationFailed(
            f"{address}: {operation} raised {failure.type}: {failure.message}",
            error_type=failure.type,
            remote_traceback=failure.traceback,
        )


class Values(Protocol):
    """Where large values are."""

    def decode(self, stored: Stored) -> Any: ...


class RemoteCall(Call[R]):
    """A message under way."""

    def __init__(self, sent: Outgoing, values: Values, answer: Future[Answer]) -> None:
        self._sent = sent
        self._values = values
        self._answer = answer

    def result(self, timeout: float | None = None) -> R:
        wait_s = self._sent.options.timeout_s if timeout is None else timeout
        try:
            return self._read(self._answer.result(wait_s))
        except FutureTimeout:
            raise self._late(wait_s) from None

    def __await__(self) -> Generator[Any, None, R]:
        return self._wait().__await__()

    async def _wait(self) -> R:
        wait_s = self._sent.options.timeout_s
        try:
            async with asyncio.timeout(wait_s):
                # Shielded: whoever gives up waiting does not take the message back, and others may wait for the same call.
                answer = await asyncio.shield(asyncio.wrap_future(self._answer))
        except TimeoutError:
            raise self._late(wait_s) from None
        return self._read(answer)

    def _late(self, wait_s: float | None) -> TimeoutError:
        sent = self._sent
        return TimeoutError(f"{sent.address} has not answered {sent.operation} after {wait_s} s; it may still do what was asked")

    def _read(self, answer: Answer) -> R:
        answered = cast("Answered", raise_refusal(answer))
        if self._sent.options.signal:
            return cast("R", None)
        raise_failure(self._sent.address, self._sent.operation, answered)
        return cast("R", None if answered.result is None else self._values.decode(answered.result))

    def __repr__(self) -> str:
        return f"<{self._sent.operation} of {self._sent.address}: {'answered' if self._answer.done() else 'under way'}>"
