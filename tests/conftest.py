"""What tests share: one Ray per session, and the clips."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One Ray for all tests that need one; each test has a store, and so actors, of its own."""
    from rayflow.runtime.cluster import RayOptions, start_or_join

    ray = start_or_join(RayOptions(address="local", num_cpus=2), "tests")
    yield
    if ray is not None:
        ray.shutdown()


@pytest.fixture
def clips() -> Path:
    """The folder of real clips. Skips where it is absent."""
    folder = Path(os.environ.get("RAYFLOW_CLIPS", REPOSITORY.parent / "shared" / "clips"))
    if not folder.is_dir():
        pytest.skip(f"no clips at {folder}; set RAYFLOW_CLIPS to a folder that has them")
    return folder
