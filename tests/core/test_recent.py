"""A dict that forgets what was not used lately."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rayflow.core.recent import Recent


@given(st.lists(st.integers(0, 12), max_size=80), st.integers(1, 5))
def test_the_last_keys_that_were_used_are_known_and_few_others(keys: list[int], limit: int) -> None:
    recent: Recent[int, str] = Recent(limit)
    used: list[int] = []
    for key in keys:
        found = recent.get(key)
        assert found in (None, str(key))
        assert found is not None or key not in used[:limit], "it is among those used last"
        if found is None:
            recent.put(key, str(key))
        used = [key, *(one for one in used if one != key)]
        assert len(recent) <= 2 * limit
