"""Refusals of a shard as the errors that they name."""

from __future__ import annotations

import rayflow.errors as errors
from rayflow.core.messages import Answer, Refused
from rayflow.errors import RayflowError


def raise_refusal(answer: Answer) -> Answer:
    """The answer, unless it is a refusal: then the error that it names."""
    if not isinstance(answer, Refused):
        return answer
    kind = getattr(errors, answer.error, RayflowError)
    raise kind(answer.message)
