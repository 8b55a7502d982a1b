"""The events of queues: pauses, and changes of many jobs of a queue."""

from typing import Annotated, Literal

from msgspec import Meta

from ledgerq.eventlog.facts import Fact, Text
from ledgerq.eventlog.job_events import State

__all__ = [
    "BulkBegan",
    "BulkEnded",
    "BulkKind",
    "QueueEvent",
    "QueuePaused",
    "QueueResumed",
]

BulkKind = Literal["requeue", "cancel", "delete", "move"]
"""What a bulk does to each of its jobs."""


class QueuePaused(Fact, frozen=True):
    """No job of the queue is handed out until it is resumed."""

    queue: str
    actor: str
    reason: Text


class QueueResumed(Fact, frozen=True):
    """The queue's jobs are handed out again."""

    queue: str
    actor: str
    reason: Text


class BulkBegan(Fact, frozen=True):
    """An operator has many jobs of the queue changed: those that match. It is open until its `BulkEnded`.

    `state` None: any that `what` applies to; `error_type` and `task` "": any; `after_ms` and `before_ms`: when a job
    changed last, 0 for no limit. `error_chars`: of so many characters at the end of `reason`, before its last one, is
    the text that the error has to contain. `until`: of jobs that changed at this offset or later none is touched (by a
    cancellation: that were enqueued then). The events of its jobs have the same `reason`, which stands beside the log
    once. `to` is the queue to which jobs are moved.
    """

    queue: str
    what: BulkKind
    state: State | None
    error_type: str
    error_chars: Annotated[int, Meta(ge=0)]
    after_ms: Annotated[int, Meta(ge=0)]
    before_ms: Annotated[int, Meta(ge=0)]
    until: Annotated[int, Meta(ge=0)]
    actor: str
    reason: Text
    task: str = ""
    to: str = ""


class BulkEnded(Fact, frozen=True):
    """The bulk that began at offset `at` is over. `skipped`: jobs that matched and could not be changed."""

    queue: str
    at: Annotated[int, Meta(ge=0)]
    changed: Annotated[int, Meta(ge=0)]
    skipped: Annotated[int, Meta(ge=0)]


QueueEvent = QueuePaused | QueueResumed | BulkBegan | BulkEnded
