"""What workflow code sees of the world: steps, durable timers, and a clock and dice that replay repeats."""

from __future__ import annotations

import asyncio
import logging
import random
import uuid
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, cast, overload

from rayflow.core import options
from rayflow.core.batch import BatchResult
from rayflow.core.definitions import BoundStep, Step
from rayflow.core.entity import Call, Entity
from rayflow.core.futures import Operation
from rayflow.core.instance import CallRequest, Instance, ReplayLogger, StepRequest, WaitRequest
from rayflow.core.map_arguments import MapArguments
from rayflow.core.mapping import StepMap
from rayflow.core.mistakes import mistaken
from rayflow.core.passing import Gathering, Passed, Place, Source, encoded, fingerprint_with
from rayflow.core.proxy import EntityProxy, Outgoing, proxy_of
from rayflow.errors import InvalidInput

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
E = TypeVar("E", bound=Entity[Any])

_log = logging.getLogger("rayflow.workflow")
_OF_FUTURES = frozenset(
    ["done", "cancelled", "exception", "cancel", "close", "get_loop", "add_done_callback", "remove_done_callback"]
)

if TYPE_CHECKING:

    class Pending(asyncio.Future[R], Coroutine[Any, Any, R]):
        """What a context returns, for type checkers: a future, of which ``create_task`` in a workflow makes a task as well."""


