"""Every error that rayflow raises on purpose.

    RayflowError
    ├── InvalidInput            what the caller passed cannot work; nothing was recorded, started or written
    │   ├── CodecError          a value cannot be stored, or stored bytes cannot be turned back into one
    │   └── IdInUse             the id belongs to an execution of another workflow or with other arguments
    ├── StoreError              the store failed; the operation may or may not have happened
    │   ├── AlreadyExists       a create found the key taken
    │   ├── NotFound            no object under that key
    │   ├── StoreUnavailable    time-out, refused connection, 5xx: worth another try
    │   ├── StoreUnsuitable     the store cannot serve: no conditional writes, no permission, no space
    │   └── Damaged             bytes are there but not the ones that were written
    ├── RayUnavailable          the Ray cluster cannot be reached, or is gone
    ├── Fenced                  another owner has taken the log over
    ├── NonDeterminismError     the code no longer does what its record says
    ├── ProcessCrashed          the code has ended the process that ran it, again and again
    ├── ExecutionNotFound       no execution with that id in this store
    ├── ExecutionFailed         the workflow ended with an error
    ├── ExecutionCancelled      the workflow was cancelled
    ├── StepFailed              a step failed for good: an error that is not retried, or no attempts left
    │   ├── StepTimedOut        the last attempt took longer than the step's time-out
    │   └── StepLost            the process that ran the last attempt is gone
    ├── EntityUnreadable        the state of an entity cannot be read by the code there is; nothing of it is lost
    ├── OperationFailed         an operation of an entity raised; nothing that it did counts
    ├── OutcomeUnknown          a message came again after so long that whether it was carried out cannot be told
    └── Overloaded              too much is waiting already; try again later

ExecutionFailed, StepFailed and OperationFailed are also of the type that was raised, where that can be imported: see RemoteError.

Signals that steer control flow inside a workflow derive from BaseException, so that ``except Exception`` in user code cannot
swallow them: see ``rayflow.core.instance``.
"""

from __future__ import annotations

from textwrap import indent


class RayflowError(Exception):
    """Root of all errors of rayflow."""


class InvalidInput(RayflowError, ValueError):
    """What the caller passed cannot work. Raised before anything is recorded, started or written."""


class CodecError(InvalidInput):
    """A value cannot be stored, or stored bytes cannot be turned back into a value."""


class IdInUse(InvalidInput):
    """The id belongs to an execution of another workflow, or of the same with other arguments."""


class StoreError(RayflowError):
    """An operation on the store failed. Unless a subclass says otherwise it may or may not have happened."""


class AlreadyExists(StoreError):
    """A create found the key taken: by somebody else, or by an earlier try of the same writer. Read back to know."""


class NotFound(StoreError):
    """There is no object under that key."""


class StoreUnavailable(StoreError):
    """Time-out, refused connection or server error: worth another try. A write may have happened all the same."""


class StoreUnsuitable(StoreError):
    """The store cannot serve at all: it does not enforce conditional writes, refuses permission, or is full."""


class Damaged(StoreError):
    """Bytes are there, but not the ones that were written. Names the object and the offset."""


class RayUnavailable(RayflowError):
    """The Ray cluster cannot be reached, or is gone. What was recorded is in the store: connect again and go on."""


class Fenced(RayflowError):
    """Another owner has taken over the log; whoever gets this must drop what it has in memory."""


class NonDeterminismError(RayflowError):
    """The workflow's code no longer does what its record says. Nothing is lost: mend the code and resume."""


class ProcessCrashed(RayflowError):
    """The workflow's code has ended the process that ran it, again and again. Nothing is lost: mend the code and resume."""


class ExecutionNotFound(RayflowError):
    """No execution with that id in this store."""


class RemoteError(RayflowError):
    """Code elsewhere raised: the message carries type and text of its error, ``remote_traceback`` where it came from.

    Python prints the traceback with the error, as a note. Where the type that was raised can be imported, the error is of that type
    as well, with its attributes and its ``__cause__``: it can be caught as either.
    """

    def __init__(self, message: str, *, error_type: str = "", remote_traceback: str = "") -> None:
        super().__init__(message)
        self.error_type = error_type
        self.remote_traceback = remote_traceback
        if remote_traceback:
            self.add_note("Where it was raised:\n" + indent(remote_traceback.rstrip(), "  "))

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.args[0], self.error_type, self.remote_traceback))


class ExecutionFailed(RemoteError):
    """The workflow ended with an error."""


class ExecutionCancelled(RayflowError):
    """The execution was cancelled."""


class StepFailed(RemoteError):
    """A step failed for good: the error is not one that is retried, or no attempts are left."""


class StepTimedOut(StepFailed):
    """The last attempt of a step took longer than the step's time-out."""


class StepLost(StepFailed):
    """The process that ran the last attempt of a step is gone."""


class EntityUnreadable(RayflowError):
    """The stored state of an entity cannot be read by the code there is. The others go on; nothing of it is lost."""


class OperationFailed(RemoteError):
    """An operation of an entity raised. That is its recorded result; nothing that it did to the state counts."""


class OutcomeUnknown(RayflowError):
    """Whether a message was carried out cannot be told: it came again after its answer, if there was one, had been dropped.

    Look at the entity's state; a new message is carried out.
    """


class Overloaded(RayflowError):
    """Too much is waiting already. ``retry_after_s`` hints at when to try again (seconds)."""

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


def _rebuild(kind: type[RemoteError], message: str, error_type: str, trace: str) -> Exception:
    return kind(message, error_type=error_type, remote_traceback=trace)
