"""The event catalogue: every fact that a ledger can hold.

An event carries every fact that a decision took from configuration, clock or chance, so a fold needs only the log.
Ids are 16-byte ULIDs, times are ms since the Unix epoch, and the time of the event itself is its commit's.
An event is immutable; `msgspec.structs.replace` makes a changed copy. Its bytes are the array of its fields in order.
Next: codec.py turns them into bytes; projections/job.py has what follows from them.
"""

from typing import Annotated, Any, Final, Literal, NamedTuple, get_args

from msgspec import Meta

from ledgerq.eventlog.facts import Fact, Id, Sealed, Text
from ledgerq.eventlog.log_events import Checkpointed, FilesSetAside, LogEvent, Rebuilt, WriterClosed, WriterOpened
from ledgerq.eventlog.schedule_events import (
    MissedPolicy,
    OverlapPolicy,
    ScheduleEvent,
    SchedulePaused,
    ScheduleRemoved,
    ScheduleResumed,
    ScheduleSet,
    Ticked,
    TickReason,
)
from ledgerq.eventlog.value_events import KvDeleted, KvSet, ValueEvent

__all__ = [
    "Acked",
    "BulkBegan",
    "BulkEnded",
    "BulkKind",
    "CancelRequested",
    "Cancelled",
    "Checkpointed",
    "Claimed",
    "DeadLettered",
    "Deleted",
    "Enqueued",
    "Event",
    "Expired",
    "FilesSetAside",
    "JobEvent",
    "KvDeleted",
    "KvSet",
    "LeaseExpired",
    "LogEvent",
    "MissedPolicy",
    "Moved",
    "Nacked",
    "OverlapPolicy",
    "Promoted",
    "QueueEvent",
    "QueuePaused",
    "QueueResumed",
    "Rebuilt",
    "Record",
    "Requeued",
    "SECRET",
    "STATES",
    "ScheduleEvent",
    "SchedulePaused",
    "ScheduleRemoved",
    "ScheduleResumed",
    "ScheduleSet",
    "Sealed",
    "State",
    "Swept",
    "TEXT_FIELDS",
    "Text",
    "TickReason",
    "Ticked",
    "UniqueUntil",
    "ValueEvent",
    "WriterClosed",
    "WriterOpened",
]


State = Literal["scheduled", "pending", "claimed", "done", "dead", "cancelled"]
"""The states of a job, as people read them and as the disk holds them."""

STATES: Final[tuple[State, ...]] = get_args(State)

UniqueUntil = Literal["finished", "claimed"]
"""How long a job holds its unique key: until it is finished, or until it is claimed for the first time."""


BulkKind = Literal["requeue", "cancel", "delete", "move"]
"""What a bulk does to each of its jobs."""


class Enqueued(Fact, frozen=True):
    """A job was accepted; `due_ms` 0 means pending at once.

    `payload_bytes` is the size of the payload record, which holds salt and headers beside the bytes given, and
    `payload_digest` is its BLAKE2b-256. `unique_key`: a BLAKE2b-256 of the key that is keyed with the store's secret
    (up to format 2 the key itself). `terms`: packed further terms of a task, None for a job without any.
    """

    id: Id
    queue: str
    priority: int
    max_attempts: int
    due_ms: int
    unique_key: bytes | None
    unique_until: UniqueUntil
    payload_bytes: int
    payload_digest: bytes
    terms: bytes | None = None


class Promoted(Fact, frozen=True):
    """A scheduled job's time has come: it is pending."""

    id: Id


class Claimed(Fact, frozen=True):
    """A worker got the job for its `attempt`-th try, for `lease_ms` at first; `worker` is its name, if it gave one.

    `kept`: its holder is another process than the writer's, so it goes on when the writer ends.
    """

    id: Id
    attempt: int
    lease_ms: int
    worker: str | None
    kept: bool = False


class Acked(Fact, frozen=True):
    """The work is done; the record is kept until `sweep_at_ms`. `result`: what the handler returned, if it is kept."""

    id: Id
    sweep_at_ms: int
    result: Sealed | None = None


class Nacked(Fact, frozen=True):
    """The try failed or was given back. `to` is the state that follows (scheduled, pending or dead).

    `due_ms` counts for scheduled, `sweep_at_ms` for dead, else 0. `released`: given back unused, the try doesn't count.
    `error_type`: the name of the exception's class, empty when none was given.
    """

    id: Id
    to: State
    due_ms: int
    sweep_at_ms: int
    released: bool
    error: Text
    error_type: str = ""


class LeaseExpired(Fact, frozen=True):
    """The claim ended without a settlement. `to` is pending or dead; `sweep_at_ms` counts for dead, else 0.

    `crashed`: it counts as a try that ended its process, of which a job may have a few in a row.
    """

    id: Id
    to: State
    sweep_at_ms: int
    reason: str
    crashed: bool = False


class CancelRequested(Fact, frozen=True):
    """An operator wants a claimed job to stop; its worker learns of it."""

    id: Id
    actor: str
    reason: Text


class Cancelled(Fact, frozen=True):
    """The job will not run (again); the record is kept until `sweep_at_ms`."""

    id: Id
    sweep_at_ms: int
    actor: str
    reason: Text


class Requeued(Fact, frozen=True):
    """An operator gave a dead job a new start: pending, no attempts used."""

    id: Id
    actor: str
    reason: Text


class Swept(Fact, frozen=True):
    """Retention is over: record and payload are deleted, the history stays in the log."""

    id: Id


class DeadLettered(Fact, frozen=True):
    """The job can't run any more, since its payload is lost: dead, kept until `sweep_at_ms`; `reason` is its error.

    `actor` is who found it: the name of a program's operator, or "ledgerq" for a queue that met the loss at a claim.
    """

    id: Id
    sweep_at_ms: int
    actor: str
    reason: str


class Deleted(Fact, frozen=True):
    """An operator had a finished job deleted before its retention was over: its record, payload and texts are gone."""

    id: Id
    actor: str
    reason: Text


class Expired(Fact, frozen=True):
    """The job was not started in time: cancelled, and the record is kept until `sweep_at_ms`."""

    id: Id
    sweep_at_ms: int


class Moved(Fact, frozen=True):
    """The job goes on in another queue, with no attempts used and without its unique key; a dead one is pending there.

    `reason` is empty where a queue's own rule moved its dead letter.
    """

    id: Id
    queue: str
    actor: str
    reason: Text


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


JobEvent = (
    Enqueued
    | Promoted
    | Claimed
    | Acked
    | Nacked
    | LeaseExpired
    | CancelRequested
    | Cancelled
    | Requeued
    | Swept
    | DeadLettered
    | Deleted
    | Expired
    | Moved
)
QueueEvent = QueuePaused | QueueResumed | BulkBegan | BulkEnded
Event = JobEvent | QueueEvent | ScheduleEvent | ValueEvent | LogEvent

SECRET: Final = "the secret"  # noqa: S105 - a name
"""The name in `Rebuilt` for the store's secret; no projection can have it."""

TEXT_FIELDS: Final[dict[type[Any], str]] = {
    Nacked: "error",
    **dict.fromkeys(
        (CancelRequested, Cancelled, Requeued, Deleted, Moved, QueuePaused, QueueResumed, BulkBegan), "reason"
    ),
    **dict.fromkeys((ScheduleSet, ScheduleRemoved, SchedulePaused, ScheduleResumed, Ticked), "reason"),
}
"""The field of an event in which somebody's own words stand."""


class Record(NamedTuple):
    """An event with its offset in the log, its commit's time (ms) and its writer's epoch."""

    offset: int
    time_ms: int
    epoch: int
    event: Event
