"""Clients of entities in a simulated system, and what they ask for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from random import Random
from typing import TYPE_CHECKING, Any

from rayflow.checkpoint.blobs import blob_key
from rayflow.core.crashes import MAX_CRASHES
from rayflow.core.entity import Call, done
from rayflow.core.messages import CallEntity, EntityMessage, SettleDeadLetter
from rayflow.core.proxy import Outgoing, proxy_of
from rayflow.core.records import Blob, digest
from rayflow.testing.simulation_clients import ClientProcess
from rayflow.testing.simulation_dispatcher import BLOB_OVER_BYTES
from rayflow.testing.simulation_workload import ENTITIES
from rayflow.testing.simulation_world import EPOCH_MS

if TYPE_CHECKING:
    from rayflow.testing.simulator import System


@dataclass(frozen=True, slots=True)
class Asked:
    """A message of a client. ``tag`` is in its arguments; one that looks only, or ends the entity, has none.

    ``fails``: the operation raises. ``impostor``: it uses an id that belongs to another message, and must be refused.
    """

    message: EntityMessage
    tag: str = ""
    reads: bool = False
    fails: bool = False
    impostor: bool = False

    @property
    def operation(self) -> str:
        """What is to be done; empty: something about a dead letter."""
        return self.message.operation if isinstance(self.message, CallEntity) else ""

    @property
    def message_id(self) -> str:
        return self.message.message_id if isinstance(self.message, CallEntity) else ""

    @property
    def is_for_later(self) -> bool:
        return isinstance(self.message, CallEntity) and bool(self.message.at_ms)

    def __str__(self) -> str:
        return f"{self.operation} {self.tag}" if self.operation else str(self.message)


class Correspondent(ClientProcess):
    """Writes to counters. ``tags`` are made of its name and a count."""

    def __init__(self, system: System) -> None:
        super().__init__(system)
        self._number = 0
        self._open: dict[int, Asked] = {}
        self._count = 0
        self._impostors: dict[str, Asked] = {}

    def missing(self) -> list[str]:
        return [f"the answer to {asked}" for asked in self._open.values()]

    def ask(self, asked: Asked) -> None:
        """Send a message until it is answered."""
        self.system.awaited += 1
        self.loop.start(self._ask(asked))

    async def _ask(self, asked: Asked) -> None:
        self._number += 1
        number, asked_ms = self._number, self.world.now_ms
        self._open[number] = asked
        self.system.judge.entities.asked(self.name, number, asked)
        answer = await self.request(self.system.shard_of(asked.message.entity), asked.message)
        del self._open[number]
        self.world.log(self.name, f"{number} {asked}: {answer}")
        self.system.awaited -= 1
        self.system.judge.entities.answered(self.name, number, asked, answer, asked_ms)
        self.answered(asked)

    def tag(self, mark: str = "#") -> str:
        self._count += 1
        return f"{self.name}{mark}{self._count}"

    def write(self, address: str, operation: str, *args: Any, after_ms: int = 0, message_id: str = "", **about: bool) -> Asked:
        """A message with a tag of its own; ``after_ms``: a signal for later, whose last argument is then when it is due."""
        tag = self.tag("~" if after_ms else "#")
        if after_ms:
            args = (*args, EPOCH_MS + int(self.world.now_ms) + after_ms)
        return self.tagged(tag, address, operation, *args, after_ms=after_ms, message_id=message_id, **about)

    def tagged(
        self, tag: str, address: str, operation: str, *args: Any, after_ms: int = 0, message_id: str = "", **about: bool
    ) -> Asked:
        """The same with a given tag; an empty one is not among the arguments."""
        kind, _, key = address.partition("/")
        sent: list[CallEntity] = []

        def keep(outgoing: Outgoing) -> Call[Any]:
            sent.append(self._message(outgoing))
            return done(None)

        proxy = proxy_of(ENTITIES[kind], key, keep)
        if message_id:
            proxy = proxy.options(message_id=message_id)
        if after_ms:
            proxy = proxy.options(at=timedelta(milliseconds=after_ms)).signal
        getattr(proxy, operation)(*((tag,) if tag else ()), *args)
        return Asked(sent[0], tag, **about)

    def _message(self, sent: Outgoing) -> CallEntity:
        data = sent.arguments
        if len(data) > BLOB_OVER_BYTES:
            blob = Blob(digest(data), len(data))
            self.system.store.objects.setdefault(blob_key(blob), data)  # written, and never listed
        else:
            blob = None
        fingerprint = sent.fingerprint if sent.options.message_id else ""
        due_ms = sent.due_ms(EPOCH_MS + int(self.world.now_ms))
        function = self.system.code.describe(sent.kind.entity)
        return CallEntity(sent.address, function, sent.operation, blob or data, sent.options.message_id, fingerprint, due_ms)

    def ask_at(self, at_ms: float, *asked: Callable[[], Asked]) -> None:
        """Send messages at some time, in one go."""

        def ask() -> None:
            self.system.awaited -= len(asked)
            for one in asked:
                self.ask(one())

        self.system.awaited += len(asked)
        self.world.after(at_ms, self.group, ask)

    def refusable(self, asked: Asked) -> None:
        """Once that message is answered, send one under its id that says something else."""
        message = self.tagged(asked.tag, asked.message.entity, "add", 1000, message_id=asked.message_id, impostor=True)
        self._impostors[asked.tag] = message

    def answered(self, asked: Asked) -> None:
        impostor = self._impostors.pop(asked.tag, None)
        if impostor is not None:
            self.ask(impostor)


def correspond(system: System, dice: Random) -> list[str]:
    """Some clients, and what they write to whom and when; returns the addresses of the entities."""
    addresses = [f"{dice.choice(('Counter', 'Ledger'))}/{key}" for key in "abc"[: dice.randint(1, 3)]]
    clients = [system.parts.correspondent(system) for _ in range(dice.randint(1, 3))]
    within_ms = dice.choice((200, 1500, 4000))
    for client in clients:
        for _ in range(dice.randint(1, 5)):
            burst = [_drawn(client, dice, addresses) for _ in range(dice.choice((1, 1, 3)))]
            client.ask_at(dice.random() * within_ms, *burst)
    if dice.random() < 0.6:
        for number in range(dice.randint(1, 3)):
            _share(clients, dice, dice.choice(addresses), f"m{number}", within_ms)
    if dice.random() < 0.4:
        _pass(clients[0], dice, within_ms)
    if dice.random() < 0.15:
        _explode(dice.choice(clients), dice, addresses, within_ms)
    if dice.random() < 0.4:
        _visit(clients[0], dice, addresses, within_ms)
    undertaker = Undertaker(system)
    for _ in range(dice.choice((0, 1, 2, 5))):
        undertaker.look_at(dice.random() * 2 * within_ms)
    return addresses


def _visit(client: Correspondent, dice: Random, addresses: list[str], within_ms: float) -> None:
    """Somebody new asks once, while a client is silent that asks later: by then its host may have forgotten it."""
    system, at_ms = client.system, within_ms + 2500 + dice.random() * 4000

    def visit() -> None:
        system.awaited -= 1
        visitor = system.parts.correspondent(system)
        visitor.ask(visitor.tagged("", addresses[0], "totals", reads=True))

    system.awaited += 1
    system.world.after(at_ms, system.fate, visit)
    client.ask_at(at_ms + 100 + dice.random() * 1000, _drawn(client, dice, addresses))


def _drawn(client: Correspondent, dice: Random, addresses: list[str]) -> Callable[[], Asked]:
    """A message, to be made when it is sent."""
    address, other, by = dice.choice(addresses), dice.choice(addresses), dice.randint(1, 9)
    note = "x" * dice.choice((0, 0, 300))
    message_id = "" if dice.random() < 0.7 else f"{client.name}-{dice.getrandbits(32):08x}"
    match dice.randrange(12):
        case 0:
            return lambda: client.write(address, "stumble", by, message_id=message_id, fails=True)
        case 1 | 2:
            route = [dice.choice(addresses) for _ in range(dice.randint(1, 5))]
            return lambda: client.write(address, "pass_on", by, route, note, message_id=message_id)
        case 3:
            return lambda: client.write(address, "provoke", by, other, message_id=message_id)
        case 4:
            after_ms = dice.choice((1, 100, 2000))
            return lambda: client.write(address, "send_later", by, other, after_ms, message_id=message_id)
        case 5:
            after_ms = dice.choice((1, 100, 2000))
            return lambda: client.write(address, "later", by, after_ms=after_ms, message_id=message_id)
        case 6 | 7:
            name, to = dice.choice(("one", "two", "broken")), dice.choice(("", *addresses))
            after_ms, every_ms = dice.choice((0, 50, 1500)), dice.choice((0, 0, 300, 1000))
            return lambda: client.write(address, "plan", by, name, after_ms, every_ms, to, message_id=message_id)
        case 8:
            name = dice.choice(("one", "two"))
            return lambda: client.write(address, "stop", by, name, message_id=message_id)
        case 9:
            return lambda: client.tagged("", address, "totals", reads=True)
        case _:
            return lambda: client.write(address, "add", by, note, message_id=message_id)


def _share(clients: list[Correspondent], dice: Random, address: str, message_id: str, within_ms: float) -> None:
    """Two clients send one message under one id, and somebody else another."""
    first, second = dice.choice(clients), dice.choice(clients)
    asked = first.tagged(f"{first.name}.{message_id}~1", address, "add", 1, message_id=message_id)
    first.ask_at(dice.random() * within_ms, lambda: asked)
    second.ask_at(dice.random() * within_ms, lambda: replace(asked))
    if dice.random() < 0.5:
        dice.choice((first, second)).refusable(asked)


def _pass(client: Correspondent, dice: Random, within_ms: float) -> None:
    """An entity that is ended between other messages, all of one client."""
    address, at_ms = "Passing/p", 0.0
    for _ in range(dice.randint(2, 6)):
        at_ms += dice.random() * within_ms / 4
        by = dice.randint(1, 9)
        match dice.randrange(5):
            case 0 | 1:
                client.ask_at(at_ms, lambda: client.tagged("", address, "destroy"))
            case 2:
                after_ms, every_ms = dice.choice((50, 1500)), dice.choice((0, 300))
                client.ask_at(at_ms, lambda by=by, a=after_ms, e=every_ms: client.write(address, "plan", by, "one", a, e, ""))
            case 3:
                after_ms = dice.choice((1, 500))
                client.ask_at(at_ms, lambda by=by, a=after_ms: client.write(address, "later", by, after_ms=a))
            case _:
                client.ask_at(at_ms, lambda by=by: client.write(address, "add", by))


def _explode(client: Correspondent, dice: Random, addresses: list[str], within_ms: float) -> None:
    """What kills the process that handles it, few times or too often: sent by the client or by an entity, or a reminder."""
    address, other, by = dice.choice(addresses), dice.choice(addresses), dice.randint(1, 9)
    times = dice.choice((1, MAX_CRASHES - 1, MAX_CRASHES + 1, 2 * MAX_CRASHES + 1))
    message_id = dice.choice(("", f"{client.name}-explosion"))
    match dice.randrange(3):
        case 0:
            fails = times >= MAX_CRASHES
            message = lambda: client.write(address, "explode", by, times, message_id=message_id, fails=fails)  # noqa: E731
        case 1:
            message = lambda: client.write(address, "plant", by, other, times, message_id=message_id)  # noqa: E731
        case _:
            after_ms = dice.choice((0, 500))
            message = lambda: client.write(address, "plan", by, "broken, deadly", after_ms, 0, "")  # noqa: E731
    client.ask_at(dice.random() * within_ms, message)


class Undertaker(Correspondent):
    """Has dead letters handled again, or throws them away."""

    def look_at(self, at_ms: float) -> None:
        """``look`` at some time."""

        def look() -> None:
            self.system.awaited -= 1
            self.look()

        self.system.awaited += 1
        self.world.after(at_ms, self.group, look)

    def look(self) -> None:
        """Ask now, for all that are on record."""
        for letter in self.system.judge.entities.dead_letters():
            discard = self.world.random.random() < 0.5
            self.ask(Asked(SettleDeadLetter(letter.entity, letter.number, letter.at_ms, discard)))


class Auditor(Correspondent):
    """Asks something of every shard in the end: nobody may have wanted it since its owner went."""

    def look(self) -> None:
        """Ask now."""
        for shard in range(self.system.shards):
            keys = (f"Counter/audit{number}" for number in range(1000))
            address = next(one for one in keys if self.system.shard_of(one) == shard)
            self.ask(self.tagged("", address, "totals", reads=True))
