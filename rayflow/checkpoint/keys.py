"""What a key may look like: one rule for all stores, so that what one of them takes, every other takes too.

The alphabet is the part of ASCII that needs no escaping in a file name or in a URL and that sorts alike everywhere.
Names outside it can therefore lie in a store's folder (temporary files, a file system's own) without ever being
mistaken for an object.
"""

from __future__ import annotations

import re

from rayflow.errors import InvalidInput

MAX_KEY_LENGTH = 768
"""Characters in a key; leaves 256 of the 1,024 that buckets allow to the prefix in the store's URL."""

MAX_PART_LENGTH = 255
"""Characters between two slashes: what common file systems take as a name."""

ALPHABET = "".join(sorted("-.=_" + "0123456789" + "ABCDEFGHIJKLMNOPQRSTUVWXYZ" + "abcdefghijklmnopqrstuvwxyz"))
"""The characters of a part, in ascending order."""

_RULE = "a key is relative, of parts of A-Z a-z 0-9 . _ = - joined by single slashes"
_PART = rf"(?!\.{{1,2}}(?:/|\Z))[A-Za-z0-9._=-]{{1,{MAX_PART_LENGTH}}}"
_KEY = re.compile(rf"{_PART}(?:/{_PART})*")
_PREFIX = re.compile(rf"(?:{_PART}/)*[A-Za-z0-9._=-]{{0,{MAX_PART_LENGTH}}}")


def is_key(text: str) -> bool:
    """Whether ``text`` is a key that every store takes."""
    return len(text) <= MAX_KEY_LENGTH and _KEY.fullmatch(text) is not None


def check_key(key: str) -> None:
    """Raises InvalidInput if ``key`` is not a key that every store takes."""
    if not is_key(key):
        raise InvalidInput(
            f"{key[:100]!r} is not a key of a store: {_RULE}, "
            f"none of them '.' or '..', {MAX_PART_LENGTH} characters to a part and {MAX_KEY_LENGTH} in all"
        )


def check_prefix(prefix: str) -> None:
    """Raises InvalidInput if ``prefix`` cannot be the beginning of a key; the empty string can."""
    if len(prefix) > MAX_KEY_LENGTH or _PREFIX.fullmatch(prefix) is None:
        raise InvalidInput(f"{prefix[:100]!r} is not the beginning of a key of a store: {_RULE}")
