"""Stores to test with: one of each kind."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from rayflow.checkpoint.bucket import BucketStore
from rayflow.checkpoint.local import LocalStore
from rayflow.checkpoint.memory import MemoryStore
from rayflow.checkpoint.store import Store
from rayflow.testing.faulty_store import FaultyStore
from tests.s3_service import BUCKET


@pytest.fixture
def s3_store(s3_environment: str) -> BucketStore:
    """An empty store in the bucket, under a prefix of its own."""
    return BucketStore("s3", BUCKET, f"team/{uuid.uuid4().hex}")


@pytest.fixture(params=["memory", "local", "s3", "faulty"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store of each kind; the faulty one without faults, which must be as good as what it wraps."""
    match request.param:
        case "memory":
            return MemoryStore()
        case "faulty":
            return FaultyStore(MemoryStore())
        case "local":
            return LocalStore(tmp_path / "store")
        case _:
            return request.getfixturevalue("s3_store")
