"""What a class says about its entities: their name in the store, operations, versions of the state, and how one is made."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

from rayflow.core import codec
from rayflow.core.entity import Entity, EntityOperation, EventSourcedEntity, Migration, state_type
from rayflow.core.mistakes import mistaken
from rayflow.core.options import COUNT, PAUSE, check, shown
from rayflow.core.recent import Recent
from rayflow.core.records import Function, Stored
from rayflow.errors import EntityUnreadable, InvalidInput


class EntityType:
    """What a class says about its entities. Raises InvalidInput for a class that cannot serve."""

    def __init__(self, entity: type[Entity[Any]]) -> None:
        self.entity = entity
        self.name = entity.__dict__.get("entity_type") or entity.__name__
        if not isinstance(self.name, str) or not self.name.isidentifier():
            raise InvalidInput(f"{entity.__name__}: entity_type = {self.name!r} is not a name: use letters, digits and underscores")
        self.operations: dict[str, EntityOperation[..., Any]] = {
            name: found for name, found in inspect.getmembers_static(entity) if isinstance(found, EntityOperation)
        }
        self._migrations = {
            found.from_version: found for _, found in inspect.getmembers_static(entity) if isinstance(found, Migration)
        }
        check(entity.__name__, "state_version", entity.state_version, COUNT)
        check(entity.__name__, "message_window_s", entity.message_window_s, PAUSE)
        if any(not 1 <= version < entity.state_version for version in self._migrations):
            raise InvalidInput(
                f"{entity.__name__}: state_version is {entity.state_version}, with migrations from {sorted(self._migrations)}: "
                f"versions count from 1, and migrations lead from lower ones"
            )
        if len(self.operations) == 1:  # destroy, which all have
            raise InvalidInput(f"{entity.__name__} has no operation: put @rayflow.operation or @rayflow.query above its methods")
        self.event_sourced = issubclass(entity, EventSourcedEntity)
        self.state_version = entity.state_version
        self.message_window_ms = round(entity.message_window_s * 1000)
        state_type(entity)

    def read_state(self, address: str, data: bytes, version: int) -> Any:
        """A stored state, brought to the present version. Raises EntityUnreadable."""
        try:
            if version == self.state_version:
                return codec.decode(data)
            state = codec.decode_fields(data)
            for step in range(version, self.state_version):
                state = self._migrations[step].function(state)
            kind = state_type(self.entity)
            return kind(**cast("dict[str, Any]", state)) if isinstance(state, dict) and kind is not dict else cast("Any", state)
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            if isinstance(error, KeyError) and version != self.state_version:
                why = f"there is no @rayflow.migrate(from_version={error}) in {self.entity.__name__}"
            raise EntityUnreadable(
                f"{address} has a state of version {version}, which {self.entity.__name__} (state_version {self.state_version}) "
                f"cannot read: {why}. Nothing is lost: bring code that reads it, or end the entity with destroy()"
            ) from error

    def replayed(self, address: str, data: bytes | None, version: int, events: Sequence[bytes]) -> Entity[Any]:
        """An event-sourced entity after ``events``, the first of which follows the state in ``data``. Raises EntityUnreadable."""
        key = address.partition("/")[2]
        try:
            instance = self.entity(key) if data is None else self.restored(key, self.read_state(address, data, version))
            sourced = cast("EventSourcedEntity[Any, Any]", instance)
            for event in events:
                sourced.state = sourced.apply(sourced.state, codec.decode(event))
        except EntityUnreadable:
            raise
        except Exception as error:
            raise EntityUnreadable(
                f"{address} has an event that {self.entity.__name__} cannot apply ({type(error).__name__}: {error}). "
                f"Nothing is lost: bring code that does, or end the entity with destroy()"
            ) from error
        return instance

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


class EntityCode(Protocol):
    """How stored values and classes are found again."""

    def decode(self, stored: Stored) -> Any:
        """The value, read from its blob where it is one."""
        ...

    def describe(self, function: Callable[..., Any]) -> Function:
        """A class as another process can find it."""
        ...

    def entity(self, function: Function) -> EntityType:
        """Raises InvalidInput where the class cannot be loaded."""
        ...


_types: Recent[type[Entity[Any]], EntityType] = Recent(1000)


def type_of(entity: object) -> EntityType:
    """The EntityType of a class, made once. Raises InvalidInput for what is no entity."""
    if not (isinstance(entity, type) and issubclass(entity, Entity)):
        raise mistaken(cast("object", entity), "entity")
    kind = cast("type[Entity[Any]]", entity)
    found = _types.get(kind)
    if found is None:
        found = _types.put(kind, EntityType(kind))
    return found


def address_of(entity_type: str, key: str) -> str:
    """How an entity is named in the store: ``Type/key``."""
    if not isinstance(key, str):  # pyright: ignore[reportUnnecessaryIsInstance]  # users are not all typed
        raise InvalidInput(f"key {shown(key)} of {entity_type} is no text: write str(...) around it")
    if not key or len(key) > 200 or not key.isprintable():
        raise InvalidInput(f"key {key!r} is empty, longer than 200 characters, or has characters that cannot be printed")
    return f"{entity_type}/{key}"
