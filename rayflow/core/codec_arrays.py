"""How the codec stores numpy arrays and scalars, and Arrow tables and record batches.

numpy and pyarrow take a tenth of a second to import and most values need neither. So they are imported here only to
rebuild a value that is theirs; a value to be stored has imported its library already.

Normal forms, so that equal values have equal bytes: arrays in C order whatever their strides; tables in one chunk per
column, in buffers of their own.
"""

from __future__ import annotations

import importlib
import math
import zlib
from typing import Any, cast

from rayflow.errors import CodecError


def is_array(kind: type[Any]) -> bool:
    """Whether ``kind`` is exactly ``numpy.ndarray``: subclasses carry what an array does not."""
    return kind.__module__ == "numpy" and kind.__name__ == "ndarray"


def is_array_scalar(kind: type[Any]) -> bool:
    """Whether ``kind`` is a scalar type of numpy."""
    return kind.__module__ == "numpy" and any(base.__name__ == "generic" for base in kind.__mro__)


def is_table(kind: type[Any]) -> bool:
    """Whether ``kind`` is ``pyarrow.Table``."""
    return kind.__module__ == "pyarrow.lib" and kind.__name__ == "Table"


def is_record_batch(kind: type[Any]) -> bool:
    """Whether ``kind`` is ``pyarrow.RecordBatch``."""
    return kind.__module__ == "pyarrow.lib" and kind.__name__ == "RecordBatch"


def array_payload(array: Any) -> list[Any]:
    """``[dtype, shape, bytes in C order]``. Raises CodecError for dtypes that are not plain memory."""
    return [_describe(array.dtype), list(array.shape), array.tobytes(order="C")]


def build_array(dtype_description: Any, shape: list[int], content: bytes) -> Any:
    """A new, writable array in C order. Raises CodecError if the parts do not fit together."""
    dtype = _dtype(dtype_description)
    if any(type(length) is not int or length < 0 for length in shape):
        raise CodecError(f"the stored array has the impossible shape {shape!r}: the bytes are damaged.")
    if math.prod(shape) * dtype.itemsize != len(content):
        raise CodecError(f"the stored array of shape {shape!r} has {len(content)} bytes: the bytes are damaged.")
    return importlib.import_module("numpy").ndarray(tuple(shape), dtype, bytearray(content))


def scalar_payload(scalar: Any) -> list[Any]:
    """``[dtype, content]``; text and bytes as they are, for as array elements they would lose trailing zeros."""
    if isinstance(scalar, str):
        return ["U", str.__str__(scalar)]  # str() would drop trailing zeros too.
    if isinstance(scalar, bytes):
        return ["S", bytes.__bytes__(scalar)]
    return [_describe(scalar.dtype), scalar.tobytes()]


def build_scalar(dtype_description: Any, content: Any) -> Any:
    """The scalar that ``scalar_payload`` described. Raises CodecError if the parts do not fit together."""
    numpy: Any = importlib.import_module("numpy")
    if dtype_description == "U" and isinstance(content, str):
        return numpy.str_(content)
    if dtype_description == "S" and isinstance(content, bytes):
        return numpy.bytes_(content)
    dtype = _dtype(dtype_description)
    if not isinstance(content, bytes) or len(content) != dtype.itemsize:
        raise CodecError(f"the stored scalar of dtype {dtype_description!r} has the wrong size: the bytes are damaged.")
    return numpy.ndarray((), dtype, bytearray(content))[()]


def table_payload(table: Any) -> list[Any]:
    """``[CRC-32, Arrow IPC stream]`` of a table or record batch. The stream is not compressed."""
    pyarrow: Any = importlib.import_module("pyarrow")
    for field in table.schema:
        if _holds_view(pyarrow.types, field.type):
            raise CodecError(
                f"column {field.name!r} is of type {field.type}, whose layout has no normal form. "
                "Cast it to string, binary or list."
            )
    sink = pyarrow.BufferOutputStream()
    try:
        # Joining with nothing copies the rows into buffers of their own; a slice would bring along some of its
        # neighbours. Without columns there is nothing to copy, and joining would forget the number of rows.
        if table.num_columns == 0:
            pass
        elif isinstance(table, pyarrow.Table):
            table = pyarrow.concat_tables([table.slice(0, 0), table]).combine_chunks()
        else:
            table = pyarrow.concat_batches([table.slice(0, 0), table])
        with pyarrow.ipc.new_stream(sink, table.schema) as writer:
            writer.write(table)
    except pyarrow.ArrowException as error:
        raise CodecError(f"the table cannot be stored ({error}). Cast the column to a type that Arrow IPC writes.") from error
    content = sink.getvalue().to_pybytes()
    return [zlib.crc32(content), content]


