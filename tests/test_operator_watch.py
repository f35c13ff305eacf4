"""``python -m rayflow list --watch`` and ``show ID --follow``: what they print while a store changes, and how they end."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from rayflow.checkpoint.local import LocalStore
from rayflow.checkpoint.reading import Damage, Listing, Reader
from rayflow.errors import StoreUnavailable
from rayflow.operator.following import follow
from rayflow.operator.looking import Looker
from rayflow.operator.watching import picture

from .checkpoint.executions import Owners
from .conftest import REPOSITORY

SOON_S = 30.0

pytestmark = pytest.mark.usefixtures("interruptible")


@pytest.fixture
def owners(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Owners:
    """A store, by $RAYFLOW_STORE the one that commands work on, with one execution that runs."""
    monkeypatch.setenv("RAYFLOW_STORE", str(tmp_path / "store"))
    owners = Owners(LocalStore(tmp_path / "store"))
    owners["film"].start("film", "busy", 2)
    return owners


class Command:
    """The command as a user runs it, looking ten times a second; ``lines`` are what it has printed so far."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rayflow", *arguments, "--interval", "0.1"],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._pipes = {self.process.stdout: bytearray(), self.process.stderr: bytearray()}

    @property
    def out(self) -> list[str]:
        return self._pipes[self.process.stdout].decode().splitlines()

    @property
    def err(self) -> list[str]:
        return self._pipes[self.process.stderr].decode().splitlines()

    def until(self, check: Callable[[], bool]) -> None:
        """Read what it prints until that is so."""
        deadline_s = time.monotonic() + SOON_S
        while not check():
            assert time.monotonic() < deadline_s, f"{self.out}\n{self.err}"
            self._read()

    def says(self, words: str) -> None:
        """Wait for a line on either stream that has these words."""
        self.until(lambda: any(words in line for line in [*self.out, *self.err]))

    def end(self, signal_number: int | None = None) -> int:
        """Its exit code, after all that it prints."""
        if signal_number is not None:
            self.process.send_signal(signal_number)
        code = self.process.wait(SOON_S)
        while self._read():
            pass
        return code

    def _read(self) -> bool:
        ready, _, _ = select.select(list(self._pipes), [], [], 0.1)
        found = False
        for pipe in ready:
            data = os.read(pipe.fileno(), 65536)
            self._pipes[pipe] += data
            found = found or bool(data)
        return found


@contextlib.contextmanager
def running(*arguments: str) -> Iterator[Command]:
    command = Command(*arguments)
    try:
        yield command
    finally:
        command.process.kill()
        command.process.communicate()


def test_following_prints_what_happens_and_ends_with_the_execution(owners: Owners) -> None:
    owner = owners["film"]
    with running("show", "film", "--follow") as command:
        command.says("cpu        0.0 s")
        owner.drive_busy("film")
        command.says("lost: StepLost")
        owners.snapshot()
        owner.cancel("film", "no more")
        assert command.end() == 4
    assert command.err == []
    assert [line for line in command.out if line.startswith("status")] == ["status     running"]
    events = [line.split(maxsplit=1)[1] for line in command.out[command.out.index("") + 1 :]]
    shown = [" ".join(event.split()) for event in events]
    assert shown[:3] == [
        "step completed fetch#1/[0] after 1.0s on node-a",
        "step failed fetch#1/[1] attempt 1 after 1.0s on node-b again 22:13:32Z error: OSError: flaky",
        "step started fetch#1/[1] attempt 2",
    ]
    assert "step failed convert#2 attempt 1 after 1.0s on node-b timeout: OSError: too slow" in shown
    assert "timer set wait#1 until 23:13:32Z" in shown
    assert "step failed fetch#2 attempt 1 after 1.0s on node-b again 22:13:44Z error: OSError: no [bold]luck�[31m at all" in shown
    assert shown[-5:] == [
        "cancel requested no more",
        "step abandoned fetch#2",
        "step abandoned fetch#3",
        "timer dropped wait#1",
        "cancelled after 14.0s CancelledError: the execution was cancelled: no more",
    ]


