"""Limits reach the processes that they are for."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray

import rayflow
from rayflow.core import limits
from rayflow.runtime.cluster import actor_names
from rayflow.runtime.task import NAMESPACE

pytestmark = pytest.mark.ray


def test_the_actors_of_a_store_have_the_limits_of_the_program_that_starts_them(ray_session: None, tmp_path: Path) -> None:
    with limits.using(snapshot_bytes=12_345, session_s=77.0) as mine:
        client = rayflow.connect(tmp_path / "store")
        assert client.view("nobody") is None  # so that there are actors
    actors = [ray.get_actor(name, namespace=NAMESPACE) for name in actor_names(client.identity)]
    try:
        assert ray.get([one.__ray_call__.remote(lambda _: limits.current()) for one in actors]) == [mine, mine]
    finally:
        client.close()
        for one in actors:
            ray.kill(one)
