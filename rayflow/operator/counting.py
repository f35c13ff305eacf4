"""``python -m rayflow counter``: a counter from the command line. A thin door to ``pipelines.counter``.

Loaded only when the command is used: the library itself knows nothing of its applications.
"""

from __future__ import annotations

from pipelines.counter import Counter
from rayflow.checkpoint.store import Store
from rayflow.core.entity_type import address_of, type_of
from rayflow.errors import InvalidInput
from rayflow.operator.connecting import connected


def count(store: Store, address: str | None, name: str, operation: str, by: int | None, message_id: str | None) -> str:
    """Send one message to the counter ``name``; returns its answer as text. Raises InvalidInput, RayflowError.

    ``by`` and ``message_id`` belong to the operations that change it: None is 1, and no name for the message.
    """
    address_of(type_of(Counter).name, name)  # what is wrong with the name is said before anything is started
    if operation == "get" and (by is not None or message_id is not None):
        raise InvalidInput("get changes nothing: leave --by and --message-id out")
    with connected(store, address) as client:
        counter = client.entity(Counter, name)
        if operation == "get":
            state = counter.get().result()
            return f"{state.value} (version {state.version})"
        counter = counter.options(message_id=message_id)
        change = counter.increment if operation == "increment" else counter.decrement
        return str(change(1 if by is None else by).result())
