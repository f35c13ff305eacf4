"""Clients of a simulated system: couriers in processes of their own, and those that want something of workflows.

A client finds whichever host there is of a name, now and then one that was replaced long ago. Calls arrive late or not at all,
answers are lost, and a client that stands still for long is forgotten.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from rayflow.core.crashes import PROCESS_CRASHED
from rayflow.core.messages import (
    Accepted,
    Answer,
    AwaitOutcome,
    CancelExecution,
    Ended,
    ForgetExecution,
    Message,
    Refused,
    ResumeExecution,
    StartExecution,
    WorkflowMessage,
)
from rayflow.errors import RayflowError
from rayflow.runtime.courier import Courier
from rayflow.runtime.lane import HostGone
from rayflow.testing.simulated_loop import ProcessLoop
from rayflow.testing.simulation_judge import ERROR
from rayflow.testing.simulation_world import Group

if TYPE_CHECKING:
    from rayflow.testing.simulator import System


class ClientProcess:
    """A program that asks shards for something."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.world = system.world
        self.name = system.world.name("client")
        self.group = Group(self.name)
        self.loop = ProcessLoop(self.world, self.group, lambda what: system.judge.violated(ERROR, f"{self.name}: {what}"))
        self.courier: Courier = self.loop.call(system.parts.courier, "home", self._link, self.loop, self.name)
        self.loop.start(self.courier.run())
        system.clients[self.name] = self

    def missing(self) -> list[str]:
        """What it should know in the end and does not, as a text each."""
        raise NotImplementedError

    async def request(self, shard: int, message: Message) -> Answer:
        """Send a message, and wait for its answer."""
        return await self.courier.ask(shard, message).wait()

    def _link(self, name: str) -> _HostLink:
        return _HostLink(self, name)


class _HostLink:
    """See ``rayflow.runtime.lane.HostLink``."""

    def __init__(self, client: ClientProcess, name: str) -> None:
        self._client = client
        self._name = name
        self._found: Any = None

    async def reach(self) -> None:
        """It is found when something is sent."""

    async def exchange(self, data: bytes) -> bytes:
        client = self._client
        if self._found is None or not self._found.group.alive:
            self._found = client.system.find_host(self._name)
        if self._found is None:
            raise HostGone(self._name)
        return await client.system.call_host(client.loop, self._found, lambda host: host.exchange(data), once=True)

    async def call(self, method: str, *args: Any) -> Any:
        raise AssertionError("nothing is asked of a host directly")

    def forget(self) -> None:
        self._found = None


class Client(ClientProcess):
    """Asks something about workflows. An execution whose code has killed too many processes it has tried again, until it ends."""

    def __init__(self, system: System) -> None:
        super().__init__(system)

    def hear(self, message: WorkflowMessage, answer: Answer) -> None:
        """The answer to a message."""
        raise NotImplementedError

    def ask(self, message: WorkflowMessage) -> None:
        """Send a message until it is answered."""
        self.loop.start(self._ask(message))

    def ask_within(self, within_ms: float, message: WorkflowMessage) -> None:
        """``ask`` at some time."""
        self.world.after(self.world.random.random() * within_ms, self.group, lambda: self.ask(message))

    async def _ask(self, message: WorkflowMessage) -> None:
        answer = await self._answer(message)
        while isinstance(message, AwaitOutcome) and isinstance(answer, Refused) and answer.error == PROCESS_CRASHED:
            await asyncio.sleep(2 * self.world.random.random())
            await self._answer(ResumeExecution(message.execution))
            answer = await self._answer(message)
        if answer is not None:
            self.hear(message, answer)

    async def _answer(self, message: WorkflowMessage) -> Answer | None:
        asked_ms = self.world.now_ms
        try:
            answer = await self.request(self.system.shard_of(message.execution), message)
        except RayflowError as error:
            self.system.judge.violated(ERROR, f"{self.name}: {error!r}")
            return None
        self.world.log(self.name, f"{type(message).__name__} {message.execution}: {answer}")
        self.system.judge.answered(message, answer, asked_ms)
        return answer


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
        self.ask_within(system.random.choice((250, 4000)), ForgetExecution(first.execution))

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
