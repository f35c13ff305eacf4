"""What the items of a map share is encoded, kept and stored once; on record each item is as if it had been asked for alone."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rayflow.core import codec, limits
from rayflow.core.codec import Pickled
from rayflow.core.context import Context
from rayflow.core.definitions import Retry, step, workflow
from rayflow.core.map_arguments import MapArguments
from rayflow.core.outbox import Outbox
from rayflow.core.passing import joined, stored_parts
from rayflow.core.records import Scheduled, Stored
from rayflow.errors import CodecError
from tests.core.driver import Driver
from tests.core.test_codec import same, values

LARGE = 100_000


@given(
    st.lists(values | st.builds(Pickled, st.integers()), max_size=3),
    st.lists(values | st.builds(Pickled, st.text()), max_size=20),
    st.sampled_from([1, 10, 64 * 1024]),
)
@settings(max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
def test_an_item_is_on_record_and_arrives_as_if_it_had_been_asked_for_alone(items: list[Any], args: list[Any], inline: int) -> None:
    keeper = Outbox()
    keep = keeper.store_apart
    store = keeper.unwritten

    def read(stored: Stored) -> Any:
        return codec.decode(stored if isinstance(stored, bytes) else store[stored.hash])

    with limits.using(inline_bytes=inline):
        made = MapArguments(items, tuple(args))
    for index, item in enumerate(items):
        alone, fingerprint = codec.encode_with_fingerprint(((item, *args), {}))
        own, on_record, shared, parts, _ = made.take(index)
        assert on_record == fingerprint
        assert shared is not None or parts or own == alone
        passed = stored_parts(parts, keeper)
        arrived = joined(own, None if shared is None else shared.stored(keep), passed, read)
        assert same(arrived, codec.decode(alone))


@pytest.mark.parametrize("count", [0, 1, 14, 15, 16, 191, 192, 70_000])
def test_any_number_of_shared_arguments_will_do(count: int) -> None:
    args = (None,) * count
    with limits.using(inline_bytes=10**6):
        own, fingerprint, *_ = MapArguments([7], args).take(0)
    assert (own, fingerprint) == codec.encode_with_fingerprint(((7, *args), {}))


def test_what_cannot_be_stored_is_named_as_what_it_is() -> None:
    with pytest.raises(CodecError, match=r"^arguments\[0\]\[2\]\.?\[?'?a?'?\]?: "):
        MapArguments([1, 2], (1, {"a": object()}))
    with pytest.raises(CodecError, match=r"^arguments\[0\]\[0\]\[1\]: "):
        MapArguments([[1, object()]], (1,))


@step(retry=Retry(max_attempts=100))
def weigh(item: int, table: bytes, unit: str) -> str:
    return f"{item} {len(table)} {unit}"


@workflow
async def weighing(ctx: Context, count: int, size: int) -> list[str]:
    return (await ctx.map(weigh, range(count), bytes(size), "kg", max_concurrency=50)).results()


@pytest.mark.parametrize("size", [5000, LARGE])
def test_what_items_share_is_stored_once_however_many_they_are(size: int) -> None:
    driver = Driver(weighing)
    driver.start(weighing, 300, size)
    travelling = [start.arguments for start in driver.running.values()]
    assert sum(len(one) for one in travelling if isinstance(one, bytes)) < 50 * 100
    while driver.running:
        driver.finish(next(iter(driver.running)))
    assert driver.result() == [f"{number} {size} kg" for number in range(300)]
    assert len(driver.code.blobs) == 1
    assert sum(len(data) for data in driver.code.blobs.values()) < size + 100


def test_few_and_small_arguments_travel_with_their_items() -> None:
    driver = Driver(weighing)
    driver.start(weighing, 20, 1000)
    driver.settle()
    assert not driver.code.blobs
    assert driver.result() == [f"{number} 1000 kg" for number in range(20)]


@pytest.mark.parametrize("seed", range(5))
def test_a_map_that_shares_goes_on_after_crashes_and_retries_as_its_record_says(seed: int) -> None:
    dice = Random(seed)
    driver = Driver(weighing, dispatcher=dice.choice(["survives", "dies"]))
    driver.start(weighing, 60, LARGE)
    while driver.running:
        happens = dice.random()
        if happens < 0.1:
            driver.crash()
        elif happens < 0.2:
            driver.fail(dice.choice(list(driver.running))[1], "crash")
            driver.pass_until(driver.now_ms + 100_000)
        else:
            driver.finish(dice.choice(list(driver.running)))
    assert driver.result() == [f"{number} {LARGE} kg" for number in range(60)]
    recorded = {one.operation: one.fingerprint for one in driver.records() if isinstance(one, Scheduled)}
    assert recorded == {f"weigh#1/[{number}]": codec.fingerprint(((number, bytes(LARGE), "kg"), {})) for number in range(60)}, (
        "so an execution that was begun before arguments were shared goes on, and the other way round"
    )
    assert len(driver.code.blobs) == 1
