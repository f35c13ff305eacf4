"""How long a test may take: pytest-timeout fails the one that hangs, by name and with all stacks, and the run goes on.

A limit is many times what the test needs, also on a machine that is busy with others. Hooks of pytest, for ``conftest``.
"""

from __future__ import annotations

import signal
from collections.abc import Generator
from typing import Any

import pytest

LIMITS_S = {"long": 1800, "cluster": 900, "slow": 400, "ray": 240}
"""By marker; the longest counts. Others have the limit in ``pyproject.toml``."""

AGAIN_S = 30.0
"""So often a test that was told is told again: what it leaves on its way out may wait for ever, too, such as for a process."""

_settings = pytest.StashKey[Any]()


def limit(item: pytest.Item) -> None:
    """Give a test the limit of its markers, if it has none of its own."""
    found = [seconds for name, seconds in LIMITS_S.items() if item.get_closest_marker(name)]
    if found and item.get_closest_marker("timeout") is None:
        item.add_marker(pytest.mark.timeout(max(found)))


@pytest.hookimpl(wrapper=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> Generator[None, object, object]:
    """Have the alarm come again and again."""
    item.stash[_settings] = settings
    result = yield
    if settings.method == "signal":
        signal.setitimer(signal.ITIMER_REAL, settings.timeout, min(settings.timeout, AGAIN_S))
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
    """Limit the cleaning up of a test that failed, too: at a failure pytest-timeout takes its alarm away."""
    settings = item.stash.get(_settings, None)
    if settings is not None:
        item.ihook.pytest_timeout_set_timer(item=item, settings=settings)
    return (yield)
