"""Invariants: I7."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayflow.checkpoint.segment import Kind, Segment, check_incarnation, checksum, decode, encode
from rayflow.errors import Damaged, InvalidInput, StoreUnsuitable

SMALL = Segment(Kind.RECORDS, 17, 3, "0123abcd", bytes(range(16)), (b"first", b"", b"third record"))


@given(
    st.builds(
        Segment,
        kind=st.sampled_from(Kind),
        number=st.integers(0, 10**12 - 1),
        epoch=st.integers(1, 2**64 - 1),
        incarnation=st.text("abcXYZ0189", min_size=1, max_size=32),
        predecessor=st.binary(min_size=16, max_size=16),
        records=st.lists(st.binary(max_size=40)).map(tuple),
    )
)
def test_a_segment_comes_back_as_it_was_and_always_has_the_same_bytes(segment: Segment) -> None:
    data = encode(segment)
    assert decode(data, "log/x") == segment
    assert encode(segment) == data
    assert checksum(data) == data[-16:]


def test_the_format_is_frozen() -> None:
    """Bytes written by version 1 must be read for ever: a change here needs a new format version."""
    frozen = bytes.fromhex(
        "52465347010108000300000011000000000000000300000000000000000102030405060708090a0b0c0d0e0f"
        "303132336162636405000000000000000c00000066697273747468697264207265636f7264"
    )
    assert encode(SMALL)[:-16] == frozen
    assert decode(encode(SMALL), "log/x") == SMALL


def test_no_flipped_bit_goes_unnoticed() -> None:
    data = encode(SMALL)
    for at in range(len(data)):
        for bit in range(8):
            altered = bytearray(data)
            altered[at] ^= 1 << bit
            with pytest.raises(Damaged, match=r"^log/000000000017 is damaged at byte \d+: "):
                decode(bytes(altered), "log/000000000017")


def test_no_cut_or_extension_goes_unnoticed_and_the_message_says_where_it_ends() -> None:
    data = encode(SMALL)
    for size in range(len(data)):
        with pytest.raises(Damaged, match=rf"^log/x is damaged at byte {size if size >= 4 else '[0-3]'}: "):
            decode(data[:size], "log/x")
    with pytest.raises(Damaged, match=rf"at byte {len(data)}: has {len(data) + 1} bytes where its header announces"):
        decode(data + b"\0", "log/x")


def test_a_later_format_is_told_from_damage() -> None:
    data = bytearray(encode(SMALL))[:-16]
    data[4] = 2
    later = bytes(data) + hashlib.blake2b(data, digest_size=16).digest()
    with pytest.raises(StoreUnsuitable, match="log/x has format version 2, this rayflow reads 1: upgrade"):
        decode(later, "log/x")


def test_what_does_not_fit_is_refused_before_it_is_written() -> None:
    with pytest.raises(InvalidInput, match="does not fit its format"):
        encode(Segment(Kind.CLAIM, -1, 1, "a", bytes(16)))
    for bad in ("", "a" * 33, "a-b", "a/b", "é", "a\n"):
        with pytest.raises(InvalidInput, match="is no incarnation"):
            check_incarnation(bad)
