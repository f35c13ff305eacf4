"""The process that hosts owners, and the clients that talk to it: ``rayflow.runtime.host`` and ``courier`` in a simulation.

A client repeats what was not answered, to whichever host it finds, now and then to one that was replaced long ago. A host handles
what arrives twice once, as long as it owes the answer; after that, and after a restart, the message is new to it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from rayflow.core.messages import Answer, AwaitOutcome, CancelExecution, Ended, Message, Refused, StartExecution
from rayflow.errors import Damaged, Fenced, StoreUnavailable
from rayflow.testing.simulation_judge import DAMAGE, ERROR
from rayflow.testing.simulation_world import Group, Process, Signal

if TYPE_CHECKING:
    from rayflow.testing.simulation_owner import Shard
    from rayflow.testing.simulator import System

_RESEND_MS = 1500


@dataclass(slots=True)
class _Session:
    open: dict[int, tuple[int, Message]] = field(default_factory=dict[int, tuple[int, Message]])
    answers: dict[int, Answer] = field(default_factory=dict[int, Answer])


class Host:
    """One life of the process that hosts all shards."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.world = system.world
        self.name = system.world.name("host")
        self.skew_ms = system.world.random.randint(-500, 500)
        self.group = Group(self.name)
        self.shards: dict[int, Shard] = {}
        self._opening: dict[int, Shard] = {}
        self._sessions: dict[str, _Session] = {}
        self._wanted = [Signal(self.world) for _ in range(system.shards)]
        for number in range(system.shards):
            self.world.spawn(self.group, self._keep(number))

    # -- clients -------------------------------------------------------------------------------------------------------------

    def send(self, client: Client, number: int, shard: int, message: Message) -> None:
        """A client's message arrives."""
        session = self._sessions.setdefault(client.name, _Session())
        if number in session.answers:
            self._respond(client.name, number, session.answers[number])
        elif number not in session.open:
            session.open[number] = (shard, message)
            found = self.shards.get(shard)
            if found is not None:
                found.receive((client.name, number), message)
            else:
                self._wanted[shard].set()

    def confirm(self, client: str, number: int) -> None:
        """The client has the answer."""
        session = self._sessions.get(client)
        if session is not None:
            session.answers.pop(number, None)

    def answer(self, token: Any, answer: Answer) -> None:
        """A shard answers."""
        client, number = cast("tuple[str, int]", token)
        session = self._sessions.get(client)
        if session is not None and session.open.pop(number, None) is not None:
            session.answers[number] = answer
            self._respond(client, number, answer)

    def _respond(self, client: str, number: int, answer: Answer) -> None:
        target = self.system.clients[client]
        self.world.send(target.group, lambda: target.receive(self, number, answer))

    # -- shards --------------------------------------------------------------------------------------------------------------

    def opened(self, opened: Shard) -> None:
        """A shard is at work."""
        self.shards[opened.number] = opened
        for client, session in self._sessions.items():
            for number, (shard, message) in list(session.open.items()):
                if shard == opened.number:
                    opened.receive((client, number), message)

    def _keep(self, number: int) -> Process[None]:
        while True:
            shard = self.system.parts.shard(self, number)
            self._opening[number] = shard
            self.world.spawn(shard.group, shard.live())
            yield shard.closed
            self.shards.pop(number, None)
            if isinstance(shard.reason, Fenced):
                self.world.happened["fenced"] += 1
                yield self.world.random.uniform(200, 4000)
                while not self._is_wanted(number):
                    yield self._wanted[number]
            else:
                if isinstance(shard.reason, Damaged):
                    self.system.judge.violated(DAMAGE, str(shard.reason))
                elif not isinstance(shard.reason, StoreUnavailable):
                    self.system.judge.violated(ERROR, f"{shard.name}: {shard.reason!r}")
                yield self.world.random.uniform(100, 800)

    def _is_wanted(self, number: int) -> bool:
        return any(shard == number for session in self._sessions.values() for shard, _ in session.open.values())

    # -- fate ----------------------------------------------------------------------------------------------------------------

    def crash(self) -> None:
        """The process is gone, with all that it knew."""
        for group in self.groups():
            self.world.kill(group)

    def freeze(self) -> None:
        """The process stands still."""
        for group in self.groups():
            group.frozen = True

    def thaw(self) -> None:
        """It goes on, and does not know that it ever stood still."""
        for group in self.groups():
            if group.frozen:
                self.world.thaw(group)

    def groups(self) -> list[Group]:
        """All that stands and falls with this process."""
        return [self.group, *(shard.group for shard in self._opening.values())]


class Client:
    """Starts executions, asks how they ended, and repeats itself until it knows."""

    def __init__(self, system: System, orders: list[StartExecution], within_ms: float) -> None:
        self.system = system
        self.world = system.world
        self.name = system.world.name("client")
        self.group = Group(self.name)
        self.orders = orders
        self.outcomes: dict[str, Ended] = {}
        self.refused: dict[str, Refused] = {}
        self._number = 0
        self._open: dict[int, tuple[Message, bool]] = {}
        system.clients[self.name] = self
        system.awaited += len(orders)
        for order in orders:
            self.world.after(self.world.random.random() * within_ms, self.group, lambda order=order: self.ask(order))

    def ask(self, message: Message) -> None:
        """Send a message until it is answered."""
        self._number += 1
        self._open[self._number] = (message, message.execution in self.system.accepted)
        self._send(self._number)

    def _send(self, number: int) -> None:
        if number not in self._open:
            return
        message, _ = self._open[number]
        hosts = [host for host in self.system.hosts if host.group.alive]
        if hosts:
            host = self.world.random.choice(hosts) if self.world.disturbed and self.world.random.random() < 0.3 else hosts[-1]
            shard = self.system.shard_of(message.execution)
            self.world.send(host.group, lambda: host.send(self, number, shard, message))
        self.world.after(_RESEND_MS * (0.5 + self.world.random.random()), self.group, lambda: self._send(number))

    def receive(self, host: Host, number: int, answer: Answer) -> None:
        """An answer arrives, perhaps once more."""
        self.world.send(host.group, lambda: host.confirm(self.name, number))
        if number not in self._open:
            return
        message, known = self._open.pop(number)
        self.world.log(self.name, f"{type(message).__name__} {message.execution}: {answer}")
        self.system.judge.answered(message, answer, known)
        if isinstance(message, CancelExecution):
            return
        if isinstance(answer, Ended):
            self.outcomes[message.execution] = answer
            self.system.awaited -= 1
        elif isinstance(answer, Refused):
            self.refused[message.execution] = answer
            self.system.awaited -= 1
        elif isinstance(message, StartExecution):
            self.system.accepted[message.execution] = None
            self.ask(AwaitOutcome(message.execution))
