"""A store that is used for long: the owner of a shard writes snapshots and files what has ended, again and again."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from typing import Any
from unittest.mock import MagicMock

import pytest

import rayflow
from rayflow.checkpoint import reading
from rayflow.checkpoint.identity import identify
from rayflow.checkpoint.memory import MemoryStore
from rayflow.core import codec, limits
from rayflow.core.crashes import NoCrashes
from rayflow.core.messages import Accepted, Answer, StartExecution, Token
from rayflow.core.records import Function
from rayflow.core.turns import Turns
from rayflow.runtime import link, shard
from rayflow.runtime.shard import Shard


@rayflow.workflow
async def echo(ctx: rayflow.Context, value: str) -> str:
    return value


class Alone:
    """A dispatcher and other shards that nobody needs here."""

    class _Method:
        def remote(self, *args: Any) -> Any:
            return asyncio.get_running_loop().create_future()

    attach = submit = collect = _Method()

    def shard_of(self, instance: str) -> int:
        return 0

    async def post(self, source: int, target: int, letters: list[tuple[int, bytes]]) -> int:
        raise AssertionError("there is one shard")


def test_an_owner_snapshots_and_files_what_has_ended_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard, "code_name", lambda: "")
    monkeypatch.setattr(link, "code_version", lambda: "")
    store, answers = MemoryStore(), dict[Hashable, Answer]()
    identify(store, 1)

    async def live(first: int, count: int) -> None:
        alone = Alone()
        one = Shard(0, store, alone, answers.__setitem__, alone, Turns(), NoCrashes(), MagicMock())
        await one.open()
        function = Function(f"{__name__}:echo")
        for number in range(first, first + count):
            data, fingerprint = codec.encode_with_fingerprint(((f"value {number}",), {}))
            token = Token("client", number, number - 1)
            one.receive([(token, StartExecution(f"job-{number}", function, "1", data, fingerprint, number))])
            while token not in answers and not one.closed.done():
                await asyncio.sleep(0)
            assert not one.closed.done(), one.closed.result()
        await one.close()

    with limits.using(snapshot_bytes=4096):
        for life in range(3):
            asyncio.run(live(life * 200 + 1, 200))
    assert all(isinstance(answer, Accepted) for answer in answers.values())
    assert len(answers) == 600
    assert len(list(store.list("history/"))) > 2
    assert len(list(store.list("shards/000/snapshots/"))) == 1
    assert len(list(store.list("shards/000/log/"))) < 200
    assert len(reading.list_executions(store).executions) == 600
