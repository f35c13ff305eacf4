"""Limits: the usual ones, those of the environment, those of a block."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from rayflow.core import limits
from rayflow.core.limits import Limits
from rayflow.errors import InvalidInput
from tests.conftest import REPOSITORY


def test_a_process_takes_the_limits_of_its_environment_and_hands_them_on() -> None:
    program = "from rayflow.core import limits; now = limits.current(); print(now.snapshot_bytes, now.poll_s, limits.environment())"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), limits.VARIABLE: '{"snapshot_bytes": 4096, "poll_s": 20}'}
    out = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True).stdout
    assert out.strip() == "4096 20.0 {'RAYFLOW_LIMITS': '{\"snapshot_bytes\":4096}'}", "what is as usual is left out"


def test_limits_of_a_block_are_those_of_the_process_until_it_ends() -> None:
    assert limits.environment() == {}
    with limits.using(letters_at_once=3), limits.using(entity_mailbox=5) as inner:
        assert limits.current() == inner == Limits(letters_at_once=3, entity_mailbox=5)
        assert limits.parsed(limits.environment()[limits.VARIABLE]) == inner
    assert limits.current() == Limits()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"snapshot_byte": 1}', "unknown field `snapshot_byte`.*there are snapshot_bytes, "),
        ('{"executions": 0}', ">= 1.*executions"),
        ('{"letters_at_once": 1e30}', "Expected `int`"),
        ('{"letters_at_once": 18446744073709551615}', "<= 9007199254740992.*letters_at_once"),
        ('{"executions": "many"}', "Expected `int`"),
        ('{"session_s": 5.0}', "poll_s.*session_s"),
        ("snapshot_bytes=1", "RAYFLOW_LIMITS is 'snapshot_bytes=1'"),
        ("[]", "Expected `object`"),
    ],
)
def test_what_is_no_limit_is_refused_by_name(text: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        limits.parsed(text)
