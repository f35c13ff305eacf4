"""The process that hosts owners, and the clients that talk to it: ``rayflow.runtime.host`` and ``courier`` in a simulation.

A client repeats what was not answered, to whichever host it finds, now and then to one that was replaced long ago. A host handles
what arrives twice once, as long as it owes the answer; after that, and after a restart, the message is new to it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from rayflow.core.messages import (
    Accepted,
    Answer,
    AwaitOutcome,
    CancelExecution,
    Ended,
    ForgetExecution,
    Refused,
    StartExecution,
    Token,
    WorkflowMessage,
)
from rayflow.errors import Damaged, Fenced, StoreUnavailable
from rayflow.testing.simulation_judge import DAMAGE, ERROR
from rayflow.testing.simulation_world import Group, Process, Signal

if TYPE_CHECKING:
    from rayflow.testing.simulation_owner import Shard
    from rayflow.testing.simulator import System

_RESEND_MS = 1500


@dataclass(slots=True)
class _Session:
    open: dict[int, tuple[int, WorkflowMessage]] = field(default_factory=dict[int, tuple[int, WorkflowMessage]])
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

    def send(self, client: Client, number: int, shard: int, message: WorkflowMessage) -> None:
        """A client's message arrives."""
        session = self._sessions.setdefault(client.name, _Session())
        if number in session.answers:
            self._respond(client.name, number, session.answers[number])
        elif number not in session.open:
            session.open[number] = (shard, message)
            found = self.shards.get(shard)
            if found is not None:
                found.receive(Token(client.name, number, 0), message)
            else:
                self._wanted[shard].set()

    def confirm(self, client: str, number: int) -> None:
        """The client has the answer."""
        session = self._sessions.get(client)
        if session is not None:
            session.answers.pop(number, None)

    def answer(self, token: Any, answer: Answer) -> None:
        """A shard answers."""
        client, number, _ = cast("Token", token)
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
                    opened.receive(Token(client, number, 0), message)

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
    """Asks, and repeats itself until it is answered."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.world = system.world
        self.name = system.world.name("client")
        self.group = Group(self.name)
        self._number = 0
        self._open: dict[int, tuple[WorkflowMessage, float]] = {}
        system.clients[self.name] = self

    def missing(self) -> list[str]:
        """What it should know in the end and does not, as a text each."""
        raise NotImplementedError

    def hear(self, message: WorkflowMessage, answer: Answer) -> None:
        """The first answer to a message."""
        raise NotImplementedError

    def ask(self, message: WorkflowMessage) -> None:
        """Send a message until it is answered."""
        self._number += 1
        self._open[self._number] = (message, self.world.now_ms)
        self._send(self._number)

    def ask_within(self, within_ms: float, message: WorkflowMessage) -> None:
        """``ask`` at some time."""
        self.world.after(self.world.random.random() * within_ms, self.group, lambda: self.ask(message))

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
        message, asked_ms = self._open.pop(number)
        self.world.log(self.name, f"{type(message).__name__} {message.execution}: {answer}")
        self.system.judge.answered(message, answer, asked_ms)
        self.hear(message, answer)


class Starter(Client):
    """Starts executions and asks how they ended."""

    def __init__(self, system: System, orders: list[StartExecution], within_ms: float) -> None:
        super().__init__(system)
        self._orders = orders
        self._ended: dict[str, None] = {}
        system.awaited += len(orders)
        for order in orders:
            self.ask_within(within_ms, order)

    def missing(self) -> list[str]:
        return [f"how {order.execution} ended" for order in self._orders if order.execution not in self._ended]

    def hear(self, message: WorkflowMessage, answer: Answer) -> None:
        if isinstance(message, CancelExecution):
            return
        if isinstance(answer, Ended):
            self._ended[message.execution] = None
            self.system.awaited -= 1
        elif isinstance(answer, Accepted):
            self.system.accepted[message.execution] = None
            self.ask(AwaitOutcome(message.execution))


class Refusable(Client):
    """Asks for what is to be refused."""

    def __init__(self, system: System, order: StartExecution, within_ms: float) -> None:
        super().__init__(system)
        self._order = order
        self._refused = False
        system.awaited += 1
        self.ask_within(within_ms, order)

    def missing(self) -> list[str]:
        return [] if self._refused else [f"that {self._order.execution} cannot be started so"]

    def hear(self, message: WorkflowMessage, answer: Answer) -> None:
        if isinstance(answer, Refused):
            self._refused = True
            self.system.awaited -= 1


class Replacer(Client):
    """Starts an execution, forgets it and starts another under its id, until that has ended.

    Its own messages, repeated late, forget the second one or bring the first one back: then it begins anew.
    """

    def __init__(self, system: System, first: StartExecution, second: StartExecution) -> None:
        super().__init__(system)
        self._first = first
        self._second = second
        self._final: WorkflowMessage | None = None
        self._ended = False
        system.awaited += 1
        self.ask_within(200, first)
        self.ask_within(4000, ForgetExecution(first.execution))

    def missing(self) -> list[str]:
        return [] if self._ended else [f"how {self._first.execution} ended, which was started again"]

    def hear(self, message: WorkflowMessage, answer: Answer) -> None:
        if message is self._first:
            self.ask(AwaitOutcome(message.execution))
        elif isinstance(message, ForgetExecution):
            self.ask(self._second)
        elif message is self._second:
            if isinstance(answer, Accepted):
                self._final = AwaitOutcome(message.execution)
                self.ask(self._final)
            else:
                self.ask(ForgetExecution(message.execution))
        elif message is self._final:
            if isinstance(answer, Ended):
                self._ended = True
                self.system.awaited -= 1
            else:
                self.ask(self._second)
