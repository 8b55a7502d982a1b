"""The job's state machine: the table of its transitions, and `evolve`, which gives the job after an event.

`evolve` never refuses: it takes over what an event holds. What may happen is decided in worker/engine/decisions.py, by
the same table. Next: indexes.py has the index rows of a job, stats.py the counters.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, assert_never

from msgspec import Struct
from msgspec.structs import replace

from ledgerq.eventlog.blobs import Blob, decode_blob
from ledgerq.eventlog.entropy import job_id_text
from ledgerq.eventlog.events import (
    STATES,
    Acked,
    Cancelled,
    CancelRequested,
    Claimed,
    DeadLettered,
    Deleted,
    Enqueued,
    Expired,
    JobEvent,
    LeaseExpired,
    Moved,
    Nacked,
    Promoted,
    Replaced,
    Requeued,
    Sealed,
    State,
    StepDone,
    Swept,
    Text,
    UniqueReleased,
)
from ledgerq.eventlog.terms import decode_terms
from ledgerq.projections.changed_jobs import MAX_OFFSETS, and_last, moved, replaced

__all__ = ["FINISHED", "MAX_OFFSETS", "TRANSITIONS", "Job", "born", "evolve", "holds_key", "may"]

# A job that is given back and claimed again without an end must not have a row that grows without one.
FINISHED: Final[frozenset[State]] = frozenset({"done", "dead", "cancelled"})

# Event -> state before -> the states that may follow. "new": before the first event; "gone": the record is deleted.
TRANSITIONS: Final[Mapping[type[JobEvent], Mapping[str, tuple[str, ...]]]] = MappingProxyType(
    {
        Enqueued: {"new": ("pending", "scheduled")},
        Promoted: {"scheduled": ("pending",)},
        Claimed: {"pending": ("claimed",)},
        Acked: {"claimed": ("done",)},
        Nacked: {"claimed": ("scheduled", "pending", "dead")},
        LeaseExpired: {"claimed": ("pending", "dead")},
        CancelRequested: {"claimed": ("claimed",)},
        Cancelled: {"pending": ("cancelled",), "scheduled": ("cancelled",)},
        Requeued: {"dead": ("pending",)},
        Swept: {"done": ("gone",), "dead": ("gone",), "cancelled": ("gone",)},
        DeadLettered: {"pending": ("dead",), "scheduled": ("dead",), "claimed": ("dead",)},
        Deleted: {"done": ("gone",), "dead": ("gone",), "cancelled": ("gone",)},
        Expired: {"pending": ("cancelled",), "scheduled": ("cancelled",)},
        Moved: {"pending": ("pending",), "scheduled": ("scheduled",), "dead": ("pending",)},
        StepDone: {"claimed": ("claimed",)},
        Replaced: {"pending": ("pending", "scheduled"), "scheduled": ("pending", "scheduled")},
        UniqueReleased: {state: (state,) for state in STATES},
    }
)


class Job(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """A job's whole state, as the fold of its events. Times are ms since the Unix epoch; 0 where none applies.

    `spec` is its first event (with its queue, payload and terms as they are now), `offset` and `enqueued_ms` that
    event's offset and time; `changed_ms` is the commit time of the last event, `claim_offset` the offset of the current
    (or last) claim, `offsets` those of its later events, of which a job that has very many keeps the last
    `MAX_OFFSETS`. `cancel_request` is (actor, reason) of a cancellation that the worker has yet to follow. `since_ms`
    is when the present state, as users see it, began: for a scheduled or pending job when it can (or could) be claimed,
    its due time or the event that made it pending; for a claimed one the claim; else when it was finished. `texts` are
    the offsets of its events whose texts or results stand beside the log, the last `MAX_OFFSETS` of them: those of
    older ones are deleted. `error_type` is the exception's class of `last_error`, `result` the place of what the
    handler returned, `crashes` how many tries in a row ended their process, `snoozes` how often in a row it was given
    back to be tried later, `moved_from` the queue in which it was before, empty for one that was never moved, `kept`
    whether the current claim goes on when its writer ends, `payload_at` the offset of the event that its payload came
    with, 0 for its first one, `steps` the names of the steps that its tries have done, each with the place of its
    value, which goes with the job.
    """

    spec: Enqueued
    offset: int
    enqueued_ms: int
    state: State
    attempt: int
    changed_ms: int
    due_ms: int
    claim_offset: int
    lease_ms: int
    worker: str | None
    sweep_at_ms: int
    last_error: Text
    cancel_request: tuple[str, Text] | None
    unique_held: bool
    offsets: tuple[int, ...]
    since_ms: int
    texts: tuple[int, ...] = ()
    error_type: str = ""
    result: Sealed | None = None
    crashes: int = 0
    snoozes: int = 0
    moved_from: str = ""
    kept: bool = False
    payload_at: int = 0
    steps: tuple[tuple[str, Sealed | None], ...] = ()

    @property
    def beside(self) -> tuple[int, ...]:
        """The offsets of all texts, results and values of steps that stand beside the log for it."""
        return (*self.texts, *(value.at for _, value in self.steps if value is not None))

    @property
    def error(self) -> str:
        """The error of the last try that failed, or why it ended; empty when none did."""
        return str(self.last_error)

    @property
    def last_offset(self) -> int:
        """The offset of the newest event."""
        return self.offsets[-1] if self.offsets else self.offset

    @property
    def id(self) -> bytes:
        """The ULID's 16 bytes."""
        return self.spec.id

    @property
    def job_id(self) -> str:
        """The ULID's text."""
        return job_id_text(self.spec.id)

    @property
    def queue(self) -> str:
        """The queue's name."""
        return self.spec.queue

    @property
    def priority(self) -> int:
        """Lower is handed out first."""
        return self.spec.priority

    @property
    def max_attempts(self) -> int:
        """How many claims may fail before the job is dead."""
        return self.spec.max_attempts

    @property
    def task(self) -> str | None:
        """The name of the task that the job is for, None when it is for none."""
        return None if self.spec.terms is None else decode_terms(self.spec.terms).task or None

    @property
    def blob(self) -> Blob | None:
        """The payload's place beside the store, None for one in a row."""
        if self.spec.terms is None or not (value := decode_terms(self.spec.terms).blob):
            return None
        return decode_blob(value)

    @property
    def payload_offset(self) -> int:
        """The offset of the event that its payload came with."""
        return self.payload_at or self.offset

    @property
    def hold_ms(self) -> int:
        """Until when its unique key is held whatever becomes of it; 0 for no such time."""
        return 0 if self.spec.terms is None else decode_terms(self.spec.terms).hold_ms

    @property
    def starts_before_ms(self) -> int:
        """No try begins at this time or later; 0 for a job that does not expire."""
        if self.spec.terms is None:
            return 0
        terms = decode_terms(self.spec.terms)
        return min(terms.expires_ms or terms.deadline_ms, terms.deadline_ms or terms.expires_ms)


