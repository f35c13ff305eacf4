"""Steps and workflows as users define them: plain functions when called, checked when defined."""

import math
import re
from collections.abc import Iterator
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


@workflow
async def right(ctx: Context) -> None: ...


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
        ({"delivery": "twice"}, "delivery='twice' must be 'at_least_once' or 'at_most_once'"),
        ({"retry": 3}, r"step <lambda>: retry=3 must be a rayflow.Retry: write retry=rayflow.Retry\(max_attempts=3\)"),
        ({"retry": 0}, r"retry=0 must be a rayflow.Retry: write retry=rayflow.Retry\(max_attempts=3\)"),
        ({"retry": Retry}, "must be a rayflow.Retry"),
        ({"timeout": "5"}, "timeout='5' must be a positive number of seconds"),
        ({"timeout": math.inf}, "timeout=inf must be a positive number of seconds, a thousand years at the most"),
        ({"timeout": True}, "timeout=True must be"),
        ({"inline": "yes"}, "inline='yes' must be True or False"),
        ({"speculative": 1}, "speculative=1 must be True or False"),
        ({"name": ""}, "step '': name='' must be a text that is not empty"),
        ({"name": "a/b"}, r"must be a text that is not empty, with none of / \[ \] # %"),
        ({"name": 5}, "name=5 must be a text"),
        ({"num_cpus": -1}, "step <lambda>: num_cpus=-1 must be a number from 0 on"),
        ({"num_cpus": "2"}, "num_cpus='2' must be a number from 0 on"),
        ({"num_cpus": None}, "num_cpus=None must be a number from 0 on"),
        ({"num_cpus": math.nan}, "num_cpus=nan must be"),
        ({"num_gpus": 1.5}, "num_gpus=1.5 must be a number from 0 on, a whole one from 1 on"),
        ({"memory": "1G"}, "memory='1G' must be a number of bytes"),
        ({"resources": {"CPU": 2}}, "CPUs, GPUs and memory have options of their own"),
        ({"resources": {"disk": "much"}}, "must be a dict of numbers from 0 on by the name of a resource"),
        ({"resources": ["disk"]}, "must be a dict of numbers"),
        ({"accelerator_type": 100}, "accelerator_type=100 must be the name of a type"),
        ({"label_selector": "zone=a"}, "label_selector='zone=a' must be a dict of conditions by label"),
        ({"label_selector": {"zone": "in(a"}}, r"must be a dict of conditions by label, .* 'in\(a, b\)'"),
        ({"scheduling_strategy": "spread"}, "scheduling_strategy='spread' must be 'DEFAULT', 'SPREAD' or a strategy of ray"),
        ({"runtime_env": "pip"}, "runtime_env='pip' must be a dict"),
        ({"runtime_env": {"hook": lambda: None}}, "must be a dict that can be pickled"),
    ],
)
def test_options_that_cannot_work_are_refused_when_the_step_is_defined(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        step(**options)(lambda: None)


def test_what_is_no_function_is_no_step_and_no_workflow() -> None:
    def parts() -> Iterator[int]:
        yield 1

    for decorate in (step, workflow):
        for wrong in ("name", 3, plain, right, Retry):
            with pytest.raises(InvalidInput, match=r"stands above a function and takes its options by name: .* is no function"):
                decorate(wrong)  # type: ignore[call-overload]  # the mistake under test
    with pytest.raises(InvalidInput, match="step parts: it yields; a step returns one value"):
        step(parts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": ""}, "workflow coroutine: name='' must be a text"),
        ({"name": 1}, "name=1 must be a text"),
        ({"version": 2}, "workflow coroutine: version=2 must be a text of 1 to 200 characters"),
        ({"retry": Retry()}, "workflow coroutine: unknown option retry; it takes name and version, its steps the rest"),
    ],
)
def test_options_of_a_workflow_that_cannot_work_are_refused_when_it_is_defined(options: dict[str, Any], message: str) -> None:
    async def coroutine(ctx: Context) -> None: ...

    with pytest.raises(InvalidInput, match=message):
        workflow(**options)(coroutine)


def test_options_of_one_call_are_checked_as_those_of_the_definition_are() -> None:
    with pytest.raises(InvalidInput, match="unknown option cpus"):
        plain.options(cpus=1)
    with pytest.raises(InvalidInput, match=r"unknown option inline \(of the definition alone: it cannot be another for one call\)"):
        plain.options(inline=True)
    with pytest.raises(InvalidInput, match=r"step plain: retry=0 must be a rayflow\.Retry"):
        plain.options(retry=0)  # type: ignore[arg-type]  # the mistake under test
    with pytest.raises(InvalidInput, match="step plain: key=7 must be a text"):
        plain.options(key=7)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="name='' must be a text"):
        plain.options(name="")
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
    "wrong",
    [
        {"max_attempts": 0},
        {"max_attempts": "3"},
        {"max_attempts": 2.5},
        {"max_attempts": True},
        {"initial_s": -1},
        {"initial_s": math.nan},
        {"max_s": -1},
        {"max_s": math.inf},
        {"max_s": 1e300},
        {"backoff": 0.5},
        {"backoff": None},
        {"jitter": 1.1},
        {"jitter": -0.1},
        {"retry_on": OSError},
        {"retry_on": ["OSError"]},
        {"give_up_on": (OSError(),)},
    ],
)
def test_retries_that_make_no_sense_are_refused_with_the_value_and_what_is_allowed(wrong: dict[str, Any]) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(InvalidInput, match=re.escape(f"Retry: {name}={value!r} must be a ")):
        Retry(**wrong)


def test_a_pause_that_grows_beyond_all_numbers_is_the_longest() -> None:
    assert Retry(initial_s=1, backoff=1e300, max_s=5, jitter=0).pause_ms(100, 0) == 5000
    assert Retry(initial_s=0, backoff=1e300, max_s=5, jitter=0).pause_ms(100, 0) == 0


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
