"""Made-up but valid histories of several jobs in several queues: the raw material of the property tests.

A history is made from a list of whole numbers, each of which chooses one of the steps that are possible now, so that
Hypothesis can shrink a failing one to a short list.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, get_args

from hypothesis import settings
from hypothesis import strategies as st
from msgspec.structs import replace

from ledgerq.eventlog.events import (
    STATES,
    Acked,
    BulkBegan,
    BulkEnded,
    BulkKind,
    Cancelled,
    CancelRequested,
    Checkpointed,
    Claimed,
    DeadLettered,
    Deleted,
    Enqueued,
    Event,
    Expired,
    JobEvent,
    KvDeleted,
    KvSet,
    LeaseExpired,
    MissedPolicy,
    Moved,
    Nacked,
    OverlapPolicy,
    Promoted,
    QueuePaused,
    QueueResumed,
    Rebuilt,
    Replaced,
    Requeued,
    SchedulePaused,
    ScheduleRemoved,
    ScheduleResumed,
    ScheduleSet,
    Sealed,
    StepDone,
    Swept,
    Ticked,
    TickReason,
    UniqueReleased,
    UniqueUntil,
    WriterClosed,
    WriterOpened,
)
from ledgerq.eventlog.terms import JSON, Terms, encode_terms
from ledgerq.projections.fold import Fold, Transition
from ledgerq.projections.job import TRANSITIONS, Job, holds_key

START_MS = 1_700_000_000_000
DIGEST = bytes(range(32))
QUEUES = ("mail", "mail.low", "müll")
UNIQUE_KEYS = (None, None, b"k", b"k\0k")

quick = settings(deadline=None, derandomize=True, max_examples=40)
some = settings(deadline=None, derandomize=True, max_examples=70)
thorough = settings(deadline=None, derandomize=True, max_examples=140)


_MAX_STEP_MS = 2


def job_id(number: int) -> bytes:
    """A job id made at `START_MS`."""
    return START_MS.to_bytes(6) + number.to_bytes(10)


def enqueued(number: int = 1, **fields: Any) -> Enqueued:
    """An enqueued event with every field set; `fields` replace some."""
    event = Enqueued(job_id(number), "mail", 1000, 3, 0, None, "finished", 21, DIGEST)
    return replace(event, **fields)


class Step(NamedTuple):
    """One step that is possible: an event's type, and the job it is about (None for a new one or for no job)."""

    event_type: type[Any]
    job: Job | None


def history_of(choices: Sequence[int]) -> list[Transition]:
    """The history that these choices lead to, one event for each, folded."""
    fold = Fold()
    transitions: list[Transition] = []
    time_ms, made = START_MS, 0
    for offset, choice in enumerate(choices):
        steps = [Step(Enqueued, None), Step(Enqueued, None), Step(QueuePaused, None)]
        steps += [
            Step(event_type, job)
            for job in fold.jobs.values()
            for event_type, allowed in TRANSITIONS.items()
            if job.state in allowed
            and not (event_type is Requeued and _key_is_taken(fold, job))
            and not (event_type is Expired and not job.starts_before_ms)
            and not (event_type is Replaced and (job.steps or not job.unique_held))
            and not (event_type is UniqueReleased and not _can_be_free(job))
            and not (event_type is Claimed and 0 < job.starts_before_ms <= time_ms + _MAX_STEP_MS)
        ]
        chance, chosen = divmod(choice, len(steps))
        chance, step_ms = divmod(chance, _MAX_STEP_MS + 1)
        time_ms += step_ms
        event_type, job = steps[chosen]
        if event_type is Expired and job is not None:
            time_ms = max(time_ms, job.starts_before_ms)
        if event_type is UniqueReleased and job is not None:
            time_ms = max(time_ms, job.hold_ms)
        if event_type is Enqueued:
            made += 1
        event = _event(fold, event_type, job, made, chance, time_ms)
        transitions.append(fold.apply(offset, time_ms, event))
    return transitions


