"""The deterministic loop: all of asyncio that needs no outside world, in a strict order, and nothing else."""

import asyncio
import concurrent.futures
import gc
import inspect
import math
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from rayflow.core.loop import DeterministicLoop


def never() -> bool:
    return False


def run(body: Callable[[], Awaitable[Any]], times: tuple[float, ...] = (0.0,)) -> Any:
    """The result of ``body()`` on a loop that is told these times."""
    loop = DeterministicLoop()

    async def main() -> Any:
        return await body()

    task = loop.create_task(main())
    for time_s in times:
        loop.run(time_s, never)
    try:
        return task.result()
    finally:
        loop.close()


def test_callbacks_run_strictly_in_the_order_in_which_they_were_scheduled() -> None:
    seen: list[str] = []

    async def branch(name: str) -> None:
        for turn in range(3):
            seen.append(f"{name}{turn}")
            await asyncio.sleep(0)

    async def body() -> None:
        loop = asyncio.get_running_loop()
        loop.call_soon(seen.append, "soon")
        loop.call_later(2, seen.append, "later 2")
        loop.call_later(1, seen.append, "later 1, first")
        loop.call_later(1, seen.append, "later 1, second")
        await asyncio.gather(branch("a"), branch("b"))
        await asyncio.sleep(3)

    run(body, (0, 10, 20))
    assert seen == ["soon", "a0", "b0", "a1", "b1", "a2", "b2", "later 1, first", "later 1, second", "later 2"]


def test_gather_wait_timeout_task_group_shield_and_the_primitives_work() -> None:
    async def quick(value: int) -> int:
        await asyncio.sleep(0)
        return value

    async def body() -> list[Any]:
        out: list[Any] = [await asyncio.gather(quick(1), quick(2))]
        fast, slow = asyncio.create_task(quick(3)), asyncio.create_task(asyncio.sleep(60))
        done, pending = await asyncio.wait({fast, slow}, return_when=asyncio.FIRST_COMPLETED)
        out.append((done == {fast}, pending == {slow}))
        try:
            async with asyncio.timeout(5):
                await slow
        except TimeoutError:
            out.append(("timeout", asyncio.get_running_loop().time()))
        try:
            async with asyncio.TaskGroup() as group:
                waiting = group.create_task(asyncio.sleep(60))
                group.create_task(asyncio.wait_for(asyncio.sleep(60), 1))
        except* TimeoutError:
            out.append(("group", waiting.cancelled()))
        inner = asyncio.create_task(quick(4))
        shielded = asyncio.shield(inner)
        shielded.cancel()
        out.append(await inner)
        queue: asyncio.Queue[int] = asyncio.Queue(1)
        event, lock = asyncio.Event(), asyncio.Lock()

        async def producer() -> None:
            for value in range(3):
                async with lock:
                    await queue.put(value)
            event.set()

        task = asyncio.create_task(producer())
        out.append([await queue.get() for _ in range(3)])
        await event.wait()
        await task
        return out

    assert run(body, (0, 5, 6)) == [[1, 2], (True, True), ("timeout", 5), ("group", True), 4, [0, 1, 2]]


def test_time_is_told_never_goes_back_and_ends_what_is_due_only() -> None:
    loop = DeterministicLoop(100.0)
    task = loop.create_task(asyncio.sleep(5, "woke"))
    loop.run(100.0, never)
    assert loop.next_timer_s() == 105.0
    loop.run(104.9, never)
    loop.run(50.0, never)
    assert (task.done(), loop.time()) == (False, 104.9)
    loop.run(105.0, never)
    assert task.result() == "woke"
    assert loop.next_timer_s() is None
    loop.close()


def test_what_is_due_at_infinity_never_is() -> None:
    loop = DeterministicLoop()
    task = loop.create_task(asyncio.sleep(math.inf))
    loop.run(1e18, never)
    assert not task.done()
    assert loop.next_timer_s() is None
    loop.close()


def test_sets_of_tasks_and_futures_have_an_order_that_does_not_depend_on_addresses() -> None:
    def order() -> list[str]:
        seen: list[str] = []

        async def branch(name: str) -> None:
            try:
                await asyncio.sleep(60)
            finally:
                seen.append(name)

        async def failing() -> None:
            await asyncio.sleep(0)
            raise ValueError

        async def body() -> None:
            _clutter = [object() for _ in range(len(kept) * 7)]  # moves addresses from one run to the next
            try:
                async with asyncio.TaskGroup() as group:
                    for index in range(30):
                        group.create_task(branch(f"b{index}"))
                        kept.append(bytearray(index * 16))
                    group.create_task(failing())
            except* ValueError:
                pass
            futures = [asyncio.get_running_loop().create_future() for _ in range(30)]
            for future in futures:
                future.set_result(None)
            done, _ = await asyncio.wait(futures)
            seen.extend(str(futures.index(one)) for one in done)

        run(body)
        return seen

    kept: list[object] = []
    first = order()
    assert len(first) == 60
    assert all(order() == first for _ in range(5))


