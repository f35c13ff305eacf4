"""The README's example of entities, run as it is written (I20, I21)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import ray

import rayflow
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.ray


def test_the_example_of_entities_prints_what_it_says_and_goes_on_counting(client: rayflow.Client, tmp_path: Path) -> None:
    text = (REPOSITORY / "README.md").read_text()
    [code] = re.findall(r"^## Entities\n.*?^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    script = tmp_path / "example.py"
    script.write_text(code)
    address = ray.get_runtime_context().gcs_address
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "RAY_ADDRESS": address, "RAYFLOW_STORE": client.store.url}

    def printed() -> list[str]:
        run = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=60)
        assert run.returncode == 0, run.stderr
        return run.stdout.splitlines()

    assert printed() == ["2", "13", "1 13"]
    assert printed() == ["15", "13", "2 16"]
