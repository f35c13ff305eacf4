"""What the options of steps, workflows and entities may be. Whoever gets one wrong learns it where the option is written.

Ray's own options are checked here as well, without Ray: what it refuses would come to light in the dispatcher, hours later.
"""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn, cast

from rayflow.errors import InvalidInput

LONGEST_S = 1000 * 365 * 86_400
"""A thousand years in seconds: what is longer does not fit into a record, or is no number at all."""

_SMALLEST = 0.0001
"""Ray counts resources in such units."""

_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9_.-]{0,61}[a-zA-Z0-9])?"
_label_key = re.compile(rf"(?:[a-zA-Z0-9_.-]{{1,253}}/)?{_LABEL}")
_label_condition = re.compile(rf"!?{_LABEL}|!?in\({_LABEL}(?:, ?{_LABEL})*\)|")


class Rule(NamedTuple):
    """What values an option takes, in words, and whether a value is one of them."""

    allowed: str
    fits: Callable[[Any], bool]


def check(owner: str, option: str, value: object, rule: Rule) -> None:
    """Raises InvalidInput for a value that the option does not take. ``owner``: whose option it is, as in "step encode"."""
    try:
        fits = rule.fits(value)
    except Exception:  # of a class of the user's: a comparison, a length
        fits = False
    if not fits:
        refuse(owner, option, value, rule.allowed)


def refuse(owner: str, option: str, value: object, allowed: str) -> NoReturn:
    """Raises InvalidInput that says so."""
    raise InvalidInput(f"{owner}: {option}={shown(value)} must be {allowed}")


def shown(value: object) -> str:
    """A value for an error, whatever its ``__repr__`` does."""
    try:
        text = repr(value)
    except Exception:
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 200 else f"{text[:200]}..."


def is_number(value: object) -> bool:
    """Whether it is a finite number; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_count(value: object) -> bool:
    """Whether it is a whole number from 1 on."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_name(name: object) -> bool:
    """Whether an operation may be called that: the characters are those that its identity is made up with."""
    return isinstance(name, str) and bool(name) and not any(char in "/[]#%" or "\ud800" <= char <= "\udfff" for char in name)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 200 and value.isprintable()


def _is_amount(value: Any) -> bool:
    return is_number(value) and (value == 0 or _SMALLEST <= value < 2**53)


def _is_gpus(value: Any) -> bool:
    return _is_amount(value) and (value < 1 or value == int(value))


def _is_resources(value: Any) -> bool:
    reserved = ("CPU", "GPU", "memory", "object_store_memory")
    return isinstance(value, Mapping) and all(
        isinstance(name, str) and bool(name) and name not in reserved and _is_amount(amount)
        for name, amount in cast("Mapping[Any, Any]", value).items()
    )


def _is_selector(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(key, str) and isinstance(wanted, str) and _label_key.fullmatch(key) and _label_condition.fullmatch(wanted)
        for key, wanted in cast("dict[Any, Any]", value).items()
    )


def _is_strategy(value: Any) -> bool:
    if isinstance(value, str):
        return value in ("DEFAULT", "SPREAD")
    return type(value).__module__ == "ray.util.scheduling_strategies" and _can_travel(value)


def _is_environment(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in cast("dict[Any, Any]", value)) and _can_travel(value)


def _can_travel(value: Any) -> bool:
    pickle.dumps(value)  # as it goes to the dispatcher; what raises does not fit
    return True


def _is_duration(value: Any) -> bool:
    return is_number(value) and 0 < value <= LONGEST_S


def _is_pause(value: Any) -> bool:
    return is_number(value) and 0 <= value <= LONGEST_S


def _is_factor(value: Any) -> bool:
    return is_number(value) and value >= 1


def _is_share(value: Any) -> bool:
    return is_number(value) and 0 <= value <= 1


def _is_either(value: Any) -> bool:
    return isinstance(value, bool)


def _is_string(value: Any) -> bool:
    return isinstance(value, str)


def _is_delivery(value: Any) -> bool:
    return value in ("at_least_once", "at_most_once")


def _are_errors(value: Any) -> bool:
    types = cast("tuple[Any, ...]", value)
    return isinstance(value, tuple) and all(isinstance(one, type) and issubclass(one, BaseException) for one in types)


SECONDS = Rule("a positive number of seconds, a thousand years at the most", _is_duration)
PAUSE = Rule("a number of seconds from 0 on, a thousand years at the most", _is_pause)
COUNT = Rule("a whole number from 1 on", is_count)
FACTOR = Rule("a number from 1 on", _is_factor)
SHARE = Rule("a number from 0 to 1", _is_share)
YES_OR_NO = Rule("True or False", _is_either)
NAME = Rule("a text that is not empty, with none of / [ ] # % and nothing that is no Unicode in it", _is_name)
TEXT = Rule("a text of 1 to 200 characters that can be printed", _is_text)
KEY = Rule("a text", _is_string)
DELIVERY = Rule("'at_least_once' or 'at_most_once'", _is_delivery)
ERRORS = Rule("a tuple of exception types, such as (OSError, ValueError)", _are_errors)

RAY: Mapping[str, Rule] = {
    "accelerator_type": Rule("the name of a type, a text such as 'A100'", _is_text),
    "label_selector": Rule(
        "a dict of conditions by label, such as {'zone': 'eu-1'}, with '!eu-1', 'in(a, b)' or '!in(a, b)' for other conditions",
        _is_selector,
    ),
    "memory": Rule("a number of bytes from 0 on", _is_amount),
    "num_cpus": Rule("a number from 0 on; parts of a CPU are counted in 0.0001", _is_amount),
    "num_gpus": Rule("a number from 0 on, a whole one from 1 on; parts of a GPU are counted in 0.0001", _is_gpus),
    "resources": Rule(
        "a dict of numbers from 0 on by the name of a resource; CPUs, GPUs and memory have options of their own", _is_resources
    ),
    "runtime_env": Rule("a dict that can be pickled, as Ray describes it", _is_environment),
    "scheduling_strategy": Rule("'DEFAULT', 'SPREAD' or a strategy of ray.util.scheduling_strategies", _is_strategy),
}
"""Those options of Ray's tasks that a step takes."""
