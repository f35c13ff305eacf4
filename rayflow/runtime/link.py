"""A shard's connection to the dispatcher: what is sent goes in order and in batches; a broken connection is noticed at once."""

from __future__ import annotations

import asyncio
import itertools
import logging
import pickle
from typing import Any

import msgspec
from ray.exceptions import RayActorError, RayTaskError

from rayflow.core.outbox import CancelStep, StartStep
from rayflow.errors import Fenced
from rayflow.runtime.dispatcher import Attempt, Collected, Submission
from rayflow.runtime.inline import step_start

_RECONNECT_S = 0.2

_log = logging.getLogger("rayflow.shard")
_encode = msgspec.msgpack.Encoder().encode
_decode_attempts = msgspec.msgpack.Decoder(list[Attempt]).decode
_decode_collected = msgspec.msgpack.Decoder(Collected).decode


class Disconnected(Exception):
    """The dispatcher cannot be reached, or is a new one that knows nothing: attach again."""


class DispatcherLink:
    """The dispatcher as one epoch of one shard sees it."""

    def __init__(self, actor: Any, shard: int, epoch: int) -> None:
        self._actor = actor
        self._shard = shard
        self._epoch = epoch
        self._incarnation = ""
        self._queue: list[StartStep | CancelStep] = []
        self._wake = asyncio.Event()
        self._broken = asyncio.Event()

    def send(self, effects: list[StartStep | CancelStep]) -> None:
        """Have attempts started and stopped, in this order, soon."""
        self._queue.extend(effects)
        self._wake.set()

    async def send_loop(self) -> None:
        """Carry out ``send``. What cannot be delivered breaks the connection: ``attach`` then finds out what arrived."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            effects, self._queue = self._queue, []
            try:
                for kind, group in itertools.groupby(effects, type):  # in order: an id that was dropped may be started again
                    if kind is StartStep:
                        starts = [_submission(one) for one in group if isinstance(one, StartStep)]
                        await self._call(self._actor.submit.remote(self._shard, self._epoch, _encode(starts)))
                    else:
                        stops = [Attempt(one.execution, one.operation, one.attempt) for one in group if isinstance(one, CancelStep)]
                        await self._call(self._actor.cancel.remote(self._shard, self._epoch, _encode(stops)))
            except Disconnected:
                self._broken.set()

    async def attach(self, expected: list[Attempt]) -> list[Attempt]:
        """Connect, however long it takes; returns those of the expected attempts that the dispatcher knows nothing of."""
        while True:
            self._broken.clear()
            try:
                self._incarnation, lost = await self._call(self._actor.attach.remote(self._shard, self._epoch, _encode(expected)))
            except Disconnected as error:
                _log.warning("shard %d cannot reach the dispatcher (%s); trying again", self._shard, error)
                await asyncio.sleep(_RECONNECT_S)
            else:
                return _decode_attempts(lost)

    async def collect(self, recorded: int, seen: int) -> Collected:
        """Wait for news. Raises Disconnected, and Fenced where a later epoch of the shard has attached."""
        call = asyncio.ensure_future(
            self._call(self._actor.collect.remote(self._shard, self._epoch, self._incarnation, recorded, seen))
        )
        broken = asyncio.ensure_future(self._broken.wait())
        try:
            await asyncio.wait({call, broken}, return_when=asyncio.FIRST_COMPLETED)
            if self._broken.is_set():
                raise Disconnected("a message to the dispatcher was not delivered")
            data = call.result()
        finally:
            broken.cancel()
            call.cancel()
        if data is None:
            raise Disconnected("the dispatcher was restarted")
        return _decode_collected(data)

    async def _call(self, reference: Any) -> Any:
        try:
            return await reference
        except RayActorError as error:
            raise Disconnected(str(error).partition("\n")[0]) from error
        except RayTaskError as error:
            if isinstance(error.cause, Fenced):  # pyright: ignore[reportUnknownMemberType]
                raise error.cause from None
            raise


def _submission(effect: StartStep) -> Submission:
    return Submission(step_start(effect), pickle.dumps(dict(effect.request.settings.resources)))
