"""Notes on what killed a process outlive it (I24)."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from rayflow.checkpoint.private import private_name
from rayflow.runtime import crash_journal
from rayflow.runtime.crash_journal import CrashJournal

_DIES = """
import os, signal, sys
from pathlib import Path
from rayflow.runtime.crash_journal import CrashJournal
journal = CrashJournal("store", 1, Path(sys.argv[1]))
journal.begin("harmless")
journal.end()
journal.begin(sys.argv[2])
os.kill(os.getpid(), signal.SIGKILL)
"""


def die(folder: Path, message: str) -> None:
    process = subprocess.run([sys.executable, "-c", _DIES, str(folder), message], check=False, env=os.environ | {"PYTHONPATH": "."})
    assert process.returncode == -signal.SIGKILL


def test_a_message_that_was_under_way_in_a_crash_is_counted(tmp_path: Path) -> None:
    for _ in range(2):
        die(tmp_path, "Bomb/a explode 1 ü" + "x" * 5000)
    die(tmp_path, "another")
    journal = CrashJournal("store", 1, tmp_path)
    long = "Bomb/a explode 1 ü" + "x" * 5000
    assert (journal.count(long), journal.count("another"), journal.count("harmless")) == (2, 1, 0)
    journal.close()
    journal = CrashJournal("store", 1, tmp_path)
    assert (journal.count(long), journal.count("another")) == (2, 1)
    other = CrashJournal("store", 2, tmp_path)
    assert other.count("another") == 0
    other.close()
    journal.close()


def test_what_is_forgotten_counts_for_nothing_from_then_on(tmp_path: Path) -> None:
    die(tmp_path, "m")
    die(tmp_path, "n")
    journal = CrashJournal("store", 1, tmp_path)
    journal.forget("m")
    journal.forget("never there")
    assert (journal.count("m"), journal.count("n")) == (0, 1)
    journal.close()
    journal = CrashJournal("store", 1, tmp_path)
    assert (journal.count("m"), journal.count("n")) == (0, 1)
    journal.close()


def test_an_orderly_end_counts_for_nothing(tmp_path: Path) -> None:
    journal = CrashJournal("store", 1, tmp_path)
    journal.begin("m")
    journal.close()
    journal = CrashJournal("store", 1, tmp_path)
    assert journal.count("m") == 0
    assert journal.pause_s() == 0
    journal.close()


def test_while_a_predecessor_lives_its_follower_keeps_no_journal(tmp_path: Path) -> None:
    first = CrashJournal("store", 1, tmp_path)
    first.begin("m")
    second = CrashJournal("store", 1, tmp_path)
    assert second.count("m") == 0
    second.begin("n")
    second.end()
    second.close()
    first.close()


def test_too_many_crashes_at_once_keep_the_shard_closed_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crash_journal, "INTENSITY", 2)
    die(tmp_path, "m")
    journal = CrashJournal("store", 1, tmp_path)
    assert journal.pause_s() == 0
    journal.close()
    die(tmp_path, "n")
    journal = CrashJournal("store", 1, tmp_path)
    assert 0 < journal.pause_s() <= crash_journal.INTENSITY_WINDOW_S
    journal.close()


def test_a_folder_that_others_may_write_to_gets_no_journal_and_links_in_it_lead_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = tmp_path / private_name()
    (folder / "crashes").mkdir(parents=True)
    folder.chmod(0o777)
    victim = tmp_path / "victim"
    victim.write_bytes(b"v" * 100_000)
    (folder / "crashes" / "store-001").symlink_to(victim)
    with caplog.at_level(logging.WARNING, logger="rayflow.host"):
        journal = CrashJournal("store", 1)
    journal.begin("m")
    journal.end()
    assert (journal.count("m"), journal.pause_s()) == (0, 0)
    journal.close()
    assert victim.read_bytes() == b"v" * 100_000
    assert f"{folder} is to hold" in caplog.text
