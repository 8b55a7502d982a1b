"""The event catalogue: every fact that a ledger can hold.

An event carries every fact that a decision took from configuration, clock or chance, so a fold needs only the log.
Ids are 16-byte ULIDs, times are ms since the Unix epoch, and the time of the event itself is its commit's.
An event is immutable; `msgspec.structs.replace` makes a changed copy. Its bytes are the array of its fields in order.
Next: codec.py turns them into bytes; projections/job.py has what follows from them.
"""

from typing import Annotated, Final, Literal, NamedTuple, get_args

from msgspec import Meta, Struct

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


Id = Annotated[bytes, Meta(min_length=16, max_length=16)]
"""A ULID's 16 bytes; decoding refuses any other length."""


class Fact(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """The base of all events: what no event can hold (a reference to itself) needs no garbage collection."""


class Enqueued(Fact, frozen=True):
    """A job was accepted; `due_ms` 0 means pending at once.

    `payload_bytes` is the size of the payload record, which holds salt and headers beside the bytes given, and
    `payload_digest` is its BLAKE2b-256.
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


class Promoted(Fact, frozen=True):
    """A scheduled job's time has come: it is pending."""

    id: Id


class Claimed(Fact, frozen=True):
    """A worker got the job for its `attempt`-th try, for `lease_ms` at first; `worker` is its name, if it gave one."""

    id: Id
    attempt: int
    lease_ms: int
    worker: str | None


class Acked(Fact, frozen=True):
    """The work is done; the record is kept until `sweep_at_ms`."""

    id: Id
    sweep_at_ms: int


class Nacked(Fact, frozen=True):
    """The try failed or was given back. `to` is the state that follows (scheduled, pending or dead).

    `due_ms` counts for scheduled, `sweep_at_ms` for dead, else 0. `released`: given back unused, the try doesn't count.
    """

    id: Id
    to: State
    due_ms: int
    sweep_at_ms: int
    released: bool
    error: str


class LeaseExpired(Fact, frozen=True):
    """The claim ended without a settlement. `to` is pending or dead; `sweep_at_ms` counts for dead, else 0."""

    id: Id
    to: State
    sweep_at_ms: int
    reason: str


class CancelRequested(Fact, frozen=True):
    """An operator wants a claimed job to stop; its worker learns of it."""

    id: Id
    actor: str
    reason: str


class Cancelled(Fact, frozen=True):
    """The job will not run (again); the record is kept until `sweep_at_ms`."""

    id: Id
    sweep_at_ms: int
    actor: str
    reason: str


class Requeued(Fact, frozen=True):
    """An operator gave a dead job a new start: pending, no attempts used."""

    id: Id
    actor: str
    reason: str


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


class QueuePaused(Fact, frozen=True):
    """No job of the queue is handed out until it is resumed."""

    queue: str
    actor: str
    reason: str


class QueueResumed(Fact, frozen=True):
    """The queue's jobs are handed out again."""

    queue: str
    actor: str
    reason: str


class WriterOpened(Fact, frozen=True):
    """A writer took over the store. `rolled_back_from`: the offset of a loss that the user accepted, else None."""

    writer: str
    version: str
    rolled_back_from: int | None


class WriterClosed(Fact, frozen=True):
    """The writer ended in good order."""

    writer: str


class Rebuilt(Fact, frozen=True):
    """Projections were made anew from the log. `names`: which; `changes`: rows put and rows deleted to get there."""

    actor: str
    reason: str
    names: tuple[str, ...]
    rows_put: int
    rows_deleted: int


class FilesSetAside(Fact, frozen=True):
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
