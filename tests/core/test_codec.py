"""The codec: what goes in comes out, with the same bytes in every process, and nothing wrong ever comes out."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import enum
import io
import math
import os
import pathlib
import random
import subprocess
import sys
import threading
import uuid
import zoneinfo
from decimal import Decimal
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rayflow.core.codec import Pickled, decode, encode, encode_with_fingerprint, fingerprint
from rayflow.errors import CodecError
from tests.core import codec_types
from tests.core.codec_types import (
    Access,
    Box,
    Chunk,
    Circle,
    Colour,
    DictLike,
    Level,
    Mode,
    MyInt,
    Outer,
    Plain,
    Plan,
    Point,
    Positive,
    Prefixed,
    Settings,
    WithInitVar,
    double,
    numbers,
)

REPOSITORY = pathlib.Path(__file__).parents[2]
BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")


def same(left: Any, right: Any) -> bool:
    """Equality of values and of types at every level; nan equals nan, 0.0 is not -0.0, the order of dicts counts."""
    if type(left) is not type(right):
        return False
    if isinstance(left, enum.Enum):
        return left is right
    if isinstance(left, float) and not isinstance(left, np.generic):
        return (math.isnan(left) and math.isnan(right)) or (left == right and math.copysign(1, left) == math.copysign(1, right))
    if isinstance(left, complex) and not isinstance(left, np.generic):
        return same(left.real, right.real) and same(left.imag, right.imag)
    if isinstance(left, Decimal):
        return left.as_tuple() == right.as_tuple()
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return same(list(left.items()), list(right.items()))
    if isinstance(left, (set, frozenset)):
        return sorted(map(encode, left)) == sorted(map(encode, right))
    if isinstance(left, msgspec.Struct):
        return all(same(getattr(left, name), getattr(right, name)) for name in left.__struct_fields__)
    if dataclasses.is_dataclass(left):
        return all(same(getattr(left, f.name), getattr(right, f.name)) for f in dataclasses.fields(left))
    if isinstance(left, np.ndarray):
        return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()
    if isinstance(left, np.generic):
        return left.dtype == right.dtype and left.tobytes() == right.tobytes()
    if isinstance(left, (dt.datetime, dt.time)):
        return left == right and left.fold == right.fold and same(left.tzinfo, right.tzinfo)
    if isinstance(left, dt.timezone):
        return repr(left) == repr(right)
    return bool(left == right)


timezones = st.one_of(
    st.none(),
    st.just(dt.UTC),
    st.sampled_from([BERLIN, zoneinfo.ZoneInfo("America/New_York"), dt.timezone(dt.timedelta(0), "Z"), dt.timezone.min]),
    st.timedeltas(dt.timedelta(hours=-23), dt.timedelta(hours=23)).map(dt.timezone),
)
texts = st.text(st.characters(codec=None, exclude_categories=()), max_size=8)
path_texts = st.text(st.characters(codec=None, exclude_categories=(), exclude_characters="\0"), max_size=8)
immutable_leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=-(2**200), max_value=2**200),
    st.sampled_from([2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1]),
    st.floats(),
    texts,
    st.binary(max_size=8),
    st.complex_numbers(),
    st.decimals().filter(lambda number: not number.is_snan()),
    st.uuids(),
    st.dates(),
    st.datetimes(),
    st.builds(
        lambda moment, zone, fold: moment.replace(tzinfo=zone, fold=fold),
        st.datetimes(),
        timezones,
        st.sampled_from([0, 1]),
    ),
    st.builds(lambda moment, zone: moment.replace(tzinfo=zone), st.times(), timezones),
    st.timedeltas(),
    timezones,
    path_texts.map(pathlib.Path),
    path_texts.map(pathlib.PurePosixPath),
    path_texts.map(pathlib.PureWindowsPath),
    st.builds(range, st.integers(), st.integers(), st.integers(min_value=1)),
    st.sampled_from([*Colour, *Level, *Mode, Access.READ, Access.READ | Access.WRITE, Access(0)]),
    st.sampled_from(
        [
            np.float32(1.5),
            np.int64(-3),
            np.bool_(True),
            np.str_("a\0"),
            np.bytes_(b"b\0"),
            np.datetime64("2024-01-01", "ns"),
        ]
    ),
)
arrays = st.builds(
    lambda dtype, shape, order: np.arange(math.prod(shape)).astype(dtype).reshape(shape, order=order),
    st.sampled_from(["<f8", ">f4", "<i4", "u1", "?", "<c16", "<U3", "S2", "<M8[us]", "<m8[s]", "<f2"]),
    st.lists(st.integers(0, 3), max_size=3).map(tuple),
    st.sampled_from("CF"),
)
tables = st.lists(st.tuples(st.integers(-9, 9) | st.none(), st.text("aé", max_size=3) | st.none()), max_size=3).map(
    lambda rows: pa.table(
        {
            "number": pa.array([row[0] for row in rows], pa.int32()),
            "text": pa.array([row[1] for row in rows], pa.string()),
        }
    )
)
hashable = st.recursive(
    immutable_leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(tuple),
        st.frozensets(inner, max_size=3),
        st.builds(Point, inner, inner),
        st.builds(Box, inner),
        st.builds(Chunk, inner, inner, inner, inner, st.lists(inner, max_size=2).map(tuple)),
    ),
    max_leaves=5,
)
values = st.recursive(
    hashable | arrays | tables | st.just(Decimal("-sNaN12")),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(texts, inner, max_size=3),
        st.dictionaries(hashable, inner, max_size=3),
        st.sets(hashable, max_size=4),
        st.builds(Plan, st.lists(inner, max_size=3), st.dictionaries(hashable, inner, max_size=2)),
        st.builds(Box, inner),
        st.builds(
            lambda crf, extra: Settings(codec="x264", crf=crf, extra=extra),
            inner,
            st.dictionaries(texts, inner, max_size=2),
        ),
        st.builds(Outer.Inner, inner),
    ),
    max_leaves=12,
)


@given(values)
@settings(max_examples=400, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@example({1: 2})
@example({True: 1, "\ud800": {}})
@example([{5: {"a": 1}}, {"a": {}}])
@example(dt.datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=BERLIN))
def test_every_value_comes_back_equal_and_of_the_same_types_with_the_same_bytes(value: Any) -> None:
    data = encode(value)
    back = decode(data)
    assert same(back, value)
    assert encode(back) == data
    assert encode_with_fingerprint(value) == (data, fingerprint(back))


@given(values, st.randoms(use_true_random=False))
@settings(max_examples=300, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
def test_damage_is_refused_or_decodes_to_a_value_and_a_cut_is_always_refused(value: Any, rng: random.Random) -> None:
    data = encode(value)
    for _ in range(8):
        flipped = bytearray(data)
        flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        decodes_or_refuses(bytes(flipped))
    for length in {rng.randrange(len(data)) for _ in range(4)}:
        with pytest.raises(CodecError):
            decode(data[:length])
    with pytest.raises(CodecError):
        decode(data + b"\0")


@given(st.binary(max_size=64))
@settings(max_examples=500, deadline=None, derandomize=True, database=None)
def test_garbage_is_never_anything_but_a_codec_error(garbage: bytes) -> None:
    decodes_or_refuses(garbage)
    decodes_or_refuses(b"\x01" + garbage)


def decodes_or_refuses(data: bytes) -> None:
    try:
        decode(data)
    except CodecError as error:
        assert str(error)


@given(
    st.integers(0, 40),
    st.recursive(
        st.none() | st.integers(-9, 2**64 - 1) | st.text(max_size=4) | st.binary(max_size=9),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.text(max_size=3), inner, max_size=2)
            | st.builds(lambda tag, body: {tag: body}, st.integers(0, 40), inner)
        ),
        max_leaves=6,
    ),
)
@settings(max_examples=500, deadline=None, derandomize=True, database=None)
def test_a_tag_with_a_payload_of_the_wrong_shape_is_a_codec_error(tag: int, payload: Any) -> None:
    decodes_or_refuses(b"\x01" + msgspec.msgpack.encode({tag: payload}))


def test_bytes_are_the_same_in_processes_with_other_hash_seeds() -> None:
    program = """
