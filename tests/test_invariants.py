"""Each rule that no simulation sees is needed: with it off, the test that checks it is red."""

from __future__ import annotations

import inspect
import re
from contextlib import ExitStack

import pytest

from tests.core.test_crashes import process
from tests.mutations import MUTATIONS, Mutation
from tests.runtime.test_reaper import sleepers

__all__ = ("process", "sleepers")  # fixtures of tests that are run here


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: f"{mutation.invariant}: {mutation.title}")
def test_without_a_rule_its_test_is_red(mutation: Mutation, request: pytest.FixtureRequest) -> None:
    wanted = inspect.signature(mutation.test).parameters.keys() - mutation.arguments.keys()
    fixtures = {name: request.getfixturevalue(name) for name in wanted}
    with (
        ExitStack() as stack,
        pytest.MonkeyPatch.context() as patch,
        pytest.raises((Exception, pytest.fail.Exception)) as red,
    ):
        mutation.off(patch, stack)
        mutation.test(**fixtures, **mutation.arguments)
    assert re.search(mutation.harm, f"{red.typename}: {red.value}"), red.value
