"""Spreads the shards over hosts: the dispatcher's second task, since it outlives what user code does to the hosts.

There is a host at home, which programs create, and one on each node that is labelled to be there for shards (``placement.LABEL``):
those are created here and end when their node goes. As long as there is none, all shards are at home. A dispatcher that begins anew
asks the hosts that there are what they have, so that nothing moves because of it. A host that has died is made anew from here,
with the shards that it had, where no program was quicker, see ``supervisors``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn, cast

import ray
from msgspec.structs import replace
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rayflow.runtime import placement
from rayflow.runtime.actors import UNREACHABLE, existing_actor, head, named_actor
from rayflow.runtime.draining import draining_nodes
from rayflow.runtime.placement import LABEL, Entered, Placement, spread
from rayflow.runtime.project import code_version
from rayflow.runtime.task import NAMESPACE

_LOOK_S = 2.0
_TELL_S = 5.0
_KNOWN_HOSTS_S = 10.0
_BEGINS_S = 120.0
_NODE_CHARACTERS = 12
"""So many of a node's id are in the name of the host that is bound to it."""

_log = logging.getLogger("rayflow.dispatcher")


@dataclass(slots=True)
class _Host:
    entered: Entered
    actor: Any
    told: Placement | None = None
    """The newest placement that it is known to have."""


class _Created(NamedTuple):
    node: str
    at_s: float