import sys, datetime, decimal
from rayflow.core.codec import encode, fingerprint
from tests.core.codec_types import Box, Chunk, Colour, Plan, Settings
names = [f"name-{i}" for i in range(50)]
value = [set(names), frozenset(map(Box, names)), {frozenset(names[:9]): {Colour.RED, Colour.GREEN}},
         Plan([Chunk(1, "a", 0.5, tags=(frozenset(names),))], {"b": 1, "a": 2}),
         Settings(codec="x", extra={1: set(names)})]
print(encode(value).hex(), fingerprint(value))
"""
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(outputs) == 1


def test_the_stored_form_does_not_change_between_releases() -> None:
    value = {
        "chunk": Chunk(1, "a", 0.5, b"d", (1, 2**70)),
        "when": dt.datetime(2024, 1, 2, 3, 4, 5, tzinfo=BERLIN),
        "set": {3, 1, 2},
        "path": pathlib.PurePosixPath("a/b"),
        "level": Level.HIGH,
    }
    assert fingerprint(value) == "db72b7b47bb09b2e3ba5356a66eca41b"


def test_order_of_a_dict_and_types_are_part_of_the_fingerprint() -> None:
    alike = [{"a": 1, "b": 2}, {"b": 2, "a": 1}, [1], (1,), 1, True, 1.0, Decimal(1), np.int64(1), {1}, frozenset({1})]
    assert len({fingerprint(value) for value in alike}) == len(alike)


def test_neither_numpy_nor_pyarrow_is_imported_for_values_that_need_neither() -> None:
    program = """
