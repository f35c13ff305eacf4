"""Exceptions as what is kept of them: text of bounded size, and enough of the object to raise its type again elsewhere.

``describe_error`` is called where an exception was raised. ``raised_as`` makes what is raised again: one of rayflow's own errors,
StepFailed for example, that is also of the type that was raised, with the attributes and the ``__cause__`` that it had. So both
``except StepFailed`` and ``except ValueError`` catch it. It depends on the record alone, so that a replay raises the same.

No constructor runs and nothing is unpickled: the codec stores arguments and attributes one by one. What it cannot store, or what
is too large, is kept as text. Where a type cannot be imported (of ``__main__``, of a function), its nearest base that can be is
taken.
"""

from __future__ import annotations

import contextlib
import traceback
import types
from collections.abc import Iterable
from functools import lru_cache, partial, reduce
from typing import Any, Final, cast

import msgspec

from rayflow.core import codec
from rayflow.core.code_reference import reference_of, resolve
from rayflow.core.records import Failure, Status
from rayflow.errors import (
    EntityUnreadable,
    ExecutionCancelled,
    ExecutionFailed,
    ExecutionNotFound,
    Fenced,
    InvalidInput,
    NonDeterminismError,
    Overloaded,
    ProcessCrashed,
    RayUnavailable,
    RemoteError,
    StepFailed,
    StoreError,
)

MESSAGE_CHARS: Final = 4_000
TRACEBACK_CHARS: Final = 16_000
_TYPE_CHARS: Final = 200
_KEPT_BYTES: Final = 8 * 1024
"""Of arguments and attributes, those of causes included."""
_MOST: Final = 50
"""Arguments, attributes and members of a group that are kept."""
_DEEPEST: Final = 8
"""Causes of causes, groups in groups."""
_HEAP_TYPE_FLAG: Final = 1 << 9  # Py_TPFLAGS_HEAPTYPE of CPython: set for classes made by Python code.
_NOT_IN_FUTURES = (StopIteration, StopAsyncIteration)
_RAISED: Final = "_rayflow_raised"
"""The attribute that says what ``raised_as`` has made an error of."""
_OF_CALLS: Final = (
    TimeoutError,
    EntityUnreadable,
    ExecutionCancelled,
    ExecutionNotFound,
    Fenced,
    NonDeterminismError,
    Overloaded,
    ProcessCrashed,
    RayUnavailable,
    StoreError,
)
"""What a client's calls raise on their own account: who catches that waits on, or tries again."""
_ITS_TRACEBACK: Final = ("remote_traceback", "__notes__")
"""Attributes of rayflow's own errors that say what the traceback says that is kept beside them."""


class _Kept(msgspec.Struct, frozen=True, array_like=True):
    """An exception. ``types``: its class and those that it derives from, as far as they can be imported, nearest first.

    ``also``: errors of rayflow that it has been raised as. Arguments and attributes are encoded one by one; ``members`` are those
    of a group. ``bare``: whether it was raised ``from None`` or ``from`` its cause.
    """

    types: list[str]
    also: list[str]
    args: list[bytes]
    attributes: dict[str, bytes]
    cause: _Kept | None = None
    bare: bool = False
    members: list[_Kept] = []


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Kept).decode


def shortened(text: str, limit: int = MESSAGE_CHARS) -> str:
    """``text``, or its two ends with a word on how much is missing between them. What a log cannot hold is escaped."""
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")  # such as file names that are no Unicode
    half = limit // 2
    if len(text) <= limit:
        return text
    return f"{text[:half]} … {len(text) - 2 * half} characters left out … {text[-half:]}"


def failure_of(kind: str, message: str, trace: str = "") -> Failure:
    """A failure, whatever the length of its texts."""
    return Failure(shortened(kind, _TYPE_CHARS), shortened(message), shortened(trace, TRACEBACK_CHARS))


def describe_error(error: BaseException) -> Failure:
    """An exception as it can be recorded, whatever is in it: megabytes of text, a broken ``__str__``."""
    try:
        message = str(error)
    except Exception as broken:
        message = f"<its message cannot be shown: {type(broken).__name__}>"
    try:
        trace = "".join(traceback.format_exception(error))
    except Exception as broken:
        trace = f"<its traceback cannot be shown: {type(broken).__name__}>"
    failure = failure_of(type(error).__name__, message, trace)
    with contextlib.suppress(Exception):  # it has attributes that raise, for example: the text has to do
        return msgspec.structs.replace(failure, error=_encode(_Keeping().keep(error)))
    return failure


