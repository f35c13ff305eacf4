"""``python -m rayflow``: what it prints, what it exits with, and what it leaves alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import rayflow
from rayflow.checkpoint.local import LocalStore
from rayflow.checkpoint.reading import read_execution
from rayflow.checkpoint.segment import Kind, decode
from rayflow.core.records import Status
from rayflow.operator.command import main
from rayflow.operator.display import duration, printable

from .checkpoint.executions import Owners, sleeper

ROOT = Path(__file__).parents[1]


@pytest.fixture
def owners(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Owners:
    """A store, by $RAYFLOW_STORE the one that commands work on, with a finished and filed, a failed and a busy execution."""
    store = LocalStore(tmp_path / "store")
    monkeypatch.setenv("RAYFLOW_STORE", str(tmp_path / "store"))
    owners = Owners(store)
    for execution in ("done", "broken"):
        owners[execution].start(execution, "single", 1)
    owners["done"].complete("done", "fetch#1", 1)
    owners.snapshot()
    for attempt in (1, 2, 3):
        owners["broken"].fail("broken", "fetch#1", "disk on fire", attempt=attempt)
        owners["broken"].advance(60_000)
    owners["film"].now_ms += 3_600_000
    owners["film"].start("film", "busy", 2)
    owners["film"].drive_busy("film")
    return owners


def command_line(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command as a user runs it."""
    return subprocess.run(
        [sys.executable, "-m", "rayflow", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_list_prints_aligned_columns_newest_first(owners: Owners, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:5] == ["ID", "WORKFLOW", "VERSION", "STATUS", "STARTED"]
    assert [line.split()[0] for line in lines[1:]] == ["film", "broken", "done"]
    assert {line[lines[0].index("STATUS") :].split()[0] for line in lines[1:]} == {"running", "failed", "completed"}
    assert lines[1][lines[0].index("DONE") :].startswith(" 2/6") or "2/6" in lines[1]
    assert "StepFailed: fetch#1 failed after 3 attempts: OSError: disk on fire" in lines[2]


def test_list_can_be_narrowed_and_says_that_there_are_more(owners: Owners, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--limit", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1 of 3 executions; --limit shows more"
    assert main(["list", "--status", "completed"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["ID", "done"]
    assert main(["list", "--prefix", "nobody"]) == 0
    assert capsys.readouterr().out == "no executions\n"


def test_list_as_json_has_one_object_per_line(owners: Owners, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--json"]) == 0
    film, broken, done = map(json.loads, capsys.readouterr().out.splitlines())
    assert (film["execution"], film["status"], film["ended"], film["error"]) == ("film", "running", None, None)
    assert film["started"] == "2023-11-14T23:13:20Z"
    assert (film["steps"]["completed"], film["steps"]["failed_attempts"]) == (2, 4)
    assert broken["error"][0] == "StepFailed"
    assert done["steps"]["completed"] == 1


def test_show_prints_the_facts_and_every_step(owners: Owners, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "film", "--steps"]) == 0
    out = capsys.readouterr().out
    facts, _, table = out.partition("\n\n")
    assert "steps      2 of 6 completed, 1 running, 1 retrying, 1 failed, 1 abandoned, 4 failed attempts, 1 timers waiting" in facts
    assert "cpu        6.5 s" in facts
    rows = {line.split()[0]: line for line in table.splitlines()[1:]}
    assert list(rows) == ["convert#1", "fetch#1/[0]", "fetch#1/[1]", "convert#2", "fetch#2", "fetch#3", "wait#1"]
    assert rows["fetch#1/[1]"].split()[1:] == [
        "completed", "2", "2023-11-14", "23:13:20Z", "11.5s", "3.5", "node-a", "error:", "OSError:", "flaky",
    ]  # fmt: skip
    assert "retrying until 2023-11-14 23:13:44Z" in rows["fetch#2"]
    assert "timeout: OSError: too slow" in rows["convert#2"]
    assert "lost: StepLost" in rows["fetch#3"]
    assert main(["show", "broken"]) == 0
    out = capsys.readouterr().out
    assert "status     failed" in out
    assert "OSError: disk on fire" in out
    assert "\n  Traceback (most recent call last):\n    File " in out


def test_show_says_where_in_its_code_each_step_that_has_not_succeeded_has_failed(
    owners: Owners, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", "film", "--steps"]) == 0
    lines = capsys.readouterr().out.splitlines()
    told = {line: lines[index + 1] for index, line in enumerate(lines) if line.startswith("traceback of ")}
    assert told == dict.fromkeys(("traceback of convert#2, attempt 1", "traceback of fetch#2, attempt 1"), "  Traceback: here"), (
        "neither of those that went well in the end, nor of those that were lost"
    )
    assert main(["show", "broken", "--steps"]) == 0
    assert "\ntraceback of fetch#1, attempt 3\n  Traceback: here\n" in capsys.readouterr().out
    assert main(["show", "broken", "--steps", "--json"]) == 0
    _, step = map(json.loads, capsys.readouterr().out.splitlines())
    assert step["attempts"][2]["failure"][:3] == ["OSError", "disk on fire", "Traceback: here"]


def test_show_as_json_has_the_execution_and_then_its_steps(owners: Owners, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "film", "--steps", "--json"]) == 0
    execution, *steps = map(json.loads, capsys.readouterr().out.splitlines())
    assert execution["info"]["execution"] == "film"
    assert execution["cpu_s"] == 6.5
    assert "operations" not in execution
    assert [step["operation"] for step in steps][:2] == ["convert#1", "fetch#1/[0]"]
    assert [attempt["state"] for attempt in steps[2]["attempts"]] == ["failed", "completed"]
    assert steps[2]["attempts"][0]["cause"] == "error"
    assert main(["show", "film", "--json"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


@pytest.mark.parametrize(
    ("width", "headings"),
    [
        (200, "ID WORKFLOW VERSION STATUS STARTED DURATION DONE RUNNING FAILED ATTEMPTS ERROR"),
        (100, "ID STATUS STARTED DURATION DONE FAILED ATTEMPTS ERROR"),
        (80, "ID STATUS DURATION DONE ERROR"),
        (60, "ID STATUS DURATION DONE ERROR"),
        (24, "ID STATUS DONE"),
        (10, "ID STATUS"),
    ],
)
def test_a_list_on_a_terminal_keeps_one_line_each_and_leaves_out_what_matters_least(
    owners: Owners, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int, headings: str
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(width))
    assert main(["list"]) == 0
    heading, *lines = capsys.readouterr().out.splitlines()
    assert heading.split() == headings.split()
    assert [line.split()[0] for line in lines] == ["film", "broken", "done"]
    assert all(len(line) <= max(width, 17) for line in (heading, *lines))
    assert (": disk on fire" in lines[1]) == (width == 200)
    assert ("StepFailed: fetch#1 f" in lines[1]) == ("ERROR" in headings)


def test_what_no_row_says_anything_of_takes_no_room_on_a_terminal(
    owners: Owners, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["list", "--prefix", "done"]) == 0
    assert "ERROR" not in capsys.readouterr().out
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False)
    assert main(["list", "--prefix", "done"]) == 0
    assert "ERROR" in capsys.readouterr().out


@pytest.mark.parametrize("terminal", [False, True])
def test_text_from_the_store_reaches_a_terminal_as_text(
    owners: Owners, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    monkeypatch.setenv("COLUMNS", "250")
    assert main(["show", "film", "--steps"]) == 0
    out = capsys.readouterr().out
    assert "fetch#1/[1]" in out
    assert "no [bold]luck�[31m at all" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["show", "nobody"], "there is no execution 'nobody'"),
        (["cancel", "nobody"], "there is no execution 'nobody'"),
        (["resume", "nobody"], "there is no execution 'nobody'"),
        (["list", "--store", "{tmp}/nothing"], "there is no store of rayflow at file://"),
        (["show", "film", "--store", "{tmp}/nothing"], "there is no store of rayflow at file://"),
        (["cancel", "film", "--store", "{tmp}/nothing"], "there is no store of rayflow at file://"),
        (["diagnose", "--store", "ftp://host/x"], "no store is called ftp://"),
        (["list", "--limit", "0"], "'0' is no number from 1"),
        (["list", "--status", "lost"], "invalid choice: 'lost'"),
        (["show"], "required: ID"),
        (["bake"], "invalid choice: 'bake'"),
        ([], "required: COMMAND"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(
    owners: Owners, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert main([argument.format(tmp=tmp_path) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert says in captured.err
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "nothing").exists()


def test_damage_is_named_on_stderr_with_exit_code_1_and_the_rest_is_listed(
    owners: Owners, capsys: pytest.CaptureFixture[str]
) -> None:
    number = owners["film"].number
    store = LocalStore(os.environ["RAYFLOW_STORE"])
    key = list(store.list(f"shards/{number:03d}/log/"))[-1].key
    path = store.local_path(key)
    path.write_bytes(path.read_bytes()[:-1])
    intact = owners.id_in(1 - number)
    owners[intact].start(intact, "single", 1)
    assert main(["list"]) == 1
    captured = capsys.readouterr()
    assert intact in captured.out
    assert captured.err.startswith(f"rayflow: shard {number} is damaged: {key} ")
    assert main(["show", "film"]) == 1
    assert key in capsys.readouterr().err


def test_cancelling_what_has_ended_changes_nothing_and_starts_nothing(owners: Owners, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cancel", "done"]) == 0
    assert capsys.readouterr().out == "done has ended already: completed\n"


def test_resuming_what_is_not_suspended_changes_nothing_and_starts_nothing(
    owners: Owners, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["resume", "done"]) == 0
    assert main(["resume", "film"]) == 0
    assert capsys.readouterr().out == "done is not suspended: completed\nfilm is not suspended: running\n"


@pytest.mark.ray
@pytest.mark.slow
def test_cancel_starts_a_ray_where_none_works_on_the_store(owners: Owners) -> None:
    store = LocalStore(os.environ["RAYFLOW_STORE"])
    done = command_line("cancel", "film", "--reason", "wrong film", RAY_ADDRESS="local")
    assert (done.returncode, done.stdout) == (0, "the request to cancel film is on record\n"), done.stderr
    assert read_execution(store, "film").cancel_reason == "wrong film"
    assert read_execution(store, "film").info.status is Status.CANCELLED


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_cancel_goes_to_the_ray_that_works_on_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    store = LocalStore(tmp_path / "store")
    with rayflow.connect(store.url, shards=1) as client:
        execution = client.start(sleeper, id="sleeper")
        before = [slot.key for slot in store.list("shards/000/log/")]
        done = command_line("cancel", "sleeper", "--store", store.url)
        assert (done.returncode, done.stdout) == (0, "the request to cancel sleeper is on record\n"), done.stderr
        with pytest.raises(rayflow.ExecutionCancelled):
            execution.result(timeout=20)
    slots = [decode(store.get(slot.key), slot.key) for slot in store.list("shards/000/log/")]
    assert len(slots) > len(before)
    assert [slot.kind for slot in slots].count(Kind.CLAIM) == 1, "nobody else has taken the shard over"


def test_diagnose_reports_every_check(owners: Owners, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagnose", "--json"]) == 0
    findings = {finding["subject"]: finding for finding in map(json.loads, capsys.readouterr().out.splitlines())}
    assert "enforces conditional writes; 1 KiB takes" in findings["store"]["detail"]
    assert findings["identity"]["detail"].startswith(f"{owners.identity.store_id}, 2 shards")
    assert {"python", "ray", "rayflow", "pyarrow", "obstore", "av", "imageio-ffmpeg", "ffmpeg"} <= findings.keys()
    assert {"disk of the store", "disk for temporary files"} <= findings.keys()
    assert list(owners.store.list("probe/")) == []


def test_diagnose_fails_with_exit_code_1_and_goes_on_to_the_other_checks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYFLOW_FFMPEG", "/nowhere/ffmpeg")
    assert main(["diagnose", "--store", "/proc/rayflow"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("FAILED  store: ")
    assert any(line.startswith("FAILED  ffmpeg: none that runs") for line in lines)
    assert any(line.startswith("ok      ray: 2.") for line in lines)


@pytest.mark.parametrize("command", ["list", "show done --steps", "entities", "dead-letters", "diagnose"])
def test_commands_that_read_do_not_load_ray(owners: Owners, command: str) -> None:
    script = (
        "import sys; from rayflow.operator.command import main; code = main(sys.argv[1:]);"
        "print([name for name in sys.modules if name.partition('.')[0] == 'ray'], file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script, *command.split()], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "[]\n")
    assert done.stdout


def test_the_module_runs_as_a_command_and_documents_its_exit_codes(owners: Owners) -> None:
    shown = command_line("show", "done", "--store", os.environ["RAYFLOW_STORE"], RAYFLOW_STORE="/nowhere")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "status     completed" in shown.stdout
    unknown = command_line("show", "nobody")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert "exit codes:" in command_line("list", "--help").stdout


def test_a_reader_that_closes_the_pipe_ends_the_command_quietly(owners: Owners) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "rayflow", "list"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 0


def test_an_output_that_takes_nothing_is_told_in_one_line(owners: Owners) -> None:
    command = [sys.executable, "-m", "rayflow", "list"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, "rayflow: [Errno 28] No space left on device\n")
    closed = subprocess.run(["/bin/sh", "-c", 'exec "$@" >&-', "sh", *command], cwd=ROOT, stderr=subprocess.PIPE, timeout=60)
    assert (closed.returncode, closed.stderr) == (0, b"")


def test_without_options_the_store_is_that_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAYFLOW_STORE", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert main(["list"]) == 2
    assert f"file://{tmp_path}/rayflow;" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(None, "-"), (0, "0.000s"), (59.94, "59.9s"), (59.96, "1m00s"), (3599.6, "1h00m"), (86399, "23h59m"), (187_200, "2d04h")],
)
def test_durations_are_short_and_never_carry_over(seconds: float | None, shown: str) -> None:
    assert duration(seconds) == shown


def test_printable_text_is_one_line_without_control_characters() -> None:
    assert printable("a\n\tb\x1b[2J c\u202e") == "a b�[2J c�"
