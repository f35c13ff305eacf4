"""Arguments come out as they went in, of the same types, whatever was encoded or decoded before; none is shared that can change."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from rayflow.core import codec
from rayflow.core.arguments import decode_arguments, encode_arguments

_values = st.one_of(
    st.sampled_from([0, 1, True, False, 1.0, 0.0, -0.0, None, "", "1", b"", 2**63, 2**70]),
    st.integers(),
    st.text(max_size=80),
    st.lists(st.integers(), max_size=2),
)


@given(st.lists(_values, max_size=3), st.dictionaries(st.sampled_from(["by", "to"]), _values, max_size=2))
def test_arguments_are_stored_as_the_codec_stores_them(args: list[Any], kwargs: dict[str, Any]) -> None:
    for _ in range(2):
        data, fingerprint = encode_arguments(tuple(args), kwargs)
        assert (data, fingerprint) == codec.encode_with_fingerprint((tuple(args), kwargs))
        read_args, read_kwargs = decode_arguments(data)
        assert repr((read_args, read_kwargs)) == repr((tuple(args), kwargs))


def test_what_an_operation_does_to_its_arguments_reaches_no_other_message() -> None:
    data, _ = encode_arguments(([1],), {"to": {}})
    args, kwargs = decode_arguments(data)
    args[0].append(2)
    kwargs["to"]["x"] = 1
    assert decode_arguments(data) == (([1],), {"to": {}})
    plain, _ = encode_arguments((1,), {})
    decode_arguments(plain)[1]["by"] = 2
    assert decode_arguments(plain) == ((1,), {})
