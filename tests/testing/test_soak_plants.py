"""The faults that are planted in a soak find what they break: else the soak would be red for another reason, or not at all."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY

FOLDER = REPOSITORY / "scripts" / "soak_plants"
NAMES = re.findall(r'^    "(\w+)": \("rayflow\.', (FOLDER / "sitecustomize.py").read_text(), re.MULTILINE)


@pytest.mark.parametrize("plant", NAMES)
def test_a_plant_finds_its_place(plant: str) -> None:
    program = (
        "import importlib, sitecustomize\n"
        "name, _ = sitecustomize.PLANTS[sitecustomize.os.environ['SOAK_PLANT']]\n"
        "module = importlib.import_module(name)\n"
        "functions = [vars(one) for one in [module, *(one for one in vars(module).values() if isinstance(one, type))]]\n"
        "functions = [one for names in functions for one in names.values()]\n"
        "functions += [one.function for one in functions if hasattr(one, 'reads_only')]\n"
        "print(sum(getattr(one, '__module__', '') == 'sitecustomize' for one in functions))\n"
    )
    path = os.pathsep.join((str(FOLDER), str(REPOSITORY)))
    environment = os.environ | {"PYTHONPATH": path, "SOAK_PLANT": plant}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "1", done.stdout + done.stderr


def test_each_plant_has_a_soak_that_looks_for_it() -> None:
    assert set(NAMES) == set(
        re.findall(r'^        \("(\w+)", "', (REPOSITORY / "tests" / "test_soak.py").read_text(), re.MULTILINE)
    )
