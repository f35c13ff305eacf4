"""Several shards in memory, without Ray, with letters between them: those that ship. Nothing happens by itself."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any, cast

from rayflow.checkpoint.queues import WaitingSteps
from rayflow.core import codec
from rayflow.core.code_reference import reference_of
from rayflow.core.crashes import NoCrashes
from rayflow.core.entity import Call, Entity, done
from rayflow.core.messages import Answer, AwaitOutcome, CallEntity, Confirmed, Ended, EntityMessage, Message, StartExecution, Token
from rayflow.core.owner import Owner
from rayflow.core.proxy import Outgoing, proxy_of
from rayflow.core.records import Function
from rayflow.runtime.ports import Machines
from rayflow.testing.calm import CalmShard, same_runs
from tests.core.driver import EPOCH_MS, Crashed, MemoryCode


class Died(SystemExit):
    """The process is gone."""


class CountedCrashes(NoCrashes):
    """Crashes as a test says that they were; what has ``deadly`` in its name ends the process."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.last = self.deadly = ""

    def begin(self, name: str) -> None:
        self.last = name
        if self.deadly and self.deadly in name:
            self.counts[name] = self.count(name) + 1
            raise Died

    def count(self, name: str) -> int:
        return self.counts.get(name, 0)

    def forget(self, name: str) -> None:
        self.counts.pop(name, None)


