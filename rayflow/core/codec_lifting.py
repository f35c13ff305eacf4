"""The reading half of the codec: from what MessagePack gave back to the values.

Input is untrusted. A builder may raise anything, which ``decode`` reports as damage, but it must never return a value
for a payload of the wrong shape.
"""

from __future__ import annotations

import pickle
import types
import zlib
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeVar, cast
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec

from rayflow.core import codec_arrays, codec_records, codec_tags
from rayflow.errors import CodecError

_T = TypeVar("_T")
_ATOMS: frozenset[type] = frozenset((types.NoneType, bool, int, float, str, bytes))


def lift(low: object) -> Any:
    """The value of what MessagePack gave back, whose lists and dicts are taken over. Raises CodecError, or anything."""
    kind = type(low)
    if kind in _ATOMS:
        return low
    if kind is list:
        return _lift_items(low)
    if kind is not dict:
        raise CodecError("a stored value holds a MessagePack extension, which rayflow does not write: it is damaged.")
    table = cast("dict[Any, Any]", low)
    if len(table) == 1:
        ((tag, payload),) = table.items()
        if type(tag) is int:
            build = _BUILDERS.get(tag)
            if build is None:
                raise CodecError(f"a stored value has the unknown tag {tag}. A newer rayflow wrote it, or it is damaged.")
            return build(payload)
    for key, item in table.items():
        if type(key) is not str:
            raise CodecError("a stored value has a map key that is not text: it is damaged.")
        if type(item) not in _ATOMS:
            table[key] = lift(item)
    return table


def lift_fields(low: object) -> Any:
    """As ``lift``, but a record is given as a dict of its fields: for code that no longer has its type, or another form of it."""
    if type(low) is dict and codec_tags.RECORD in (table := cast("dict[Any, Any]", low)):
        fields: Any = _expect_parts(table[codec_tags.RECORD], str, dict)[1]
        return {_expect(str, name): lift(item) for name, item in fields.items()}
    return lift(cast("object", low))


def _lift_items(payload: Any) -> list[Any]:
    items = _list(payload)
    for index, item in enumerate(items):
        if type(item) not in _ATOMS:
            items[index] = lift(item)
    return items


def _list(payload: Any) -> list[Any]:
    return cast("list[Any]", _expect(list, payload))


def _expect(kind: type[_T], payload: Any) -> _T:
    if type(payload) is not kind:
        raise CodecError(f"a stored value has a {type(payload).__name__} in place of a {kind.__name__}: it is damaged.")
    return payload


def _expect_parts(payload: Any, *kinds: type) -> list[Any]:
    """The parts of a payload that is a list of exactly these types."""
    parts = _list(payload)
    if tuple(map(type, parts)) != kinds:
        raise CodecError(f"a stored value has parts {[type(part).__name__ for part in parts]} it cannot have: it is damaged.")
    return parts


def _zone(low: Any) -> tzinfo | None:
    zone = lift(low)
    if zone is not None and type(zone) not in (timezone, ZoneInfo):
        raise CodecError(f"a stored time has a {type(zone).__name__} for its zone: it is damaged.")
    return zone


def _build_set(payload: Any) -> set[Any]:
    items = _lift_items(payload)
    built = set(items)
    if len(built) != len(items):
        raise CodecError("a stored set has an element twice: it is damaged.")
    return built


def _build_dict(payload: Any) -> dict[Any, Any]:
    parts = _lift_items(payload)
    built = dict(zip(parts[::2], parts[1::2], strict=True))
    if len(built) * 2 != len(parts):
        raise CodecError("a stored dict has a key twice: it is damaged.")
    return built


def _build_record(payload: Any) -> Any:
    reference, fields = _expect_parts(payload, str, dict)
    for name, item in fields.items():
        if type(item) not in _ATOMS:
            fields[name] = lift(item)
    return codec_records.build_record(reference, fields)


def _build_enum(payload: Any) -> Any:
    reference, member = _lift_items(payload)
    return codec_records.build_enum(_expect(str, reference), member)


def _build_datetime(payload: Any) -> datetime:
    text, fold, zone = _list(payload)
    return datetime.fromisoformat(_expect(str, text)).replace(tzinfo=_zone(zone), fold=_expect(int, fold))


