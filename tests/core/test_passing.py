"""Large results that go on to other steps: stored once, and decoded in the shard's process only where its code looks at them.

Invariants: I10, I16.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rayflow.core import codec, limits
from rayflow.core import passing as passing_of
from rayflow.core.codec import Pickled
from rayflow.core.context import Context
from rayflow.core.definitions import Retry, Workflow, step, workflow
from rayflow.core.messages import StepResult
from rayflow.core.outbox import Outbox, StartStep
from rayflow.core.records import Abandoned, Completed, Scheduled, Stored, Usage, decode_record, encode_record
from rayflow.errors import InvalidInput, StepFailed
from tests.core.driver import Driver
from tests.core.test_codec import same, values
from tests.core.test_replay import replay_every_prefix

LARGE = 100_000


@dataclass
class Picture:
    name: str
    pixels: bytes


KINDS: dict[str, Any] = {
    "bytes": bytes(LARGE),
    "text": "ä" * LARGE,
    "list": [bytes(LARGE), 1],
    "record": Picture("a", bytes(LARGE)),
    "array": np.arange(LARGE, dtype="f8").reshape(2, -1),
    "large ints": {"a": [2**70, "\ud800" * LARGE]},
}


@step(retry=Retry(max_attempts=1))
def make(kind: str, salt: int = 0) -> Any:
    if kind == "none":
        raise FileNotFoundError("there is none")
    return bytes((salt,)) * LARGE if kind == "salted" else KINDS[kind]


@step(retry=Retry(max_attempts=9))
def measure(value: Any, by: int = 1, more: Any = None) -> int:
    return size_of(value) * by + (0 if more is None else size_of(more))


@step
def small() -> list[int]:
    return [1, 2, 3]


@step
def total(*values: list[int]) -> int:
    return sum(map(sum, values))


def size_of(value: Any) -> int:
    return len(codec.encode(value))


class Watched(Driver):
    """Counts what is decoded and encoded of large values, the steps' own work excepted."""

    def __init__(self, *workflows: Workflow[..., Any], patch: pytest.MonkeyPatch, **options: Any) -> None:
        self.decoded = self.encoded = 0
        self._in_step = False
        decode, encode = codec.decode, vars(codec)["_encode_body"]

        def decoding(data: bytes) -> Any:
            self.decoded += len(data) > LARGE // 2 and not self._in_step
            return decode(data)

        def encoding(*args: Any) -> bytes:
            data: bytes = encode(*args)
            self.encoded += len(data) > LARGE // 2 and not self._in_step
            return data

        patch.setattr(codec, "decode", decoding)
        patch.setattr(codec, "_encode_body", encoding)
        super().__init__(*workflows, **options)

    @contextmanager
    def in_step(self) -> Iterator[None]:
        self._in_step = True
        try:
            yield
        finally:
            self._in_step = False

    def execute(self, start: StartStep) -> StepResult:
        with self.in_step():
            return super().execute(start)

    @property
    def stored(self) -> int:
        """How often a large value is in the store."""
        assert all(len(data) > LARGE // 2 for data in self.code.blobs.values())
        return len(self.code.blobs)


@workflow
async def passing(ctx: Context, kind: str) -> int:
    return await ctx.step(measure, ctx.step(make, kind))


@workflow
async def awaiting(ctx: Context, kind: str) -> int:
    made = await ctx.step(make, kind)
    return await ctx.step(measure, made)


@workflow
async def returning(ctx: Context, kind: str) -> Any:
    made = await ctx.step(make, kind)
    await ctx.step(measure, more=made, value=made)
    return made


@workflow
async def passing_everywhere(ctx: Context) -> list[int]:
    one, two = ctx.step(make, "salted", 1), ctx.step(make, "salted", 2)
    sums = [await ctx.step(measure, one, more=two), await ctx.step(measure, value=two, by=2), await ctx.step(measure, 7, 1, one)]
    return [*sums, *(await ctx.map(measure, [one, two, b"3"], 1, two)).results()]


@workflow
async def mapping(ctx: Context, count: int) -> list[int]:
    made = ctx.map(make, ["salted"] * count, 3, max_concurrency=2)
    return (await ctx.map(measure, made, 10, max_concurrency=3)).results()


@workflow
async def mapping_awaited(ctx: Context, count: int) -> list[int]:
    made = await ctx.map(make, ["salted"] * count, 3)
    return (await ctx.map(measure, made.results(), 10)).results()


@workflow
async def sharing_awaited(ctx: Context, count: int) -> list[int]:
    made = await ctx.step(make, "salted")
    return (await ctx.map(measure, range(count), 1, made, max_concurrency=2)).results()


@pytest.mark.parametrize("kind", KINDS)
def test_a_large_result_that_only_goes_on_is_stored_once_and_neither_decoded_nor_encoded(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = size_of(KINDS[kind])
    driver = Watched(passing, patch=monkeypatch)
    assert driver.run(passing, kind)[2] == expected
    assert (driver.decoded, driver.encoded, driver.stored) == (0, 0, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_large_result_that_the_code_awaits_and_passes_on_is_stored_once_and_on_record_as_ever(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Watched(awaiting, returning, patch=monkeypatch)
    expected = size_of(KINDS[kind])
    assert driver.run(awaiting, kind)[2] == expected
    assert (driver.decoded, driver.stored) == (1, 1)
    driver.run(returning, kind, id="y")
    assert driver.stored == 1
    known = {one.operation: one.fingerprint for one in driver.records() if isinstance(one, Scheduled)}
    assert known["measure#1"] == codec.fingerprint(((KINDS[kind],), {})), "so what was begun before goes on"


def test_results_go_on_by_position_by_name_and_to_all_items_of_a_map_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    size = size_of(bytes(LARGE))
    expected = [2 * size, 2 * size, size_of(7) + size, 2 * size, 2 * size, size_of(b"3") + size]
    driver = Watched(passing_everywhere, patch=monkeypatch)
    assert driver.run(passing_everywhere)[2] == expected
    assert (driver.decoded, driver.encoded, driver.stored) == (0, 0, 2)


@pytest.mark.parametrize(("maps", "decoded"), [(mapping, 0), (mapping_awaited, 7), (sharing_awaited, 1)])
def test_results_of_maps_and_those_that_go_to_all_items_are_stored_once(
    maps: Workflow[..., Any], decoded: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Watched(maps, patch=monkeypatch)
    assert len(driver.run(maps, 7)[2]) == 7
    assert (driver.decoded, driver.stored) == (decoded, 1)


@pytest.mark.parametrize("flow", [passing_everywhere, mapping])
@pytest.mark.parametrize("seed", range(6))
def test_what_goes_on_unread_goes_on_so_after_crashes_and_retries(
    flow: Workflow[..., Any], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    dice = Random(seed)
    arguments = (5,) if flow is mapping else ()
    driver = Watched(flow, patch=monkeypatch, dispatcher=dice.choice(["survives", "dies"]))
    driver.start(flow, *arguments)
    while driver.running:
        happens = dice.random()
        if happens < 0.2:
            driver.crash()
        elif happens < 0.3 and (again := [one for one in driver.running if one[1].startswith("measure")]):
            driver.fail(dice.choice(again)[1], "crash")
            driver.pass_until(driver.now_ms + 100_000)
        else:
            driver.finish(dice.choice(list(driver.running)))
    assert all(one > LARGE for one in driver.result())
    assert driver.decoded == 0, "nor when it was replayed"
    assert driver.reruns == []
    assert driver.stored == (1 if flow is mapping else 2)


@workflow
async def looking(ctx: Context, kind: str) -> list[int]:
    """Looks at what it has passed on: while that is under way, in the same turn, and long after it has come."""
    one, two = ctx.step(make, kind, 1), ctx.step(make, kind, 2)
    passed = [ctx.step(measure, one), ctx.step(measure, two, more=one)]
    told = [size_of(await one)]
    told += await asyncio.gather(*passed)
    made = ctx.map(make, [kind], 4)
    told += (await ctx.map(measure, made)).results()
    told += [size_of(await two), size_of((await asyncio.gather(two))[0]), size_of(two.result())]
    return [*told, *map(size_of, (await made).results()), await ctx.step(measure, one), await ctx.step(measure, two)]


@pytest.mark.parametrize("kind", ["salted", "array"])
def test_code_that_looks_at_what_it_has_passed_on_gets_it_whenever_it_looks(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Watched(looking, patch=monkeypatch)
    size = size_of(bytes(LARGE) if kind == "salted" else KINDS[kind])
    assert driver.run(looking, kind)[2] == [size, size, 2 * size, *[size] * 7]
    assert driver.decoded == 3
    replay_every_prefix(driver)


@workflow
async def failing(ctx: Context) -> list[str]:
    told: list[str] = []
    lost, fine = ctx.step(make, "none"), ctx.step(make, "bytes")
    try:
        await ctx.step(measure, lost, more=fine)
    except FileNotFoundError as error:
        assert isinstance(error, StepFailed)
        told.append(str(error))
    try:
        await ctx.step(measure, fine, more=lost)  # it is known already
    except FileNotFoundError as error:
        told.append(str(error))
    batch = await ctx.map(measure, ctx.map(make, ["bytes", "none", "list"]))
    told += [f"{one.key} {isinstance(one.error, FileNotFoundError)}" for one in batch]
    told.append(str(await ctx.step(measure, fine)))
    return told


def test_a_step_whose_argument_fails_fails_with_the_same_error_and_does_not_run() -> None:
    driver = Driver(failing)
    told = driver.run(failing)[2]
    assert told[0] == told[1] == "make#1 failed after 1 attempt: FileNotFoundError: there is none"
    assert told[2:] == ["0 False", "1 True", "2 False", str(size_of(KINDS["bytes"]))]
    asked = [one.operation for one in driver.records() if isinstance(one, Scheduled)]
    assert [one for one in asked if one.startswith("measure")] == ["measure#3/[0]", "measure#3/[2]", "measure#4"]
    replay_every_prefix(driver)


@workflow
async def failing_widely(ctx: Context, count: int) -> int:
    made = ctx.map(make, ["none"] * count)
    return len((await ctx.map(measure, made, max_concurrency=1)).failed())


def test_any_number_of_items_may_fail_before_they_begin() -> None:
    driver = Driver(failing_widely)
    assert driver.run(failing_widely, 1500)[2] == 1500


@workflow
async def giving_up(ctx: Context) -> list[int]:
    one = ctx.step(make, "bytes")
    mapped = ctx.map(measure, ctx.map(make, ["list", "text"]))
    try:
        async with asyncio.timeout(5):
            await ctx.step(measure, one)
    except TimeoutError:
        mapped.cancel()
    cancelled = ctx.step(make, "record")
    taken = ctx.step(measure, cancelled)
    rest = ctx.map(measure, [cancelled, small_of(ctx)])
    await ctx.wait(1)
    cancelled.cancel()
    try:
        await taken
    except asyncio.CancelledError:
        return [await ctx.step(measure, one), len((await rest).failed())]
    return []


def small_of(ctx: Context) -> Any:
    return ctx.step(small)


def test_giving_up_a_step_leaves_those_that_it_was_to_get_results_of_and_giving_up_these_gives_it_up() -> None:
    driver = Driver(giving_up)
    driver.hold = {"make"}
    driver.start(giving_up)
    driver.settle()
    driver.hold = set()
    driver.settle()
    assert driver.result() == [size_of(KINDS["bytes"]), 1]
    dropped = [one.operation for one in driver.records() if isinstance(one, Abandoned)]
    assert dropped == ["make#3"], "all others went on"
    replay_every_prefix(driver)


@workflow
async def adding(ctx: Context) -> int:
    lists = [ctx.step(small) for _ in range(3)]
    return await ctx.step(total, *lists)


def test_small_results_go_on_within_the_record() -> None:
    driver = Driver(adding)
    assert driver.run(adding)[2] == 18
    assert not driver.code.blobs
    replay_every_prefix(driver)


@given(
    st.lists(values | st.builds(Pickled, st.integers()) | st.sampled_from([b"x" * 300, b"y" * 70_000, "z" * 300]), max_size=18),
    st.dictionaries(st.text(st.characters(blacklist_categories=())), values | st.just(b"w" * 300), max_size=3),
    st.sampled_from([1, 200, 64 * 1024]),
)
@example([b"v" * 70_000, np.arange(300), Pickled(1)], {"\ud800": b"u" * 300}, 200)
@settings(max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
def test_arguments_arrive_and_are_on_record_as_if_nothing_were_stored_apart(
    args: list[Any], kwargs: dict[str, Any], inline: int
) -> None:
    whole, fingerprint = codec.encode_with_fingerprint((tuple(args), kwargs))
    keeper = Outbox()
    with limits.using(inline_bytes=inline):
        own, on_record, parts = passing_of.encoded(tuple(args), kwargs, ())
        passed = passing_of.stored_parts(parts, keeper)
        again = passing_of.encoded(tuple(args), kwargs, keeper.unwritten)
    assert on_record == fingerprint

    def read(stored: Stored) -> Any:
        return codec.decode(stored if isinstance(stored, bytes) else keeper.unwritten[stored.hash])

    assert same(passing_of.joined(own, None, passed, read), codec.decode(whole))
    assert again == (own, fingerprint, passed), "what is in the store already is not kept"


WRONG: dict[str, tuple[Any, str]] = {
    "in a list": (lambda ctx: ctx.step(measure, [ctx.step(small)]), r"arguments\[0\]\[0\]\[0\]: .* await it, and pass the result"),
    "a wait": (lambda ctx: ctx.step(measure, ctx.wait(1)), "may be what ctx.step returned; await anything else"),
    "a map": (lambda ctx: ctx.step(measure, ctx.map(small, [])), "may be what ctx.step returned; await anything else"),
    "a step for items": (lambda ctx: ctx.map(measure, ctx.step(small)), "the items are a list, or what ctx.map returned"),
    "keys": (lambda ctx: ctx.map(measure, ctx.map(make, ["list"]), key=str), "leave key out"),
    "a task": (lambda ctx: ctx.step(measure, asyncio.gather(ctx.step(small))), "await it, and pass the result"),
}


@workflow
async def wronging(ctx: Context, which: str) -> str:
    made, told = WRONG[which]
    with pytest.raises(InvalidInput, match=told):
        made(ctx)
    return "refused"


@pytest.mark.parametrize("which", WRONG)
def test_what_cannot_go_on_unread_is_refused_with_what_to_do(which: str) -> None:
    assert Driver(wronging).run(wronging, which)[2] == "refused"


def test_a_record_from_before_results_could_be_unread_is_read() -> None:
    completed = Completed("x", 1, "make#1", 1, b"", Usage(0, 0), unread=True)
    fields = msgspec.msgpack.decode(encode_record(completed))
    assert decode_record(encode_record(completed)) == completed
    assert decode_record(msgspec.msgpack.encode(fields[:-1])) == msgspec.structs.replace(completed, unread=False)
