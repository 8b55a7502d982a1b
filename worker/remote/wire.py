"""The messages between a service and its clients: one set of types, written as JSON or as msgpack.

Decoding checks them: a field that is unknown, missing or of another type is refused. Bytes are base64 in JSON; ids are
the ULID's 26 characters; a claim is named by its job's id and its own offset, which no later claim has.
"""

from datetime import datetime
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from ledgerq.eventlog import errors
from ledgerq.eventlog.codec import EVENT_TYPES
from ledgerq.eventlog.events import Enqueued, Record, UniqueUntil
from ledgerq.projections.job import Job
from ledgerq.worker.options import OnConflict

__all__ = [
    "EPOCH_HEADER",
    "JSON",
    "MAX_BODY_BYTES",
    "MAX_OPS",
    "MAX_WAIT_S",
    "MSGPACK",
    "fields_of",
    "job_of",
    "record_of",
]

MAX_OPS: Final = 1000
MAX_BODY_BYTES: Final = 16 * 1024 * 1024
MAX_WAIT_S: Final = 30
MAX_CLAIMS: Final = 1000
MAX_HEARTBEAT_CLAIMS: Final = 10_000
JSON: Final = "application/json"
MSGPACK: Final = "application/msgpack"
EPOCH_HEADER: Final = "ledgerq-epoch"

Wait = Annotated[float, Meta(ge=0, le=MAX_WAIT_S)]
Name = tuple[str, Annotated[int, Meta(ge=0, le=2**63 - 1)]]
"""A claim: the id of its job, and its offset."""


