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
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, Concatenate, Generic, ParamSpec, Protocol, Self, TypeVar, cast, get_args, get_origin, overload

from rayflow.core import codec
from rayflow.core.options import COUNT, check, is_number, shown
from rayflow.errors import InvalidInput

S = TypeVar("S")
V = TypeVar("V")
P = ParamSpec("P")
R = TypeVar("R")
E = TypeVar("E", bound="Entity[Any]")


class Call(ABC, Generic[R]):
    """A message on its way to an entity. ``await call`` and ``call.result()`` give the same."""

    __slots__ = ()

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

    __slots__ = ("_send",)

    def __init__(self, send: Callable[[tuple[Any, ...], dict[str, Any]], Call[R]]) -> None:
        self._send = send

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Call[R]:
        return self._send(args, kwargs)


class EntityOperation(Generic[P, R]):
    """What ``@rayflow.operation`` and ``@rayflow.query`` make of a method."""

    def __init__(self, function: Callable[..., Any], *, reads_only: bool) -> None:
        name = getattr(function, "__name__", repr(function))
        if not inspect.isfunction(function):
            raise InvalidInput(
                f"{shown(function)} is no method: write @rayflow.operation or @rayflow.query, without arguments, above a 'def'"
            )
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

    def remind(self, name: str, due_ms: int, every_ms: int) -> None: ...

    def destroy(self) -> None: ...

    def emit(self, event: bytes) -> None: ...


class Migration:
    """What ``@rayflow.migrate`` makes of a function."""

    def __init__(self, function: Callable[[Any], Any], from_version: int) -> None:
        self.function = function
        self.from_version = from_version


def migrate(*, from_version: int) -> Callable[[Callable[[Any], Any]], Migration]:
    """Make a function of an entity's class turn the state of ``from_version`` into that of the next version.

    It takes one argument, the state: a dict of its fields where it was a dataclass, Struct or NamedTuple, else the value itself. It
    returns the same of the next version, or the state itself. It runs whenever such a state is read; what it returns is stored with
    the entity's next change.

    Write it without ``self``, for it belongs to the class; a @staticmethod below is not needed.
    """

    check("@rayflow.migrate", "from_version", from_version, COUNT)

    def make(function: Callable[[Any], Any]) -> Migration:
        return Migration(function, from_version)

    return make


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
        return self._turn("send a signal").entity(entity, key)

    def remind(
        self,
        name: str,
        *,
        after: float | timedelta | None = None,
        at: datetime | None = None,
        every: float | timedelta | None = None,
    ) -> None:
        """Have ``reminded(name, missed)`` called later: ``after`` seconds or ``at`` a time, then ``every`` so many seconds.

        A reminder is stored with the entity and lasts until it is due for the last time, or ``forget_reminder``. One of the same
        name is replaced. After a time when nothing ran it comes once, with the number of times that it was missed.

        Raises InvalidInput: both of after and at, or none of the three; a negative time, one without zone; ``every`` below 0.001 s;
        a class without a method ``reminded``.
        """
        if type(self).reminded is Entity.reminded:
            raise InvalidInput(f"{type(self).__name__} has no method reminded(self, name, missed), so it cannot be reminded")
        if not isinstance(name, str) or not name or name.startswith("@") or not name.isprintable():  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidInput(f"a reminder cannot be named {name!r}: it is empty, begins with @, or cannot be printed")
        scope = self._turn("set a reminder")
        every_ms = 0 if every is None else _milliseconds("every", every, least_ms=1)
        if (after is not None and at is not None) or (after is None and at is None and every is None):
            raise InvalidInput(f"remind({name!r}): say when it is due first: after or at, or only every")
        if at is not None:
            due_ms = timestamp_ms(at)
        else:
            due_ms = scope.now_ms + (every_ms if after is None else _milliseconds("after", after, least_ms=0))
        scope.remind(name, max(due_ms, 1), every_ms)

    def forget_reminder(self, name: str) -> None:
        """Remove a reminder; there need not be one."""
        self._turn("forget a reminder").remind(name, 0, 0)

    def reminded(self, name: str, missed: int) -> None:
        """What to do when a reminder is due; a turn like any other. ``missed``: how often it was due before, unnoticed."""

    def _turn(self, purpose: str) -> TurnScope:
        if self._scope is None:
            raise InvalidInput(f"{type(self).__name__}/{self.key} handles no message just now, so it cannot {purpose}")
        return self._scope

    def now(self) -> datetime:
        """When the present message is handled, UTC."""
        return datetime.fromtimestamp((0 if self._scope is None else self._scope.now_ms) / 1000, UTC)

    def options(
        self, *, message_id: str | None = None, timeout: float | None = None, at: datetime | timedelta | None = None
    ) -> Self:
        """For proxies: the same entity with settings for the calls made through it.

        Args:
            message_id: A name for this message. Sent again under the same name it does not run again: the answer is the recorded
                one. With other arguments it is refused.
            timeout: Seconds after which waiting for the answer ends with TimeoutError; the message may still be handled.
            at: For signals: not to be handled before this time (with a time zone), or before this much time has passed.
        """
        return self

    @property
    def signal(self) -> Self:
        """For proxies: send one way. The call is done once the message is durable; its result is None."""
        return self

    @operation
    def destroy(self) -> None:
        """End this entity in one step: its state, its reminders and what was sent to be handled later are gone.

        The next message makes a new one. Answers to messages with ids are kept for their window all the same, so that a message
        which comes again does not.
        """
        self._turn("end").destroy()


class EventSourcedEntity(Entity[S], Generic[S, V]):
    """An entity whose state follows from its events: ``class Cart(rayflow.EventSourcedEntity[CartState, CartEvent])``.

    Operations do not touch the state; they ``emit`` events, and ``apply`` makes the next state of each. The log holds the events,
    so that a change costs its event and not the whole state, and the history stays readable (``client.events``). A copy of the
    state is stored beside every hundredth event, so that few have to be applied again when the entity comes back.
    """

    def apply(self, state: S, event: V) -> S:
        """The state after ``event``. Pure: it uses its arguments alone, for it runs again whenever the entity comes back."""
        raise NotImplementedError(f"{type(self).__name__} has no method apply(self, state, event)")

    def emit(self, event: V) -> None:
        """Record an event with this turn and apply it to the state at once. Raises CodecError if it cannot be stored."""
        scope = self._turn("emit an event")
        scope.emit(codec.encode(event, label="event"))
        self.state = self.apply(self.state, event)


def timestamp_ms(at: datetime) -> int:
    """Milliseconds since 1970, UTC. Raises InvalidInput for a time without a zone, which means another one on every machine."""
    if not isinstance(at, datetime):  # pyright: ignore[reportUnnecessaryIsInstance]  # users are not all typed
        raise InvalidInput(f"at={shown(at)} is no time: write datetime.now(UTC) + timedelta(...)")
    if at.tzinfo is None:
        raise InvalidInput(f"{at!r} has no time zone; write datetime.now(UTC) + timedelta(...), or give it its zone")
    return round(at.timestamp() * 1000)


def _milliseconds(name: str, value: float | timedelta, least_ms: int) -> int:
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if not is_number(seconds) or not least_ms <= seconds * 1000 <= 10**15:
        raise InvalidInput(f"{name}={shown(value)} is no number of seconds from {least_ms / 1000} on")
    return round(seconds * 1000)


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