def test_following_as_json_has_the_execution_and_then_one_object_per_event(owners: Owners) -> None:
    with running("show", "one", "--follow", "--json") as command:
        command.says("there is no execution 'one'")
        owners["one"].start("one", "single", 1)
        command.says('"execution":"one"')
        owners["one"].fail("one", "fetch#1", "flaky")
        owners["one"].advance(60_000)
        owners["one"].complete("one", "fetch#1", 1, attempt=2)
        assert command.end() == 0
    first, *events = map(json.loads, command.out)
    assert (first["info"]["status"], first["info"]["execution"]) == ("running", "one")
    assert [(one["event"], one["attempt"]) for one in events] == [
        ("step failed", 1),
        ("step started", 2),
        ("step completed", 2),
        ("ended", None),
    ]
    assert (events[0]["due"], events[0]["detail"]) == ("2023-11-14T22:13:30Z", "error: OSError: flaky")
    assert (events[2]["duration_s"], events[2]["cpu_s"], events[2]["node"]) == (1.0, 2.0, "node-a")
    assert (events[3]["status"], events[3]["duration_s"]) == ("completed", 60.0)


def test_what_has_ended_is_shown_and_the_exit_code_says_how(owners: Owners, capsys: pytest.CaptureFixture[str]) -> None:
    from rayflow.operator.command import main

    owners["done"].start("done", "single", 1)
    owners["done"].complete("done", "fetch#1", 1)
    owners["broken"].start("broken", "single", 1)
    for attempt in (1, 2, 3):
        owners["broken"].fail("broken", "fetch#1", "disk on fire", attempt=attempt)
        owners["broken"].advance(60_000)
    owners.snapshot()
    assert main(["show", "done", "--follow"]) == 0
    assert "status     completed" in capsys.readouterr().out
    assert main(["show", "broken", "--follow", "--steps"]) == 3
    assert "status     failed" in capsys.readouterr().out


def test_dropping_an_execution_ends_following_it(owners: Owners) -> None:
    with running("show", "film", "--follow") as command:
        command.says("status")
        owners["film"].forget("film")
        assert command.end() == 4
    assert command.err == ["rayflow: film was dropped"]


@pytest.mark.parametrize("arguments", [("show", "film", "--follow"), ("show", "nobody", "--follow"), ("list", "--watch")])
def test_an_interrupt_ends_it_with_130_and_no_traceback(owners: Owners, arguments: Sequence[str]) -> None:
    with running(*arguments) as command:
        command.says("nobody" if "nobody" in arguments else "film")
        assert command.end(signal.SIGINT) == 130
    assert [line for line in command.err if "waiting for it to start" not in line] == []


def test_what_ignores_interrupts_from_the_start_as_a_background_job_does_goes_on_until_it_is_terminated(owners: Owners) -> None:
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        command = Command("list", "--watch")
    finally:
        signal.signal(signal.SIGINT, previous)
    try:
        command.says("film")
        command.process.send_signal(signal.SIGINT)
        owners["later"].start("later", "single", 1)
        command.says("later")
        assert command.end(signal.SIGTERM) == -signal.SIGTERM
    finally:
        command.process.kill()
        command.process.communicate()
    assert command.err == []


def test_damage_ends_following_with_1_and_is_named(owners: Owners) -> None:
    owner = owners["film"]
    with running("show", "film", "--follow") as command:
        command.says("status")
        owner.drive_busy("film")
        command.says("timer set")
        store = LocalStore(os.environ["RAYFLOW_STORE"])
        path = store.local_path(next(store.list(f"shards/{owner.number:03d}/log/")).key)
        path.write_bytes(b"nothing")
        owner.snapshot()  # from now on the log begins after the damage
        owner.cancel("film")
        assert command.end() == 4
    with running("show", "film", "--follow") as command:
        assert command.end() == 4
    path = store.local_path(list(store.list(f"shards/{owner.number:03d}/log/"))[-1].key)
    path.write_bytes(b"nothing")
    with running("show", "film", "--follow") as command:
        assert command.end() == 1
    assert len(command.err) == 1 and "is damaged at byte 0" in command.err[0]


def test_without_a_terminal_watching_prints_what_is_new_or_has_changed(owners: Owners) -> None:
    with running("list", "--watch", "--status", "running") as command:
        command.says("film")
        owners["later"].start("later", "single", 1)
        command.says("later")
        owners["later"].complete("later", "fetch#1", 1)
        command.until(lambda: sum("later" in line for line in command.out) == 2)
        owners["film"].forget("film")
        command.says("dropped")
        command.end(signal.SIGINT)
    assert command.out[0].split()[:4] == ["ID", "WORKFLOW", "VERSION", "STATUS"]
    rows = [(line.split()[0], "dropped" if "dropped" in line else line.split()[3]) for line in command.out[1:]]
    assert rows == [("film", "running"), ("later", "running"), ("later", "completed"), ("film", "dropped")]
    assert command.out[2].index("running") == command.out[3].index("completed"), "in columns"


