"""What a map returns: everything that came of its items, in their order."""

import asyncio

import pytest

from rayflow.core.batch import BatchResult, ItemResult
from rayflow.core.context import Context
from rayflow.core.definitions import Retry, step, workflow
from rayflow.errors import StepFailed
from tests.core.driver import Driver


@step(retry=Retry(max_attempts=1))
def halve(number: int, unit: str) -> str:
    if number % 2:
        raise ValueError(f"{number} is odd")
    return f"{number // 2} {unit}"


def test_results_are_the_values_in_order_or_the_first_error_in_order() -> None:
    first, second = StepFailed("first"), StepFailed("second")
    good = BatchResult((ItemResult("a", 1, None), ItemResult("b", None, None)))
    assert good.results() == [1, None]
    assert good.failed() == []
    mixed = BatchResult((ItemResult("a", 1, None), ItemResult("b", None, first), ItemResult("c", None, second)))
    with pytest.raises(StepFailed, match="first"):
        mixed.results()
    assert [item.key for item in mixed.failed()] == ["b", "c"]
    assert ([item.key for item in mixed], len(mixed)) == (["a", "b", "c"], 3)
    empty: BatchResult[int] = BatchResult(())
    assert (empty.results(), empty.failed(), len(empty)) == ([], [], 0)


def test_an_item_that_fails_stops_no_other_and_at_most_the_window_runs_at_once_in_order() -> None:
    most: list[int] = []

    @workflow
    async def halving(ctx: Context) -> list[str]:
        batch = await ctx.map(halve, range(6), "kg", key=lambda number: f"n{number}", max_concurrency=2)
        none = await ctx.map(halve, [], "kg")
        return [*(str(item.value) for item in batch), *(item.key for item in batch.failed()), str(len(none))]

    driver = Driver(halving)
    driver.start(halving)
    while driver.running:
        most.append(len(driver.running))
        driver.finish(list(driver.running)[-1])
    assert driver.result() == ["0 kg", "None", "1 kg", "None", "2 kg", "None", "n1", "n3", "n5", "0"]
    assert most == [2, 2, 2, 2, 2, 1]
    assert [attempt[1] for _, attempt in driver.starts] == [f"halve#1/[n{number}]" for number in range(6)]


def test_a_map_that_is_given_up_stops_what_runs_and_asks_for_no_more() -> None:
    @workflow
    async def giving_up(ctx: Context) -> str:
        try:
            async with asyncio.timeout(5):
                await ctx.map(halve, range(0, 20, 2), "kg", max_concurrency=3)
        except TimeoutError:
            return "late"
        return "done"

    driver = Driver(giving_up, dispatcher="survives")
    driver.start(giving_up)
    driver.finish(next(iter(driver.running)))
    driver.crash()
    driver.pass_until(driver.now_ms + 5_000)
    assert driver.result() == "late"
    assert [attempt[1] for attempt in driver.stopped] == ["halve#1/[1]", "halve#1/[2]", "halve#1/[3]"]
    assert len(driver.starts) == 4
