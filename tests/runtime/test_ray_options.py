"""The options of steps that are accepted without Ray are those that Ray takes; no Ray is started."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray._common.ray_option_utils import validate_task_options
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import rayflow
from rayflow.core.options import RAY

_numbers = st.one_of(
    st.integers(-2, 2**60), st.floats(allow_nan=True), st.sampled_from([0, 0.00001, 0.0001, 0.5, 1.5, 2, 2.0, True])
)
_texts = st.one_of(st.text(max_size=5), st.sampled_from(["DEFAULT", "SPREAD", "A100"]))
_labels = st.text("ab1-_./!(),in ", max_size=9)
_values: dict[str, st.SearchStrategy[Any]] = {
    "accelerator_type": st.one_of(_texts, _numbers),
    "label_selector": st.one_of(
        _texts,
        st.dictionaries(
            st.one_of(_labels, st.sampled_from(["zone", "ray.io/node-id"])),
            st.one_of(_labels, st.sampled_from(["eu-1", "!eu-1", "in(a, b)", "!in(a)"])),
            max_size=2,
        ),
    ),
    "memory": st.one_of(_numbers, _texts),
    "num_cpus": st.one_of(_numbers, _texts, st.none()),
    "num_gpus": st.one_of(_numbers, _texts),
    "resources": st.one_of(_texts, st.dictionaries(st.one_of(_texts, st.sampled_from(["CPU", "disk"])), _numbers, max_size=2)),
    "runtime_env": st.one_of(_texts, st.dictionaries(_texts, _texts, max_size=2)),
    "scheduling_strategy": st.one_of(st.sampled_from(["DEFAULT", "SPREAD"]), _texts, _numbers),
}


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(sorted(RAY)).flatmap(lambda name: st.tuples(st.just(name), _values[name])))
def test_whatever_a_step_accepts_ray_accepts(option: tuple[str, Any]) -> None:
    name, value = option
    try:
        rayflow.step(**{name: value})(test_whatever_a_step_accepts_ray_accepts)
    except rayflow.InvalidInput as error:
        assert f"{name}=" in str(error)
    else:
        validate_task_options({name: value}, True)


@pytest.mark.parametrize(
    "options",
    [
        {"num_cpus": 0},
        {"num_cpus": 0.5, "num_gpus": 2.0, "memory": 2**30},
        {"resources": {"node:10.0.0.1": 0.001, "disk": 2}},
        {"accelerator_type": "A100"},
        {"label_selector": {"ray.io/node-id": "!in(a1, b2)", "zone": "eu-1", "market": "!spot"}},
        {"scheduling_strategy": "SPREAD"},
        {"scheduling_strategy": NodeAffinitySchedulingStrategy("a" * 56, soft=True)},
        {"runtime_env": {"env_vars": {"A": "1"}}},
    ],
)
def test_what_is_usual_is_accepted(options: dict[str, Any]) -> None:
    rayflow.step(**options)(test_what_is_usual_is_accepted)
    validate_task_options(options, True)
