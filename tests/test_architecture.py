"""The numbered invariants of docs/architecture.md: each is cited where it is tested."""

from __future__ import annotations

import re

from tests.conftest import REPOSITORY


def test_every_invariant_is_cited_by_a_test() -> None:
    text = (REPOSITORY / "docs" / "architecture.md").read_text()
    numbers = re.findall(r"^\| (I\d+) \|", text, re.MULTILINE)
    assert numbers == [f"I{index}" for index in range(1, len(numbers) + 1)] and len(numbers) >= 19
    tests = [path.read_text() for path in (REPOSITORY / "tests").rglob("test_*.py") if path.name != "test_architecture.py"]
    assert [one for one in numbers if not any(re.search(rf"\b{one}\b", test) for test in tests)] == []
