"""What programs outside of workflows use: start executions, wait for them, look at them, cancel them."""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable, Generator, Iterable
from functools import cache
from typing import Any, Generic, ParamSpec, TypeVar, cast

import msgspec

from rayflow.checkpoint.blobs import get_blob, put_blob
from rayflow.checkpoint.entities import DeadLetterInfo, EntityListing, list_dead_letters, list_entities, read_events
from rayflow.checkpoint.identity import BUCKET_SHARDS, FOLDER_SHARDS, identify
from rayflow.checkpoint.local import LocalStore
from rayflow.checkpoint.memory import MemoryStore
from rayflow.checkpoint.opening import chosen_store, open_store, probe
from rayflow.core import codec, limits
from rayflow.core.definitions import Workflow
from rayflow.core.entity import Entity, EventSourcedEntity
from rayflow.core.entity_type import EntityType, type_of
from rayflow.core.failures import execution_error, shortened
from rayflow.core.messages import (
    Answer,
    Answered,
    AskOutcome,
    AwaitOutcome,
    CallEntity,
    CancelExecution,
    Ended,
    ExecutionView,
    ForgetExecution,
    Message,
    Refused,
    ResumeExecution,
    SettleDeadLetter,
    StartExecution,
)
from rayflow.core.mistakes import mistaken
from rayflow.core.proxy import Outgoing, proxy_of
from rayflow.core.records import Function, Status, Stored
from rayflow.errors import InvalidInput, RayUnavailable
from rayflow.runtime.actors import existing_actor
from rayflow.runtime.cluster import RayOptions, actor_names, check_host, find_host, start_or_join
from rayflow.runtime.code import describe_function
from rayflow.runtime.courier_thread import CourierThread
from rayflow.runtime.entities import RemoteCall, raise_failure
from rayflow.runtime.listening import Listener, Output
from rayflow.runtime.output import Line, stderr
from rayflow.runtime.pending import Pending
from rayflow.runtime.refusal import raise_refusal
from rayflow.runtime.worker import current_step

P = ParamSpec("P")
R = TypeVar("R")
V = TypeVar("V")
E = TypeVar("E", bound=Entity[Any])

_MAX_ID = 200
_FINDING_S = 5.0


class Execution(Generic[R]):
    """One execution of a workflow, by id. ``await execution`` and ``execution.result()`` give the same.

    Dropping it gives up a wait for the end, and nothing else: the execution goes on, and ``client.get(id)`` finds it.
    """

    def __init__(self, client: Client, id: str, outcome: Pending | None = None) -> None:
        self.id = id
        self._client = client
        self._outcome = outcome

    def result(self, timeout: float | None = None) -> R:
        """Wait for the end and return the workflow's result.

        Raises ExecutionFailed, which is also of the type that the workflow raised where that can be imported, ExecutionCancelled,
        ExecutionNotFound, NonDeterminismError (suspended: its code does not match its record), ProcessCrashed (suspended: its code
        ends the process), TimeoutError after ``timeout`` seconds (the execution goes on).
        """
        try:
            answer = self._ask().result(timeout)
        except TimeoutError:
            raise TimeoutError(
                f"execution {self.id} has not ended after {timeout} s; it goes on: wait for it again, or cancel() it; "
                f"'python -m rayflow show {self.id} --steps' tells what it waits for"
            ) from None
        return self._read(answer)

    def __await__(self) -> Generator[Any, None, R]:
        return self._wait().__await__()

    async def _wait(self) -> R:
        return self._read(await self._ask().wait())

    def done(self) -> bool:
        """Whether the execution has ended, as far as is known here. A handle that has not asked before asks, and waits for the
        answer, which comes at once where the shards can be reached.

        Raises what ``result`` raises for an execution that does not end by itself: there is none of that id, or it is suspended.
        """
        outcome = self._known()
        if outcome is not None:
            return outcome.done()
        outcome = self._client.request(self.id, AskOutcome(self.id))
        ended = isinstance(raise_refusal(outcome.result()), Ended)
        if ended:
            self._outcome = outcome
        return ended

    def view(self) -> ExecutionView | None:
        """The execution as it runs, for display; None when it is not live."""
        return self._client.view(self.id)

    def cancel(self, reason: str = "cancelled by the client") -> None:
        """Ask the execution to stop; returns once the request is durable. One that has ended is left as it is.

        Raises ExecutionNotFound; StoreError, Overloaded and others where it was not done: try again.
        """
        raise_refusal(self._client.request(self.id, CancelExecution(self.id, shortened(reason))).result())

    def resume(self) -> None:
        """Have a suspended execution try the code that there is again; returns once it goes on, durably. One that is not
        suspended is left as it is.

        Raises ExecutionNotFound, Overloaded (what has just happened to it is being written: try again), and what it is suspended
        for if it is again: NonDeterminismError, ProcessCrashed and others.
        """
        raise_refusal(self._client.request(self.id, ResumeExecution(self.id)).result())
        self._leave()

    def forget(self) -> None:
        """Stop the execution if it runs, and drop it; the id is free afterwards.

        Raises StoreError, Overloaded and others where it was not done: try again.
        """
        raise_refusal(self._client.request(self.id, ForgetExecution(self.id)).result())
        self._leave()

    def _known(self) -> Pending | None:
        """The wait that goes on, or what came of it; but not a refusal: that may hold no more."""
        outcome = self._outcome
        if outcome is not None and outcome.done() and isinstance(outcome.result(), Refused):
            outcome = self._outcome = None
        return outcome

    def _ask(self) -> Pending:
        outcome = self._known()
        if outcome is None:
            self._client.concerned(self.id)
            outcome = self._outcome = self._client.request(self.id, AwaitOutcome(self.id))
        return outcome

    def _leave(self) -> None:
        outcome, self._outcome = self._outcome, None
        if outcome is not None:
            outcome.abandon()

    def __del__(self) -> None:
        # A wait lasts as long as the handle: whoever has dropped it has given up what it waits for.
        self._leave()

    def _read(self, answer: Answer) -> R:
        ended = cast("Ended", raise_refusal(answer))
        if ended.status is Status.COMPLETED and ended.result is not None:
            return self._client.decode(ended.result)
        raise execution_error(self.id, ended.status, ended.failure)

    def __repr__(self) -> str:
        return f"<execution {self.id} in {self._client.store.url}>"


