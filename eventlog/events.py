"""The event catalogue: every fact that a ledger can hold.

An event carries every fact that a decision took from configuration, clock or chance, so a fold needs only the log.
Ids are 16-byte ULIDs, times are ms since the Unix epoch, and the time of the event itself is its commit's.
Next: codec.py turns them into bytes; projections/job.py has what follows from them.
"""

from typing import Final, Literal, NamedTuple, get_args

__all__ = [
    "Acked",
    "CancelRequested",
    "Cancelled",
    "Claimed",
    "DeadLettered",
    "Enqueued",
    "Event",
    "FilesSetAside",
    "JobEvent",
    "LeaseExpired",
    "LogEvent",
    "Nacked",
    "Promoted",
    "QueueEvent",
    "QueuePaused",
    "QueueResumed",
    "Rebuilt",
    "Record",
    "Requeued",
    "STATES",
    "State",
    "Swept",
    "UniqueUntil",
    "WriterClosed",
    "WriterOpened",
]


State = Literal["scheduled", "pending", "claimed", "done", "dead", "cancelled"]
"""The states of a job, as people read them and as the disk holds them."""

STATES: Final[tuple[State, ...]] = get_args(State)

UniqueUntil = Literal["finished", "claimed"]
"""How long a job holds its unique key: until it is finished, or until it is claimed for the first time."""


class Enqueued(NamedTuple):
    """A job was accepted; `due_ms` 0 means pending at once.

    `payload_bytes` is the size of the payload record, which holds salt and headers beside the bytes given, and
    `payload_digest` is its BLAKE2b-256.
    """

    id: bytes
    queue: str
    priority: int
    max_attempts: int
    due_ms: int
    unique_key: bytes | None
    unique_until: UniqueUntil
    payload_bytes: int
    payload_digest: bytes


class Promoted(NamedTuple):
    """A scheduled job's time has come: it is pending."""

    id: bytes


class Claimed(NamedTuple):
    """A worker got the job for its `attempt`-th try, for `lease_ms` at first; `worker` is its name, if it gave one."""

    id: bytes
    attempt: int
    lease_ms: int
    worker: str | None


class Acked(NamedTuple):
    """The work is done; the record is kept until `sweep_at_ms`."""

    id: bytes
    sweep_at_ms: int


class Nacked(NamedTuple):
    """The try failed or was given back. `to` is the state that follows (scheduled, pending or dead).

    `due_ms` counts for scheduled, `sweep_at_ms` for dead, else 0. `released`: given back unused, the try doesn't count.
    """

    id: bytes
    to: State
    due_ms: int
    sweep_at_ms: int
    released: bool
    error: str


class LeaseExpired(NamedTuple):
    """The claim ended without a settlement. `to` is pending or dead; `sweep_at_ms` counts for dead, else 0."""

    id: bytes
    to: State
    sweep_at_ms: int
    reason: str


class CancelRequested(NamedTuple):
    """An operator wants a claimed job to stop; its worker learns of it."""

    id: bytes
    actor: str
    reason: str


class Cancelled(NamedTuple):
    """The job will not run (again); the record is kept until `sweep_at_ms`."""

    id: bytes
    sweep_at_ms: int
    actor: str
    reason: str


class Requeued(NamedTuple):
    """An operator gave a dead job a new start: pending, no attempts used."""

    id: bytes
    actor: str
    reason: str


class Swept(NamedTuple):
    """Retention is over: record and payload are deleted, the history stays in the log."""

    id: bytes


class DeadLettered(NamedTuple):
    """The job can't run any more, since its payload is lost: dead, kept until `sweep_at_ms`; `reason` is its error.

    `actor` is who found it: the name of a program's operator, or "ledgerq" for a queue that met the loss at a claim.
    """

    id: bytes
    sweep_at_ms: int
    actor: str
    reason: str


class QueuePaused(NamedTuple):
    """No job of the queue is handed out until it is resumed."""

    queue: str
    actor: str
    reason: str


class QueueResumed(NamedTuple):
    """The queue's jobs are handed out again."""

    queue: str
    actor: str
    reason: str


class WriterOpened(NamedTuple):
    """A writer took over the store. `rolled_back_from`: the offset of a loss that the user accepted, else None."""

    writer: str
    version: str
    rolled_back_from: int | None


class WriterClosed(NamedTuple):
    """The writer ended in good order."""

    writer: str


class Rebuilt(NamedTuple):
    """Projections were made anew from the log. `names`: which; `changes`: rows put and rows deleted to get there."""

    actor: str
    reason: str
    names: tuple[str, ...]
    rows_put: int
    rows_deleted: int


class FilesSetAside(NamedTuple):
    """Files that kept the store from being opened, and that no promised commit needs, were moved out of its way.

    `folder` is where they are, below the store's. `total`: how many; `names`: the first hundred ("wal/000...1.sst").
    """

    folder: str
    total: int
    names: tuple[str, ...]


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
)
QueueEvent = QueuePaused | QueueResumed
LogEvent = WriterOpened | WriterClosed | Rebuilt | FilesSetAside
Event = JobEvent | QueueEvent | LogEvent


class Record(NamedTuple):
    """An event with its offset in the log, its commit's time (ms) and its writer's epoch."""

    offset: int
    time_ms: int
    epoch: int
    event: Event
