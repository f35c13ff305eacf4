"""Whoever gives one thing where another is wanted reads what it is and what to write."""

import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from rayflow import Entity, InvalidInput, operation
from rayflow.core.context import Context
from rayflow.core.definitions import step, workflow
from rayflow.core.entity_type import type_of
from rayflow.core.mistakes import mistaken
from rayflow.testing import run_workflow


def plain(number: int) -> int:
    return number


@step
def double(number: int) -> int:
    return 2 * number


@step
async def slow(number: int) -> int:
    return number


@workflow
async def flow(ctx: Context) -> None: ...


class Counter(Entity[int]):
    @operation
    def add(self, by: int) -> None: ...


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda ctx: plain, "function plain is no step: put @rayflow.step above its definition"),
        (lambda ctx: flow, "workflow flow is no step: await its code, flow(ctx, ...)"),
        (lambda ctx: Counter, "entity class Counter is no step: await a message to one of its entities: ctx.entity(Counter, key)"),
        (lambda ctx: ctx.entity(Counter, "a"), "<entity Counter/a> is no step: await a message to it"),
        (lambda ctx: Counter.add, "operation add is no step: call it: ctx.entity(Type, key).operation(...)"),
        (lambda ctx: ctx.entity(Counter, "a").add, "is no step: call it: ctx.entity(Type, key).operation(...)"),
        (
            lambda ctx: slow(1),
            "coroutine slow is no step: it was called already; give the step, and then its arguments: ctx.step(slow,",
        ),
        (lambda ctx: flow(ctx), "coroutine flow is no step: it was called already"),
        (lambda ctx: ctx.step(double, 1), "is no step: await it as it is"),
        (lambda ctx: double(1), "2 is no step: give a step, and then its arguments: ctx.step(work, 1) and not ctx.step(work(1))"),
    ],
)
def test_what_is_no_step_is_refused_with_what_to_write(wrong: Callable[[Context], Any], message: str) -> None:
    @workflow
    async def mixed_up(ctx: Context) -> list[str]:
        refused: list[str] = []
        for run in (ctx.step, lambda found: ctx.map(found, [1])):
            with pytest.raises(InvalidInput) as caught:
                run(wrong(ctx))
            refused.append(str(caught.value))
        return refused

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a coroutine that was never awaited
        for refused in run_workflow(mixed_up):
            assert message in refused


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: plain, "function plain is no workflow: put @rayflow.workflow above its definition, an 'async def'"),
        (lambda: double, "step double is no workflow: steps run in workflows; await ctx.step(double, ...)"),
        (lambda: double.options(key="a"), "step double is no workflow: steps run in workflows"),
        (lambda: Counter, "entity class Counter is no workflow: entities are not started; send one a message"),
        (lambda: Counter("a"), "is no workflow: entities are not started; send it a message"),
        (lambda: flow(None), "coroutine flow is no workflow: it was called already; give the workflow, and then its arguments"),  # type: ignore[arg-type]
        (lambda: 5, "5 is no workflow: give a workflow, and then its arguments"),
    ],
)
def test_what_is_no_workflow_is_refused_with_what_to_write(wrong: Callable[[], Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(message)):
        run_workflow(wrong())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (double, "step double is no entity: await ctx.step(double, ...) in a workflow"),
        (flow, "workflow flow is no entity: start it with client.start(flow, ...)"),
        (Counter("a"), "is no entity: give the class, and then the key"),
        (plain, "function plain is no entity: write class Name(rayflow.Entity[State])"),
        (int, "<class 'int'> is no entity: write class Name(rayflow.Entity[State])"),
    ],
)
def test_what_is_no_entity_is_refused_with_what_to_write(wrong: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(message)):
        type_of(wrong)


def test_what_cannot_even_be_shown_is_refused_all_the_same() -> None:
    class Broken:
        def __repr__(self) -> str:
            raise ValueError

    assert str(mistaken(Broken(), "step")).startswith("<Broken> is no step")
