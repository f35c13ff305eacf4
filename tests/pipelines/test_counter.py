"""The counter as users run it: from the command line, and as a plain object."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray

from pipelines.counter import Counter, CounterState
from rayflow.operator.command import main
from rayflow.runtime.cluster import RayOptions, start_or_join
from tests.conftest import REPOSITORY
from tests.runtime.conftest import eventually

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs ``python -m rayflow counter`` in this process, on a store of its own; returns exit code, stdout and stderr."""
    monkeypatch.setenv("RAYFLOW_STORE", str(tmp_path / "store"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(["counter", *arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture(scope="module")
def served() -> Iterator[None]:
    """A Ray for the commands of this module; they find this process connected to it."""
    local = start_or_join(RayOptions(address="local", num_cpus=1), "counter-tests")
    yield
    if local is not None:
        local.shutdown()


def test_a_counter_counts_with_nothing_running() -> None:
    counter = Counter("hits")
    assert [counter.increment().result(), counter.increment(5).result(), counter.decrement(2).result()] == [1, 6, 4]
    assert counter.get().result() == CounterState(value=4, version=3)


@pytest.mark.ray
@pytest.mark.usefixtures("served")
def test_the_command_prints_the_new_value_and_for_get_the_version_too(command: Command) -> None:
    assert command("hits", "get") == (0, "0 (version 0)\n", "")
    assert command("hits", "increment") == (0, "1\n", "")
    assert command("hits", "increment", "--by", "41") == (0, "42\n", "")
    assert command("hits", "decrement", "--by", "2") == (0, "40\n", "")
    assert command("misses", "decrement") == (0, "-1\n", "")
    assert command("hits", "get") == (0, "40 (version 3)\n", "")


@pytest.mark.ray
@pytest.mark.usefixtures("served")
def test_a_message_id_sent_again_gets_the_recorded_answer_and_with_another_number_is_refused(command: Command) -> None:
    assert command("hits", "increment", "--by", "5", "--message-id", "order-7") == (0, "5\n", "")
    assert command("hits", "increment") == (0, "6\n", "")
    assert command("hits", "increment", "--by", "5", "--message-id", "order-7") == (0, "5\n", "")
    code, out, err = command("hits", "increment", "--by", "6", "--message-id", "order-7")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "message id 'order-7' was used for another operation or other arguments" in err
    assert command("hits", "get") == (0, "6 (version 2)\n", "")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["hits"], "required: increment|decrement|get"),
        (["hits", "double"], "invalid choice: 'double'"),
        (["hits", "increment", "--by", "much"], "'much' is no whole number"),
        (["hits", "get", "--by", "2"], "get changes nothing: leave --by and --message-id out"),
        (["hits", "get", "--message-id", "x"], "get changes nothing"),
        (["hits", "increment", "--message-id", ""], "'' is empty"),
        (["hits", "increment", "--message-id", "x" * 201], "longer than 200 characters"),
        (["", "increment"], "key '' is empty"),
        (["hi\nts", "increment"], "cannot be printed"),
        (["hits", "increment", "--store", "ftp://host/x"], "no store is called ftp://"),
        (["hits", "increment", "--store", "memory://x"], "use a folder"),
        (["hits", "increment", "--address", "nonsense"], "neither host:port nor auto"),
        (["hits", "increment", "--address", "127.0.0.1:1"], "no Ray cluster answers at 127.0.0.1:1"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2_before_anything_is_started(
    command: Command, tmp_path: Path, arguments: list[str], says: str
) -> None:
    running = ray.is_initialized()
    code, out, err = command(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert says in err
    assert not (tmp_path / "store").exists() and ray.is_initialized() == running


@pytest.mark.ray
@pytest.mark.slow
def test_on_a_laptop_the_command_starts_ray_and_ends_it_and_the_next_one_knows_what_was_counted(tmp_path: Path) -> None:
    def increment() -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, "-m", "rayflow", "counter", "hits", "increment", "--by", "3", "--message-id", "one"],
            cwd=REPOSITORY,
            env=os.environ | {"RAY_ADDRESS": "local", "RAYFLOW_STORE": str(tmp_path / "store")},
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.returncode, done.stdout, done.stderr

    assert increment() == (0, "3\n", "")
    eventually(lambda: not list(processes_with(str(tmp_path / "store"))), "Ray is gone")
    assert increment() == (0, "3\n", "")


def processes_with(mark: str) -> Iterator[int]:
    """Processes that have inherited an environment in which ``mark`` occurs."""
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark.encode() in path.read_bytes():
                yield int(path.parent.name)


def test_the_library_does_not_load_its_applications() -> None:
    code = "import sys, rayflow, rayflow.operator.command; sys.exit(any(name.startswith('pipelines') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, timeout=60).returncode == 0
