"""What a step asks for and no node has, in words."""

from __future__ import annotations

from typing import Any

import pytest

from rayflow.runtime.demands import Node, lacking

NODES = [
    Node("a", {"CPU": 8.0, "memory": 16e9, "disk": 1.0}, {"zone": "east"}),
    Node("b", {"CPU": 2.0, "GPU": 2.0, "memory": 64e9, "accelerator_type:A100": 1.0}, {"zone": "west"}),
]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_cpus": 8},
        {"num_cpus": 2, "num_gpus": 2, "memory": 64 * 10**9},
        {"num_cpus": 0, "resources": {"disk": 1}, "label_selector": {"zone": "in(north,east)"}},
        {"label_selector": {"zone": "!east"}, "accelerator_type": "A100"},
        {"label_selector": {"zone": "north"}, "fallback_strategy": [{"label_selector": {}}]},
        {"num_gpus": 9, "scheduling_strategy": object()},
    ],
)
def test_what_some_node_has_or_nobody_can_judge_from_here_lacks_nothing(options: dict[str, Any]) -> None:
    assert lacking(options, NODES) == ""


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"num_gpus": 4}, "asks for 4 GPU; the cluster has 2"),
        ({"resources": {"tape": 0.5}}, "asks for 0.5 tape; the cluster has 0"),
        ({"num_cpus": 9}, "asks for 9 CPU on one node; the largest has 8"),
        ({"memory": 10**11}, "asks for 100 GB memory; the cluster has 80 GB memory"),
        ({"num_cpus": 16, "num_gpus": 4}, "asks for 16 CPU and 4 GPU; the cluster has 10 CPU and 2 GPU"),
        ({"num_cpus": 4, "num_gpus": 1}, "asks for 4 CPU and 1 GPU on one node; the cluster has none with all of it"),
        ({"accelerator_type": "H100"}, "asks for an accelerator H100; the cluster has 0"),
        ({"label_selector": {"zone": "north"}}, "asks for 1 CPU on a node labelled zone=north; the cluster has no such node"),
        (
            {"num_gpus": 1, "label_selector": {"zone": "east"}},
            "asks for 1 CPU and 1 GPU on a node labelled zone=east; no such node has that",
        ),
    ],
)
def test_what_no_node_has_is_said_with_what_there_is(options: dict[str, Any], why: str) -> None:
    assert lacking(options, NODES) == why


def test_without_any_node_there_is_nothing_of_it() -> None:
    assert lacking({"num_cpus": 2}, []) == "asks for 2 CPU; the cluster has 0"
