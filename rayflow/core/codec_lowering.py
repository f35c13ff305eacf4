"""The writing half of the codec: from values to what MessagePack has.

*Lowering* turns a value into None, bool, int, float, str, bytes, lists, and dicts that have either text keys or one
integer key (see ``codec_tags``). It looks up one handler per type; what needs no change is passed by without a call.
"""

from __future__ import annotations

import enum
import io
import pickle
import sys
import types
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from pathlib import PosixPath, PurePosixPath, PureWindowsPath, WindowsPath
from typing import Any, cast
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec

from rayflow.core import codec_arrays, codec_records, codec_tags
from rayflow.errors import CodecError

ENCODER = msgspec.msgpack.Encoder()

_COLLECTIONS: tuple[type[Any], ...] = (dict, list, tuple, set, frozenset)
_SCALARS: tuple[type[Any], ...] = (str, bytes, int, float, complex, datetime, date, time, timedelta, Decimal)


@dataclass(frozen=True, slots=True)
class Pickled:
    """Asks for ``value`` to be stored by pickle; it is decoded to ``value`` itself, not to this wrapper.

    For objects that have no typed form. They must be read by a compatible version of the code that they belong to,
    and their content is no part of the fingerprint (pickles of equal objects differ): only their type is. Classes and
    functions of ``__main__`` or inside functions need cloudpickle, which is used where Ray or cloudpickle is loaded.
    """

    value: Any


_Handler = Callable[[Any, "Lowering"], Any]


class Lowering:
    """One way of lowering: which types need no look, and what to do for the others.

    Each level of a value costs more stack here than in ``lift``, so that what could be encoded can be decoded.
    """

    __slots__ = ("atoms", "handlers")

    def __init__(self, atoms: frozenset[type], handlers: dict[type, _Handler]) -> None:
        self.atoms = atoms
        self.handlers = handlers

    def lower(self, value: object) -> Any:
        kind = type(value)
        if kind in self.atoms:
            return value
        handler = self.handlers.get(kind)
        if handler is None:
            handler = self.handlers[kind] = _handler_of(kind)
        return handler(value, self)


def _lower_list(value: list[Any], low: Lowering) -> Any:
    atoms = low.atoms
    lower = low.lower
    return [item if type(item) in atoms else lower(item) for item in value]


def _lower_tuple(value: tuple[Any, ...], low: Lowering) -> Any:
    atoms = low.atoms
    lower = low.lower
    return {codec_tags.TUPLE: [item if type(item) in atoms else lower(item) for item in value]}


def _lower_dict(value: dict[Any, Any], low: Lowering) -> Any:
    for key in value:
        if type(key) is not str:
            return _lower_pairs(value, low)
    atoms = low.atoms
    lower = low.lower
    return {key: item if type(item) in atoms else lower(item) for key, item in value.items()}


def _lower_dict_carefully(value: dict[Any, Any], low: Lowering) -> Any:
    if any(type(key) is str and not _is_unicode(key) for key in value):
        return _lower_pairs(value, low)
    return _lower_dict(value, low)


def _lower_pairs(value: dict[Any, Any], low: Lowering) -> Any:
    return {codec_tags.DICT: [low.lower(part) for pair in value.items() for part in pair]}


def _lower_set(value: set[Any] | frozenset[Any], low: Lowering) -> Any:
    tag = codec_tags.SET if type(value) is set else codec_tags.FROZENSET
    # Iteration follows the hash seed of the process, so the order is made from the bytes.
    return {tag: [msgspec.Raw(item) for item in sorted(ENCODER.encode(low.lower(item)) for item in value)]}


def _lower_int_carefully(value: int, _low: Lowering) -> Any:
    if -(1 << 63) <= value < 1 << 64:
        return value
    return {codec_tags.BIG_INT: value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True)}


def _lower_str_carefully(value: str, _low: Lowering) -> Any:
    return value if _is_unicode(value) else {codec_tags.SURROGATE_STR: value.encode("utf-8", "surrogatepass")}


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _lower_datetime(value: datetime, low: Lowering) -> Any:
    zone = low.lower(value.tzinfo)
    return {codec_tags.DATETIME: [value.replace(tzinfo=None).isoformat(), value.fold, zone]}


def _lower_time(value: time, low: Lowering) -> Any:
    zone = low.lower(value.tzinfo)
    return {codec_tags.TIME: [value.replace(tzinfo=None).isoformat(), value.fold, zone]}


def _lower_timezone(value: timezone, low: Lowering) -> Any:
    offset = value.utcoffset(None)
    name = value.tzname(None)
    return {codec_tags.TIMEZONE: [low.lower(offset), None if name == timezone(offset).tzname(None) else low.lower(name)]}