def _can_be_free(job: Job) -> bool:
    """Whether the job may give up its key once the period is over."""
    return job.unique_held and job.hold_ms > 0 and not holds_key(job, job.hold_ms)


def _key_is_taken(fold: Fold, job: Job) -> bool:
    spec = job.spec
    return spec.unique_key is not None and any(
        other.unique_held and (other.spec.queue, other.spec.unique_key) == (spec.queue, spec.unique_key)
        for other in fold.jobs.values()
    )


def _event(fold: Fold, event_type: type[Any], job: Job | None, made: int, chance: int, time_ms: int) -> Event:
    if event_type is QueuePaused:
        chance, paused = divmod(chance, 2)
        return (QueuePaused if paused else QueueResumed)(QUEUES[chance % 3], "ann", "maintenance")
    if job is None:
        chance, queue = divmod(chance, 3)
        chance, key = divmod(chance, 4)
        chance, until = divmod(chance, 3)
        chance, delayed = divmod(chance, 2)
        key_bytes = UNIQUE_KEYS[key]
        expires_ms = time_ms + 1 + chance % 23 if chance % 4 == 1 else 0
        hold_ms = time_ms + 1 + chance % 17 if key_bytes is not None and (chance % 3 == 1 or until == 2) else 0
        event = enqueued(
            made,
            queue=QUEUES[queue],
            priority=chance % 5,
            due_ms=time_ms + 1 + chance % 7 if delayed else 0,
            unique_key=key_bytes,
            unique_until=get_args(UniqueUntil)[until],
            terms=None if not (expires_ms or hold_ms) else encode_terms(Terms("", JSON, expires_ms, 0, hold_ms)),
        )
        probe = Fold().apply(0, 0, event).after
        return replace(event, unique_key=None) if probe is not None and _key_is_taken(fold, probe) else event
    return _job_event(event_type, job, chance, time_ms)


