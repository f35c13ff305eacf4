"""The cases of a published evaluation of durable functions on a counter, with its times made short."""

from __future__ import annotations

import itertools
import os
import signal
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import ray

import rayflow
from pipelines import counter, evaluation_counter
from pipelines.evaluation_counter import (
    INVOCATIONS,
    RETRY,
    Fault,
    Order,
    change,
    change_and_exceed,
    change_and_take_long,
    many_steps,
)
from rayflow.checkpoint import log
from rayflow.checkpoint.identity import shard_prefix
from rayflow.checkpoint.requests import run
from rayflow.core.definitions import retry_pause_ms
from rayflow.core.records import Failed, Handled, Started, decode_record
from rayflow.runtime.cluster import actor_names
from rayflow.runtime.task import NAMESPACE
from rayflow.testing import read_records, replay_execution
from tests.runtime.conftest import eventually

pytestmark = pytest.mark.ray

_numbers = itertools.count()


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[rayflow.Client]:
    with rayflow.connect(tmp_path_factory.mktemp("store"), num_cpus=2) as client:
        yield client


@pytest.fixture
def order(tmp_path: Path) -> Order:
    """One more on a counter of its own."""
    return Order(new_name(), 1, tmp_path / "journal")


def new_name() -> str:
    return f"counter-{next(_numbers)}"


def faulty(order: Order, fault: Fault) -> Order:
    return Order(order.counter, order.by, order.journal, fault)


def runs(order: Order) -> Counter[str]:
    """How often each step ran."""
    return Counter(line.split()[0] for line in order.journal.read_text().splitlines())


def value(client: rayflow.Client, name: str) -> tuple[int, int]:
    """Value and version of a counter."""
    state = client.entity(counter.Counter, name).get().result(30)
    return state.value, state.version


def handled(client: rayflow.Client, name: str) -> list[tuple[Handled, bytes]]:
    """The records of a counter in its shard's log, and their bytes."""
    shard = client.identity.shard_of(f"Counter/{name}")
    encoded = [one for segment in run(log.read(shard_prefix(shard)), client.store).segments for one in segment.records]
    records = [(decode_record(one), one) for one in encoded]
    return [(record, one) for record, one in records if isinstance(record, Handled) and record.entity == f"Counter/{name}"]


def test_increment_decrement_and_get(client: rayflow.Client) -> None:
    entity = client.entity(counter.Counter, new_name())
    answers = [entity.increment().result(30), entity.increment(4).result(30), entity.decrement(2).result(30)]
    assert (answers, entity.get().result(30)) == ([1, 5, 3], counter.CounterState(value=3, version=3))


def test_the_checkpoint_of_a_counter_does_not_grow_with_its_history(client: rayflow.Client) -> None:
    name = new_name()
    for _ in range(101):
        client.entity(counter.Counter, name).increment().result(30)
    records = handled(client, name)
    (first, first_encoded), (last, last_encoded) = records[0], records[-1]
    assert (first.changes, last.changes) == (1, 101)
    assert first.state is not None and last.state is not None and len(first.state) == len(last.state) < 100
    assert len(last_encoded) - len(first_encoded) < 10, "the number of the message takes more digits"


def test_a_step_that_fails_once_is_tried_again_and_what_was_done_before_is_not_done_again(
    client: rayflow.Client, order: Order
) -> None:
    assert client.start(change, faulty(order, Fault.ONCE)).result(30) == 1
    assert runs(order) == Counter(check=1, confirm=2)
    assert value(client, order.counter) == (1, 1)


def test_a_step_that_always_fails_is_given_up_on_a_schedule_known_in_advance(client: rayflow.Client, order: Order) -> None:
    id = new_name()
    with pytest.raises(rayflow.ExecutionFailed, match=r"confirm#1 failed after 3 attempts: OSError: .* cannot be confirmed"):
        client.start(change, faulty(order, Fault.ALWAYS), id=id).result(30)
    assert runs(order) == Counter(check=1, confirm=3)
    assert value(client, order.counter) == (1, 1)
    records = read_records(client.store, id)
    started, failures = records[0], [record for record in records if isinstance(record, Failed)]
    assert isinstance(started, Started)
    pauses_ms = [None if failed.retry_ms is None else failed.retry_ms - failed.at_ms for failed in failures]
    assert pauses_ms == [retry_pause_ms(RETRY, started.seed, "confirm#1", failed) for failed in (1, 2)] + [None]


def test_a_repeat_under_the_same_id_returns_the_stored_result_and_runs_nothing(client: rayflow.Client, order: Order) -> None:
    id = new_name()
    assert [client.start(change, order, id=id).result(30) for _ in range(3)] == [1, 1, 1]
    assert runs(order) == Counter(check=1, confirm=1)
    assert value(client, order.counter) == (1, 1)


def test_three_messages_at_once_are_handled_one_after_the_other(client: rayflow.Client, tmp_path: Path) -> None:
    name = new_name()
    with ThreadPoolExecutor(3) as pool:
        answers = pool.map(lambda _: client.entity(counter.Counter, name).increment().result(30), range(3))
    assert sorted(answers) == [1, 2, 3] and value(client, name) == (3, 3)
    executions = client.start_many(change, [(f"{name}-{number}", (Order(name, 1, tmp_path / "x"),), {}) for number in range(3)])
    assert sorted(one.result(30) for one in executions) == [4, 5, 6] and value(client, name) == (6, 6)


@pytest.mark.slow
def test_a_step_that_takes_longer_than_its_limit_is_stopped_each_time_and_the_steps_before_it_run_once(
    client: rayflow.Client, order: Order
) -> None:
    with pytest.raises(rayflow.ExecutionFailed, match=f"too_long#1 failed after {INVOCATIONS} attempts"):
        client.start(change_and_exceed, order).result(60)
    assert runs(order) == Counter(check=1, too_long=INVOCATIONS)
    assert value(client, order.counter) == (1, 1)


@pytest.mark.crash
def test_a_process_killed_in_the_middle_of_a_step_costs_one_attempt_of_that_step(client: rayflow.Client, order: Order) -> None:
    execution = client.start(change_and_take_long, faulty(order, Fault.ONCE))
    eventually(lambda: order.journal.exists() and runs(order)["long"] == 1, "the step runs")
    os.kill(int(order.journal.read_text().split()[-1]), signal.SIGKILL)
    assert execution.result(30) == 1
    assert runs(order) == Counter(check=1, long=2)
    assert value(client, order.counter) == (1, 1)


@pytest.mark.crash
def test_the_shards_process_killed_in_the_middle_of_a_step_costs_nothing(client: rayflow.Client, order: Order) -> None:
    execution = client.start(change_and_take_long, order)
    eventually(lambda: order.journal.exists() and runs(order)["long"] == 1, "the step runs")
    host = ray.get_actor(actor_names(client.identity)[0], namespace=NAMESPACE)
    os.kill(ray.get(host.__ray_call__.remote(lambda _: os.getpid())), signal.SIGKILL)
    assert execution.result(30) == 1
    assert runs(order) == Counter(check=1, long=1)
    assert value(client, order.counter) == (1, 1)


def test_a_recorded_workflow_of_a_thousand_steps_is_replayed_without_running_them(
    client: rayflow.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = new_name()
    assert client.start(many_steps, 1000, id=id).result(30) == 499_500
    ran: list[int] = []
    monkeypatch.setattr(evaluation_counter.add, "function", lambda total, number: ran.append(number))
    replay_execution(many_steps, client.store, id)
    assert ran == []