def test_names_of_tasks_are_the_same_on_every_run() -> None:
    async def body() -> list[str]:
        tasks = [asyncio.create_task(asyncio.sleep(0)) for _ in range(3)]
        return [task.get_name() for task in tasks]

    assert run(body) == run(body)


async def _in_thread() -> None:
    await asyncio.to_thread(print)


async def _socket() -> None:
    await asyncio.open_connection("localhost", 1)


async def _server() -> None:
    await asyncio.start_server(lambda _reader, _writer: None, "localhost", 0)


async def _process() -> None:
    await asyncio.create_subprocess_exec("true")


async def _pool() -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        await asyncio.get_running_loop().run_in_executor(pool, print)


async def _signal() -> None:
    asyncio.get_running_loop().add_signal_handler(2, print)


@pytest.mark.parametrize("outside", [_in_thread, _socket, _server, _process, _pool, _signal])
def test_the_outside_world_is_refused_with_the_advice_to_use_a_step(outside: Callable[[], Awaitable[None]]) -> None:
    with pytest.raises(RuntimeError, match=r"workflow code called loop\.\w+\(\).*cannot be replayed.*ctx\.step"):
        run(outside)


def test_a_future_of_another_loop_is_refused() -> None:
    other = asyncio.new_event_loop()
    foreign = other.create_future()

    async def body() -> None:
        await foreign

    with pytest.raises(RuntimeError, match="attached to a different loop"):
        run(body)
    other.close()


def test_every_method_of_an_event_loop_is_there_or_refused_in_words() -> None:
    bare = [
        name
        for name, member in inspect.getmembers(asyncio.AbstractEventLoop, inspect.isfunction)
        if not name.startswith("_") and getattr(DeterministicLoop, name) is member
    ]
    assert bare == []


def test_inside_a_running_loop_the_inner_one_is_current_and_the_outer_one_is_again_afterwards() -> None:
    async def outer() -> None:
        outside, task = asyncio.get_running_loop(), asyncio.current_task()
        inner = DeterministicLoop()

        async def inside() -> bool:
            await asyncio.sleep(0)
            assert asyncio.current_task() is not task
            return asyncio.get_running_loop() is inner

        work = inner.create_task(inside())
        inner.run(0, never)
        assert work.result()
        assert asyncio.get_running_loop() is outside
        assert asyncio.current_task() is task
        await asyncio.sleep(0)
        broken = inner.create_task(inside())
        with pytest.raises(ZeroDivisionError):
            inner.run(0, lambda: bool(1 // 0))
        assert asyncio.get_running_loop() is outside
        inner.close()
        assert asyncio.get_running_loop() is outside
        assert not broken.done()

    asyncio.run(outer())


def test_a_generator_that_code_drops_half_way_is_finished_in_its_own_turn_not_by_the_loop_around() -> None:
    seen: list[object] = []

    async def numbers() -> Any:
        try:
            yield 1
            yield 2
        finally:
            await asyncio.sleep(0)
            seen.append(asyncio.get_running_loop())

    async def first() -> int:
        async for number in numbers():
            return number
        return 0

    async def outer() -> None:
        inner = DeterministicLoop()
        work = inner.create_task(first())
        inner.run(0, never)
        assert work.result() == 1
        assert seen == [inner]
        inner.close()
        await asyncio.sleep(0)

    asyncio.run(outer())


def test_system_exit_is_an_error_of_the_task_and_does_not_leave_the_loop() -> None:
    async def leave() -> None:
        raise SystemExit(3)

    async def body() -> str:
        try:
            await asyncio.create_task(leave())
        except SystemExit as error:
            return f"exit {error.code}"
        return "none"

    assert run(body) == "exit 3"


def test_closing_ends_every_task_at_once_and_quietly_even_where_its_clean_up_waits_or_starts_tasks() -> None:
    seen: list[str] = []

    async def stubborn() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            seen.append("first")
            try:
                await asyncio.sleep(60)
            finally:
                seen.append("second")
                asyncio.create_task(asyncio.sleep(60))  # noqa: RUF006  # refused: there is nothing to keep

    async def body() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(stubborn())
            await asyncio.Event().wait()

    async def outer() -> weakref.ref[DeterministicLoop]:
        loop = DeterministicLoop()
        loop.create_task(body())
        loop.run(0, never)
        loop.close()
        assert seen == ["first", "second"]
        assert len(asyncio.all_tasks()) == 1
        with pytest.raises(RuntimeError, match="the workflow has ended"):
            loop.create_task(asyncio.sleep(0))
        return weakref.ref(loop)

    loop = asyncio.run(outer())
    gc.collect()
    assert loop() is None


def test_cancelled_timers_do_not_gather() -> None:
    loop = DeterministicLoop()
    keep = loop.call_later(7200, print)

    async def body() -> None:
        for _ in range(10_000):
            async with asyncio.timeout(3600):
                await asyncio.sleep(0)

    task = loop.create_task(body())
    loop.run(0, never)
    task.result()
    assert len(loop._timers) < 300
    assert loop.next_timer_s() is not None
    loop.run(3601, never)
    assert loop.next_timer_s() == keep.when()
    loop.close()
