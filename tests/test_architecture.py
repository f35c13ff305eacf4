"""The numbered invariants of docs/architecture.md: each is broken on purpose, and docs/invariants.md says what is red then."""

from __future__ import annotations

import re
from pathlib import Path

from tests import mutations
from tests.conftest import REPOSITORY


def invariants() -> list[str]:
    return re.findall(r"^\| (I\d+) \|", (REPOSITORY / "docs" / "architecture.md").read_text(), re.MULTILINE)


def test_every_invariant_has_its_number_and_is_broken_by_something_that_a_test_sees() -> None:
    numbers = invariants()
    assert numbers == [f"I{index}" for index in range(1, len(numbers) + 1)] and len(numbers) >= 27
    broken = {invariant for invariant, _, _ in mutations.rows()}
    assert [one for one in numbers if one not in broken] == []
    assert sorted(broken - set(numbers)) == []


def test_the_table_of_invariants_is_what_the_tests_do() -> None:
    document = (REPOSITORY / "docs" / "invariants.md").read_text()
    assert document[document.index("| no. |") :] == mutations.table() + "\n", "put there what python -m tests.mutations prints"


def test_no_citation_points_to_nothing() -> None:
    known = set(invariants())
    places = [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md")]
    places += [path for folder in ("tests", "rayflow", "pipelines", "scripts") for path in (REPOSITORY / folder).rglob("*.py")]
    cited = {(_name(path), one) for path in places for one in re.findall(r"\bI\d+\b", path.read_text())}
    assert [(name, one) for name, one in sorted(cited) if one not in known] == []


def _name(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))