class Context:
    """The first argument of every workflow. Belongs to one execution and is used from its code only.

    Each call of ``step``, ``map`` and ``wait`` reserves the operation's identity at once, before any await, so that concurrent
    branches do not shift each other: scope, name, and ``key`` or else the ordinal of that name in that scope.
    """

    def __init__(self, instance: Instance, scope: str = "") -> None:
        self._instance = instance
        self._scope = scope

    @property
    def execution_id(self) -> str:
        """The id of this execution."""
        return self._instance.execution

    @property
    def logger(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger that names the execution and is silent during replay: each line appears once, where the program waits."""
        return ReplayLogger(_log, self._instance)

    def now(self) -> datetime:
        """The time, UTC, of the event that the code is reacting to; the same on every replay."""
        return datetime.fromtimestamp(self._instance.now_ms / 1000, UTC)

    @property
    def random(self) -> random.Random:
        """Random numbers that replay repeats."""
        return self._instance.random

    def uuid4(self) -> uuid.UUID:
        """A random UUID that replay repeats."""
        return self._instance.uuid4()

    def scope(self, name: str) -> Context:
        """A context whose operations are named below ``name``: for code that is used in several places of a workflow."""
        return Context(self._instance, self._instance.reserve(self._scope, _checked(name), None) + "/")

    @overload
    def step(
        self, step: Step[P, Coroutine[Any, Any, R]] | BoundStep[P, Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Pending[R]: ...
    @overload
    def step(self, step: Step[P, R] | BoundStep[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Pending[R]: ...
    @overload
    def step(
        self,
        step: Step[Concatenate[T, P], Coroutine[Any, Any, R]] | BoundStep[Concatenate[T, P], Coroutine[Any, Any, R]],
        first: Pending[T],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Pending[R]: ...
    @overload
    def step(
        self,
        step: Step[Concatenate[T, P], R] | BoundStep[Concatenate[T, P], R],
        first: Pending[T],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Pending[R]: ...
    @overload
    def step(
        self,
        step: Step[..., Coroutine[Any, Any, R]] | BoundStep[..., Coroutine[Any, Any, R]],
        first: Any,
        second: Pending[Any],
        /,
        *args: Any,
        **kwargs: Any,
    ) -> Pending[R]: ...
    @overload
    def step(
        self,
        step: Step[..., R] | BoundStep[..., R],
        first: Any,
        second: Pending[Any],
        /,
        *args: Any,
        **kwargs: Any,
    ) -> Pending[R]: ...
    def step(self, step: Any, /, *args: Any, **kwargs: Any) -> Pending[Any]:
        """Run a step; await the result.

        The step starts once the request and all that the code saw before are durable. It runs at least once (at most once on
        request) and never again after its result is recorded. The result is what the codec reads back, on the first run too.

        An argument may be what another ``ctx.step`` returned, not awaited: then this step starts once that one is done, and gets
        its result from where that is stored. A large value goes from step to step so without passing through this process; where
        the code awaits it as well, it is read. If that step fails, this one fails with the same error and does not run; if this
        one is given up, that one goes on.

        Raises (when awaited):
            StepFailed: The step failed for good; StepTimedOut and StepLost say how. It is also of the type that the step raised,
                with its attributes and ``__cause__``, where that can be imported: ``except FileNotFoundError`` catches it as well.
        Raises (at once):
            InvalidInput: Not a step, an argument cannot be stored, or the key was used before.
        """
        bound = _bound(step)
        instance = self._instance
        sources = _sources(instance, args, kwargs)
        if sources:
            args = tuple(None if place in sources else one for place, one in enumerate(args))
            kwargs = {name: None if name in sources else one for name, one in kwargs.items()}
        own, fingerprint, parts = encoded(args, kwargs, instance.blobs)
        function = instance.values.describe(bound.step.function)
        operation = instance.reserve(self._scope, _checked(bound.settings.name), bound.key)
        future = instance.future()
        future.name = operation
        if not sources:
            instance.request(StepRequest(operation, bound.settings, function, own, fingerprint, parts=parts), future)
            future.on_cancel = partial(instance.abandon, operation)
            return cast("Pending[Any]", future)
        fingerprint = fingerprint_with(fingerprint, sources)

        def ask(passed: Passed) -> None:
            request = StepRequest(operation, bound.settings, function, own, fingerprint, parts=(*parts, *passed))
            instance.request(request, future)

        gathering = Gathering(sources, ask, future.fail_with)

        def give_up() -> None:
            gathering.drop()
            instance.abandon(operation)

        future.on_cancel = give_up
        return cast("Pending[Any]", future)

    def wait(self, duration: float | timedelta, *, name: str = "wait") -> Pending[None]:
        """Sleep durably for ``duration`` (seconds or timedelta): across restarts, holding no process."""
        seconds = duration.total_seconds() if isinstance(duration, timedelta) else duration
        if not options.is_number(seconds) or not 0 <= seconds <= options.LONGEST_S:
            raise InvalidInput(
                f"ctx.wait({options.shown(duration)}): the duration is a timedelta, or a number of seconds, from 0 to "
                f"{options.LONGEST_S} seconds, a thousand years"
            )
        instance = self._instance
        operation = instance.reserve(self._scope, _checked(name), None)
        future = instance.future()
        due_ms = instance.now_ms + round(seconds * 1000)
        instance.request(WaitRequest(operation, name, due_ms, f"{seconds}s"), future)
        future.on_cancel = partial(instance.abandon, operation)
        return cast("Pending[None]", future)

    def entity(self, entity: type[E], key: str) -> E:
        """An entity, for calls (await them) and signals. Each message is handled exactly once, in the order in which it was sent.

        Await ``ctx.entity(Counter, "hits").increment(2)`` for its result; ``ctx.entity(Counter, "hits").signal.increment(2)`` sends
        one way. An operation that raises fails the call with OperationFailed, which is also of the type that it raised.
        """
        return cast("E", proxy_of(entity, key, self._send))

    def lock(self, *entities: Entity[Any]) -> AbstractAsyncContextManager[None]:
        """Have entities for this workflow alone: ``async with ctx.lock(a, b):`` with ``a = ctx.entity(Account, "a")``.

        In the block nobody else's message reaches them; it waits until the lock is free, in order. Locks are taken one after the
        other in the order of their addresses, so that no two workflows ever wait for each other. They are given back at the end of
        the block, and when the workflow ends in any way.

        Raises InvalidInput: no entity of ``ctx.entity``, the same one twice, a block within a block. Within the block only locked
        entities may be called; signals go anywhere.
        """
        targets: dict[str, EntityProxy] = {}
        for one in cast("tuple[object, ...]", entities):
            if not isinstance(one, EntityProxy):
                raise InvalidInput(f"ctx.lock({one!r}): give what ctx.entity(Type, key) returns")
            if one.entity_address in targets:
                raise InvalidInput(f"ctx.lock: {one.entity_address} is given twice")
            targets[one.entity_address] = one
        if not targets:
            raise InvalidInput("ctx.lock(): name the entities to lock")
        return self._locked([targets[address] for address in sorted(targets)])

    @asynccontextmanager
    async def _locked(self, targets: list[EntityProxy]) -> AsyncGenerator[None]:
        instance = self._instance
        if instance.locked is not None:
            raise InvalidInput(
                f"locks are not nested: {', '.join(sorted(instance.locked))} is locked here already; lock all at once"
            )
        instance.locked = frozenset(one.entity_address for one in targets)
        asked: list[EntityProxy] = []
        try:
            for target in targets:
                request, future = self._lock_request("lock", target), instance.future()
                instance.request(request, future)
                future.on_cancel = partial(instance.abandon, request.operation)
                asked.append(target)
                await future
            yield
        finally:
            instance.locked = None
            for target in asked:
                instance.signal(self._lock_request("unlock", target))

    def _lock_request(self, kind: str, target: EntityProxy) -> CallRequest:
        instance, address = self._instance, target.entity_address
        operation = instance.reserve(self._scope, kind, None)
        function = instance.values.describe(target.entity_type.entity)
        return CallRequest(operation, f"{kind} {address}", address, function, "", b"", address, kind)

    def _send(self, sent: Outgoing) -> Call[Any]:
        instance, chosen = self._instance, sent.options
        if instance.locked is not None and sent.address not in instance.locked and not chosen.signal:
            locked = ", ".join(sorted(instance.locked))
            raise InvalidInput(f"{sent.address} is called inside a lock of {locked}: lock it, too, or call it outside")
        if chosen.message_id or chosen.timeout_s is not None:
            raise InvalidInput(
                f"{sent.address}: calls of workflows take neither message_id (each is handled exactly once as it is) nor timeout "
                f"(use asyncio.timeout)"
            )
        name = f"{sent.kind.name}.{sent.operation}"
        operation = instance.reserve(self._scope, name, None)
        function = instance.values.describe(sent.kind.entity)
        kind = "signal" if chosen.signal else "call"
        fingerprint = f"{sent.address} {sent.fingerprint}"
        request = CallRequest(
            operation, name, sent.address, function, sent.operation, sent.arguments, fingerprint, kind, sent.due_ms(instance.now_ms)
        )
        future = instance.future()
        if chosen.signal:
            instance.signal(request)
            future.succeed(None)
        else:
            instance.request(request, future)
            future.on_cancel = partial(instance.abandon, operation)
        return _Awaited(future, f"{name} of {sent.address}")

    @overload
    def map(
        self,
        step: Step[..., Coroutine[Any, Any, R]] | BoundStep[..., Coroutine[Any, Any, R]],
        items: Iterable[T | Pending[T]] | Pending[BatchResult[T]],
        /,
        *args: Any,
        key: Callable[[T], str] | None = None,
        max_concurrency: int | None = None,
    ) -> Pending[BatchResult[R]]: ...
    @overload
    def map(
        self,
        step: Step[..., R] | BoundStep[..., R],
        items: Iterable[T | Pending[T]] | Pending[BatchResult[T]],
        /,
        *args: Any,
        key: Callable[[T], str] | None = None,
        max_concurrency: int | None = None,
    ) -> Pending[BatchResult[R]]: ...
    def map(
        self,
        step: Step[..., Any] | BoundStep[..., Any],
        items: Iterable[T | Pending[T]] | Pending[BatchResult[T]],
        /,
        *args: Any,
        key: Callable[[T], str] | None = None,
        max_concurrency: int | None = None,
    ) -> Pending[BatchResult[Any]]:
        """Run ``step(item, *args)`` for every item, at most ``max_concurrency`` (default: all) at a time, in order.

        Each item is an operation of its own, named by ``key(item)`` (default: its index), with its own attempts; items that are
        done stay done. A failed item does not stop the others: see BatchResult.

        ``items`` may be what another ``ctx.map`` returned, not awaited: then each item starts once the one that it comes from is
        done, under the same key. Single items and ``args`` may be what ``ctx.step`` returned, as in ``step``.
        """
        bound = _bound(step)
        if max_concurrency is not None:
            options.check(f"ctx.map of step {bound.settings.name}", "max_concurrency", max_concurrency, options.COUNT)
        values: list[Any]
        if isinstance(items, Operation):
            values, keys = self._results_of(items, bound, key)
        else:
            values = list(cast("Iterable[Any]", items))
            keys = [str(index) for index in range(len(values))] if key is None else [str(key(item)) for item in values]
            values = [self._instance.source(one) if isinstance(one, Operation) else one for one in values]
        if len(set(keys)) != len(keys):
            twice = next(one for one in keys if keys.count(one) > 1)
            raise InvalidInput(f"ctx.map({bound.settings.name}): key {twice!r} names two items; keys must be unique")
        args = tuple(self._instance.source(one) if isinstance(one, Operation) else one for one in args)
        arguments = MapArguments(values, args, self._instance.blobs)
        function = self._instance.values.describe(bound.step.function)
        scope = self._instance.reserve(self._scope, _checked(bound.settings.name), bound.key) + "/"
        width = max_concurrency or max(len(values), 1)
        under_way = StepMap(self._instance, bound, function, scope, keys, arguments, width)
        return cast("Pending[BatchResult[Any]]", under_way.future)

    def _results_of(self, pending: Operation, bound: BoundStep[..., Any], key: object) -> tuple[list[Any], list[str]]:
        """The items of a map whose results are those of another map, and their keys: they are the same."""
        if pending.items is None:
            raise InvalidInput(f"ctx.map({bound.settings.name}): the items are a list, or what ctx.map returned")
        if key is not None:
            raise InvalidInput(
                f"ctx.map({bound.settings.name}): the items have the keys of the map that they come from; leave key out"
            )
        self._instance.check_own(pending)
        sources = pending.items()
        return list(sources.values()), list(sources)


class _Awaited(Call[Any]):
    """A call of a workflow. ``asyncio.wait`` takes it for a future; whatever else waits for it makes a task of it first."""

    __slots__ = ("_description", "_future")

    def __init__(self, future: Operation, description: str) -> None:
        self._future = future
        self._description = description

    def __getattr__(self, name: str) -> Any:
        if name in _OF_FUTURES:
            return getattr(self._future, name)
        raise AttributeError(f"{self._description} has no attribute {name!r}", name=name, obj=self)

    def result(self, timeout: float | None = None) -> Any:
        if not self._future.done():
            raise RuntimeError(f"{self._description}: a workflow does not block: write 'await' in place of '.result()'")
        return self._future.result()

    def __await__(self) -> Generator[Any, None, Any]:
        return self._future.__await__()

    def __hash__(self) -> int:
        return hash(self._future)


def _sources(instance: Instance, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[Place, Source]:
    """Which of the arguments are still to come."""
    found: dict[Place, Source] = {}
    for place, one in enumerate(args):
        if isinstance(one, Operation):
            found[place] = instance.source(one)
    if kwargs:
        for name, one in kwargs.items():
            if isinstance(one, Operation):
                found[name] = instance.source(one)
    return found


def _bound(step: object) -> BoundStep[..., Any]:
    if isinstance(step, BoundStep):
        return cast("BoundStep[..., Any]", step)
    if isinstance(step, Step):
        plain = cast("Step[..., Any]", step)
        return BoundStep(plain, plain.settings, None)
    raise mistaken(step, "step")


def _checked(name: str) -> str:
    options.check("an operation", "name", name, options.NAME)
    return name