def _build_time(payload: Any) -> time:
    text, fold, zone = _list(payload)
    return time.fromisoformat(_expect(str, text)).replace(tzinfo=_zone(zone), fold=_expect(int, fold))


def _build_timedelta(payload: Any) -> timedelta:
    days, seconds, microseconds = _expect_parts(payload, int, int, int)
    return timedelta(days, seconds, microseconds)


def _build_timezone(payload: Any) -> timezone:
    low_offset, low_name = _list(payload)
    offset = _expect(timedelta, lift(low_offset))
    name = lift(low_name)
    if name is None:
        return timezone(offset) if offset else UTC
    return timezone(offset, _expect(str, name))


def _build_complex(payload: Any) -> complex:
    real, imaginary = _expect_parts(payload, float, float)
    return complex(real, imaginary)


def _build_range(payload: Any) -> range:
    start, stop, step = (_expect(int, part) for part in _lift_items(payload))
    return range(start, stop, step)


def _build_array(payload: Any) -> Any:
    dtype, shape, content = _list(payload)
    return codec_arrays.build_array(dtype, _list(shape), _expect(bytes, content))


def _build_array_scalar(payload: Any) -> Any:
    dtype, content = _lift_items(payload)
    return codec_arrays.build_scalar(dtype, content)


def _build_pickled(payload: Any) -> Any:
    type_name, checksum, content = _expect_parts(payload, str, int, bytes)
    if zlib.crc32(content) != checksum:
        raise CodecError(f"the pickle of a {type_name} is damaged: its checksum differs. Restore it from a copy.")
    try:
        return pickle.loads(content)
    except Exception as error:
        raise CodecError(
            f"the pickle of a {type_name} cannot be read here ({type(error).__name__}: {error}). "
            "Read it with the code and library versions that wrote it."
        ) from error


def _build_unset(payload: Any) -> Any:
    return msgspec.UNSET if _expect(types.NoneType, payload) is None else None


_BUILDERS: dict[int, Callable[[Any], Any]] = {
    codec_tags.TUPLE: lambda payload: tuple(_lift_items(payload)),
    codec_tags.SET: _build_set,
    codec_tags.FROZENSET: lambda payload: frozenset(_build_set(payload)),
    codec_tags.DICT: _build_dict,
    codec_tags.RECORD: _build_record,
    codec_tags.ENUM: _build_enum,
    codec_tags.BIG_INT: lambda payload: int.from_bytes(_expect(bytes, payload), "big", signed=True),
    codec_tags.SURROGATE_STR: lambda payload: _expect(bytes, payload).decode("utf-8", "surrogatepass"),
    codec_tags.DATETIME: _build_datetime,
    codec_tags.DATE: lambda payload: date.fromisoformat(_expect(str, payload)),
    codec_tags.TIME: _build_time,
    codec_tags.TIMEDELTA: _build_timedelta,
    codec_tags.TIMEZONE: _build_timezone,
    codec_tags.ZONE_INFO: lambda payload: ZoneInfo(_expect(str, payload)),
    codec_tags.DECIMAL: lambda payload: Decimal(_expect(str, payload)),
    codec_tags.UUID: lambda payload: UUID(bytes=_expect(bytes, payload)),
    codec_tags.PATH: lambda payload: Path(_expect(str, lift(payload))),
    codec_tags.PURE_POSIX_PATH: lambda payload: PurePosixPath(_expect(str, lift(payload))),
    codec_tags.PURE_WINDOWS_PATH: lambda payload: PureWindowsPath(_expect(str, lift(payload))),
    codec_tags.COMPLEX: _build_complex,
    codec_tags.RANGE: _build_range,
    codec_tags.ARRAY: _build_array,
    codec_tags.ARRAY_SCALAR: _build_array_scalar,
    codec_tags.TABLE: lambda payload: codec_arrays.build_table(*_expect_parts(payload, int, bytes)),
    codec_tags.RECORD_BATCH: lambda payload: codec_arrays.build_record_batch(*_expect_parts(payload, int, bytes)),
    codec_tags.PICKLED: _build_pickled,
    codec_tags.UNSET: _build_unset,
}
