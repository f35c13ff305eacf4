"""One execution's code: how operations are named, what a turn asks for, and how the code ends."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayflow.core import codec
from rayflow.core.context import Context
from rayflow.core.definitions import step
from rayflow.core.instance import Instance, quote, step_name
from rayflow.core.records import CancelRequested, Cause, Completed, Elapsed, Failed, Failure, Function, Started, Usage
from rayflow.errors import InvalidInput
from tests.core.driver import MemoryCode


@step
def work(value: Any = None) -> Any:
    return value


@step
def encode(value: Any = None) -> Any:
    return value


def begin(body: Callable[[Context], Coroutine[Any, Any, Any]]) -> Instance:
    instance = Instance(Started("x", 5_000, Function("w"), "1", b"", "", 3), MemoryCode())
    instance.start(lambda: body(Context(instance)))
    return instance


def asked(instance: Instance) -> list[str]:
    return [request.operation for request in instance.take()[0]]


def completed(operation: str, value: Any = None) -> Completed:
    return Completed("x", 5_000, operation, 1, codec.encode(value), Usage(0, 0))


def test_an_operation_is_named_by_scope_name_and_key_or_ordinal() -> None:
    async def body(ctx: Context) -> None:
        part = ctx.scope("part")
        await asyncio.gather(
            ctx.step(work),
            ctx.step(work),
            ctx.step(encode),
            ctx.step(work.options(key="a/b#1")),
            ctx.wait(1),
            part.step(work),
            ctx.scope("part").step(work),
            part.scope("deep").step(work),
            ctx.map(encode, ["u", "v"]),
            ctx.map(encode, ["u", "v"], key=str),
            ctx.map(encode.options(key="k"), ["u"]),
        )

    instance = begin(body)
    assert asked(instance) == [
        *("work#1", "work#2", "encode#1", "work[a%2Fb%231]", "wait#1", "part#1/work#1", "part#2/work#1", "part#1/deep#1/work#1"),
        *("encode#2/[0]", "encode#2/[1]", "encode#3/[u]", "encode#3/[v]", "encode[k]/[0]"),
    ]
    instance.close()


def test_concurrent_branches_with_scopes_or_keys_keep_their_names_whoever_comes_first() -> None:
    def names(order: list[int]) -> set[tuple[str, str]]:
        async def body(ctx: Context) -> None:
            async def branch(number: int, scope: Context) -> None:
                await ctx.step(encode.options(key=f"gate {number}"))
                await scope.step(work, number)
                await ctx.step(work.options(key=f"last {number}"), number)

            await asyncio.gather(*(branch(number, ctx.scope("branch")) for number in range(3)))

        instance = begin(body)
        found: set[tuple[str, str]] = set()
        for operation in [f"encode[gate {number}]" for number in order] + [f"branch#{number + 1}/work#1" for number in order]:
            found |= {(request.operation, request.fingerprint) for request in instance.take()[0]}
            instance.turn(completed(operation))
        found |= {(request.operation, request.fingerprint) for request in instance.take()[0]}
        instance.close()
        return found

    assert len(names([0, 1, 2])) == 9
    assert names([0, 1, 2]) == names([2, 0, 1]) == names([1, 2, 0])


def test_an_operation_added_to_one_branch_does_not_shift_the_others() -> None:
    def names(more: int) -> list[str]:
        async def body(ctx: Context) -> None:
            first, second = ctx.scope("first"), ctx.scope("second")
            await asyncio.gather(*(first.step(work) for _ in range(more)), second.step(work), ctx.step(encode), ctx.wait(1))

        instance = begin(body)
        found = asked(instance)
        instance.close()
        return found

    assert names(3)[2:] == ["first#1/work#3", *names(0)]


def test_the_identity_is_reserved_by_the_call_not_by_the_await() -> None:
    async def body(ctx: Context) -> None:
        first, second = ctx.step(work, "first"), ctx.step(work, "second")
        assert (await second, await first) == ("2", "1")
        await ctx.step(encode)

    instance = begin(body)
    assert asked(instance) == ["work#1", "work#2"]
    instance.turn(completed("work#1", "1"))
    instance.turn(completed("work#2", "2"))
    assert asked(instance) == ["encode#1"]
    instance.close()


@given(st.text(), st.text())
def test_different_keys_make_different_identities_that_can_be_recorded_and_taken_apart(one: str, other: str) -> None:
    assert (quote(one) == quote(other)) == (one == other)
    assert not set("/[]#") & set(quote(one))
    quote(one).encode("utf-8")
    assert step_name(f"a#1/encode[{quote(one)}]") == "encode"
    assert step_name(f"a#1/encode[{quote(other)}]/[{quote(one)}]") == "encode"


@given(st.text(st.characters(exclude_categories=[]), max_size=3), st.text(st.characters(exclude_categories=[]), max_size=3))
def test_also_keys_that_are_no_unicode(one: str, other: str) -> None:
    assert (quote(one) == quote(other)) == (one == other)
    quote(one).encode("utf-8")


@pytest.mark.parametrize("name", ["", "a/b", "a[b", "a]b", "a#b", "a%b", "\ud800"])
def test_names_that_would_be_mistaken_for_structure_are_refused(name: str) -> None:
    async def body(ctx: Context) -> list[str]:
        out: list[str] = []
        for call in (lambda: ctx.scope(name), lambda: ctx.wait(1, name=name), lambda: ctx.map(work.options(name=f"x{name}/"), [])):
            try:
                call()
            except InvalidInput as error:
                out.append(str(error))
        return out

    instance = begin(body)
    assert instance.outcome is not None
    assert instance.outcome.result is not None
    errors = codec.decode(instance.outcome.result)
    assert len(errors) == 3
    assert all("must be a text that is not empty, with none of / [ ] # %" in error for error in errors)


def test_a_turn_delivers_one_event_and_says_what_the_code_then_wants_and_gives_up() -> None:
    async def body(ctx: Context) -> str:
        steps = [asyncio.ensure_future(ctx.step(work, number)) for number in range(3)]
        done, pending = await asyncio.wait([*steps, asyncio.ensure_future(ctx.wait(9))], return_when=asyncio.FIRST_COMPLETED)
        for one in pending:
            one.cancel()
        in_and_out = asyncio.ensure_future(ctx.step(encode, "asked for and given up in one turn"))
        in_and_out.cancel()
        await ctx.step(work, len(done))
        return "end"

    instance = begin(body)
    assert (asked(instance), instance.waits_for("wait#1")) == (["work#1", "work#2", "work#3", "wait#1"], True)
    instance.turn(Elapsed("x", 14_000, "wait#1"))
    requested, abandoned = instance.take()
    assert [one.operation for one in requested] == ["work#4"]
    assert sorted(abandoned) == ["work#1", "work#2", "work#3"]
    assert instance.take() == ([], [])
    instance.turn(completed("work#1"))  # it may come late
    instance.turn(Failed("x", 14_001, "work#4", 3, Cause.ERROR, Failure("KeyError", "'k'", "trace"), None))
    outcome = instance.outcome
    assert outcome is not None
    assert (outcome.status, outcome.failure and outcome.failure.type) == ("failed", "StepFailed")
    assert outcome.failure is not None
    assert outcome.failure.message == "work#4 failed after 3 attempts: KeyError: 'k'"
    instance.close()


def test_time_only_goes_forward_and_is_that_of_the_event() -> None:
    seen: list[float] = []

    async def body(ctx: Context) -> None:
        while True:
            seen.append(ctx.now().timestamp())
            await ctx.step(work)

    instance = begin(body)
    for number, at_ms in enumerate((6_000, 5_500, 7_000), 1):
        instance.turn(Completed("x", at_ms, f"work#{number}", 1, codec.encode(None), Usage(0, 0)))
    assert seen == [5, 6, 6, 7]
    instance.close()


def test_a_closed_instance_asks_for_nothing_logs_nothing_and_its_context_is_of_no_use(caplog: pytest.LogCaptureFixture) -> None:
    contexts: list[Context] = []

    async def body(ctx: Context) -> None:
        contexts.append(ctx)
        try:
            await ctx.step(work)
        finally:
            ctx.logger.warning("leaving")
            await ctx.step(work)

    instance = begin(body)
    instance.take()
    with caplog.at_level(logging.DEBUG):
        instance.close()
    assert instance.take() == ([], [])
    assert caplog.records == []
    with pytest.raises(RuntimeError, match="has ended"):
        contexts[0].step(work)


def test_errors_that_nobody_looks_at_are_logged_once_with_the_execution_and_not_in_replay(caplog: pytest.LogCaptureFixture) -> None:
    async def body(ctx: Context) -> None:
        async def branch() -> None:
            raise ValueError("unseen")

        task = asyncio.create_task(branch())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        del task
        await ctx.step(work)

    for silent, messages in ((False, ["[x] LoopTask exception was never retrieved"]), (True, [])):
        caplog.clear()
        instance = Instance(Started("x", 0, Function("w"), "1", b"", "", 3), MemoryCode())
        instance.silent = silent
        with caplog.at_level(logging.DEBUG):
            instance.start(lambda instance=instance: body(Context(instance)))
            instance.close()
        assert [record.getMessage() for record in caplog.records] == messages


def test_cancelling_reaches_nested_tasks_and_carries_the_reason() -> None:
    seen: list[str] = []

    async def body(ctx: Context) -> None:
        async def branch(name: str) -> None:
            try:
                await ctx.step(work)
            except asyncio.CancelledError:
                seen.append(name)
                raise

        async with asyncio.TaskGroup() as group:
            group.create_task(branch("a"))
            group.create_task(branch("b"))

    instance = begin(body)
    instance.take()
    instance.turn(CancelRequested("x", 6_000, "enough"))
    assert seen == ["a", "b"]
    assert sorted(instance.take()[1]) == ["work#1", "work#2"]
    outcome = instance.outcome
    assert outcome is not None
    assert outcome.failure is not None
    assert (outcome.status, outcome.failure.message) == ("cancelled", "the execution was cancelled: enough")