def may(state: str, event_type: type[JobEvent]) -> bool:
    """Whether a job in `state` can have an event of this type."""
    return state in TRANSITIONS[event_type]


def holds_key(job: Job, time_ms: int) -> bool:
    """Whether no other job may take the job's unique key at this time.

    A key whose period is over is the job's, and in the index, until another job takes it.
    """
    if not job.unique_held or not 0 < job.hold_ms <= time_ms:
        return job.unique_held
    if job.spec.unique_until == "finished":
        return job.state not in FINISHED
    return job.spec.unique_until == "claimed" and not job.claim_offset


def born(event: Enqueued, offset: int, time_ms: int) -> Job:
    """The job after its first event."""
    due_ms, held = event.due_ms, event.unique_key is not None
    state: State = "scheduled" if due_ms else "pending"
    since_ms = due_ms or time_ms
    return Job(event, offset, time_ms, state, 0, time_ms, due_ms, 0, 0, None, 0, "", None, held, (), since_ms)


def _in_a_row(job: Job, event: Nacked) -> tuple[int, int]:
    """How many tries in a row ended their process, and how often in a row the job was put off, after `event`."""
    if not event.released:
        return 0, 0
    # Back at once: its worker ended, or had no time for it. Later: its handler has run, and asked for it.
    return (0, job.snoozes + 1) if event.to == "scheduled" else (job.crashes, job.snoozes)


