"""An entity as others see it: a proxy whose operations are methods that send a message.

The same proxy serves clients, workflows and entities; they differ in what ``send`` does. Arguments are checked and encoded here, so
that what cannot work is refused before anything is recorded or sent.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import msgspec

from rayflow.core.arguments import encode_arguments
from rayflow.core.entity import BoundOperation, Call, EntityOperation, timestamp_ms
from rayflow.core.entity_type import EntityType, address_of, type_of
from rayflow.core.options import SECONDS, TEXT, check, refuse
from rayflow.errors import InvalidInput


class CallOptions(msgspec.Struct, frozen=True, gc=False):
    """How one call is to be sent; see ``Entity.options``.

    It is not to be handled before the time ``at_ms``, or before ``after_ms`` have passed since it was sent; 0: at once.
    """

    message_id: str = ""
    timeout_s: float | None = None
    signal: bool = False
    at_ms: int = 0
    after_ms: int = 0


class Outgoing(msgspec.Struct, frozen=True, gc=False):
    """A message ready to be sent. ``fingerprint`` is that of operation and arguments."""

    address: str
    kind: EntityType
    operation: str
    arguments: bytes
    fingerprint: str
    options: CallOptions

    def due_ms(self, now_ms: int) -> int:
        """Before when it is not to be handled, in milliseconds since 1970; 0: at once."""
        return now_ms + self.options.after_ms if self.options.after_ms else self.options.at_ms


Send = Callable[[Outgoing], Call[Any]]

_PLAIN = CallOptions()


class EntityProxy:
    """One entity, by type and address: see ``address_of``."""

    __slots__ = ("_address", "_bound", "_kind", "_options", "_send")

    def __init__(self, kind: EntityType, address: str, send: Send, options: CallOptions = _PLAIN) -> None:
        self._kind = kind
        self._address = address
        self._send = send
        self._options = options
        self._bound: dict[str, BoundOperation[..., Any]] | None = None

    @property
    def entity_address(self) -> str:
        """How it is named in the store: ``Type/key``."""
        return self._address

    @property
    def entity_type(self) -> EntityType:
        """What its class says."""
        return self._kind

    def options(
        self, *, message_id: str | None = None, timeout: float | None = None, at: datetime | timedelta | None = None
    ) -> EntityProxy:
        """See ``Entity.options``."""
        if message_id is not None:
            check(self._address, "message_id", message_id, TEXT)
        if timeout is not None:
            check(self._address, "timeout", timeout, SECONDS)
        if at is not None and not isinstance(at, datetime | timedelta):  # pyright: ignore[reportUnnecessaryIsInstance]
            refuse(self._address, "at", at, "a datetime with a time zone, or a timedelta")
        chosen = self._options
        return self._with(
            CallOptions(
                message_id or chosen.message_id,
                chosen.timeout_s if timeout is None else timeout,
                chosen.signal,
                chosen.at_ms if not isinstance(at, datetime) else timestamp_ms(at),
                chosen.after_ms if not isinstance(at, timedelta) else max(round(at.total_seconds() * 1000), 1),
            )
        )

    @property
    def signal(self) -> EntityProxy:
        """See ``Entity.signal``."""
        return self._with(msgspec.structs.replace(self._options, signal=True))

    def _with(self, options: CallOptions) -> EntityProxy:
        return EntityProxy(self._kind, self._address, self._send, options)

    def __getattr__(self, name: str) -> BoundOperation[..., Any]:
        known = self._bound
        bound = None if known is None else known.get(name)
        if bound is None:
            bound = BoundOperation(partial(self._call, self._operation(name), name))
            if not self._options.message_id:  # a message has its id for itself, and such a proxy one call
                self._bound = {name: bound} if known is None else known | {name: bound}
        return bound

    def _operation(self, name: str) -> EntityOperation[..., Any]:
        operation = self._kind.operations.get(name)
        if operation is None:
            raise AttributeError(
                f"{self._kind.name} has no operation {name!r}; it has {', '.join(sorted(self._kind.operations))}",
                name=name,
                obj=self,
            )
        address, options = self._address, self._options
        if (options.at_ms or options.after_ms) and not options.signal:
            raise InvalidInput(f"{address}: what is to be handled later has no answer now: write .signal.{name}(...)")
        if operation.reads_only and options.signal:
            raise InvalidInput(f"{address}: the query {name} changes nothing, so there is no point in signalling it; call it")
        return operation

    def _call(self, operation: EntityOperation[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call[Any]:
        operation.check_arguments(self._address, args, kwargs)
        data, fingerprint = encode_arguments(args, kwargs)
        return self._send(Outgoing(self._address, self._kind, name, data, f"{name} {fingerprint}", self._options))

    def __repr__(self) -> str:
        return f"<entity {self._address}>"


def proxy_of(entity: object, key: str, send: Send) -> EntityProxy:
    """The entity of that class and key. Raises InvalidInput (no entity class; a bad key)."""
    kind = type_of(entity)
    return EntityProxy(kind, address_of(kind.name, key), send)