class Message(Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """The base of all messages."""


class NewJobBody(Message):
    """A job to be enqueued, as for `Queue.enqueue`; `id` None: the service makes one."""

    payload: bytes
    id: str | None = None
    priority: int | None = None
    delay: float | None = None
    run_at: datetime | None = None
    expires: float | datetime | None = None
    deadline: float | datetime | None = None
    max_attempts: int | None = None
    unique_key: str | None = None
    unique_key_bytes: bytes | None = None
    unique_until: UniqueUntil = "finished"
    unique_for: float | None = None
    on_conflict: OnConflict = "keep"
    debounce: float | None = None
    debounce_max: float | None = None
    headers: dict[str, str] | None = None
    task: str | None = None


class EnqueueOp(NewJobBody, kw_only=True, tag_field="op", tag="enqueue"):
    """Add a job to a queue."""

    queue: str


class AckOp(Message, tag_field="op", tag="ack"):
    """The work is done; `result`: what its handler returned. Repeated, it succeeds again."""

    claim: Name
    result: bytes | None = None


class RuleBody(Message):
    """A retry rule; what is null is as the job and its queue have it."""

    attempts: int | None = None
    base: float | None = None
    cap: float | None = None
    dead: bool = False


class NackOp(Message, tag_field="op", tag="nack"):
    """The try failed: tried again after backoff or `delay` seconds, or dead."""

    claim: Name
    error: str
    delay: float | None = None
    dead: bool = False
    error_type: str = ""
    rule: RuleBody | None = None


class ReleaseOp(Message, tag_field="op", tag="release"):
    """Give the claim back unused; the try is not counted."""

    claim: Name
    reason: str = "released"
    delay: float | None = None
    hold: float | None = None


class ExtendOp(Message, tag_field="op", tag="extend"):
    """Renew the lease to `lease` seconds from now."""

    claim: Name
    lease: float


Op = EnqueueOp | AckOp | NackOp | ReleaseOp | ExtendOp


class OpsBody(Message):
    """Calls, each of which succeeds or fails by itself; they are durable together."""

    ops: Annotated[list[Op], Meta(max_length=MAX_OPS)]


class ErrorBody(Message):
    """Why a call failed; `permanent`: the same call can't work without a change."""

    error: str
    message: str
    permanent: bool


class OpResult(Message):
    """What came of one call: an error; `id`, `created`, `replaced` of an enqueue; of an extend the lease's new end."""

    error: ErrorBody | None = None
    id: str | None = None
    created: bool | None = None
    replaced: bool = False
    lease_expires_ms: int | None = None


class OpsAnswer(Message):
    """One result for each call, in their order."""

    results: list[OpResult]


class JobsBody(Message):
    """Jobs of one queue: all are added in one commit, or none."""

    jobs: Annotated[list[NewJobBody], Meta(max_length=10_000)]


class Added(Message):
    """A job's id, and whether it is new: else it holds the unique key; `replaced`: it has what was sent now."""

    id: str
    created: bool
    replaced: bool = False


class JobsAnswer(Message):
    """One for each job, in their order."""

    jobs: list[Added]


class ClaimBody(Message):
    """Claim up to `limit` jobs of the first of these queues that has any; `wait`: for so many seconds at most."""

    queues: Annotated[list[str], Meta(min_length=1, max_length=100)]
    limit: Annotated[int, Meta(ge=1, le=MAX_CLAIMS)] = 1
    lease: float | None = None
    wait: Wait = 0
    worker: str | None = None


class ClaimMessage(Message):
    """A claimed job. Its claim is named by `id` and `offset`."""

    queue: str
    id: str
    offset: int
    attempt: int
    max_attempts: int
    priority: int
    enqueued_ms: int
    lease_ms: int
    lease_expires_ms: int
    payload: bytes
    headers: dict[str, str] | None = None
    task: str | None = None
    terms: bytes | None = None
    limited: bool = False


class ClaimsAnswer(Message):
    """The claims; none when the wait is over."""

    claims: list[ClaimMessage]


class HeartbeatBody(Message):
    """Claims that are held; with `lease` they are renewed to so many seconds from now."""

    claims: Annotated[list[Name], Meta(max_length=MAX_HEARTBEAT_CLAIMS)]
    lease: float | None = None


class HeartbeatAnswer(Message):
    """Those that are no longer current, and those whose jobs are to stop."""

    lost: list[Name]
    cancel: list[Name]


class ReasonBody(Message):
    """Why an operator does this. `actor`: who, where the service has no tokens; else it is the token's name."""

    reason: str
    actor: str | None = None


class JobAnswer(Message):
    """A job's whole state."""

    job: dict[str, Any]


class JobsPage(Message):
    """A page of jobs; `next` is `after` of the page that follows."""

    jobs: list[dict[str, Any]]
    next: str | None = None


class EventsAnswer(Message):
    """Events with their offsets; `next`: the offset to go on from."""

    events: list[dict[str, Any]]
    next: int | None = None


class PayloadAnswer(Message):
    """The payload and the headers of a job."""

    payload: bytes
    headers: dict[str, str] | None = None


class ResultAnswer(Message):
    """What a job was acked with, null when that is nothing, or nothing yet."""

    result: bytes | None = None


class QueuesAnswer(Message):
    """The names of the queues, in order."""

    queues: list[str]


class StatsAnswer(Message):
    """The counters of a queue."""

    stats: dict[str, Any]


class OptionsAnswer(Message):
    """The options of queues: `default`, and those that have their own."""

    default: dict[str, Any]
    queues: dict[str, dict[str, Any]]


class WriterAnswer(Message):
    """The epoch of the store's writer."""

    epoch: int


class DrainedAnswer(Message):
    """Whether the queues hold no unfinished job."""

    drained: bool


class Done(Message):
    """It is done, and durable."""


def fields_of(struct: Struct) -> dict[str, Any]:
    """A job or an event by the names of its fields; what is stored as an array in it, too."""
    values = {name: getattr(struct, name) for name in struct.__struct_fields__}
    return {name: fields_of(value) if isinstance(value, Enqueued) else value for name, value in values.items()}


def job_of(fields: dict[str, Any]) -> Job:
    """The job of `fields_of`, as msgpack has it."""
    plain = ([*value.values()] if name == "spec" else value for name, value in fields.items() if name != "id")
    return msgspec.convert([*plain], Job)


def record_fields(record: Record) -> dict[str, Any]:
    """An event with its offset, time and epoch, as clients get it."""
    event = {"type": type(record.event).__name__, "fields": fields_of(record.event)}
    return {"offset": record.offset, "time_ms": record.time_ms, "epoch": record.epoch, **event}


_TYPES: Final = {event_type.__name__: event_type for event_type in EVENT_TYPES.values()}


def record_of(fields: dict[str, Any]) -> Record:
    """The event of `record_fields`, as msgpack has it; raises `UnknownEventType` for one of a newer version."""
    if (event_type := _TYPES.get(fields["type"])) is None:
        raise errors.UnknownEventType(f"the service sent an event {fields['type']!r}: upgrade ledgerq to read it")
    event = msgspec.convert([*fields["fields"].values()], event_type)
    return Record(fields["offset"], fields["time_ms"], fields["epoch"], event)
