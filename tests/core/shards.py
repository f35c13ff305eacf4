"""Several shards in memory, without Ray: each an owner on a log, with letters between them. Nothing happens by itself."""

from __future__ import annotations

import zlib
from collections.abc import Hashable
from itertools import chain
from typing import Any, cast

from rayflow.checkpoint.tables import read_snapshot, write_snapshot
from rayflow.core import codec
from rayflow.core.code_reference import reference_of
from rayflow.core.crashes import NoCrashes
from rayflow.core.entities import Entities
from rayflow.core.entity import Call, Entity, done
from rayflow.core.mail import Mail
from rayflow.core.messages import Answer, AwaitOutcome, CallEntity, Confirmed, Ended, EntityMessage, Message, StartExecution, Token
from rayflow.core.outbox import Outbox, Reply
from rayflow.core.owner import Commit, Owner, Parts
from rayflow.core.proxy import Outgoing, proxy_of
from rayflow.core.records import Function
from rayflow.core.state import DurableState
from rayflow.core.workflows import Workflows
from tests.core.driver import EPOCH_MS, MemoryCode


class CountedCrashes(NoCrashes):
    """Crashes as a test says that they were."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.last = ""

    def begin(self, name: str) -> None:
        self.last = name

    def count(self, name: str) -> int:
        return self.counts.get(name, 0)

    def forget(self, name: str) -> None:
        self.counts.pop(name, None)


class Shards:
    """``count`` shards; ``log[n]`` are the segments of shard n, after its snapshot if it has one."""

    def __init__(self, count: int = 1) -> None:
        self.count = count
        self.code = MemoryCode()
        self.now_ms = EPOCH_MS
        self.log: list[list[list[bytes]]] = [[] for _ in range(count)]
        self.snapshots: list[bytes] = [b""] * count
        self.answers: dict[Hashable, Answer] = {}
        self.sent: dict[Token, Message] = {}
        self.numbers: dict[str, int] = {}
        self.epochs = 0
        self.crashes = CountedCrashes()
        self.code_version = ""
        self.owners: list[Owner] = []
        for number in range(count):
            self.owners.append(self._open(number))

    def shard_of(self, instance: str) -> int:
        return zlib.crc32(instance.encode()) % self.count

    def _open(self, number: int) -> Owner:
        outbox = Outbox()
        state = read_snapshot(self.snapshots[number], "snapshot") if self.snapshots[number] else DurableState()
        state.extend(chain.from_iterable(self.log[number]))
        mail = Mail(outbox, number, self.shard_of, state.mail)
        self.epochs += 1
        workflows = Workflows(outbox, self.code, mail, crashes=self.crashes, code_version=self.code_version)
        parts = Parts(workflows, self._entities(outbox, mail, state), mail)
        owner = Owner(self.epochs, parts, outbox, state)
        owner.restore(self.now_ms)
        return owner

    def _entities(self, outbox: Outbox, mail: Mail, state: DurableState) -> Entities:
        return Entities(outbox, self.code, mail, state.entities, crashes=self.crashes)

    # -- what happens --------------------------------------------------------------------------------------------------------

    def crash(self, number: int) -> None:
        """Lose the memory of a shard; what its clients have no answer to comes again, in order."""
        self.owners[number].machine.close()
        self.owners[number] = self._open(number)
        for token, message in self.sent.items():
            if token not in self.answers and self._home(message) == number:
                self.owners[number].receive(token, message, self.now_ms)

    def snapshot(self, number: int) -> None:
        """Put a snapshot of what is durable in place of the log."""
        self.snapshots[number] = write_snapshot(self.owners[number].state)
        self.log[number].clear()

    def commit(self, number: int, lost: bool = False) -> Commit | None:
        """Write what gathered, and let it go, unless that is ``lost`` in a crash just after."""
        owner = self.owners[number]
        if not owner.has_work():
            return None
        commit = owner.next_commit()
        if commit.write:
            self.code.blobs.update(commit.batch.blobs)
            self.log[number].append(commit.batch.encoded)
        if lost:
            self.crash(number)
            return commit
        if commit.write:
            owner.written(commit)
        for effect in commit.batch.effects:
            mine = owner.let_go(effect)
            if isinstance(mine, Reply):
                self.answers[mine.token] = mine.answer
        return commit

    def carry(self, number: int, confirmed: bool = True) -> None:
        """Bring the letters of a shard to the others; what is not ``confirmed`` comes again."""
        source = self.owners[number]
        for shard in source.addressees():
            token = ("letters", number, shard)
            self.owners[shard].letters_arrived(token, number, source.letters_for(shard), self.now_ms)
            self.commit(shard)
            if confirmed:
                source.letters_confirmed(shard, cast("Confirmed", self.answers[token]).number)

    def settle(self) -> None:
        """Go on until nothing is left to do."""
        busy = True
        while busy:
            busy = False
            for number in range(self.count):
                while self.commit(number) is not None:
                    busy = True
                if self.owners[number].addressees():
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
            for owner in self.owners:
                owner.advance(self.now_ms)
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
        self.owners[self._home(message)].receive(token, message, self.now_ms)
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
