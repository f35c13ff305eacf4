"""A shard's line to the dispatcher: the calls of ``rayflow.core.ledger`` over Ray.

A call that fails raises Disconnected, whatever may have arrived: the owner then attaches again and so finds out.
"""

from __future__ import annotations

import pickle
from typing import Any, Protocol

import msgspec
from ray.exceptions import RayActorError, RayTaskError

from rayflow.core.ledger import Connection, Disconnected
from rayflow.core.messages import Attempt
from rayflow.core.outbox import StartStep
from rayflow.core.owner import Sending
from rayflow.errors import Fenced
from rayflow.runtime.dispatching import Collected, Submission
from rayflow.runtime.inline import step_start
from rayflow.runtime.project import code_version

_encode = msgspec.msgpack.Encoder().encode
_decode_attempts = msgspec.msgpack.Decoder(list[Attempt]).decode
_decode_collected = msgspec.msgpack.Decoder(Collected).decode


class Calls(Protocol):
    """How the dispatcher is called, see ``rayflow.runtime.supervisors.LastingDispatcher``."""

    async def call(self, method: str, *args: Any) -> Any:
        """Call a method of the dispatcher that there is now."""
        ...


class DispatcherLink:
    """``shard`` is the number of the shard that calls."""

    def __init__(self, dispatcher: Calls, shard: int) -> None:
        self._dispatcher = dispatcher
        self._shard = shard
        self._code = code_version()

    async def attach(self, connection: Connection, expected: tuple[Attempt, ...]) -> list[Attempt]:
        """Open a connection; returns the expected attempts that the dispatcher knows nothing of. Raises Disconnected, Fenced."""
        return _decode_attempts(await self._call("attach", connection, _encode(expected)))

    async def send(self, sending: Sending) -> None:
        """Have attempts started and stopped. Raises Disconnected."""
        starts = _encode([_submission(one, self._code) for one in sending.starts])
        await self._call("submit", sending.connection, sending.call, starts, _encode(sending.stops))

    async def collect(self, connection: Connection, recorded: int, seen: int) -> Collected:
        """Wait for news. Raises Disconnected."""
        return _decode_collected(await self._call("collect", connection, recorded, seen))

    async def _call(self, method: str, *args: Any) -> Any:
        try:
            return await self._dispatcher.call(method, self._shard, *args)
        except RayActorError as error:
            raise Disconnected(str(error).partition("\n")[0]) from error
        except RayTaskError as error:
            if isinstance(error.cause, (Fenced, Disconnected)):
                raise error.cause from None
            raise


def _submission(effect: StartStep, code: str) -> Submission:
    settings = effect.request.settings
    alone = settings.delivery == "at_most_once" or settings.timeout_s is not None or effect.attempt > 1 or settings.speculative
    return Submission(step_start(effect), pickle.dumps(dict(settings.resources)), alone, code, settings.speculative)