class Client:
    """A connection to the executions of one store. Thread-safe. Made by ``rayflow.connect``."""

    def __init__(
        self, store_url: str | os.PathLike[str], ray_options: RayOptions, shards: int | None, output: Output = stderr
    ) -> None:
        self.store = open_store(store_url)
        if isinstance(self.store, MemoryStore):
            raise InvalidInput(f"{self.store.url} is memory of this process, but Ray's processes share the store; use a folder")
        probe(self.store)
        if shards is None:
            shards = FOLDER_SHARDS if isinstance(self.store, LocalStore) else BUCKET_SHARDS
        self.identity = identify(self.store, shards)
        self._entity_types: dict[EntityType, Function] = {}
        self._local_ray = start_or_join(ray_options, self.identity.store_id)
        home, dispatcher = actor_names(self.identity)
        shared = self._local_ray is None
        self._asked_for: dict[str, None] = {}
        self._listener: Listener | None = None
        if current_step() is None:  # what a step does is shown to those who wait for it
            concerns = self._asked_for.__contains__ if shared else _anything
            self._listener = Listener(dispatcher, output, concerns, late=shared)
            if shared:
                check_host(self.identity, self.store.url)
                self._listener.begin()
        self._finding = threading.Lock()
        self._closed = False
        self._courier = CourierThread(home, self._find_host, existing_actor)
        if self._local_ray is not None:
            self._local_ray.watch(self._lost)
            # It opens the shards, so that what was interrupted goes on before anybody asks for anything.
            self._courier.begin()

    def start(self, workflow: Workflow[P, R], *args: Any, id: str | None = None, **kwargs: Any) -> Execution[R]:
        """Start a workflow and return once the start is durable. With an ``id`` that exists: attach to that execution.

        Raises InvalidInput (an argument cannot be stored, the workflow cannot be loaded by the shard's process), IdInUse (the id
        belongs to another workflow or other arguments).
        """
        return self.start_many(workflow, [(id or secrets.token_hex(8), args, kwargs)])[0]

    def start_many(
        self, workflow: Workflow[..., R], calls: Iterable[tuple[str, tuple[Any, ...], dict[str, Any]]]
    ) -> list[Execution[R]]:
        """Start several executions, given as (id, args, kwargs), in as few round trips as possible."""
        if not isinstance(workflow, Workflow):  # pyright: ignore[reportUnnecessaryIsInstance]  # users are not all typed
            raise mistaken(workflow, "workflow")
        function = describe_function(self.store, workflow)
        asked: list[tuple[Execution[R], Pending]] = []
        for id, args, kwargs in calls:
            _check_id(id)
            data, fingerprint = codec.encode_with_fingerprint((args, kwargs), label="arguments")
            stored: Stored = data if len(data) <= limits.current().inline_bytes else put_blob(self.store, data)
            message = StartExecution(id, function, workflow.version, stored, fingerprint, secrets.randbits(63))
            self.concerned(id)
            started = self.request(id, message)
            # The outcome is asked for in the same breath: waiting for many executions then costs no round trip for each. Where
            # so many are awaited already, it is asked for when somebody wants to know it.
            outcome = None if self._courier.crowded else self.request(id, AwaitOutcome(id))
            asked.append((Execution(self, id, outcome), started))
        for _, started in asked:
            raise_refusal(started.result())
        return [execution for execution, _ in asked]

    def get(self, id: str) -> Execution[Any]:
        """The execution with that id, whether it exists or not: asking for its result tells."""
        _check_id(id)
        return Execution(self, id)

    def view(self, id: str) -> ExecutionView | None:
        """A live execution, for display."""
        data = self._courier.call("view", self.identity.shard_of(id), id)
        return msgspec.msgpack.decode(data, type=ExecutionView | None)

    def entity(self, entity: type[E], key: str) -> E:
        """The entity of that type and key, whether it has had a message yet or not: sending one is what makes it.

        Its operations return a ``Call``: await it, or take its ``.result()``. Messages of this client to one entity are handled in
        the order in which they were sent, each exactly once, also if the connection breaks meanwhile.

        Raises InvalidInput (no entity class, or not one that another process can find; a bad key).
        """
        return cast("E", proxy_of(entity, key, self._send))

    def entities(self, entity: type[Entity[Any]], *, prefix: str = "", limit: int | None = None) -> EntityListing:
        """The entities of that type whose key starts with ``prefix``, at most ``limit`` of them, by key; read from the store.

        See ``rayflow.checkpoint.entities.list_entities``; ``entities_table`` there gives the states as an Arrow table.
        """
        return list_entities(self.store, entity_type=type_of(entity).name, prefix=prefix, limit=limit)

    def events(self, entity: type[EventSourcedEntity[Any, V]], key: str) -> list[V]:
        """All events of an event-sourced entity, in order; read from the store."""
        return read_events(self.store, type_of(entity).name, key)

    def dead_letters(self, entity: type[Entity[Any]] | None = None) -> tuple[DeadLetterInfo, ...]:
        """Messages that could not be handled and that nobody waits for, oldest first; read from the store."""
        return list_dead_letters(self.store, entity_type="" if entity is None else type_of(entity).name)

    def replay(self, letter: DeadLetterInfo) -> None:
        """Have a dead letter handled again; it is gone if that succeeds.

        Raises OperationFailed, NotFound (settled meanwhile), EntityUnreadable.
        """
        self._settle(letter, discard=False)

    def discard(self, letter: DeadLetterInfo) -> None:
        """Throw a dead letter away. Raises NotFound (settled meanwhile)."""
        self._settle(letter, discard=True)

    def _settle(self, letter: DeadLetterInfo, *, discard: bool) -> None:
        address = f"{letter.entity_type}/{letter.key}"
        at_ms = round(letter.since.timestamp() * 1000)
        answer = self.request(address, SettleDeadLetter(address, letter.number, at_ms, discard)).result()
        raise_failure(address, letter.operation, cast("Answered", raise_refusal(answer)))

    def _send(self, sent: Outgoing) -> RemoteCall[Any]:
        function = self._entity_types.get(sent.kind)
        if function is None:
            function = self._entity_types[sent.kind] = describe_function(self.store, sent.kind.entity)
        data = sent.arguments
        arguments: Stored = data if len(data) <= limits.current().inline_bytes else put_blob(self.store, data)
        fingerprint = sent.fingerprint if sent.options.message_id else ""
        message = CallEntity(
            sent.address,
            function,
            sent.operation,
            arguments,
            sent.options.message_id,
            fingerprint,
            sent.due_ms(time.time_ns() // 1_000_000),
        )
        return RemoteCall(sent, self, self.request(sent.address, message))

    def request(self, id: str, message: Message) -> Pending:
        """Send a message to the shard of an execution."""
        return self._courier.ask(self.identity.shard_of(id), message)

    def concerned(self, execution: str) -> None:
        """Show what this execution prints and logs: this program waits for it."""
        self._asked_for[execution] = None
        if len(self._asked_for) > limits.current().client_requests:
            del self._asked_for[next(iter(self._asked_for))]

    def decode(self, stored: Stored) -> Any:
        """A stored value."""
        return codec.decode(stored if isinstance(stored, bytes) else get_blob(self.store, stored))

    def _lost(self, error: RayUnavailable) -> None:
        if self._listener is not None:
            self._listener.abandon()
        self._courier.fail(error)

    def _find_host(self) -> Any:
        with self._finding:
            if self._closed:
                raise RayUnavailable("the client was closed")
            found = find_host(self.identity, self.store.url)
            if self._listener is not None:
                self._listener.begin()
            return found

    def close(self) -> None:
        """Disconnect. Executions go on, unless Ray was started by this client: then it ends, and they resume next time."""
        self._closed = True
        if self._listener is not None:
            self._listener.close()
        self._courier.close()
        if self._local_ray is not None:
            # A call under way would start another Ray once this one is gone; one that hangs because it is gone already would not.
            free = self._finding.acquire(timeout=_FINDING_S)
            self._local_ray.shutdown()
            if free:
                self._finding.release()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def connect(
    store: str | os.PathLike[str] | None = None,
    *,
    address: str | None = None,
    num_cpus: int | None = None,
    dashboard: bool = False,
    shards: int | None = None,
    on_wait: Callable[[str], None] | None = None,
    output: Callable[[Line], None] = stderr,
) -> Client:
    """Connect to a store, with the Ray cluster that works on it.

    Args:
        store: A folder, or an s3://, gs:// or az:// URL. Default: $RAYFLOW_STORE, else a folder of the user's, see
            ``rayflow.checkpoint.opening.default_store``.
        address: Of a running Ray cluster. Default: $RAY_ADDRESS, else the Ray that this process is connected to, else a Ray of
            this process's own.
        num_cpus: CPUs of a Ray that is started here; default: all.
        dashboard: Whether a Ray that is started here has its dashboard.
        shards: How many logs a new store has; an existing store keeps its number. Default: one in a folder, where a write is quick
            and all that gathers meanwhile shares the next; four in a bucket, where a write takes long and several are under way.
        on_wait: Called with a line of text where another process of this user works on the same store with a Ray of its own, and
            this one waits for it; default: a warning is logged.
        output: Called, in a thread of the client's, with each line that steps print and workflows log (``ctx.logger``, from INFO
            on): of all executions where Ray is this program's own, else of those that it has started or waits for. ``str(line)``
            says whose it is; default: to stderr. It is for display: of very much output a part is left out.

    Raises:
        StoreUnsuitable: The store does not enforce conditional writes, or cannot be written.
        InvalidInput, StoreUnavailable, RayUnavailable.
    """
    options = RayOptions(address, num_cpus, dashboard) if on_wait is None else RayOptions(address, num_cpus, dashboard, on_wait)
    return Client(chosen_store(store), options, shards, output)


def current_client() -> Client:
    """The client of the step that this code runs in: of its store, on its cluster. One per process; it is not to be closed.

    A step may run more than once: give what must count once a ``message_id``, made of ``current_step().operation`` for example.

    Raises:
        InvalidInput: No step runs here, or an ``async`` inline one: that shares the loop of the shards, which must answer it.
    """
    step = current_step()
    if step is None:
        raise InvalidInput("no step runs here, so there is no current client; use rayflow.connect, or ctx.entity in a workflow")
    if not step.may_block:
        raise InvalidInput(
            f"{step.operation} is an async inline step, which cannot wait for the shards; let it be a plain function"
        )
    return _client_of(step.store.url)


@cache
def _client_of(store_url: str) -> Client:
    return connect(store_url)


def _anything(execution: str) -> bool:
    return True


def _check_id(id: str) -> None:
    if not id or len(id) > _MAX_ID or not id.isprintable():
        raise InvalidInput(f"id {id!r} is empty, longer than {_MAX_ID} characters, or has characters that cannot be printed")
