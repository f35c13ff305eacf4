"""``python -m rayflow entities`` and ``dead-letters``: what they print, and what becomes of a dead letter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import rayflow
from rayflow.operator.command import main
from tests.core.entity_types import Account, demand
from tests.runtime.conftest import eventually

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """That of the user; with two accounts, one of which could not handle a message."""
    monkeypatch.setenv("RAYFLOW_STORE", str(tmp_path / "store"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with rayflow.connect() as client:
        client.entity(Account, "poor").add(5).result()
        client.entity(Account, "rich").add(1000).result()
        client.start(demand, "poor", 10**6, id="greedy").result(30)
        eventually(lambda: bool(client.dead_letters()), "a dead letter")
        return client.store.url


def output(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> list[str]:
    capsys.readouterr()
    assert main(arguments) == code
    captured = capsys.readouterr()
    return (captured.err if code else captured.out).splitlines()


def test_entities_are_listed_with_their_states(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    heading, poor, rich = output(capsys, "entities")
    assert heading.split() == ["ENTITY", "CHANGED", "CHANGES", "BYTES", "REMINDERS", "WAITING", "STATE"]
    assert (poor.split()[0], rich.split()[0]) == ("Account/poor", "Account/rich")
    assert '{"value":1000,"changes":1}' in rich
    assert output(capsys, "entities", "Account", "--prefix", "ri")[1:] == [rich]
    assert output(capsys, "entities", "--limit", "1")[2:] == ["1 of 2 entities; --limit shows more"]
    assert output(capsys, "entities", "Counter") == ["no entities"]
    assert [json.loads(line)["key"] for line in output(capsys, "entities", "--json")] == ["poor", "rich"]


def test_a_dead_letter_is_listed_and_handled_again_or_thrown_away(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    heading, letter = output(capsys, "dead-letters")
    assert heading.split() == ["DEAD", "LETTER", "SINCE", "OPERATION", "SENDER", "ERROR"]
    name = letter.split()[0]
    assert name.startswith("Account/poor#")
    assert "too little" in letter
    assert [json.loads(line)["operation"] for line in output(capsys, "dead-letters", "Account", "--json")] == ["take"]
    (again,) = output(capsys, "dead-letters", "--replay", name, code=1)
    assert "too little" in again, "what it says is why it failed once more"
    with rayflow.connect() as client:
        client.entity(Account, "poor").add(1_000_000).result()
    assert output(capsys, "dead-letters", "--replay", name) == [f"{name} is handled"]
    assert output(capsys, "dead-letters") == ["no dead letters"]
    (missing,) = output(capsys, "dead-letters", "--discard", name, code=2)
    assert f"there is no dead letter {name}" in missing


def test_a_dead_letter_can_be_thrown_away(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    name = output(capsys, "dead-letters")[1].split()[0]
    assert output(capsys, "dead-letters", "--discard", name) == [f"{name} is thrown away"]
    assert output(capsys, "dead-letters") == ["no dead letters"]
