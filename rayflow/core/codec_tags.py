"""The integer keys that mark, in the stored form, what MessagePack has no type for.

Part of the stored form: never renumber, never reuse. Under 128, so that each is one byte.
"""

from __future__ import annotations

from typing import Final

TUPLE: Final = 1
SET: Final = 2
FROZENSET: Final = 3
DICT: Final = 4
RECORD: Final = 5
ENUM: Final = 6
BIG_INT: Final = 7
SURROGATE_STR: Final = 8
DATETIME: Final = 9
DATE: Final = 10
TIME: Final = 11
TIMEDELTA: Final = 12
TIMEZONE: Final = 13
ZONE_INFO: Final = 14
DECIMAL: Final = 15
UUID: Final = 16
PATH: Final = 17
PURE_POSIX_PATH: Final = 18
PURE_WINDOWS_PATH: Final = 19
COMPLEX: Final = 20
RANGE: Final = 21
ARRAY: Final = 22
ARRAY_SCALAR: Final = 23
TABLE: Final = 24
RECORD_BATCH: Final = 25
PICKLED: Final = 26
UNSET: Final = 27