import sys
from rayflow.core.codec import Pickled, decode, encode
from tests.core.codec_types import Chunk, Plan
decode(encode([Plan([Chunk(1, "a", 0.5)]), {"a": {1}}, Pickled(3)]))
print([name for name in ("numpy", "pyarrow", "pandas", "ray") if name in sys.modules])
"""
    run = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == "[]"


def stored_as(monkeypatch: pytest.MonkeyPatch, old: type, new: type | None, value: Any) -> bytes:
    """Encode ``value`` while ``old`` stands in the module of the test types, then put ``new`` in its place."""
    monkeypatch.setattr(codec_types, "Evolving", old, raising=False)
    data = encode(value)
    if new is None:
        monkeypatch.delattr(codec_types, "Evolving")
    else:
        monkeypatch.setattr(codec_types, "Evolving", new)
    return data


def evolving(fields: list[Any], **options: Any) -> type:
    kind = dataclasses.make_dataclass("Evolving", fields, **options)
    kind.__module__ = codec_types.__name__
    return kind


OLD = evolving([("name", str), ("size", int)])
REFERENCE = "tests.core.codec_types:Evolving"


def test_a_field_added_with_a_default_gets_it_when_old_data_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    new = evolving(
        [
            ("size", int),
            ("tags", list, dataclasses.field(default_factory=list)),
            ("name", str, "-"),
            ("unit", str, "B"),
        ],
        frozen=True,
        slots=True,
    )
    data = stored_as(monkeypatch, OLD, new, [OLD("a", 1), OLD("b", 2)])
    back = decode(data)
    assert back == [new(1, [], "a", "B"), new(2, [], "b", "B")]
    assert back[0].tags is not back[1].tags


def test_a_dataclass_may_become_a_struct_or_a_named_tuple(monkeypatch: pytest.MonkeyPatch) -> None:
    struct = msgspec.defstruct("Evolving", [("name", str), ("size", int), ("unit", str, "B")], module=codec_types.__name__)
    named = collections.namedtuple("Evolving", ["name", "size", "unit"], defaults=["B"], module=codec_types.__name__)
    for new in (struct, named):
        data = stored_as(monkeypatch, OLD, new, OLD("a", 1))
        assert same(decode(data), new("a", 1, "B"))


@pytest.mark.parametrize(
    ("new", "message"),
    [
        (evolving([("name", str)]), f"{REFERENCE} has no field 'size'.*Keep the field"),
        (evolving([("name", str), ("size", int), ("unit", str)]), f"{REFERENCE} needs the field 'unit'.*a default"),
        (
            msgspec.defstruct("Evolving", ["name", "size", "unit"], module=codec_types.__name__),
            "needs the field 'unit'",
        ),
        (None, "'tests.core.codec_types' has no attribute 'Evolving'.*alias"),
        (Colour, f"{REFERENCE} is not a dataclass"),
        (Plain, f"{REFERENCE} is not a dataclass"),
    ],
)
def test_a_change_that_would_lose_or_invent_data_is_refused(
    monkeypatch: pytest.MonkeyPatch, new: type | None, message: str
) -> None:
    data = stored_as(monkeypatch, OLD, new, OLD("a", 1))
    with pytest.raises(CodecError, match=message):
        decode(data)


def test_a_check_in_post_init_that_refuses_old_data_is_a_codec_error() -> None:
    value = Positive(1)
    value.number = -1
    with pytest.raises(CodecError, match=r"Positive refused its stored fields.*must not be negative"):
        decode(encode(value))


def test_a_removed_enum_member_is_named() -> None:
    gone = encode(Colour.RED).replace(b"RED", b"RUD")
    with pytest.raises(CodecError, match=r"codec_types:Colour has no member 'RUD'"):
        decode(gone)


def test_only_data_types_are_built_and_nothing_else_that_a_name_leads_to() -> None:
    for reference in ("os:system", "subprocess:Popen", "builtins:dict", "tests.core.codec_types:double"):
        for body in ({5: [reference, {"args": "true"}]}, {6: [reference, "true"]}):
            with pytest.raises(CodecError, match="not built"):
                decode(b"\x01" + msgspec.msgpack.encode(body))
    for dtype in ("|O", "2f8", [["a", "|O"]]):
        with pytest.raises(CodecError, match="damaged"):
            decode(b"\x01" + msgspec.msgpack.encode({22: [dtype, [1], bytes(8)]}))
    with pytest.raises(CodecError, match=r"'no\.such\.module' .*cannot be imported"):
        decode(b"\x01" + msgspec.msgpack.encode({5: ["no.such.module:Type", {}]}))


def test_post_init_runs_but_stored_fields_win_and_derived_attributes_are_there() -> None:
    value = Prefixed("a")
    back = decode(encode(value))
    assert back == value
    assert back.path == "/a"
    assert back.length > 0


def test_cached_properties_and_generic_aliases_do_not_stand_in_the_way_of_storing() -> None:
    circle = Circle(2.0)
    assert circle.area == 12.0
    assert decode(encode([circle, Box[int](1)])) == [circle, Box(1)]


@dataclasses.dataclass
class HoldsHandle:
    chunks: Any
    handle: Any = None


def unset_field() -> Chunk:
    return object.__new__(Chunk)


def with_lost_attribute() -> Plan:
    plan = Plan([])
    plan.extra = 1  # type: ignore[attr-defined]
    return plan


def of_main() -> Any:
    return type("Job", (Plain,), {"__module__": "__main__", "__qualname__": "Job"})()


def local_dataclass() -> Any:
    @dataclasses.dataclass
    class Local:
        value: int

    return Local(1)


def main_dataclass() -> Any:
    kind = dataclasses.make_dataclass("Job", [("value", int)])
    kind.__module__ = "__main__"
    return kind(1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: threading.Lock(), "_thread.lock cannot be stored; it belongs to this process alone"),
        (lambda: object(), "object cannot be stored; make it a dataclass"),
        (lambda: io.BytesIO(), "_io.BytesIO cannot be stored; it belongs to this process"),
        (lambda: double, "function cannot be stored; pass"),
        (lambda: Plain, "type cannot be stored; pass"),
        (lambda: numbers(), "generator cannot be stored; collect it by list"),
        (lambda: MyInt(3), "subclass of int. Convert it by int"),
        (lambda: collections.OrderedDict(), "subclass of dict. Convert it by dict"),
        (lambda: bytearray(b"x"), "bytearray cannot be stored; convert it by bytes"),
        (lambda: ValueError("x"), "ValueError cannot be stored; raise it, or pass str"),
        (lambda: np.array([object()]), "dtype.*holds Python objects"),
        (lambda: np.longdouble(1), "differs from machine to machine"),
        (lambda: np.zeros(1, np.dtype("u1,f8", align=True)), "has gaps or overlaps.*repack_fields"),
        (lambda: np.zeros(1, {"names": "ab", "formats": ["i4", "i4"], "offsets": [4, 0]}), "described portably"),
        (lambda: pa.table({"v": pa.array([["x"]], pa.list_(pa.string_view()))}), "column 'v' .*Cast it to string"),
        (lambda: np.ma.masked_array([1]), "MaskedArray cannot be stored"),
        (lambda: WithInitVar(1, 2), "InitVar, whose value is not kept"),
        (lambda: DictLike("a"), "a dataclass that is also a dict"),
        (unset_field, "field 'index' of .*Chunk is not set"),
        (with_lost_attribute, "attribute 'extra' of .*Plan is no field and would be lost"),
        (local_dataclass, "defined inside a function.*top level of a module.*rayflow.Pickled"),
        (main_dataclass, "'Job' is defined in __main__.*module that every process can import.*rayflow.Pickled"),
        (of_main, "__main__.Job cannot be stored; make it a dataclass"),
        (
            lambda: dt.datetime(2024, 1, 1, tzinfo=FixedZone()),
            r"\.tzinfo: .*FixedZone cannot be stored; use datetime.timezone",
        ),
        (lambda: Pickled(threading.Lock()), "Pickled _thread.lock cannot be pickled"),
    ],
)
def test_a_refusal_names_the_place_the_type_and_the_way_out(make: Any, message: str) -> None:
    value = (1, HoldsHandle([0, 1, {"k": Box(HoldsHandle((), make()))}]))
    place = r"^args\[1\]\.chunks\[2\]\['k'\]\.content\.handle"
    with pytest.raises(CodecError, match=place + f".*{message}"):
        encode(value, label="args")


def test_fingerprint_refuses_in_the_same_words_as_encode() -> None:
    value = [1, {"a": Plain()}]
    with pytest.raises(CodecError) as of_encode:
        encode(value, label="args")
    with pytest.raises(CodecError) as of_fingerprint:
        fingerprint(value, label="args")
    assert str(of_fingerprint.value) == str(of_encode.value)


class FixedZone(dt.tzinfo):
    def utcoffset(self, moment: dt.datetime | None, /) -> dt.timedelta:
        return dt.timedelta(0)


def test_a_refused_key_or_element_is_named() -> None:
    with pytest.raises(CodecError, match=r"^value\.keys\(\)\[.*Plain.*\]: .*Plain cannot be stored"):
        encode({"a": 1, Plain(): 2})
    with pytest.raises(CodecError, match=r"^value\[0\]\{...\}: .*Plain cannot be stored"):
        encode([{Plain()}])
    with pytest.raises(CodecError, match=r"^value\[2\]: .*Plain cannot be stored"):
        encode([2**80, "\ud800", Plain()])


def test_what_contains_itself_is_refused_and_what_can_be_encoded_can_be_decoded() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(CodecError, match="contains itself or nests too deep"):
        encode(loop)
    for wrap in (
        lambda inner: [inner],
        lambda inner: (inner,),
        lambda inner: {"a": inner},
        lambda inner: {1: inner},
        Box,
    ):
        value: Any = 1
        deepest = b""
        with pytest.raises(CodecError, match="nests too deep"):
            while True:
                value = wrap(value)
                deepest = encode(value)
        assert encode(decode(deepest)) == deepest


def test_other_versions_and_empty_bytes_are_refused() -> None:
    with pytest.raises(CodecError, match="format version 2, this rayflow reads version 1"):
        decode(b"\x02" + encode(1)[1:])
    with pytest.raises(CodecError, match="cannot be empty"):
        decode(b"")


def test_pickled_comes_back_as_the_value_and_only_its_type_counts_in_the_fingerprint() -> None:
    value = {"a": Pickled(collections.Counter("aab")), "b": [Pickled(Pickled(1))]}
    back = decode(encode(value))
    assert back["a"] == collections.Counter("aab")
    assert type(back["a"]) is collections.Counter
    assert back["b"] == [Pickled(1)]
    assert fingerprint(Pickled(collections.Counter("a"))) == fingerprint(Pickled(collections.Counter("b")))
    assert fingerprint(Pickled(collections.Counter("a"))) != fingerprint(Pickled(collections.deque("a")))
    assert encode_with_fingerprint(value) == (encode(value), fingerprint(value))


def test_a_damaged_pickle_is_never_unpickled_and_plain_pickle_refuses_what_only_main_has() -> None:
    data = encode(Pickled({"key": "content"}))
    with pytest.raises(CodecError, match="the pickle of a dict is damaged"):
        decode(data.replace(b"content", b"contend"))
    if not {"ray.cloudpickle", "cloudpickle"} & set(sys.modules):
        with pytest.raises(CodecError, match="Job is defined in __main__"):
            encode(Pickled(of_main()))


def test_classes_of_main_and_lambdas_travel_by_value_where_ray_is_loaded() -> None:
    writer = """