class Placing:
    """Belongs to the loop of the dispatcher. ``home`` is the name of the host at home."""

    def __init__(self, store_url: str, shards: int, home: str) -> None:
        self._store_url = store_url
        self._home = home
        self._placement = Placement(secrets.token_hex(8), 0, ("",) * shards)
        self._hosts: dict[str, _Host] = {}
        self._created: dict[str, _Created] = {}
        """Hosts that were created here and have not entered."""
        self._entered = asyncio.Event()
        self._begun = asyncio.Event()

    async def enter(self, entered: Entered) -> Placement:
        """A host begins; returns where the shards are to be."""
        await self._know(entered)
        await self._begun.wait()
        host = self._hosts.get(entered.name)
        if host is not None:
            host.told = self._placement
        return self._placement

    def is_home(self, node: str) -> bool:
        """Whether the host at home is there, as far as that is known."""
        home = self._hosts.get(self._home)
        return home is not None and home.entered.node == node

    def host_code(self, code: str) -> None:
        """The next host at home is to have this code: the one that there is is about to be killed for it."""
        home = self._hosts.get(self._home)
        if home is not None:
            home.entered = replace(home.entered, code=code)

    async def keep(self) -> NoReturn:
        """Spread the shards, now and whenever hosts or nodes come and go."""
        asked = False
        while True:
            self._entered.clear()
            try:
                if not asked:
                    await self._ask_known_hosts()
                    asked = True
                await self._place()
            except Exception:  # of Ray's: hosts go on with what they have
                _log.exception("the shards of %s could not be spread; trying again", self._store_url)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await self._entered.wait()

    # -- hosts ---------------------------------------------------------------------------------------------------------------

    async def _ask_known_hosts(self) -> None:
        asking = [asyncio.create_task(self._ask(name)) for name in await self._names()]
        if asking:
            await asyncio.wait(asking, timeout=_KNOWN_HOSTS_S)

    async def _names(self) -> set[str]:
        """The hosts that live, or begin."""
        named = cast("list[dict[str, str]]", await asyncio.to_thread(ray.util.list_named_actors, all_namespaces=True))
        return {one["name"] for one in named if one["namespace"] == NAMESPACE and one["name"].startswith(self._home)}

    async def _ask(self, name: str) -> None:
        with contextlib.suppress(*UNREACHABLE, ValueError):  # it is gone, or enters by itself when it begins
            actor = await self._handle(name)
            await self._know(placement.decode_entered(await actor.introduce.remote()))

    async def _handle(self, name: str) -> Any:
        return await asyncio.to_thread(existing_actor, name)

    async def _know(self, entered: Entered) -> None:
        try:
            actor = await self._handle(entered.name)
        except ValueError:  # killed meanwhile
            return
        if not entered.bound and entered.name != self._home:  # another takes its place, and nobody waits for the one before
            self._replace(self._home, entered.name)
            self._home = entered.name
        self._created.pop(entered.name, None)
        self._hosts[entered.name] = _Host(entered, actor)
        if not self._placement.number:
            hosts = [entered.name if shard in entered.shards else name for shard, name in enumerate(self._placement.hosts)]
            self._placement = Placement(self._placement.author, 0, tuple(hosts))
        self._entered.set()

    def _replace(self, before: str, name: str) -> None:
        if self._placement.number:
            hosts = tuple(name if host == before else host for host in self._placement.hosts)
            self._placement = Placement(self._placement.author, self._placement.number + 1, hosts)

    def _name_at(self, node: str) -> str:
        home = self._hosts.get(self._home)
        if home is not None and home.entered.node == node:
            return self._home
        return f"{self._home}-{node[:_NODE_CHARACTERS]}"

    async def _create(self, name: str, node: str, code: str) -> None:
        """A host that is bound to a node."""
        self._created[name] = _Created(node, time.monotonic())
        _log.warning("node %s is there for shards: a host begins there", node)
        await self._make(name, NodeAffinitySchedulingStrategy(node, soft=False), code, bound=True)

    async def _make(self, name: str, strategy: NodeAffinitySchedulingStrategy | None, code: str, *, bound: bool) -> None:
        from rayflow.runtime.host import ShardHost  # which finds the dispatcher, and so this module

        code = "" if code == code_version() else code
        await asyncio.to_thread(named_actor, ShardHost, name, strategy, self._store_url, name, bound, code=code)

    async def _revive(self, wanted: Iterable[str]) -> None:
        """Make hosts anew that have died and are ``wanted``, or at home: nobody else may be there to miss them."""
        missing = self._hosts.keys() - await self._names() if self._hosts else set[str]()
        for name in missing & {*wanted, self._home}:
            entered = self._hosts[name].entered
            if entered.bound:
                await self._create(name, entered.node, entered.code)
            else:
                _log.warning("the host of the shards of %s has died: it begins anew", self._store_url)
                await self._make(name, await asyncio.to_thread(head), entered.code, bound=False)

    def _has_other_code(self, name: str) -> bool:
        host, home = self._hosts.get(name), self._hosts.get(self._home)
        return host is not None and home is not None and host.entered.code != home.entered.code

    def _does_not_begin(self, name: str) -> bool:
        created = self._created.get(name)
        if created is None or time.monotonic() - created.at_s < _BEGINS_S:
            return False
        _log.error(
            "the host on node %s has not begun within %.0f s: it is created again; see the logs of that node for why",
            created.node, _BEGINS_S,
        )  # fmt: skip
        return True

    async def _remove(self, name: str) -> None:
        self._hosts.pop(name, None)
        self._created.pop(name, None)
        with contextlib.suppress(ValueError):
            ray.kill(await self._handle(name))

    # -- shards --------------------------------------------------------------------------------------------------------------

    async def _place(self) -> None:
        nodes = cast("list[dict[str, Any]]", await asyncio.to_thread(ray.nodes))
        alive = {str(node["NodeID"]) for node in nodes if node["Alive"]}
        labelled = [str(node["NodeID"]) for node in nodes if node["Alive"] and node["Labels"].get(LABEL) == "true"]
        if labelled:
            draining = await asyncio.to_thread(draining_nodes)
            labelled = [node for node in labelled if node not in draining]
        wanted = {self._name_at(node): node for node in sorted(labelled)}
        bound = {name: host.entered.node for name, host in self._hosts.items() if host.entered.bound}
        bound |= {name: created.node for name, created in self._created.items()}
        for name, node in bound.items():
            if node not in alive or self._has_other_code(name) or self._does_not_begin(name):
                await self._remove(name)
        await self._revive(wanted)
        home = self._hosts.get(self._home)
        if home is not None:  # whoever connects creates it; meanwhile others go on
            for name, node in wanted.items():
                if name not in self._hosts and name not in self._created:
                    await self._create(name, node, home.entered.code)
        hosts = [name for name in wanted if name in self._hosts] or ([] if home is None else [self._home])
        if not hosts:
            return
        self._decide(hosts)
        self._begun.set()
        await self._tell_all()
        for name in bound.keys() - wanted.keys():
            await self._remove(name)

    def _decide(self, hosts: list[str]) -> None:
        before = self._placement
        now = spread(hosts, before.hosts)
        if now == before.hosts and before.number:
            return
        self._placement = Placement(before.author, before.number + 1, now)
        if before.number:
            _log.warning("the shards of %s are now at %s", self._store_url, ", ".join(now))

    async def _tell_all(self) -> None:
        """First those that lose shards, so that they close them before others open them; but nobody waits for one that hangs."""
        new = [host for host in self._hosts.values() if host.told != self._placement]
        losing = [host for host in new if host.told and host.told.shards_of(host.entered.name) - self._mine(host)]
        await self._tell(losing)
        await self._tell(host for host in new if host not in losing)

    async def _tell(self, hosts: Iterable[_Host]) -> None:
        await asyncio.gather(*(self._tell_one(host) for host in hosts))

    async def _tell_one(self, host: _Host) -> None:
        now = self._placement
        try:
            async with asyncio.timeout(_TELL_S):
                await host.actor.assign.remote(placement.encode(now))
        except (*UNREACHABLE, TimeoutError) as error:  # it asks when it begins anew, and is told again
            _log.warning("%s was not told its shards (%s: %s)", host.entered.name, type(error).__name__, error)
        else:
            host.told = now

    def _mine(self, host: _Host) -> frozenset[int]:
        return self._placement.shards_of(host.entered.name)