def without_error(failure: Failure) -> Failure:
    """The texts alone, for what nobody raises again."""
    return msgspec.structs.replace(failure, error=b"") if failure.error else failure


def raised_as(kind: type[RemoteError], message: str, failure: Failure, *, to_client: bool = False) -> RemoteError:
    """An error of ``kind`` with this message, which is also of the type that was raised, where that can be imported.

    ``to_client``: it is raised by a call that has errors of its own, ``result(timeout)``. It must not be taken for one of those, so
    an exception of their types is its ``__cause__`` alone.
    """
    plain = kind(message, error_type=failure.type, remote_traceback=failure.traceback)
    if not failure.error:
        return plain
    ours = dict(vars(plain))
    try:
        kept = _decode(failure.error)
        original = _type_of(kept)
        if to_client and issubclass(original, _OF_CALLS):
            error: Any = _combined(kind, StepFailed)(message) if issubclass(original, StepFailed) else plain
            BaseException.__setattr__(error, "__cause__", _rebuilt(kept))
        else:
            found = _type_of(kept, kind)
            error = plain if found is kind else _made(found, kept)
            _dress(error, kept)
    except Exception:  # damaged, or of types that cannot be made so
        return kind(message, error_type=failure.type, remote_traceback=failure.traceback)
    ours["__notes__"] = [*vars(error).get("__notes__", ()), *ours.get("__notes__", ())]
    if error is not plain:
        ours[_RAISED] = (kind, message, failure, to_client)
    vars(error).update(ours)
    return error


def execution_error(execution: str, status: Status, failure: Failure | None) -> Exception:
    """What is raised for an execution that has ended without a result."""
    message = f"{failure.type}: {failure.message}" if failure else str(status)
    if status is Status.CANCELLED:
        return ExecutionCancelled(f"execution {execution} was cancelled ({message})")
    return raised_as(ExecutionFailed, f"execution {execution} failed: {message}", failure or Failure("", message), to_client=True)


# -- keeping -------------------------------------------------------------------------------------------------------------------


class _Keeping:
    """What is kept of one exception and of all that is in it."""

    def __init__(self) -> None:
        self._left = _KEPT_BYTES

    def keep(self, error: BaseException, depth: int = 0) -> _Kept:
        raised = vars(error).get(_RAISED)
        if raised is not None:
            kind, _, failure, _ = raised
            kept = _decode(failure.error)
            return msgspec.structs.replace(kept, also=[reference_of(kind), *kept.also])
        types, grouped = _references(type(error)), isinstance(error, BaseExceptionGroup)
        args = [self._value(one) or self._text(one) for one in error.args[:_MOST]]
        if depth and not types:
            args = [self._text(error)]
        attributes = self._members(error)
        for name, value in list(vars(error).items())[:_MOST]:
            if not (isinstance(error, RemoteError) and name in _ITS_TRACEBACK):
                attributes[name] = self._value(value) or self._text(value)
        cause, members = error.__cause__, cast("tuple[BaseException, ...]", getattr(error, "exceptions", ()) if grouped else ())
        return _Kept(
            types,
            [],
            args,
            attributes,
            self.keep(cause, depth + 1) if cause is not None and depth < _DEEPEST else None,
            error.__suppress_context__,
            [self.keep(one, depth + 1) for one in members[:_MOST]] if depth < _DEEPEST else [],
        )

    def _members(self, error: BaseException) -> dict[str, bytes]:
        """What is not in its ``__dict__``: slots, and what Python's own exceptions have, such as ``errno``."""
        found: dict[str, bytes] = {}
        for kind in type(error).__mro__:
            for name, member in list(vars(kind).items()) if issubclass(kind, BaseException) else ():
                described = isinstance(member, (types.MemberDescriptorType, types.GetSetDescriptorType))
                if described and name != "args" and not name.startswith("__") and getattr(error, name, None) is not None:
                    data = self._value(getattr(error, name))
                    if data is not None:
                        found[name] = data
        return found

    def _value(self, value: object) -> bytes | None:
        """None: it cannot be stored, or is too large."""
        if isinstance(value, str):
            value = shortened(value)
        elif isinstance(value, bytes) and len(value) > MESSAGE_CHARS:
            half = MESSAGE_CHARS // 2
            value = b"%b ... %d bytes left out ... %b" % (value[:half], len(value) - 2 * half, value[-half:])
        try:
            data = codec.encode(value)
        except Exception:
            return None
        if len(data) > self._left:
            return None
        self._left -= len(data)
        return data

    def _text(self, value: object) -> bytes:
        try:
            text = str(value) if isinstance(value, BaseException) else repr(value)
        except Exception:
            text = f"<{type(value).__name__}>"
        data = codec.encode(shortened(text, min(MESSAGE_CHARS, max(self._left, _TYPE_CHARS))))
        self._left -= len(data)
        return data


