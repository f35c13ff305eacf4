"""A store that is used for long: the owner of a shard writes snapshots and files what has ended, again and again."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace

import rayflow
from rayflow.checkpoint import reading
from rayflow.checkpoint.identity import identify
from rayflow.checkpoint.memory import MemoryStore
from rayflow.core import codec, limits
from rayflow.core.messages import Accepted, Answer, StartExecution, Token
from rayflow.core.records import Function
from rayflow.runtime.code import StoredCode
from rayflow.testing.calm import CalmShard


@rayflow.workflow
async def echo(ctx: rayflow.Context, value: str) -> str:
    return value


def test_an_owner_snapshots_and_files_what_has_ended_again_and_again() -> None:
    store, answers = MemoryStore(), dict[Hashable, Answer]()
    identify(store, 1)

    def live(first: int, count: int) -> None:
        one = CalmShard(store, StoredCode(store), 1_790_000_000_000, f"life{first}")
        one.ports = replace(one.ports, answer=answers.__setitem__)
        one.open()
        function = Function(f"{__name__}:echo")
        for number in range(first, first + count):
            data, fingerprint = codec.encode_with_fingerprint(((f"value {number}",), {}))
            token = Token("client", number, number - 1)
            one.receive(token, StartExecution(f"job-{number}", function, "1", data, fingerprint, number))
            one.go_on_until(1_790_000_000_000 + number)
            assert token in answers
        one.close()

    with limits.using(snapshot_bytes=4096):
        for life in range(3):
            live(life * 200 + 1, 200)
    assert all(isinstance(answer, Accepted) for answer in answers.values())
    assert len(answers) == 600
    assert len(list(store.list("history/"))) > 2
    assert len(list(store.list("shards/000/snapshots/"))) == 1
    assert len(list(store.list("shards/000/log/"))) < 200
    assert len(reading.list_executions(store).executions) == 600
