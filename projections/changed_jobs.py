"""What a job is after an event that changes more of it than its state: a move, and what was enqueued in its place."""

from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from ledgerq.eventlog.events import Moved, Replaced, Sealed
from ledgerq.eventlog.terms import decode_terms, encode_terms

if TYPE_CHECKING:
    from ledgerq.projections.job import Job

__all__ = ["MAX_OFFSETS", "and_last", "moved", "replaced"]

MAX_OFFSETS: Final = 200


def and_last(offsets: tuple[int, ...], offset: int) -> tuple[int, ...]:
    """The newest offsets, with one more."""
    return (*offsets, offset) if len(offsets) < MAX_OFFSETS else (*offsets[1 - MAX_OFFSETS :], offset)


def moved(job: "Job", event: Moved, offset: int, time_ms: int) -> "Job":
    """The job in its new queue, with all that its tries there begin from."""
    has_text = type(event.reason) is Sealed and event.reason.at == offset
    terms = job.spec.terms
    if terms is not None and job.state == "dead":
        # A dead letter stays where it was put, until somebody has looked at it.
        terms = encode_terms(replace(decode_terms(terms), expires_ms=0, deadline_ms=0))
    return replace(
        job,
        spec=replace(job.spec, queue=event.queue, terms=terms),
        state="scheduled" if job.state == "scheduled" else "pending",
        attempt=0,
        changed_ms=time_ms,
        sweep_at_ms=0,
        unique_held=False,
        offsets=and_last(job.offsets, offset),
        since_ms=job.due_ms or time_ms,
        texts=and_last(job.texts, offset) if has_text else job.texts,
        crashes=0,
        snoozes=0,
        moved_from=job.queue,
    )


def replaced(job: "Job", event: Replaced, offset: int, time_ms: int) -> "Job":
    """The job with what was enqueued in its place; a new start, as its tries were those of other arguments."""
    size, digest = event.payload_bytes, event.payload_digest
    spec = replace(job.spec, payload_bytes=size, payload_digest=digest, terms=event.terms)
    return replace(
        job,
        spec=replace(spec, max_attempts=event.max_attempts),
        state="scheduled" if event.due_ms else "pending",
        attempt=0,
        changed_ms=time_ms,
        due_ms=event.due_ms,
        offsets=and_last(job.offsets, offset),
        since_ms=event.due_ms or time_ms,
        crashes=0,
        snoozes=0,
        payload_at=offset,
    )