def _job_event(event_type: type[JobEvent], job: Job, chance: int, time_ms: int) -> JobEvent:
    later_ms = time_ms + 1 + chance % 11
    if event_type is Claimed:
        return Claimed(job.id, job.attempt + 1, 30_000, "w1" if chance % 2 else None, chance % 3 == 0)
    if event_type is Acked:
        return Acked(job.id, later_ms)
    if event_type is Nacked:
        to = TRANSITIONS[Nacked]["claimed"][chance % 3]
        released = to == "pending" and bool(chance // 3 % 2)
        due_ms, sweep_at_ms = (later_ms if to == "scheduled" else 0), (later_ms if to == "dead" else 0)
        return Nacked(job.id, to, due_ms, sweep_at_ms, released, "boom")  # type: ignore[arg-type]
    if event_type is LeaseExpired:
        return LeaseExpired(job.id, "dead", later_ms, "late") if chance % 2 else LeaseExpired(job.id, "pending", 0, "x")
    if event_type is Cancelled:
        return Cancelled(job.id, later_ms, "ann", "wrong address")
    if event_type is DeadLettered:
        return DeadLettered(job.id, later_ms, "ann", "the payload is lost")
    if event_type in (CancelRequested, Requeued, Deleted):
        return event_type(job.id, "ann", "why not")
    if event_type is Expired:
        return Expired(job.id, later_ms)
    if event_type is Replaced:
        return Replaced(job.id, 1 + chance % 3, later_ms if chance % 2 else 0, 22, DIGEST[::-1], job.spec.terms)
    if event_type is Moved:
        return Moved(job.id, next(name for name in QUEUES if name != job.queue), "ann", "elsewhere")
    if event_type is StepDone:
        return StepDone(job.id, f"step {len(job.steps)}", None)
    assert event_type in (Promoted, Swept, UniqueReleased)
    return event_type(job.id)


def histories(max_size: int = 60) -> st.SearchStrategy[list[Transition]]:
    """Valid histories of up to `max_size` events."""
    # Left alone, Hypothesis draws mostly lists of less than five, in which nothing happens.
    choices = st.integers(0, 2**24)
    return (st.lists(choices, max_size=4) | st.lists(choices, min_size=30, max_size=max_size)).map(history_of)


# Any event at all, valid in its types and nothing else: for what must hold for bytes, not for meanings.
_text = st.text(st.characters(codec="utf-8"), max_size=20)
_ids = st.binary(min_size=16, max_size=16)
_u64 = st.integers(0, 2**64 - 1)
_u32 = st.integers(0, 2**32 - 1)
_states = st.sampled_from(STATES)
_digests = st.binary(min_size=32, max_size=32)
_sealed = st.builds(Sealed, _u64, _u32, _digests)
_words = _text | _sealed
_FIELDS: dict[type[Any], tuple[st.SearchStrategy[Any], ...]] = {
    Enqueued: (
        *(_ids, _text, _u32, _u32, _u64, st.none() | st.binary(max_size=20)),
        *(st.sampled_from(get_args(UniqueUntil)), _u32, st.binary(min_size=32, max_size=32)),
        st.none() | st.binary(max_size=20),
    ),
    Promoted: (_ids,),
    Claimed: (_ids, _u32, _u64, st.none() | _text),
    Acked: (_ids, _u64, st.none() | _sealed),
    Nacked: (_ids, _states, _u64, _u64, st.booleans(), _words, _text),
    LeaseExpired: (_ids, _states, _u64, _text, st.booleans()),
    CancelRequested: (_ids, _text, _words),
    Cancelled: (_ids, _u64, _text, _words),
    Requeued: (_ids, _text, _words),
    Swept: (_ids,),
    DeadLettered: (_ids, _u64, _text, _text),
    Deleted: (_ids, _text, _words),
    Expired: (_ids, _u64),
    Moved: (_ids, _text, _text, _words),
    StepDone: (_ids, _text, st.none() | _sealed),
    Replaced: (_ids, _u32, _u64, _u32, st.binary(min_size=32, max_size=32), st.none() | st.binary(max_size=20)),
    UniqueReleased: (_ids,),
    QueuePaused: (_text, _text, _words),
    QueueResumed: (_text, _text, _words),
    BulkBegan: (
        *(_text, st.sampled_from(get_args(BulkKind)), st.none() | _states, _text),
        *(_u32, _u64, _u64, _u64, _text, _words, _text, _text),
    ),
    BulkEnded: (_text, _u64, _u32, _u32),
    ScheduleSet: (
        *(_text, _text, _text, _text, _text, st.none() | _u32, st.none() | _u32, st.booleans()),
        *(st.sampled_from(get_args(MissedPolicy)), st.sampled_from(get_args(OverlapPolicy)), _u64, _u64, _text),
        *(st.binary(min_size=32, max_size=32), _u64, _u64, _u32, _text, _words),
    ),
    ScheduleRemoved: (_text, _text, _words),
    SchedulePaused: (_text, _text, _words),
    ScheduleResumed: (_text, _u64, _u64, _text, _words),
    Ticked: (*(_text, _u64, st.none() | _ids, st.sampled_from(get_args(TickReason)), _u32, _u64, _u64, _text, _words),),
    KvSet: (_text, _u32, st.binary(min_size=32, max_size=32), st.none() | _ids),
    KvDeleted: (_text, st.none() | _ids, st.booleans()),
    WriterOpened: (_text, _text, st.none() | _u64),
    WriterClosed: (_text,),
    Checkpointed: (
        _text,
        st.binary(min_size=4, max_size=4),
        _u64.filter(bool),
        _u64,
        st.binary(min_size=32, max_size=32),
    ),
    Rebuilt: (_text, _text, st.lists(_text, max_size=3).map(tuple), _u64, _u64),
}


def any_events() -> st.SearchStrategy[Event]:
    """One event of any type with any fields of the right types."""
    return st.one_of(*(st.builds(kind, *fields) for kind, fields in _FIELDS.items()))