def _lower_zone_info(value: ZoneInfo, _low: Lowering) -> Any:
    # typeshed says that there always is a key; a zone read by ZoneInfo.from_file has none.
    if cast("str | None", value.key) is None:
        raise CodecError("a ZoneInfo without a key cannot be found again. Make it by ZoneInfo('Area/City').")
    return {codec_tags.ZONE_INFO: value.key}


def _lower_path(value: PurePosixPath | PureWindowsPath, low: Lowering) -> Any:
    return {_PATH_TAGS[type(value)]: low.lower(str(value))}


_PATH_TAGS: dict[type, int] = {
    PosixPath: codec_tags.PATH,
    WindowsPath: codec_tags.PATH,
    PurePosixPath: codec_tags.PURE_POSIX_PATH,
    PureWindowsPath: codec_tags.PURE_WINDOWS_PATH,
}


def _lower_pickled(value: Pickled, _low: Lowering) -> Any:
    try:
        content = _pickle_dumps(value.value)
    except Exception as error:
        raise CodecError(
            f"a Pickled {_type_name(value.value)} cannot be pickled ({type(error).__name__}: {error}). "
            "Leave out what belongs to this process alone (files, locks, connections) and open it where it is used."
        ) from error
    # Unpickling damaged bytes may do anything, so damage is to be seen before.
    return {codec_tags.PICKLED: [_type_name(value.value), zlib.crc32(content), content]}


def _lower_pickled_opaquely(value: Pickled, _low: Lowering) -> Any:
    return {codec_tags.PICKLED: [_type_name(value.value)]}


def _pickle_dumps(value: object) -> bytes:
    # Looked up, not imported: this layer knows nothing of Ray, but where Ray is loaded, its cloudpickle is too.
    for name in ("ray.cloudpickle", "cloudpickle"):
        by_value = sys.modules.get(name)
        if by_value is not None:
            return by_value.dumps(value, protocol=5)
    buffer = io.BytesIO()
    _ImportablePickler(buffer, protocol=5).dump(value)
    return buffer.getvalue()


class _ImportablePickler(pickle.Pickler):
    """Refuses what plain pickle would name by ``__main__``, which is another module where it is read."""

    def reducer_override(self, obj: Any, /) -> Any:
        if isinstance(obj, (type, types.FunctionType)) and obj.__module__ in ("__main__", "__mp_main__"):
            raise pickle.PicklingError(f"{obj.__qualname__} is defined in __main__; move it to an importable module")
        return NotImplemented


def _lower_record(value: Any, low: Lowering) -> Any:
    plan = codec_records.record_plan(_type_of(value))
    if plan.keeps_dict and not value.__dict__.keys() <= plan.name_set:
        codec_records.refuse_lost_attributes(plan, value)
    atoms = low.atoms
    lower = low.lower
    fields: dict[str, Any] = {}
    for name in plan.names:
        try:
            item = getattr(value, name)
        except AttributeError as error:
            raise CodecError(f"field {name!r} of {plan.reference} is not set. Set it, or give it a default.") from error
        fields[name] = item if type(item) in atoms else lower(item)
    return {codec_tags.RECORD: [plan.reference, fields]}


def _lower_enum(value: enum.Enum, low: Lowering) -> Any:
    return {codec_tags.ENUM: [low.lower(part) for part in codec_records.enum_payload(value)]}


def _handler_of(kind: type[Any]) -> _Handler:
    if issubclass(kind, enum.Enum):
        return _lower_enum
    if codec_records.is_record(kind):
        codec_records.record_plan(kind)
        return _lower_record
    if codec_arrays.is_array(kind):
        return lambda value, low: {codec_tags.ARRAY: codec_arrays.array_payload(value)}
    if codec_arrays.is_array_scalar(kind):
        return lambda value, low: {codec_tags.ARRAY_SCALAR: [low.lower(part) for part in codec_arrays.scalar_payload(value)]}
    if codec_arrays.is_table(kind):
        return lambda value, low: {codec_tags.TABLE: codec_arrays.table_payload(value)}
    if codec_arrays.is_record_batch(kind):
        return lambda value, low: {codec_tags.RECORD_BATCH: codec_arrays.table_payload(value)}
    raise CodecError(f"{_name(kind)} cannot be stored; {_advice(kind)}")


def _type_of(value: object) -> type[object]:
    return type(value)


def _type_name(value: object) -> str:
    return _name(type(value))


