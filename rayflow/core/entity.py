"""What a user defines: entities, that is virtual actors, addressed by type and key.

An entity has a typed state of its own, *operations* that change it and *queries* that only look at it. One message is handled at a
time, as one atomic turn. An operation is a plain function of the state and its arguments: it may raise, and then nothing of what it
did counts; it is never run again for a recovery, so it need not be deterministic.

A class can be tried out with nothing running: ``Counter("hits").increment(2).result()``.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from datetime import UTC, datetime
from typing import Any, ClassVar, Concatenate, Generic, ParamSpec, Protocol, Self, TypeVar, cast, get_args, get_origin, overload

from rayflow.errors import InvalidInput

S = TypeVar("S")
P = ParamSpec("P")
R = TypeVar("R")
E = TypeVar("E", bound="Entity[Any]")


class Call(ABC, Generic[R]):
    """A message on its way to an entity. ``await call`` and ``call.result()`` give the same."""

    @abstractmethod
    def result(self, timeout: float | None = None) -> R:
        """Wait for the answer, at most ``timeout`` seconds. Raises what the operation raised, as OperationFailed."""

    @abstractmethod
    def __await__(self) -> Generator[Any, None, R]: ...


class _Done(Call[R]):
    """The answer of an entity that was called as a plain object."""

    def __init__(self, value: R) -> None:
        self._value = value

    def result(self, timeout: float | None = None) -> R:
        return self._value

    def __await__(self) -> Generator[Any, None, R]:
        return self._value
        yield


def done(value: R) -> Call[R]:
    """A call that has been answered."""
    return _Done(value)


class BoundOperation(Generic[P, R]):
    """An operation of one entity: call it with its arguments."""

    def __init__(self, send: Callable[[tuple[Any, ...], dict[str, Any]], Call[R]]) -> None:
        self._send = send

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Call[R]:
        return self._send(args, kwargs)


class EntityOperation(Generic[P, R]):
    """What ``@rayflow.operation`` and ``@rayflow.query`` make of a method."""

    def __init__(self, function: Callable[..., Any], *, reads_only: bool) -> None:
        name = getattr(function, "__name__", repr(function))
        if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise InvalidInput(
                f"{name}: an operation of an entity is a plain function, one turn without waiting; what takes time or waits "
                f"belongs into a step or a workflow"
            )
        self.function = function
        self.name = name
        self.reads_only = reads_only
        self._signature = inspect.signature(function)
        self._shapes: set[tuple[int, tuple[str, ...]]] = set()
        self.__doc__ = function.__doc__

    def check_arguments(self, entity: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raises InvalidInput for arguments that the operation does not take. Types are not looked at."""
        shape = (len(args), tuple(kwargs))  # whether arguments can be bound depends on nothing else
        if shape in self._shapes:
            return
        try:
            self._signature.bind(None, *args, **kwargs)
        except TypeError as error:
            parameters = ", ".join(str(one) for one in list(self._signature.parameters.values())[1:])
            raise InvalidInput(f"{entity}: {self.name}({parameters}) does not take these arguments: {error}") from error
        self._shapes.add(shape)

    @overload
    def __get__(self, instance: None, owner: type) -> EntityOperation[P, R]: ...
    @overload
    def __get__(self, instance: Entity[Any], owner: type) -> BoundOperation[P, R]: ...
    def __get__(self, instance: Entity[Any] | None, owner: type) -> EntityOperation[P, R] | BoundOperation[P, R]:
        if instance is None:
            return self
        return BoundOperation(lambda args, kwargs: _Done(cast("R", self.function(instance, *args, **kwargs))))


def operation(function: Callable[Concatenate[Any, P], R], /) -> EntityOperation[P, R]:
    """Make a method an operation: a message that may change the entity's state, handled as one atomic turn.

    It runs once per message; what it raises is recorded as its result, and its changes are dropped.
    """
    return EntityOperation(function, reads_only=False)


def query(function: Callable[Concatenate[Any, P], R], /) -> EntityOperation[P, R]:
    """Make a method a query: it sees the state after all that was answered before, records nothing and must change nothing."""
    return EntityOperation(function, reads_only=True)


class TurnScope(Protocol):
    """What an entity can reach while it handles a message."""

    now_ms: int

    def entity(self, entity: type[E], key: str) -> E: ...


