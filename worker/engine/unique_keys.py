"""The decisions about a unique key that another job has: whether it holds it still, and what follows from that.

Plain functions, like those in decisions.py. Times are ms since the Unix epoch.
"""

from datetime import datetime
from typing import Final, NamedTuple, NoReturn, get_args

from msgspec.structs import replace

from ledgerq.eventlog.errors import InvalidArgument, UniqueKeyHeld
from ledgerq.eventlog.events import Enqueued, Replaced, UniqueUntil
from ledgerq.eventlog.terms import Terms, decode_terms, encode_terms
from ledgerq.projections.index_keys import unique_key
from ledgerq.projections.job import Job, may
from ledgerq.worker.options import OnConflict, QueueOptions, seconds_ms, to_ms

__all__ = ["KEEP", "Conflict", "KeyTerms", "has_key", "key_terms", "refuse_held", "replaced"]


class Conflict(NamedTuple):
    """What is to be done when the unique key is held; `most_ms`: so long after the first enqueue it is due at last.

    0: it is due when the last enqueue says.
    """

    what: OnConflict = "keep"
    most_ms: int = 0


KEEP: Final = Conflict()


class KeyTerms(NamedTuple):
    """The terms of a unique key: the job's delay, how long it has the key, what a further enqueue does, its period."""

    delay: float | None
    until: UniqueUntil
    conflict: Conflict
    hold_ms: int


def key_terms(
    unique_key: object,
    unique_until: UniqueUntil,
    unique_for: float | None,
    on_conflict: OnConflict,
    debounce: float | None,
    debounce_max: float | None,
    delay: float | None,
    run_at: datetime | None,
    now_ms: int,
    options: QueueOptions,
) -> KeyTerms:
    """Check the arguments about a unique key; raises `InvalidArgument`."""
    if unique_key is None:
        raise InvalidArgument("unique_for, on_conflict and debounce are about a unique key: give unique_key, too")
    if on_conflict not in get_args(OnConflict):
        raise InvalidArgument(f"on_conflict is 'keep', 'replace' or 'raise', not {on_conflict!r}")
    if debounce is not None or debounce_max is not None:
        if delay is not None or run_at is not None or unique_for is not None:
            raise InvalidArgument("debounce is a delay, and has its key until it is claimed: give no other with it")
        if debounce is None:
            raise InvalidArgument("debounce_max is the limit of debounce: give that, too")
        least_ms = seconds_ms("debounce", debounce, least_ms=1)
        most_ms = 0 if debounce_max is None else seconds_ms("debounce_max", debounce_max, least_ms=least_ms)
        return KeyTerms(debounce, "claimed", Conflict("replace", most_ms), 0)
    conflict = KEEP if on_conflict == "keep" else Conflict(on_conflict)
    hold_ms = 0 if unique_for is None and unique_until != "period" else now_ms + _period_ms(unique_for, options)
    return KeyTerms(delay, unique_until, conflict, hold_ms)


def _period_ms(unique_for: float | None, options: QueueOptions) -> int:
    """The period of a unique key, for which the record of its job has to be kept, whatever becomes of that."""
    if unique_for is None:
        raise InvalidArgument("unique_until='period' needs the period: give unique_for, in seconds")
    period_ms = seconds_ms("unique_for", unique_for, least_ms=1)
    kept_s = min(options.keep_done_s, options.keep_dead_s, options.keep_cancelled_s)
    if period_ms > to_ms(kept_s):
        raise InvalidArgument(
            f"unique_for={unique_for:g} is longer than the records of finished jobs are kept, which have the keys: "
            f"raise keep_done_s, keep_dead_s and keep_cancelled_s, of which the least is {kept_s:g}"
        )
    return period_ms


def has_key(job: Job | None, key: bytes) -> bool:
    """Whether the job has this key of the unique range, be its period over or not."""
    if job is None or not job.unique_held or job.spec.unique_key is None:
        return False
    return unique_key(job.spec.queue, job.spec.unique_key) == key


def replaced(holder: Job, event: Enqueued, conflict: Conflict, now_ms: int) -> Replaced | None:
    """The event that puts what was to be enqueued in the place of a job that waits; None when that runs, or has ended.

    Nor is one replaced whose tries have done steps, since their values are of the arguments that it has, or one with a
    large payload, which goes with its job alone.
    The place in the queue and the time until which the key is held stay: they don't move with each call.
    """
    if conflict.what != "replace" or holder.steps or holder.blob or not may(holder.state, Replaced):
        return None
    due_ms = event.due_ms
    if conflict.most_ms:
        due_ms = min(due_ms, holder.enqueued_ms + conflict.most_ms)
    return Replaced(
        holder.id,
        event.max_attempts,
        due_ms if due_ms > now_ms else 0,
        event.payload_bytes,
        event.payload_digest,
        _terms(holder.spec.terms, event.terms),
    )


def _terms(old: bytes | None, new: bytes | None) -> bytes | None:
    """The terms of what is done, from `new`; those of the job's place and of its key stay."""
    if old is None and new is None:
        return None
    given, kept = Terms() if new is None else decode_terms(new), Terms() if old is None else decode_terms(old)
    terms = replace(
        kept,
        task=given.task,
        content_type=given.content_type,
        expires_ms=given.expires_ms,
        deadline_ms=given.deadline_ms,
    )
    return None if terms == Terms() else encode_terms(terms)


def refuse_held(holder: Job) -> NoReturn:
    """Refuse what was to be enqueued: raises `UniqueKeyHeld`."""
    raise UniqueKeyHeld(
        f"job {holder.job_id}, which is {holder.state}, holds the unique key in queue {holder.queue!r}; nothing was "
        "written"
    )
