"""Types that the tests of the codec store: they must be importable in another process."""

from __future__ import annotations

import enum
import functools
from collections.abc import Iterator
from dataclasses import InitVar, dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Chunk:
    index: int
    name: str
    start_s: float
    digest: bytes = b""
    tags: tuple[Any, ...] = ()


@dataclass
class Plan:
    chunks: list[Any]
    notes: dict[Any, Any] = field(default_factory=dict)
    total: int = field(default=0, init=False)


@dataclass(frozen=True)
class Box(Generic[T]):
    content: T


@dataclass
class Prefixed:
    """Its ``__post_init__`` is not idempotent, and derives what is no field."""

    path: str
    shown: str = field(init=False)

    def __post_init__(self) -> None:
        self.path = "/" + self.path
        self.shown = self.path
        self.length = len(self.path)


@dataclass
class Circle:
    radius: float

    @functools.cached_property
    def area(self) -> float:
        return 3.0 * self.radius**2


@dataclass
class Positive:
    number: int

    def __post_init__(self) -> None:
        if self.number < 0:
            raise ValueError("must not be negative")


@dataclass
class WithInitVar:
    kept: int
    hint: InitVar[int]

    def __post_init__(self, hint: int) -> None:
        self.kept += hint


@dataclass
class DictLike(dict[str, int]):
    name: str


class Point(NamedTuple):
    x: float
    y: float = 0.0


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    codec: str
    crf: int = 23
    extra: dict[Any, Any] = {}
    maybe: Any = msgspec.UNSET


class Colour(enum.Enum):
    RED = "r"
    GREEN = "g"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Mode(enum.StrEnum):
    FAST = "fast"
    SLOW = "slow"


class Access(enum.Flag):
    READ = 1
    WRITE = 2


class MyInt(int):
    pass


class Outer:
    @dataclass
    class Inner:
        value: int

    def method(self) -> int:
        return 1


class Plain:
    pass


def double(value: int) -> int:
    return 2 * value


def numbers() -> Iterator[int]:
    yield 1


class Wrapper:
    """A decorator that leaves an object in place of the function, which it keeps in ``__wrapped__``."""

    def __init__(self, function: Any) -> None:
        functools.update_wrapper(self, function)


class Nameless:
    """A decorator that keeps the function in ``__wrapped__`` and has no name itself."""

    def __init__(self, function: Any) -> None:
        self.__wrapped__ = function


@Wrapper
def decorated(value: int) -> int:
    return value


@Nameless
def nameless(value: int) -> int:
    return value


def _shadow() -> int:
    return 1


_shadow.__qualname__ = "double"
shadow = _shadow
