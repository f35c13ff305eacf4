"""What the code of a workflow sends to entities, as letters."""

from __future__ import annotations

from rayflow.core.execution import Execution
from rayflow.core.instance import CallRequest, is_one_way
from rayflow.core.mail import Mail
from rayflow.core.messages import CallEntity, Caller, Deliver, Lock, Unlock, holder_of
from rayflow.core.outbox import Outbox
from rayflow.core.records import Started
from rayflow.core.replay import OpenOperation


class Calls:
    """Those of all executions of a shard."""

    def __init__(self, outbox: Outbox, mail: Mail) -> None:
        self._outbox = outbox
        self._mail = mail

    def send(self, entry: Execution, request: CallRequest) -> None:
        """Send what the code asks for; where it waits for the answer, the operation is open from now on."""
        started = entry.started
        caller: Caller | None = None
        if not is_one_way(request):
            entry.open[request.operation] = OpenOperation(request, 1)
            caller = Caller(started.execution, request.operation, started.seed)
        if request.kind in ("lock", "unlock"):
            entry.note_lock(request.kind, request.name)
        if request.kind == "unlock":
            self.unlock(started, request.address)
        elif request.kind == "lock" and caller is not None:
            self._mail.send(request.address, Lock(request.address, request.function, caller))
        else:
            arguments = self._outbox.store(request.arguments)
            message = CallEntity(request.address, request.function, request.method, arguments, at_ms=request.at_ms)
            self._mail.send(request.address, Deliver(message, started.execution, caller, started.seed))

    def unlock(self, started: Started, address: str) -> None:
        """This run needs the entity no more."""
        self._mail.send(address, Unlock(address, holder_of(started.execution, started.seed)))