def _name(kind: type[Any]) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _advice(kind: type[Any]) -> str:
    if kind in (types.FunctionType, types.MethodType, types.BuiltinFunctionType) or issubclass(kind, type):
        return "pass the data that it works on, or its name as 'module:name'."
    if issubclass(kind, (bytearray, memoryview)):
        return "convert it by bytes(...)."
    if issubclass(kind, BaseException):
        return "raise it, or pass str(error)."
    if issubclass(kind, (types.GeneratorType, map, filter, zip)):
        return "collect it by list(...)."
    if hasattr(kind, "__await__"):
        return "await it, and pass the result. What ctx.step returned may be an argument itself, but not a part of one."
    if issubclass(kind, io.IOBase) or kind.__module__ in ("_thread", "socket", "threading", "_io", "asyncio"):
        return "it belongs to this process alone. Open or make it where it is used, and pass its path or name."
    for base in _COLLECTIONS + _SCALARS:
        if issubclass(kind, base):
            name = base.__name__
            return f"it is a subclass of {name}. Convert it by {name}(...), or wrap it in rayflow.Pickled."
    if kind.__module__.partition(".")[0] == "pandas":
        return "convert it by pyarrow.Table.from_pandas(...), or wrap it in rayflow.Pickled."
    if issubclass(kind, tzinfo):
        return "use datetime.timezone or zoneinfo.ZoneInfo."
    return "make it a dataclass or a msgspec.Struct, or wrap it in rayflow.Pickled."


_FAST_ATOMS: frozenset[type] = frozenset((types.NoneType, bool, int, float, str, bytes))
_CAREFUL_ATOMS = _FAST_ATOMS - {int, str}
_HANDLERS: dict[type, _Handler] = {
    list: _lower_list,
    tuple: _lower_tuple,
    dict: _lower_dict,
    set: _lower_set,
    frozenset: _lower_set,
    datetime: _lower_datetime,
    date: lambda value, low: {codec_tags.DATE: value.isoformat()},
    time: _lower_time,
    timedelta: lambda value, low: {codec_tags.TIMEDELTA: [value.days, value.seconds, value.microseconds]},
    timezone: _lower_timezone,
    ZoneInfo: _lower_zone_info,
    Decimal: lambda value, low: {codec_tags.DECIMAL: str(value)},
    UUID: lambda value, low: {codec_tags.UUID: value.bytes},
    PosixPath: _lower_path,
    WindowsPath: _lower_path,
    PurePosixPath: _lower_path,
    PureWindowsPath: _lower_path,
    complex: lambda value, low: {codec_tags.COMPLEX: [value.real, value.imag]},
    range: lambda value, low: {codec_tags.RANGE: [low.lower(part) for part in (value.start, value.stop, value.step)]},
    Pickled: _lower_pickled,
    type(msgspec.UNSET): lambda value, low: {codec_tags.UNSET: None},
}
_CAREFUL_HANDLERS = _HANDLERS | {
    int: _lower_int_carefully,
    str: _lower_str_carefully,
    dict: _lower_dict_carefully,
}
_OPAQUE: dict[type, _Handler] = {Pickled: _lower_pickled_opaquely}

FAST = Lowering(_FAST_ATOMS, dict(_HANDLERS))
CAREFUL = Lowering(_CAREFUL_ATOMS, dict(_CAREFUL_HANDLERS))
FAST_OPAQUE = Lowering(_FAST_ATOMS, _HANDLERS | _OPAQUE)
CAREFUL_OPAQUE = Lowering(_CAREFUL_ATOMS, _CAREFUL_HANDLERS | _OPAQUE)


def first_refused(value: object, low: Lowering) -> tuple[str, CodecError | None]:
    """Where in ``value`` the part lies that cannot be stored, and why. Slow, and so walked after a refusal only."""
    for step, part in _parts(value):
        try:
            ENCODER.encode(low.lower(part))
        except CodecError as error:
            path, reason = first_refused(part, low)
            return step + path, reason or error
        except (RecursionError, ValueError):
            continue  # Not what was refused.
    return "", None


def _parts(value: Any) -> Iterator[tuple[str, object]]:
    kind = _type_of(value)
    if kind in (list, tuple):
        for index, item in enumerate(value):
            yield f"[{index}]", item
    elif kind in (set, frozenset):
        for item in value:
            yield "{...}", item
    elif kind is dict:
        for key, item in value.items():
            yield f".keys()[{key!r}]", key
            yield f"[{key!r}]", item
    elif kind is not Pickled and not issubclass(kind, enum.Enum) and codec_records.is_record(kind):
        try:
            names = codec_records.record_plan(kind).names
        except CodecError:
            return  # The record itself is what was refused.
        for name in names:
            if hasattr(value, name):
                yield f".{name}", getattr(value, name)
    elif kind in (datetime, time):
        yield ".tzinfo", value.tzinfo
