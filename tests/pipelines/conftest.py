from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pipelines.command_bench import Bench


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """Whatever happens, no process outlives the test."""
    made = Bench(tmp_path)
    yield made
    made.kill_all()