def test_watching_as_json_has_one_object_per_change(owners: Owners) -> None:
    with running("list", "--watch", "--json") as command:
        command.says("film")
        owners["film"].complete("film", "fetch#1/[0]", 1)
        command.until(lambda: len(command.out) == 2)
        owners["film"].forget("film")
        command.says("dropped")
        command.end(signal.SIGINT)
    one, two, dropped = map(json.loads, command.out)
    assert (one["steps"]["completed"], two["steps"]["completed"]) == (0, 1)
    assert dropped == {"execution": "film", "dropped": True}


def test_on_a_terminal_a_table_is_drawn_in_place_and_left_there(owners: Owners) -> None:
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "rayflow", "list", "--watch", "--interval", "0.1"]
    environment = {**os.environ, "COLUMNS": "80", "LINES": "24", "TERM": "xterm"}
    with subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdin=slave, stdout=slave, stderr=slave) as process:
        os.close(slave)
        shown = bytearray()
        try:
            _read_until(master, shown, b"film")
            owners["film"].complete("film", "fetch#1/[0]", 1)
            _read_until(master, shown, b"1/3")
            process.send_signal(signal.SIGINT)
            assert process.wait(SOON_S) == 130
            with contextlib.suppress(OSError):  # how a terminal says that its other end is closed
                while data := os.read(master, 65536):
                    shown += data
        finally:
            process.kill()
            os.close(master)
    text = shown.decode()
    assert "Traceback" not in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1, "the cursor is back"
    assert "\x1b[1A" in text, "drawn over what was there"
    assert "every 0.1 s  file://" in text


def _read_until(descriptor: int, shown: bytearray, words: bytes) -> None:
    deadline_s = time.monotonic() + SOON_S
    while words not in shown:
        assert time.monotonic() < deadline_s, shown.decode()
        if select.select([descriptor], [], [], 0.1)[0]:
            shown += os.read(descriptor, 65536)


def test_a_picture_fits_the_terminal_and_says_what_is_left_out(owners: Owners) -> None:
    for number in range(30):
        owners[f"more-{number}"].start(f"more-{number}", "single", 1)
    whole = Reader(owners.store).listing(limit=20)
    listing = Listing(whole.executions, whole.total, (Damage(1, "shards/001/log/000000000004 is damaged"),))
    lines = picture(listing, datetime.now(UTC), "file:///store", 1.0, 80, 10)
    assert len(lines) == 10
    assert lines[0].endswith("every 1 s  file:///store")
    assert lines[1].split()[:2] == ["ID", "STATUS"]
    assert lines[-2:] == ["6 of 31 executions", "damaged: shard 1 is damaged: shards/001/log/000000000004 is damaged"]
    assert all(len(line) <= 80 for line in lines)
    assert picture(Listing((), 0, ()), datetime.now(UTC), "file:///store", 1.0, 80, 10)[1:] == ["no executions"]


class Outage(LocalStore):
    """A folder that cannot be reached at some looks."""

    def __init__(self, folder: str, reached: list[bool]) -> None:
        super().__init__(folder)
        self.reached = reached

    def list(self, prefix: str, start_after: str = "") -> Iterator[Any]:
        if prefix.endswith("log/") and self.reached and not self.reached.pop(0):
            raise StoreUnavailable("no route to the bucket")
        return super().list(prefix, start_after)


def test_a_store_that_cannot_be_reached_for_a_moment_is_said_once(owners: Owners, capsys: pytest.CaptureFixture[str]) -> None:
    store = Outage(os.environ["RAYFLOW_STORE"], [True, False, False, True])
    owners["one"].start("one", "single", 1)
    looks = iter([None, None, None, lambda: owners["one"].complete("one", "fetch#1", 1)])
    pause = Looker.pause

    def next_look(looker: Looker) -> None:
        work = next(looks)
        if work is not None:
            work()
        pause(looker)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Looker, "pause", next_look)
        assert follow(store, "one", 0.1, steps=False, json=False) == 0
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [
        "rayflow: the store cannot be reached (no route to the bucket); trying again every 0.1 s",
        "rayflow: the store is there again",
    ]
    assert "completed" in captured.out.splitlines()[-1]
    with pytest.raises(StoreUnavailable):
        follow(Outage(os.environ["RAYFLOW_STORE"], [False]), "one", 0.1, steps=False, json=False)
