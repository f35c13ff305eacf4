"""Steps and workflows as users define them: plain functions when called, checked when defined."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayflow.core.context import Context
from rayflow.core.definitions import Retry, retry_pause_ms, step, workflow
from rayflow.errors import CodecError, InvalidInput


@step
def plain(a: int, b: int = 2) -> int:
    """Adds."""
    return a + b


@step(name="named", retry=Retry(max_attempts=7), timeout=5, num_cpus=2)
def optioned() -> str:
    return "called"


def test_a_step_that_is_called_is_the_function_with_its_name_and_documentation() -> None:
    assert (plain(1), plain(1, b=5), optioned()) == (3, 6, "called")
    assert (plain.__name__, plain.__doc__, repr(plain)) == ("plain", "Adds.", "<step plain>")


def test_options_of_one_call_change_that_call_only() -> None:
    bound = optioned.options(name="other", key="k", timeout=9, num_gpus=1)
    assert (bound.settings.name, bound.key, bound.settings.timeout_s, bound.settings.retry.max_attempts) == ("other", "k", 9, 7)
    assert bound.settings.resources == {"num_cpus": 2, "num_gpus": 1}
    assert (optioned.settings.name, optioned.settings.timeout_s, optioned.settings.resources) == ("named", 5, {"num_cpus": 2})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cpus": 1}, "unknown option cpus; Ray options are accelerator_type, .*num_cpus"),
        ({"inline": True, "num_cpus": 1}, r"inline steps run in the shard's process and take no \['num_cpus'\]"),
        ({"inline": True, "timeout": 3}, "an inline function cannot be interrupted; make it async"),
        ({"timeout": 0}, "timeout=0 must be a positive number of seconds"),
        ({"delivery": "twice"}, "delivery='twice' is neither 'at_least_once' nor 'at_most_once'"),
    ],
)
def test_options_that_cannot_work_are_refused_when_the_step_is_defined(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        step(**options)(lambda: None)


def test_options_of_one_call_are_checked_as_those_of_the_definition_are() -> None:
    with pytest.raises(InvalidInput, match="unknown option cpus"):
        plain.options(cpus=1)
    with pytest.raises(InvalidInput, match="timeout=-1 must be a positive number of seconds"):
        plain.options(timeout=-1)

    @step(inline=True)
    def quick() -> None: ...

    with pytest.raises(InvalidInput, match="take no"):
        quick.options(num_cpus=1)
    with pytest.raises(InvalidInput, match="cannot be interrupted"):
        quick.options(timeout=1)


def test_a_workflow_is_an_async_function() -> None:
    with pytest.raises(InvalidInput, match="write 'async def'"):

        @workflow  # type: ignore[arg-type]  # the mistake under test
        def wrong(ctx: Context) -> None: ...

    @workflow(name="n", version="7")
    async def right(ctx: Context) -> None: ...

    assert (right.name, right.version, repr(right)) == ("n", "7", "<workflow n version 7>")


@pytest.mark.parametrize(
    "wrong", [{"max_attempts": 0}, {"initial_s": -1}, {"max_s": -1}, {"backoff": 0.5}, {"jitter": 1.1}, {"jitter": -0.1}]
)
def test_retries_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        Retry(**wrong)


@given(st.floats(0, 1000), st.floats(1, 10), st.floats(0, 1000), st.floats(0, 1), st.integers(1, 10**6), st.integers(0, 2**63 - 1))
def test_pauses_grow_by_the_factor_up_to_the_longest_and_repeat(
    initial_s: float, backoff: float, max_s: float, jitter: float, attempt: int, seed: int
) -> None:
    retry = Retry(initial_s=initial_s, backoff=backoff, max_s=max_s, jitter=jitter)
    middle_ms = 1000 * min(initial_s * backoff ** min(attempt - 1, 64), max_s)
    pause_ms = retry_pause_ms(retry, seed, "work#1", attempt)
    assert middle_ms * (1 - jitter) - 1 <= pause_ms <= middle_ms * (1 + jitter) + 1
    assert pause_ms == retry_pause_ms(retry, seed, "work#1", attempt)


def test_different_operations_and_attempts_pause_differently_so_that_they_do_not_come_back_together() -> None:
    retry = Retry(initial_s=100, backoff=1, max_s=1000, jitter=1)
    assert len({retry_pause_ms(retry, 1, f"work#{number}", attempt) for number in range(20) for attempt in range(1, 6)}) > 95


def test_giving_up_goes_before_trying_again_and_wrong_input_is_never_tried_again() -> None:
    retry = Retry()
    assert retry.wants(OSError())
    assert not retry.wants(KeyboardInterrupt())
    assert not retry.wants(InvalidInput())
    assert not retry.wants(CodecError())
    assert not Retry(retry_on=(OSError,), give_up_on=(FileNotFoundError,)).wants(FileNotFoundError())