def _otherwise(
    job: Job, event: Moved | Replaced | UniqueReleased | StepDone | Enqueued, offset: int, time_ms: int
) -> Job:
    """The job after an event that changes more of it than its state, or less."""
    match event:
        case Moved():
            return moved(job, event, offset, time_ms)
        case Replaced():
            return replaced(job, event, offset, time_ms)
        case UniqueReleased():
            return replace(job, unique_held=False, changed_ms=time_ms, offsets=and_last(job.offsets, offset))
        case StepDone():
            steps = (*job.steps, (event.name, event.value))
            return replace(job, changed_ms=time_ms, offsets=and_last(job.offsets, offset), steps=steps)
        case Enqueued():
            return born(event, offset, time_ms)
        case _:
            assert_never(event)


def evolve(job: Job, event: JobEvent, offset: int, time_ms: int) -> Job | None:
    """The job after `event`, which stands at `offset` in a commit of `time_ms`; None when the job is gone."""
    held, error, attempt, since_ms = job.unique_held, job.last_error, job.attempt, time_ms
    claim_offset, lease_ms, worker, due_ms, sweep_at_ms = job.claim_offset, 0, job.worker, 0, 0
    cancel_request: tuple[str, Text] | None = None
    state: State
    text: Text | None = None
    error_type, result, crashes, snoozes = job.error_type, job.result, job.crashes, job.snoozes
    match event:
        case Claimed():
            state, attempt = "claimed", event.attempt
            claim_offset, lease_ms, worker = offset, event.lease_ms, event.worker
            held = held and (job.spec.unique_until != "claimed" or job.hold_ms > time_ms)
        case Acked():
            state, sweep_at_ms = "done", event.sweep_at_ms
            text = result = event.result
        case Nacked():
            state, due_ms, sweep_at_ms, error = event.to, event.due_ms, event.sweep_at_ms, event.error
            text, error_type, since_ms = error, event.error_type, event.due_ms or time_ms
            attempt -= event.released
            crashes, snoozes = _in_a_row(job, event)
        case LeaseExpired():
            state, sweep_at_ms, error, error_type = event.to, event.sweep_at_ms, event.reason, ""
            crashes, snoozes = crashes + event.crashed, 0
        case Promoted():
            state, since_ms = "pending", job.since_ms
        case CancelRequested():
            state, lease_ms, cancel_request = "claimed", job.lease_ms, (event.actor, event.reason)
            text, since_ms = event.reason, job.since_ms
        case Cancelled() | Expired():
            state, sweep_at_ms = "cancelled", event.sweep_at_ms
            text = event.reason if isinstance(event, Cancelled) else None
        case DeadLettered():
            state, sweep_at_ms, error, error_type = "dead", event.sweep_at_ms, event.reason, ""
        case Requeued():
            state, attempt, crashes, snoozes, text = "pending", 0, 0, 0, event.reason
            held = held or (job.spec.unique_key is not None and job.spec.unique_until == "finished")
        case Moved() | Replaced() | UniqueReleased() | StepDone() | Enqueued():
            return _otherwise(job, event, offset, time_ms)
        case Swept() | Deleted():
            return None
        case _:
            assert_never(event)
    return Job(
        job.spec,
        job.offset,
        job.enqueued_ms,
        state,
        attempt,
        time_ms,
        due_ms,
        claim_offset,
        lease_ms,
        worker,
        sweep_at_ms,
        error,
        cancel_request,
        held and (state not in FINISHED or job.hold_ms > time_ms),
        and_last(job.offsets, offset),
        since_ms,
        and_last(job.texts, offset) if type(text) is Sealed and text.at == offset else job.texts,
        error_type,
        result,
        crashes,
        snoozes,
        job.moved_from,
        state == "claimed" and (event.kept if type(event) is Claimed else job.kept),
        job.payload_at,
        job.steps,
    )
