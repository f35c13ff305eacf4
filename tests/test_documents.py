"""What the documents refer to is there: tests by name, files, invariants; and their examples run as written."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

DOCUMENTS = sorted([REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")])


def definitions(text: str) -> dict[str, str]:
    """Link definitions: what ``[name]`` leads to."""
    return dict(re.findall(r"^\[([^\]]+)\]:\s+(\S+)$", text, re.MULTILINE))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_within_the_project_leads_to_a_file(document: Path) -> None:
    text = document.read_text()
    targets = [*re.findall(r"\]\(([^)\s]+)\)", text), *definitions(text).values()]
    local = {target.partition("#")[0] for target in targets if not target.startswith(("http", "#"))}
    assert [target for target in sorted(local) if not (document.parent / target).exists()] == []


def test_every_test_that_the_comparison_names_is_in_the_file_that_it_links() -> None:
    document = REPOSITORY / "docs" / "actor-model.md"
    text = document.read_text()
    links = definitions(text)
    named = dict(re.findall(r"^\| \[(T\d+)\] \| `(test_\w+)` \|$", text, re.MULTILINE))
    assert named.keys() == {name for name in links if re.fullmatch(r"T\d+", name)}
    files = {code: (document.parent / links[code]).read_text() for code in named}
    assert {name for code, name in named.items() if f"def {name}(" not in files[code]} == set()


def test_every_reference_of_the_comparison_is_defined_and_every_definition_is_used() -> None:
    text = (REPOSITORY / "docs" / "actor-model.md").read_text()
    body, _, _ = text.partition("\n## What shows it\n")
    links = definitions(text)
    assert set(re.findall(r"\[([TCSI]\d+)\]", body)) == {name for name in links if re.fullmatch(r"[TCSI]\d+", name)}
    invariants = re.findall(r"^\| (I\d+) \|", (REPOSITORY / "docs" / "architecture.md").read_text(), re.MULTILINE)
    assert {name for name in links if name.startswith("I")} <= set(invariants)


def test_a_row_of_the_comparison_has_a_cell_for_every_system() -> None:
    text = (REPOSITORY / "docs" / "actor-model.md").read_text()
    body, _, _ = text.partition("\n## What shows it\n")
    rows = [line for line in body.splitlines() if line.startswith("|")]
    assert [row for row in rows if row.count("|") != 7] == []


def test_what_must_pass_before_anything_lands_includes_what_the_readme_tells_to_run() -> None:
    """In an environment of its own, and from the working copy, which is what is checked."""
    told = re.search(r"^Pass the tests:\n\n```\n(.+)\n```$", (REPOSITORY / "README.md").read_text(), re.MULTILINE)
    assert told is not None
    script = (REPOSITORY / ".ci" / "run").read_text().replace("$environment/bin/", ".venv/bin/").replace("\\\n", " ")
    manner = {"-q", "--quiet", "--disable-pip-version-check", "-e"}
    run = [[word for word in shlex.split(line, comments=True) if word not in manner] for line in script.splitlines()]
    for command in told[1].split(" && "):
        assert [word for word in shlex.split(command) if word not in manner] in run, f"{command}: not in .ci/run"
