"""One attempt of a step: what it is called with."""

from __future__ import annotations

from rayflow.checkpoint.blobs import put_blob
from rayflow.checkpoint.memory import MemoryStore
from rayflow.core import codec
from rayflow.core.messages import StepStart
from rayflow.runtime.code import StoredCode
from rayflow.runtime.worker import run_attempt


def listed(*args: object, **kwargs: object) -> list[object]:
    return [*args, *kwargs.items()]


def test_what_a_step_shares_with_others_comes_behind_its_own_arguments() -> None:
    store = MemoryStore()
    code = StoredCode(store)
    shared = put_blob(store, codec.encode(("b", [3])))
    for name in ("a", "z"):
        own = codec.encode(((name,), {"by": 2}))
        start = StepStart("x", "listed#1", 1, "listed", code.describe(listed), own, None, (), (), 7, shared=shared)
        result = run_attempt(start, code)
        assert result.result is not None, result
        assert code.decode(result.result) == [name, "b", [3], ("by", 2)]