def _references(kind: type[Any]) -> list[str]:
    found: list[str] = []
    for one in kind.__mro__:
        if one is not Exception and issubclass(one, Exception) and not issubclass(one, _NOT_IN_FUTURES):
            with contextlib.suppress(InvalidInput):
                reference = reference_of(one)
                if resolve(reference) is one:
                    found.append(reference)
    return found


# -- raising again -------------------------------------------------------------------------------------------------------------


def _type_of(kept: _Kept, *kinds: type[Exception]) -> type[Exception]:
    """The nearest type that there is, and as well all of ``kinds`` and what it was raised as before."""
    wanted = (*kinds, *_found(kept.also))
    for found in _found(kept.types):
        with contextlib.suppress(Exception):  # another metaclass, for example, or a class that is not to be derived from
            return reduce(_both, reversed(wanted), found)
    return reduce(_both, reversed(wanted), Exception)


def _found(references: Iterable[str]) -> Iterable[type[Exception]]:
    for reference in references:
        with contextlib.suppress(InvalidInput):
            found = resolve(reference)
            if isinstance(found, type) and issubclass(found, Exception):
                yield found


def _both(other: type[Exception], kind: type[Exception]) -> type[Exception]:
    return _combined(kind, other)


@lru_cache(maxsize=512)
def _combined(kind: type[Exception], other: type[Exception]) -> type[Exception]:
    """A type that is both, and looks like ``kind``."""
    if issubclass(kind, other):
        return kind
    methods: dict[str, Any] = {
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__doc__": kind.__doc__,
        "__str__": _message,
        "__reduce__": _reduced,
        "__reduce_ex__": _reduced,
    }
    bases = (other,) if issubclass(other, kind) else (kind, other)
    return types.new_class(kind.__name__, bases, exec_body=lambda namespace: namespace.update(methods))


def _message(self: Exception) -> str:
    raised = vars(self).get(_RAISED)
    return Exception.__str__(self) if raised is None else raised[1]


def _reduced(self: Exception, protocol: object = None) -> tuple[object, ...]:
    kind, message, failure, to_client = vars(self)[_RAISED]
    return partial(raised_as, to_client=to_client), (kind, message, failure)


def _made(kind: type[Exception], kept: _Kept) -> Any:
    """An exception of that type, without its constructor."""
    args = [codec.decode(one) for one in kept.args]
    base: Any = next(one for one in kind.__mro__ if not one.__flags__ & _HEAP_TYPE_FLAG)
    if issubclass(kind, BaseExceptionGroup):
        return base.__new__(kind, args[0], [_rebuilt(one) for one in kept.members])
    error = base.__new__(kind)
    BaseException.__setattr__(error, "args", tuple(args))
    return error


def _dress(error: Exception, kept: _Kept) -> None:
    """Attributes and cause."""
    for name, data in kept.attributes.items():
        with contextlib.suppress(Exception):  # its type cannot be imported any more, or its class does not let it be set
            BaseException.__setattr__(error, name, codec.decode(data))
    if kept.cause is not None:
        BaseException.__setattr__(error, "__cause__", _rebuilt(kept.cause))
    BaseException.__setattr__(error, "__suppress_context__", kept.bare)


def _rebuilt(kept: _Kept) -> Exception:
    """A cause, or a member of a group."""
    error = _made(_type_of(kept), kept)
    _dress(error, kept)
    return error
