"""What a step asks for, against what the nodes have: whether it only waits for its turn, or for a node that is not there. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

_GB = 10**9


class Node(NamedTuple):
    """All that a node has, used or not."""

    id: str
    resources: Mapping[str, float]
    labels: Mapping[str, str]


def lacking(options: Mapping[str, Any], nodes: Sequence[Node]) -> str:
    """Why no node can run a task with these options of Ray's, in words; empty where one can, or nobody can tell from here."""
    strategy = options.get("scheduling_strategy")
    if strategy is not None and not isinstance(strategy, str):
        return ""  # bound to a node or a placement group: Ray itself fails what can never be
    wanted = _resources(options)
    selector: Mapping[str, str] = options.get("label_selector") or {}
    if options.get("fallback_strategy"):
        selector = {}
    able = [node for node in nodes if all(node.resources.get(name, 0.0) >= amount for name, amount in wanted.items())]
    if any(_matches(node, selector) for node in able):
        return ""
    if able:
        labels = " and ".join(f"{name}={value}" for name, value in sorted(selector.items()))
        has_label = any(_matches(node, selector) for node in nodes)
        asked = f"{_listed(wanted)} on a node labelled {labels}"
        return f"asks for {asked}; {'no such node has that' if has_label else 'the cluster has no such node'}"
    largest = {name: max((node.resources.get(name, 0.0) for node in nodes), default=0.0) for name in wanted}
    short = {name: amount for name, amount in wanted.items() if largest[name] < amount}
    if not short:
        return f"asks for {_listed(wanted)} on one node; the cluster has none with all of it"
    total = {name: math.fsum(node.resources.get(name, 0.0) for node in nodes) for name in short}
    if all(total[name] < amount for name, amount in short.items()):
        return f"asks for {_listed(short)}; the cluster has {_amounts(total)}"
    return f"asks for {_listed(short)} on one node; the largest has {_amounts({name: largest[name] for name in short})}"


def _resources(options: Mapping[str, Any]) -> dict[str, float]:
    cpus = options.get("num_cpus")
    wanted: dict[str, float] = {"CPU": 1.0 if cpus is None else cpus}
    wanted["GPU"] = options.get("num_gpus") or 0.0
    wanted["memory"] = options.get("memory") or 0.0
    wanted |= options.get("resources") or {}
    kind = options.get("accelerator_type")
    if kind:
        wanted[f"accelerator_type:{kind}"] = 0.001  # as Ray has it
    return {name: float(amount) for name, amount in wanted.items() if amount}


def _matches(node: Node, selector: Mapping[str, str]) -> bool:
    return all(_fits(node.labels.get(name), value) for name, value in selector.items())


def _fits(label: str | None, wanted: str) -> bool:
    """Ray's operators: ``value``, ``!value``, ``in(a,b)``, ``!in(a,b)``."""
    negated = wanted.startswith("!")
    values = wanted.removeprefix("!")
    if values.startswith("in(") and values.endswith(")"):
        fits = label in [value.strip() for value in values[3:-1].split(",")]
    else:
        fits = label == values
    return fits is not negated


def _listed(amounts: Mapping[str, float]) -> str:
    return " and ".join(_amount(name, amount) for name, amount in amounts.items()) or "nothing"


def _amounts(amounts: Mapping[str, float]) -> str:
    """As ``_listed``, without a name where there is one only: it was said just before."""
    if len(amounts) > 1:
        return _listed(amounts)
    [(name, amount)] = amounts.items()
    return _amount(name, amount) if name == "memory" else f"{amount:g}"


def _amount(name: str, amount: float) -> str:
    if name == "memory":
        return f"{amount / _GB:.3g} GB memory"
    if name.startswith("accelerator_type:"):
        return f"an accelerator {name.partition(':')[2]}"
    return f"{amount:g} {name}"
