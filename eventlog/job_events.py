"""The events of jobs: what can happen to one, from its enqueueing to its end."""

from typing import Final, Literal, get_args

from ledgerq.eventlog.facts import Count, Digest, Fact, Id, Sealed, Text
from ledgerq.eventlog.step_events import StepDone

__all__ = [
    "Acked",
    "CancelRequested",
    "Cancelled",
    "Claimed",
    "DeadLettered",
    "Deleted",
    "Enqueued",
    "Expired",
    "JobEvent",
    "LeaseExpired",
    "Moved",
    "Nacked",
    "Promoted",
    "Replaced",
    "Requeued",
    "STATES",
    "State",
    "Swept",
    "UniqueReleased",
    "UniqueUntil",
]


State = Literal["scheduled", "pending", "claimed", "done", "dead", "cancelled"]
"""The states of a job, as people read them and as the disk holds them."""

STATES: Final[tuple[State, ...]] = get_args(State)

UniqueUntil = Literal["finished", "claimed", "period"]
"""How long a job holds its unique key: until it is finished, or claimed for the first time, and at least for its period
(`Terms.hold_ms`), if it has one; or for that alone."""


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


class Replaced(Fact, frozen=True):
    """A waiting job goes on with what was enqueued under its unique key: payload, due time, terms, attempts.

    It keeps its id, its place in the queue, and the time until which it holds the key. Its tries are counted anew. The
    payload record stands at this event's offset; the one before is deleted. `due_ms` 0: pending at once.
    """

    id: Id
    max_attempts: int
    due_ms: Count
    payload_bytes: int
    payload_digest: Digest
    terms: bytes | None = None


class UniqueReleased(Fact, frozen=True):
    """The job gives up its unique key, whose period is over: another job takes it in the same commit."""

    id: Id


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
    | StepDone
    | Replaced
    | UniqueReleased
)