def _holds_view(types: Any, kind: Any) -> bool:
    if types.is_string_view(kind) or types.is_binary_view(kind) or types.is_list_view(kind):
        return True
    if types.is_large_list_view(kind):
        return True
    if types.is_dictionary(kind):
        return _holds_view(types, kind.value_type)
    if hasattr(kind, "storage_type"):
        return _holds_view(types, kind.storage_type)
    return any(_holds_view(types, kind.field(index).type) for index in range(kind.num_fields))


def build_table(checksum: int, content: bytes) -> Any:
    """The table of an IPC stream. Raises CodecError if it is damaged, or anything if it never was a table."""
    pyarrow: Any = importlib.import_module("pyarrow")
    with _open_stream(pyarrow, checksum, content) as reader:
        table = reader.read_all()
    table.validate(full=True)
    return table


def build_record_batch(checksum: int, content: bytes) -> Any:
    """The record batch of an IPC stream of one batch; otherwise as ``build_table``."""
    pyarrow: Any = importlib.import_module("pyarrow")
    with _open_stream(pyarrow, checksum, content) as reader:
        batch = reader.read_next_batch()
    batch.validate(full=True)
    return batch


def _open_stream(pyarrow: Any, checksum: int, content: bytes) -> Any:
    # Arrow checks neither names nor values when it opens a stream: damage would show later, at worst as a crash.
    if zlib.crc32(content) != checksum:
        raise CodecError("a stored table is damaged: its checksum differs. Restore it from a copy.")
    return pyarrow.ipc.open_stream(pyarrow.py_buffer(content))


def _describe(dtype: Any) -> Any:
    numpy: Any = importlib.import_module("numpy")
    if dtype.hasobject:
        raise CodecError(
            f"a numpy array of dtype {dtype!r} holds Python objects and cannot be stored. "
            "Convert it to a list, or to a dtype of fixed size such as float64 or <U32."
        )
    if _holds_long_double(dtype):
        raise CodecError(f"dtype {dtype!r} differs from machine to machine. Convert it to float64 or complex128.")
    if _packed_size_bytes(dtype) != dtype.itemsize:
        raise CodecError(
            f"dtype {dtype!r} has gaps or overlaps, whose content is undefined. "
            "Convert the array by numpy.lib.recfunctions.repack_fields(array)."
        )
    try:
        description = _listed(numpy.lib.format.dtype_to_descr(dtype))
    except ValueError:  # Fields out of order.
        description = None
    if description is None or _described(description) != dtype:
        raise CodecError(f"dtype {dtype!r} cannot be described portably. Convert the array to a standard dtype.")
    return description


def _holds_long_double(dtype: Any) -> bool:
    if dtype.subdtype is not None:
        return _holds_long_double(dtype.subdtype[0])
    if dtype.fields is not None:
        return any(_holds_long_double(field[0]) for field in dtype.fields.values())
    return dtype.char in "gG"


def _packed_size_bytes(dtype: Any) -> int:
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return _packed_size_bytes(base) * math.prod(shape)
    if dtype.names is not None:
        return sum(_packed_size_bytes(dtype.fields[name][0]) for name in dtype.names)
    return dtype.itemsize


def _listed(description: Any) -> Any:
    """numpy describes structures by lists of tuples; the store has lists only."""
    if not isinstance(description, (list, tuple)):
        return description
    return [_listed(item) for item in cast("list[Any]", description)]


def _described(description: Any) -> Any:
    return importlib.import_module("numpy").lib.format.descr_to_dtype(_tupled(description))


def _dtype(description: Any) -> Any:
    dtype = _described(description)
    # numpy reads more notations than it writes, that of Python objects among them.
    try:
        written = _describe(dtype)
    except CodecError:
        written = None
    if written != description:
        raise CodecError(f"a stored array has dtype {description!r}, which is never written: the bytes are damaged.")
    return dtype


def _tupled(description: Any) -> Any:
    if isinstance(description, str):
        return description
    return [_tupled_field(*field) for field in description]


def _tupled_field(name: Any, form: Any, *shape: Any) -> tuple[Any, ...]:
    return (name if isinstance(name, str) else tuple(name), _tupled(form), *(tuple(lengths) for lengths in shape))
