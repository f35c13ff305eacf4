"""Answers to come: threads and loops wait for them, and none misses one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from rayflow.core.messages import Answered
from rayflow.errors import RayflowError
from rayflow.runtime.pending import Pending, settle_all


def waiters(pending: Pending) -> int:
    return len(pending._waiters)  # pyright: ignore[reportPrivateUsage]


async def _settled() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


def test_many_answers_wake_a_loop_once() -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        pending = [Pending() for _ in range(100)]
        waiting = [asyncio.create_task(one.wait()) for one in pending]
        await _settled()
        woken: list[int] = []
        wake = loop.call_soon_threadsafe

        def count(callback: Callable[..., object], *args: Any, **options: Any) -> asyncio.Handle:
            woken.append(1)
            return wake(callback, *args, **options)

        loop.call_soon_threadsafe = count  # type: ignore[method-assign]
        settle_all((one, Answered(str(number).encode())) for number, one in enumerate(pending))
        assert [await one for one in waiting] == [Answered(str(number).encode()) for number in range(100)]
        assert len(woken) == 1

    asyncio.run(run())


def test_who_gives_up_waiting_takes_nothing_from_others() -> None:
    async def run() -> None:
        pending = Pending()
        impatient, patient = asyncio.create_task(pending.wait()), asyncio.create_task(pending.wait())
        await _settled()
        impatient.cancel()
        await _settled()
        assert waiters(pending) == 1
        settle_all([(pending, Answered(b"x"))])
        assert await patient == await pending.wait() == pending.result() == Answered(b"x")
        assert impatient.cancelled()

    asyncio.run(run())


def test_a_thread_that_waits_too_long_is_told_and_may_wait_again() -> None:
    pending = Pending()
    with pytest.raises(TimeoutError):
        pending.result(0.01)
    assert not pending.done() and waiters(pending) == 0
    settle_all([(pending, Answered(b"x"))])
    assert pending.done() and pending.result(0) == Answered(b"x")


def test_an_error_reaches_all_who_wait_and_the_first_outcome_stays() -> None:
    pending = Pending()
    told: list[str] = []

    def wait() -> None:
        try:
            pending.result(10)
        except RayflowError as error:
            told.append(str(error))

    threads = [threading.Thread(target=wait) for _ in range(4)]
    for thread in threads:
        thread.start()
    settle_all([(pending, RayflowError("gone"))])
    settle_all([(pending, Answered(b"late"))])
    for thread in threads:
        thread.join(10)
    assert told == ["gone"] * 4
    with pytest.raises(RayflowError, match="gone"):
        pending.result()


def test_no_wake_up_is_lost_however_a_wait_and_an_answer_meet() -> None:
    """Threads and loops begin to wait while others answer; each wait is bounded, so a lost wake-up shows as TimeoutError."""
    pending = [Pending() for _ in range(3000)]
    missed: list[object] = []

    def block() -> None:
        for one in pending:
            try:
                one.result(10)
            except TimeoutError as error:
                missed.append(error)

    async def wait_for_all() -> None:
        async with asyncio.timeout(20):
            for one in pending:
                await one.wait()

    def run_loop() -> None:
        try:
            asyncio.run(wait_for_all())
        except TimeoutError as error:
            missed.append(error)

    threads = [threading.Thread(target=block) for _ in range(2)] + [threading.Thread(target=run_loop) for _ in range(2)]
    for thread in threads:
        thread.start()
    for one in pending:
        settle_all([(one, Answered(b"x"))])
    for thread in threads:
        thread.join(30)
    assert not missed