class Shards:
    """``count`` shards; ``log[n]`` are the segments of shard n, after its snapshot if it has one."""

    def __init__(self, count: int = 1) -> None:
        self.count = count
        self.code = MemoryCode()
        self.slots = self.code.slots
        self.now_ms = EPOCH_MS
        self.answers: dict[Hashable, Answer] = {}
        self.sent: dict[Token, Message] = {}
        self.numbers: dict[str, int] = {}
        self.lives = 0
        self.crashes = CountedCrashes()
        self.code_version = ""
        self.letters: dict[tuple[int, int], tuple[list[tuple[int, bytes]], asyncio.Future[int]]] = {}
        """On their way, by the shards that they are from and for."""
        self.processes = [self._open(number) for number in range(count)]

    def shard_of(self, instance: str) -> int:
        return zlib.crc32(instance.encode()) % self.count

    def steps_waiting(self, steps: Sequence[WaitingSteps]) -> None:
        """There are no steps."""

    async def post(self, source: int, target: int, letters: list[tuple[int, bytes]]) -> int:
        future = asyncio.get_running_loop().create_future()
        self.letters[source, target] = letters, future
        return await future

    def _open(self, number: int) -> CalmShard:
        self.lives += 1
        process = CalmShard(self.slots, self.code, self.now_ms, f"life{self.lives}", number)
        process.ports = replace(
            process.ports,
            answer=self.answers.__setitem__,
            peers=self,
            crashes=self.crashes,
            code_name=self.code_version,
            now_ms=lambda: self.now_ms,
            machines=Machines(workflows=same_runs(0)),
        )
        process.open()
        process.go_on_until(self.now_ms)
        return process

    @property
    def owners(self) -> list[Owner]:
        return [process.owner for process in self.processes]

    @property
    def log(self) -> list[list[list[bytes]]]:
        return [self.slots.batches(number) for number in range(self.count)]

    @property
    def snapshots(self) -> list[bytes]:
        return [self.slots.view(number).snapshot or b"" for number in range(self.count)]

    # -- what happens --------------------------------------------------------------------------------------------------------

    def crash(self, number: int) -> None:
        """Lose the memory of a shard; what its clients have no answer to comes again, in order."""
        self.processes[number].crash()
        for way in [way for way in self.letters if way[0] == number]:
            del self.letters[way]
        self.processes[number] = self._open(number)
        for token, message in self.sent.items():
            if token not in self.answers and self._home(message) == number:
                self.processes[number].receive(token, message)

    def snapshot(self, number: int) -> None:
        """Put a snapshot of what is durable in place of the log."""
        self.processes[number].snapshot()

    def commit(self, number: int, lost: bool = False) -> bool:
        """Write what gathered, and let it go, unless that is ``lost`` in a crash just after. False: nothing had."""
        process, busy = self.processes[number], self.owners[number].has_work()
        self.slots.crash_next = lost and busy
        try:
            process.go_on_until(self.now_ms)
        except Crashed:
            self.crash(number)
        self.slots.crash_next = False
        return busy

    def carry(self, number: int, confirmed: bool = True) -> None:
        """Bring the letters of a shard to the others; what is not ``confirmed`` comes again."""
        for source, target in [way for way in self.letters if way[0] == number]:
            letters, future = self.letters[source, target]
            token = ("letters", source, target)
            process = self.processes[target]
            process.loop.call(process.shard.letters_arrived, token, source, letters)
            self.commit(target)
            if confirmed:
                del self.letters[source, target]
                self.processes[source].loop.call(future.set_result, cast("Confirmed", self.answers[token]).number)

    def settle(self) -> None:
        """Go on until nothing is left to do."""
        busy = True
        while busy:
            busy = sum(self.commit(number) for number in range(self.count)) > 0
            for number in {source for source, _ in self.letters}:
                self.carry(number)
                busy = True

    def advance(self, milliseconds: int) -> None:
        """Let time pass, then go on until nothing is left to do."""
        until_ms = self.now_ms + milliseconds
        while True:
            due = [one for one in (owner.next_due_ms() for owner in self.owners) if one is not None and one <= until_ms]
            if not due:
                break
            self.now_ms = max(self.now_ms, min(due))
            self.settle()
        self.now_ms = until_ms

    # -- clients -------------------------------------------------------------------------------------------------------------

    def _home(self, message: Message) -> int:
        return self.shard_of(message.entity if isinstance(message, EntityMessage) else message.execution)

    def tell(self, message: Message, sender: str = "client") -> Token:
        """Hand a message in; its answer comes under the token that is returned, once it may."""
        number = self.numbers[sender] = self.numbers.get(sender, 0) + 1
        heard = next((token.number for token in self.sent if token.sender == sender and token not in self.answers), number) - 1
        token = Token(sender, number, heard)
        self.sent[token] = message
        self.processes[self._home(message)].receive(token, message)
        return token

    def message(self, sent: Outgoing) -> CallEntity:
        """A message as a client sends it."""
        fingerprint = sent.fingerprint if sent.options.message_id else ""
        kind = Function(reference_of(sent.kind.entity))
        return CallEntity(
            sent.address, kind, sent.operation, sent.arguments, sent.options.message_id, fingerprint, sent.due_ms(self.now_ms)
        )

    def entity(self, entity: type[Entity[Any]], key: str, sender: str = "client") -> Any:
        """A proxy whose calls return the token; with ``ask`` the answer."""

        def send(sent: Outgoing) -> Call[Any]:
            return done(self.tell(self.message(sent), sender))

        return proxy_of(entity, key, send)

    def ask(self, call: Call[Token]) -> Any:
        """Go on until the call is answered; its value, or the failure or refusal."""
        token = call.result()
        self.settle()
        answer: Any = self.answers[token]
        if getattr(answer, "result", None) is not None:
            return self.code.decode(answer.result)
        return getattr(answer, "failure", answer)

    def run(self, workflow: Any, *args: Any, id: str = "x", seed: int = 7) -> Token:
        """Start a workflow; its outcome comes under the token that is returned."""
        self.code.workflows[workflow.name] = workflow
        data, fingerprint = codec.encode_with_fingerprint((args, {}))
        self.tell(StartExecution(id, Function(workflow.name), workflow.version, data, fingerprint, seed))
        return self.tell(AwaitOutcome(id))

    def outcome(self, token: Token) -> Any:
        """The result of an execution that has ended, or its failure."""
        ended = self.answers[token]
        assert isinstance(ended, Ended)
        return ended.failure if ended.result is None else self.code.decode(ended.result)
