"""Durable functions and virtual actors on a Ray cluster, with nothing to run but Ray and a folder or bucket."""

from typing import TYPE_CHECKING, Any

from rayflow.core.batch import BatchResult, ItemResult
from rayflow.core.codec import Pickled
from rayflow.core.context import Context
from rayflow.core.definitions import Retry, Step, Workflow, step, workflow
from rayflow.core.entity import Call, Entity, EventSourcedEntity, migrate, operation, query
from rayflow.errors import (
    AlreadyExists,
    CodecError,
    Damaged,
    EntityUnreadable,
    ExecutionCancelled,
    ExecutionFailed,
    ExecutionNotFound,
    Fenced,
    IdInUse,
    InvalidInput,
    NonDeterminismError,
    NotFound,
    OperationFailed,
    OutcomeUnknown,
    Overloaded,
    ProcessCrashed,
    RayflowError,
    RayUnavailable,
    StepFailed,
    StepLost,
    StepTimedOut,
    StoreError,
    StoreUnavailable,
    StoreUnsuitable,
)
from rayflow.runtime.worker import StepContext, current_step

if TYPE_CHECKING:
    from rayflow.runtime.client import Client, Execution, connect, current_client

__version__ = "0.1.0"

__all__ = [
    "AlreadyExists",
    "BatchResult",
    "Call",
    "Client",
    "CodecError",
    "Context",
    "Damaged",
    "Entity",
    "EntityUnreadable",
    "EventSourcedEntity",
    "Execution",
    "ExecutionCancelled",
    "ExecutionFailed",
    "ExecutionNotFound",
    "Fenced",
    "IdInUse",
    "InvalidInput",
    "ItemResult",
    "NonDeterminismError",
    "NotFound",
    "OperationFailed",
    "OutcomeUnknown",
    "Overloaded",
    "Pickled",
    "ProcessCrashed",
    "RayUnavailable",
    "RayflowError",
    "Retry",
    "Step",
    "StepContext",
    "StepFailed",
    "StepLost",
    "StepTimedOut",
    "StoreError",
    "StoreUnavailable",
    "StoreUnsuitable",
    "Workflow",
    "connect",
    "current_client",
    "current_step",
    "migrate",
    "operation",
    "query",
    "step",
    "workflow",
]

_NEED_RAY = frozenset(["Client", "Execution", "connect", "current_client"])


def __getattr__(name: str) -> Any:
    """Load what needs Ray when it is first used: defining steps and reading a store do not."""
    if name in _NEED_RAY:
        from rayflow.runtime import client

        return getattr(client, name)
    raise AttributeError(f"module 'rayflow' has no attribute {name!r}")