class Entity(Generic[S]):
    """Base of all entities: ``class Counter(rayflow.Entity[CounterState])``.

    The state of a new entity is ``CounterState()``; override ``initial`` for another. The type is known in the store by the name of
    the class; set ``entity_type`` to rename the class and keep the entities. ``__init__`` is called for new entities only; what is
    to last belongs into the state.

    Attributes:
        key: Which one of its type this is.
        state: Its state, of a type that can be stored (see ``rayflow.core.codec``). Operations change it in place or replace it.
        state_version: Version of the state's form; raise it when the form changes, see ``migrate``.
        message_window_s: How long the answer to a message with an id is kept at least, in seconds.
    """

    entity_type: ClassVar[str] = ""
    state_version: ClassVar[int] = 1
    message_window_s: ClassVar[float] = 3600.0

    state: S

    def __init__(self, key: str = "") -> None:
        self.key = key
        self._scope: TurnScope | None = None
        self.state = self.initial()

    def initial(self) -> S:
        """The state of an entity that has had no message yet."""
        kind = state_type(type(self))
        try:
            return cast("S", kind())
        except TypeError as error:
            raise InvalidInput(
                f"{type(self).__name__}: {kind.__name__}() does not work ({error}); give its fields defaults or override initial()"
            ) from error

    def entity(self, entity: type[E], key: str) -> E:
        """Another entity, for signals: ``self.entity(Audit, "log").signal.add(...)``.

        A signal leaves if and when this turn counts, and is handled exactly once. Entities do not call each other: so no circle of
        calls can ever wait for itself.

        Raises InvalidInput where nothing is handled just now: there is no turn that it could belong to.
        """
        if self._scope is None:
            raise InvalidInput(f"{type(self).__name__}/{self.key} handles no message just now, so it cannot send one")
        return self._scope.entity(entity, key)

    def now(self) -> datetime:
        """When the present message is handled, UTC."""
        return datetime.fromtimestamp((0 if self._scope is None else self._scope.now_ms) / 1000, UTC)

    def options(self, *, message_id: str | None = None, timeout: float | None = None) -> Self:
        """For proxies: the same entity with settings for the calls made through it.

        Args:
            message_id: A name for this message. Sent again under the same name it does not run again: the answer is the recorded
                one. With other arguments it is refused.
            timeout: Seconds after which waiting for the answer ends with TimeoutError; the message may still be handled.
        """
        return self

    @property
    def signal(self) -> Self:
        """For proxies: send one way. The call is done once the message is durable; its result is None."""
        return self


def state_type(entity: type[Entity[Any]]) -> type[Any]:
    """The ``State`` of ``class Own(Entity[State])``. Raises InvalidInput where there is none."""
    for kind in entity.__mro__:
        for base in getattr(kind, "__orig_bases__", ()):
            origin = get_origin(base)
            if isinstance(origin, type) and issubclass(origin, Entity):
                found = get_args(base)[0]
                if isinstance(found, type):
                    return found
                if isinstance(get_origin(found), type):  # dict[str, int] and the like
                    return cast("type[Any]", get_origin(found))
    raise InvalidInput(f"{entity.__name__}: name the type of its state: class {entity.__name__}(rayflow.Entity[State])")


class EntityType:
    """What a class says about its entities. Raises InvalidInput for a class that cannot serve."""

    def __init__(self, entity: type[Entity[Any]]) -> None:
        self.entity = entity
        self.name = entity.__dict__.get("entity_type") or entity.__name__
        if not self.name.isidentifier():
            raise InvalidInput(f"{entity.__name__}: entity_type = {self.name!r} is not a name: use letters, digits and underscores")
        self.operations: dict[str, EntityOperation[..., Any]] = {
            name: found for name, found in inspect.getmembers_static(entity) if isinstance(found, EntityOperation)
        }
        if not self.operations:
            raise InvalidInput(f"{entity.__name__} has no operation: put @rayflow.operation or @rayflow.query above its methods")
        self.state_version = entity.state_version
        self.message_window_ms = round(entity.message_window_s * 1000)
        state_type(entity)

    def restored(self, key: str, state: Any) -> Entity[Any]:
        """An entity with this state; nothing of the class's own code runs."""
        instance = object.__new__(self.entity)
        instance.key, instance.state = key, state
        instance._scope = None  # pyright: ignore[reportPrivateUsage]
        return instance

    def operation(self, name: str) -> EntityOperation[..., Any]:
        """An operation or query by name. Raises InvalidInput where there is none."""
        found = self.operations.get(name)
        if found is None:
            raise InvalidInput(f"{self.name} has no operation {name!r}; it has {', '.join(sorted(self.operations))}")
        return found


_types: dict[type[Entity[Any]], EntityType] = {}


def type_of(entity: object) -> EntityType:
    """The EntityType of a class, made once. Raises InvalidInput for what is no entity."""
    if not (isinstance(entity, type) and issubclass(entity, Entity)):
        raise InvalidInput(f"{entity!r} is no entity: write class Name(rayflow.Entity[State])")
    kind = cast("type[Entity[Any]]", entity)
    found = _types.get(kind)
    if found is None:
        found = _types[kind] = EntityType(kind)
    return found


def address_of(entity_type: str, key: str) -> str:
    """How an entity is named in the store: ``Type/key``."""
    if not key or len(key) > 200 or not key.isprintable():
        raise InvalidInput(f"key {key!r} is empty, longer than 200 characters, or has characters that cannot be printed")
    return f"{entity_type}/{key}"