import dataclasses, importlib, sys
importlib.import_module("ray.cloudpickle")
from rayflow.core.codec import Pickled, encode
@dataclasses.dataclass
class Job:
    name: str
    def shout(self):
        return self.name.upper()
print(encode(Pickled([Job("a"), lambda x: x + 1])).hex())
"""
    reader = """
import sys
from rayflow.core.codec import decode
job, add = decode(bytes.fromhex(sys.argv[1]))
print(job.shout(), add(1))
"""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    written = subprocess.run(
        [sys.executable, "-c", writer], env=environment, capture_output=True, text=True, check=True
    ).stdout.strip()
    read = subprocess.run(
        [sys.executable, "-c", reader, written], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert read.split() == ["A", "2"]


def test_arrays_keep_dtype_and_shape_have_one_form_for_every_layout_and_are_writable() -> None:
    structured = np.array([(1, 2.0, [1, 2])], dtype=[("a", "<i4"), ("b", ">f8"), ("c", "u1", (2,))])
    grid = np.arange(12.0).reshape(3, 4)
    for array in (
        grid,
        np.asfortranarray(grid),
        grid[::-1, ::2],
        np.array(np.float32(2.5)),
        structured,
        np.zeros((0, 3)),
    ):
        back = decode(encode(array))
        assert same(back, array)
        assert back.flags.writeable
        assert back.flags.c_contiguous
    assert encode(np.asfortranarray(grid)) == encode(grid)
    assert same(decode(encode(structured[0])), structured[0])


def test_tables_keep_schema_and_metadata_and_have_one_form_for_every_chunking() -> None:
    schema = pa.schema(
        [pa.field("n", pa.int64(), nullable=False), pa.field("d", pa.dictionary(pa.int8(), pa.string()))], {"k": "v"}
    )
    whole = pa.Table.from_pydict({"n": [1, 2, 3, 4], "d": ["x", None, "y", "x"]}, schema)
    back = decode(encode(whole))
    assert back.equals(whole, check_metadata=True)
    assert type(back) is pa.Table
    numbers_only = whole.select(["n"])
    assert encode(pa.concat_tables([numbers_only.slice(0, 1), numbers_only.slice(1)])) == encode(numbers_only)
    middle = whole.slice(1, 2)
    assert decode(encode(middle)).equals(middle)
    assert encode(numbers_only.slice(1, 2)) == encode(pa.Table.from_pydict({"n": [2, 3]}, numbers_only.schema))
    assert decode(encode(whole.select([]))).num_rows == 4
    batch = whole.to_batches()[0]
    assert type(decode(encode(batch))) is pa.RecordBatch
    assert decode(encode(batch)).equals(batch, check_metadata=True)


def test_uuids_and_unset_come_back() -> None:
    value = [uuid.UUID(int=7), msgspec.UNSET, Settings(codec="a", maybe=None)]
    assert decode(encode(value)) == value
    assert decode(encode(msgspec.UNSET)) is msgspec.UNSET
