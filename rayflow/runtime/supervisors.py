"""The two named actors that serve a store, and how one of them brings the other back.

Where a node runs out of memory Ray kills what it can start again before anything else, and of what it cannot, the newest first. So
neither actor may be one that Ray starts again: hosts and dispatcher, which are older than the steps, then stay, and the steps, each
of whose attempts is on record before it starts, go. Whoever misses one of the two makes it anew: a host the dispatcher, the
dispatcher a host (see ``placing``), a program both. That two of them do so at once does no harm, for a name is one actor's.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from ray.exceptions import ActorDiedError, ActorUnavailableError, RayError

from rayflow.checkpoint.identity import StoreIdentity
from rayflow.runtime.actors import head, named_actor
from rayflow.runtime.dispatcher import Dispatcher

_log = logging.getLogger("rayflow")


def actor_names(identity: StoreIdentity) -> tuple[str, str]:
    """The names of the shards' host at home and of the dispatcher of a store."""
    return f"rayflow-shards-{identity.store_id}", f"rayflow-dispatcher-{identity.store_id}"


def find_dispatcher(identity: StoreIdentity, store_url: str) -> Any:
    """The handle of the dispatcher, which is created where there is none."""
    host, dispatcher = actor_names(identity)
    return named_actor(Dispatcher, dispatcher, head(), dispatcher, store_url, identity.shards, host)


class LastingDispatcher:
    """The dispatcher for a host: it is there again after it has died. Belongs to one loop."""

    def __init__(self, identity: StoreIdentity, store_url: str) -> None:
        self._identity = identity
        self._store_url = store_url
        self._actor: Any = None
        self._finding = asyncio.Lock()

    async def call(self, method: str, *args: Any) -> Any:
        """Call it. Raises what the call raises: where it has died, too, but the next call goes to another then."""
        actor = self._actor or await self._found(None)
        try:
            return await getattr(actor, method).remote(*args)
        except ActorDiedError as error:
            _log.warning("the dispatcher of %s has died: %s", self._store_url, _last_line(error))
            await self._found(actor)
            raise

    def tell(self, method: str, *args: Any) -> None:
        """Call it in any thread, and do not wait: for what may be lost, and is where it is not there now."""
        if self._actor is not None:
            getattr(self._actor, method).remote(*args)

    async def _found(self, dead: Any) -> Any:
        """Another one than ``dead``. Many may miss that at once."""
        async with self._finding:
            if self._actor is dead:
                try:
                    self._actor = await asyncio.to_thread(find_dispatcher, self._identity, self._store_url)
                except (RayError, ValueError) as error:  # there will be another time
                    raise ActorUnavailableError(str(error), None) from error
            return self._actor


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]
