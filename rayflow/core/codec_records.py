"""How the codec takes apart and rebuilds values with named fields, and enum members.

A *record* is a dataclass, a ``msgspec.Struct`` or a NamedTuple; it is stored as its type's reference and its fields
by name, so its class may change between writing and reading:

- a field added with a default: old data get the default;
- a field removed, or added without a default: CodecError, for either guess would be a wrong value;
- the class may change its kind (a dataclass may become a Struct), for the stored form is the same.

Rebuilding restores the stored fields exactly. A dataclass is made without its ``__init__``; if it has a
``__post_init__``, that runs (for what it derives beside the fields) and then the stored fields are set again. Nothing
but these types is ever built.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, cast

import msgspec

from rayflow.core.code_reference import reference_of, resolve
from rayflow.errors import CodecError, InvalidInput

_OR_PICKLED = "Or wrap the value in rayflow.Pickled."
_HEAP_TYPE_FLAG = 1 << 9  # Py_TPFLAGS_HEAPTYPE of CPython: set for classes made by Python code.


@dataclasses.dataclass(frozen=True, slots=True)
class RecordPlan:
    """What there is to know about one record type, found out once.

    ``optional`` maps the fields that old data may lack to what makes their default, or to None where the type itself
    fills them in. ``keeps_dict`` tells that instances may carry attributes that are no fields.
    """

    kind: type[Any]
    reference: str
    names: tuple[str, ...]
    name_set: frozenset[str]
    optional: Mapping[str, Callable[[], Any] | None]
    build: Callable[[dict[str, Any]], Any]
    keeps_dict: bool
    derives_attributes: bool


_record_plans: dict[type[Any], RecordPlan] = {}
_enum_references: dict[type[Any], str] = {}


def is_record(kind: type[Any]) -> bool:
    """Whether values of ``kind`` are stored field by field."""
    if issubclass(kind, enum.Enum):
        return False
    return dataclasses.is_dataclass(kind) or issubclass(kind, msgspec.Struct) or _is_named_tuple(kind)


def record_plan(kind: type[Any]) -> RecordPlan:
    """The plan of a type for which ``is_record`` holds. Raises CodecError if its instances cannot be stored."""
    plan = _record_plans.get(kind)
    if plan is None:
        if issubclass(kind, msgspec.Struct):
            plan = _struct_plan(kind)
        elif _is_named_tuple(kind):
            plan = _named_tuple_plan(kind)
        else:
            plan = _dataclass_plan(kind)
        _record_plans[kind] = plan
    return plan


def refuse_lost_attributes(plan: RecordPlan, value: Any) -> None:
    """Raise CodecError if ``value`` carries attributes that are no fields, which would be lost in silence."""
    if plan.derives_attributes:
        return
    for name in value.__dict__:
        # A generic alias that was called leaves __orig_class__; a cached property is computed again.
        if name in plan.name_set or name == "__orig_class__":
            continue
        if not isinstance(inspect.getattr_static(plan.kind, name, None), functools.cached_property):
            raise CodecError(
                f"attribute {name!r} of {plan.reference} is no field and would be lost. Declare it as a field "
                "(init=False if it is not for the constructor), or set it in __post_init__."
            )


def build_record(reference: str, stored: dict[str, Any]) -> Any:
    """The record of the type that ``reference`` names, with the ``stored`` fields and defaults for those that are new.

    Raises CodecError if the type cannot be found or is no record, or if its fields do not fit.
    """
    kind = _resolve_type(reference)
    plan = _record_plans.get(kind)
    if plan is None:
        if not is_record(kind):
            raise CodecError(f"{reference} is not a dataclass, Struct or NamedTuple, so a stored value of it is not built.")
        plan = record_plan(kind)
    if tuple(stored) != plan.names:
        stored = _fit(reference, plan, stored)
    try:
        return plan.build(stored)
    except CodecError:
        raise
    except Exception as error:
        raise CodecError(
            f"{reference} refused its stored fields ({type(error).__name__}: {error}). "
            "Let its checks accept what was stored before."
        ) from error


def enum_payload(member: enum.Enum) -> list[Any]:
    """``[reference, name]`` of a member; of a flag ``[reference, number]``, for combinations have no name."""
    kind = type(member)
    reference = _enum_references.get(kind)
    if reference is None:
        reference = _enum_references[kind] = _own_reference(kind)
    if isinstance(member, enum.Flag):
        return [reference, member.value]
    return [reference, member.name]


def build_enum(reference: str, member: object) -> Any:
    """The member that ``enum_payload`` described. Raises CodecError if the type or the member is gone."""
    kind = _resolve_type(reference)
    if not issubclass(kind, enum.Enum):
        raise CodecError(f"{reference} is not an Enum, so a stored member of it is not built.")
    try:
        if issubclass(kind, enum.Flag) and type(member) is int:
            return kind(member)
        if isinstance(member, str):
            return kind[member]
    except (KeyError, ValueError):
        pass
    raise CodecError(f"{reference} has no member {member!r}, which is stored. Keep the member, or an alias of its name.")


def _resolve_type(reference: str) -> type[Any]:
    try:
        found = resolve(reference)
    except CodecError:
        raise
    except InvalidInput as error:
        raise CodecError(f"the type of a stored value cannot be found: {error}") from error
    if not isinstance(found, type):
        raise CodecError(f"{reference} is no longer a type, so a stored value of it is not built.")
    return cast("type[Any]", found)


def _own_reference(kind: type[Any]) -> str:
    try:
        reference = reference_of(kind)
    except InvalidInput as error:
        raise CodecError(f"a {kind.__qualname__} cannot be stored: {error} {_OR_PICKLED}") from error
    if resolve(reference) is not kind:
        raise CodecError(f"{reference} is hidden behind a decorator. Let the decorator return the class itself. {_OR_PICKLED}")
    return reference


def _fit(reference: str, plan: RecordPlan, stored: dict[str, Any]) -> dict[str, Any]:
    for name in stored:
        if name not in plan.name_set:
            raise CodecError(
                f"{reference} has no field {name!r}, which the stored value has. Keep the field (with a default), "
                "or give the changed type a new name."
            )
    fitted: dict[str, Any] = {}
    for name in plan.names:
        if name in stored:
            fitted[name] = stored[name]
        elif name not in plan.optional:
            raise CodecError(
                f"{reference} needs the field {name!r}, which the stored value does not have. Give the field a default."
            )
        elif (default := plan.optional[name]) is not None:
            fitted[name] = default()
    return fitted


def _is_named_tuple(kind: type[Any]) -> bool:
    return hasattr(kind, "_fields") and hasattr(kind, "_field_defaults") and issubclass(kind, tuple)


def _constant(value: Any) -> Callable[[], Any]:
    return lambda: value


def _has_dict(kind: type[Any]) -> bool:
    return kind.__dictoffset__ != 0


def _dataclass_plan(kind: type[Any]) -> RecordPlan:
    reference = _own_reference(kind)
    for base in kind.__mro__[:-1]:
        if not base.__flags__ & _HEAP_TYPE_FLAG:
            raise CodecError(
                f"{reference} is a dataclass that is also a {base.__name__}, whose content is no field. "
                f"Hold the {base.__name__} in a field. {_OR_PICKLED}"
            )
    post_init: Callable[[Any], None] | None = getattr(kind, "__post_init__", None)
    if post_init is not None and len(inspect.signature(post_init).parameters) > 1:
        raise CodecError(f"{reference} has an InitVar, whose value is not kept. Make it a field. {_OR_PICKLED}")
    fields = dataclasses.fields(kind)
    optional: dict[str, Callable[[], Any] | None] = {}
    for field in fields:
        if field.default is not dataclasses.MISSING:
            optional[field.name] = _constant(field.default)
        elif field.default_factory is not dataclasses.MISSING:
            optional[field.name] = field.default_factory
        elif post_init is not None and not field.init:
            optional[field.name] = None
    create = object.__new__
    assign = object.__setattr__  # Also where the class is frozen or has a __setattr__ of its own.

    def build(stored: dict[str, Any]) -> Any:
        value = create(kind)
        for name, item in stored.items():
            assign(value, name, item)
        return value

    def build_deriving(stored: dict[str, Any]) -> Any:
        value = build(stored)
        value.__post_init__()
        for name, item in stored.items():
            assign(value, name, item)
        return value

    return RecordPlan(
        kind=kind,
        reference=reference,
        names=tuple(field.name for field in fields),
        name_set=frozenset(field.name for field in fields),
        optional=optional,
        build=build if post_init is None else build_deriving,
        keeps_dict=_has_dict(kind),
        derives_attributes=post_init is not None,
    )


def _struct_plan(kind: type[msgspec.Struct]) -> RecordPlan:
    reference = _own_reference(kind)
    names = kind.__struct_fields__
    defaults = kind.__struct_defaults__
    with_default = names[len(names) - len(defaults) :]
    optional: dict[str, Callable[[], Any] | None] = {
        name: None for name, default in zip(with_default, defaults, strict=True) if default is not msgspec.NODEFAULT
    }
    derives = hasattr(kind, "__post_init__")

    def build(stored: dict[str, Any]) -> Any:
        return kind(**stored)

    def build_deriving(stored: dict[str, Any]) -> Any:
        value = kind(**stored)
        for name, item in stored.items():
            msgspec.structs.force_setattr(value, name, item)
        return value

    return RecordPlan(
        kind=kind,
        reference=reference,
        names=names,
        name_set=frozenset(names),
        optional=optional,
        build=build_deriving if derives else build,
        keeps_dict=_has_dict(kind),
        derives_attributes=derives,
    )


def _named_tuple_plan(kind: type[Any]) -> RecordPlan:
    reference = _own_reference(kind)
    defaults: dict[str, Any] = kind._field_defaults

    def build(stored: dict[str, Any]) -> Any:
        return kind._make(stored.values())

    return RecordPlan(
        kind=kind,
        reference=reference,
        names=kind._fields,
        name_set=frozenset(kind._fields),
        optional={name: _constant(default) for name, default in defaults.items()},
        build=build,
        keeps_dict=_has_dict(kind),
        derives_attributes=False,
    )
