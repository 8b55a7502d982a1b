"""Plain handlers in an executor of the user's, in another process mostly: what is sent there, and what comes back.

A function goes by its name, with the claimed job's data and nothing of the worker. What it raises comes back as a
value, with its traceback as text: an exception that can't be sent would break a pool of processes.
"""

import importlib
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any, Final, NamedTuple

from ledgerq.eventlog.errors import InvalidArgument, InvalidState
from ledgerq.worker.claims import Claim
from ledgerq.worker.outcomes import Elsewhere, error_text

__all__ = ["DetachedJob", "Failed", "TaskFunction", "check_function", "returned", "run_detached"]

_DATA: Final = frozenset(
    {
        *("payload", "headers", "id", "job_id", "queue", "task", "attempt", "max_attempts", "offset", "enqueued_ms"),
        *("priority", "lease_ms", "lease_expires_ms", "lease_expires_at"),
    }
)


class DetachedJob:
    """The argument of a handler in an executor: the data of a `JobContext`, as of when it was claimed.

    All else of a `JobContext` needs the worker (`stop_requested`, `state`, `enqueue`, `kv`, ...) and raises
    `InvalidState`.
    """

    def __init__(self, claim: Claim) -> None:
        self.claim = claim

    def __getattr__(self, name: str) -> Any:
        if name in _DATA:
            return getattr(self.claim, name)
        if name.startswith("_"):
            raise AttributeError(name)
        raise InvalidState(
            f"job.{name} is not there in the worker's executor, where a handler has the job's data alone: make it an "
            "async function, or a plain one of a worker without an executor"
        )


class Failed(NamedTuple):
    """What a handler raised, and its traceback as text."""

    error: BaseException
    text: str


@dataclass(frozen=True, slots=True)
class TaskFunction:
    """A task by the name of its function: that name has the task itself, which can't be sent."""

    module: str
    name: str

    def __call__(self, job: DetachedJob) -> Any:
        """Call the function of the task with the arguments of this job."""
        task: Any = reduce(getattr, self.name.split("."), importlib.import_module(self.module))
        if (definition := getattr(task, "definition", None)) is None:
            raise InvalidArgument(f"{self.module}.{self.name} is no task in the executor: define it in a module")
        return definition.signature.call(definition.function, job.payload, job)()


def run_detached(function: Callable[[Any], Any], claim: Claim) -> Any:
    """Run a handler for a claim, wherever this is called; what it raises is returned, as `Failed`."""
    try:
        return function(DetachedJob(claim))
    except BaseException as error:
        return Failed(_sendable(error), error_text(error))


def _sendable(error: BaseException) -> BaseException:
    """The exception, or one with its words where it can't be pickled and read again."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - it was made in the line itself
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def returned(value: Any) -> Any:
    """What a handler returned; raises what it raised."""
    if isinstance(value, Failed):
        raise value.error from Elsewhere(value.text)
    return value


def check_function(function: Callable[..., Any]) -> None:
    """Raise `InvalidArgument` for a handler that can't be sent to another process."""
    try:
        pickle.dumps(function)
    except Exception as error:
        raise InvalidArgument(
            f"{function!r} can't be sent to the executor's processes ({error}): define it at the top of a module"
        ) from None
