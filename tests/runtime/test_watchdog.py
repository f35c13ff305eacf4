"""Code that computes instead of giving way is named in the log, with the line where it is and what to do."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import ray

import rayflow
from rayflow.core import codec, entity_state
from rayflow.core.entities import Entities
from rayflow.core.instance import Instance
from rayflow.core.mail import Mail
from rayflow.core.messages import CallEntity, Token
from rayflow.core.outbox import Outbox
from rayflow.core.records import Elapsed, Function, Started
from rayflow.core.turns import Turns
from rayflow.runtime.watchdog import PATIENCE_S, Watchdog
from tests.core.driver import MemoryCode
from tests.runtime import flows
from tests.runtime.conftest import actor_pid, eventually


def line_of(function: Callable[..., Any], text: str) -> str:
    """Where this line of a function is, as the log names it."""
    lines, first = inspect.getsourcelines(function)
    (at,) = [index for index, line in enumerate(lines) if line.strip() == text]
    return f"{inspect.getsourcefile(function)}:{first + at} in {function.__name__}: {text}"


class Stubborn:
    """Code that waits in its own thread, without giving way."""

    def __init__(self) -> None:
        self.entered, self.leave = threading.Event(), threading.Event()

    def computation(self) -> None:
        self.entered.set()
        assert self.leave.wait(10)

    async def body(self) -> None:
        self.computation()
        await asyncio.get_running_loop().create_future()


class Slow(rayflow.Entity[list[int]]):
    """One whose operation is stubborn."""

    code = Stubborn()

    @rayflow.operation
    def compute(self) -> None:
        self.code.computation()


def begin_workflow(code: Stubborn, turns: Turns) -> None:
    started = Started("x", 0, Function("flows:stubborn"), "1", b"", "", 0)
    Instance(started, MemoryCode(), turns).start(code.body)


def call_entity(code: Stubborn, turns: Turns) -> None:
    Slow.code = code
    outbox = Outbox()
    entities = Entities(outbox, MemoryCode(), Mail.alone(outbox), entity_state.Entities(), turns=turns)
    message = CallEntity("Slow/x", Function(f"{__name__}:Slow"), "compute", codec.encode(((), {})))
    entities.receive(Token("sender", 1, 0), message, 0)


@pytest.mark.parametrize(
    ("begin", "title", "place"),
    [
        (begin_workflow, "execution x of workflow flows:stubborn", (Stubborn.body, "self.computation()")),
        (call_entity, "entity Slow/x", (Slow.compute.function, "self.code.computation()")),
    ],
)
def test_a_long_turn_is_named_with_its_line_at_growing_intervals_and_when_it_is_over(
    begin: Callable[[Stubborn, Turns], None],
    title: str,
    place: tuple[Callable[..., Any], str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    code, turns, told = Stubborn(), Turns(), list[tuple[int, str]]()
    thread = threading.Thread(target=begin, args=(code, turns))
    thread.start()
    assert code.entered.wait(10)
    assert thread.ident is not None
    watchdog = Watchdog(turns, thread.ident)
    for now_s in range(100, 180):
        watchdog.look(now_s)
        told += [(now_s - 100, message) for message in caplog.messages]
        caplog.clear()
    code.leave.set()
    thread.join()
    assert [at_s for at_s, _ in told] == [PATIENCE_S, 2 * PATIENCE_S, 4 * PATIENCE_S, 8 * PATIENCE_S]
    headline, advice, *calls = told[0][1].splitlines()
    assert headline == f"{title} has not given way for 5 s: it is at {line_of(*place)}"
    assert "Move what takes so long to a step" in advice
    assert [line.strip() for line in calls[1:4:2]] == [place[1], "assert self.leave.wait(10)"]
    watchdog.look(200)
    watchdog.look(201)
    assert caplog.messages == [f"{title} has given way after 100 s"]


def test_many_turns_of_one_execution_are_no_long_one(caplog: pytest.LogCaptureFixture) -> None:
    turns = Turns()
    watchdog = Watchdog(turns, threading.get_ident())
    looks = iter(range(0, 1000, 4))

    async def busy() -> None:
        while True:
            watchdog.look(next(looks))
            watchdog.look(next(looks))
            await asyncio.sleep(0.001)

    instance = Instance(Started("x", 0, Function("flows:busy"), "1", b"", "", 0), MemoryCode(), turns)
    instance.start(busy)
    for at_ms in range(1, 100):
        instance.turn(Elapsed("x", at_ms, "none"))
    assert next(looks) > 50 * PATIENCE_S
    assert caplog.messages == []
    instance.close()


@pytest.mark.ray
def test_a_host_logs_which_execution_holds_up_all_others(client: rayflow.Client, tmp_path: Path) -> None:
    client.start(flows.sleeping, 0.0).result(20)
    host_pid = actor_pid(client, "host")
    logs = Path(ray._private.worker.global_worker.node.get_logs_dir_path())

    def log() -> str:
        return "".join(path.read_text() for path in logs.glob(f"worker-*-{host_pid}.err"))

    # Even who starts it has to wait: the answer comes after the first turn.
    asked = ThreadPoolExecutor(1).submit(lambda: client.start(flows.computing, str(tmp_path), id="long").result(20))
    eventually(lambda: "execution long of workflow tests.runtime.flows:computing has not given way for" in log(), "a warning")
    places = [line_of(flows.computing.function, text) for text in ('while not Path(folder, "done.go").exists():', "pass")]
    assert any(f"s: it is at {place}\n" in log() for place in places)
    (tmp_path / "done.go").touch()
    assert asked.result(20) == "done"
    eventually(lambda: "execution long of workflow tests.runtime.flows:computing has given way" in log(), "a word that it is over")
