"""The decisions: which events follow from a job's state and a call. The only module that refuses.

Plain functions: each returns events with every fact that it took from options, clock or chance. Times are ms since
the Unix epoch. Which event is allowed in which state is decided by the one table in projections/job.py.
"""

from typing import Final, NoReturn, assert_never

from ledgerq.eventlog.errors import ClaimLost, InvalidArgument, InvalidState
from ledgerq.eventlog.events import (
    Acked,
    BulkKind,
    Cancelled,
    CancelRequested,
    Claimed,
    DeadLettered,
    Deleted,
    Expired,
    JobEvent,
    LeaseExpired,
    Moved,
    Nacked,
    Promoted,
    Requeued,
    Sealed,
    StepDone,
    Swept,
    Text,
)
from ledgerq.projections.job import FINISHED, Job, may
from ledgerq.worker.options import QueueOptions, to_ms
from ledgerq.worker.retry_rules import RetryRule

__all__ = [
    "LEASE_EXPIRED",
    "ack",
    "backoff_ms",
    "cancel",
    "claim",
    "counts_as_crash",
    "done_step",
    "expire",
    "finish_step",
    "in_bulk",
    "is_last",
    "is_too_late",
    "lose_payload",
    "not_started",
    "nack",
    "promote",
    "release",
    "requeue",
    "sweep",
]

MAX_ERROR_CHARS: Final = 4000
MAX_TYPE_CHARS: Final = 255
MAX_OPERATOR_CHARS: Final = 1000
MAX_SNOOZES: Final = 1000
MAX_STEPS: Final = 200
MAX_STEP_NAME_BYTES: Final = 255
LEASE_EXPIRED: Final = "lease expired"
INTERRUPTED: Final = "interrupted"
# A quarter of what a worker runs at a time by default. Of more claims that end together nearly all are of jobs that
# did no harm: a machine lost its power, or something blocked the event loop.
_MAX_SUSPECTS: Final = 12
# The actor of events that a queue decides by itself.
_OWN_ACTOR: Final = "ledgerq"


def claim(job: Job, *, lease_ms: int, worker: str | None, kept: bool = False) -> Claimed:
    """Claim a pending job for a worker; `kept`: of another process, so that the claim outlives this writer."""
    if not may(job.state, Claimed):
        _refuse(job, "claimed", "it must be pending")
    return Claimed(job.id, job.attempt + 1, lease_ms, worker, kept)


def is_too_late(job: Job, time_ms: int) -> bool:
    """Whether no try of the job may begin at this time: it expires before, or its deadline is over."""
    return job.spec.terms is not None and 0 < job.starts_before_ms <= time_ms


def not_started(job: Job, *, options: QueueOptions, now_ms: int, by_ms: int) -> list[JobEvent]:
    """Cancel a waiting job that was not started by then; no event before that, or for any other job."""
    if not may(job.state, Expired) or not is_too_late(job, by_ms):
        return []
    return [Expired(job.id, kept_until_ms(job, now_ms, options.keep_cancelled_s))]


def ack(job: Job | None, claim_offset: int, *, options: QueueOptions, now_ms: int) -> Acked | None:
    """Ack a current claim: its work is done. None for one that has acked its job already: the call is repeated."""
    if job is not None and job.state == "done" and job.claim_offset == claim_offset:
        return None
    job = current(job, claim_offset)
    return Acked(job.id, kept_until_ms(job, now_ms, options.keep_done_s))


def nack(
    job: Job | None,
    claim_offset: int,
    *,
    options: QueueOptions,
    now_ms: int,
    error: str,
    delay_ms: int | None,
    dead: bool,
    fraction: float,
    error_type: str = "",
    rule: RetryRule | None = None,
) -> list[JobEvent]:
    """Nack a current claim: retry after `delay_ms` (None: after backoff), or dead if asked, or without attempts left.

    `rule`: that of the exception, whose attempts and backoff count instead of the job's. A job whose cancellation was
    requested is cancelled instead of being tried again.
    """
    job = current(job, claim_offset)
    error, error_type = clip(error, MAX_ERROR_CHARS), clip(error_type, MAX_TYPE_CHARS)
    if job.cancel_request is not None:
        return [Nacked(job.id, "pending", 0, 0, False, error, error_type), _follow_request(job, options, now_ms)]
    if dead or is_last(job.attempt, job.max_attempts, rule):
        sweep_at_ms = kept_until_ms(job, now_ms, options.keep_dead_s)
        return [Nacked(job.id, "dead", 0, sweep_at_ms, False, error, error_type), *_dead_letter(job, options)]
    if delay_ms is None:
        delay_ms = backoff_ms(job.attempt, options, fraction, rule)
    if delay_ms <= 0:
        return [Nacked(job.id, "pending", 0, 0, False, error, error_type)]
    return [Nacked(job.id, "scheduled", now_ms + delay_ms, 0, False, error, error_type)]


def is_last(attempt: int, max_attempts: int, rule: RetryRule | None) -> bool:
    """Whether a job whose try with this number failed is dead."""
    if rule is None:
        return attempt >= max_attempts
    return rule.dead or attempt >= (max_attempts if rule.attempts is None else rule.attempts)


def release(
    job: Job | None, claim_offset: int, *, options: QueueOptions, now_ms: int, error: str, delay_ms: int = 0
) -> list[JobEvent]:
    """Give a claim back, and the attempt is not counted: pending at once, or due in `delay_ms`.

    A job that is put off like this very often in a row is dead: it would be for ever.
    """
    job = current(job, claim_offset)
    error = clip(error, MAX_ERROR_CHARS)
    if job.cancel_request is not None:
        return [Nacked(job.id, "pending", 0, 0, True, error), _follow_request(job, options, now_ms)]
    if delay_ms <= 0:
        return [Nacked(job.id, "pending", 0, 0, True, error)]
    if job.snoozes + 1 >= MAX_SNOOZES:
        why = clip(f"put off {MAX_SNOOZES:,} times in a row: {error}", MAX_ERROR_CHARS)
        sweep_at_ms = kept_until_ms(job, now_ms, options.keep_dead_s)
        return [Nacked(job.id, "dead", 0, sweep_at_ms, True, why), *_dead_letter(job, options)]
    return [Nacked(job.id, "scheduled", now_ms + delay_ms, 0, True, error)]


def done_step(job: Job, name: str) -> tuple[Sealed | None] | None:
    """The place of the value of a step that the job has done (None: it returned None); None when it is yet to be done.

    Refused when the job can do no more steps.
    """
    for step, value in job.steps:
        if step == name:
            return (value,)
    try:
        is_name = 1 <= len(name.encode()) <= MAX_STEP_NAME_BYTES and "\0" not in name
    except (AttributeError, UnicodeEncodeError):
        is_name = False
    if not is_name:
        raise InvalidArgument(f"a step's name is text of 1 to {MAX_STEP_NAME_BYTES} bytes without NUL, not {name!r}")
    if len(job.steps) >= MAX_STEPS:
        raise InvalidState(f"job {job.job_id} has done {MAX_STEPS} steps, and no job can do more: enqueue another one")
    return None


def finish_step(job: Job | None, claim_offset: int, name: str) -> StepDone:
    """Record that a step is done, while the claim is current; its value is added."""
    job = current(job, claim_offset)
    if done_step(job, name) is not None:
        raise InvalidState(f"step {name!r} of job {job.job_id} is done already: give each step a name of its own")
    return StepDone(job.id, name, None)


def counts_as_crash(claims: int, *, orderly: bool = False) -> bool:
    """Whether the tries of so many claims, which ended together without a settlement, count as ones that crashed.

    `orderly`: their writer closed, so no job ended its process.
    """
    return not orderly and claims <= _MAX_SUSPECTS


def expire(job: Job, *, options: QueueOptions, now_ms: int, reason: str, crashed: bool = False) -> list[JobEvent]:
    """End a claim whose lease is over: pending again, or dead when its attempts are spent or it crashed too often."""
    if job.cancel_request is not None:
        return [LeaseExpired(job.id, "pending", 0, reason, crashed), _follow_request(job, options, now_ms)]
    crashes = job.crashes + crashed
    is_poison = crashed and options.max_crashes is not None and crashes >= options.max_crashes
    if is_poison or job.attempt >= job.max_attempts:
        why = f"killed its worker {crashes} {'time' if crashes == 1 else 'times'}" if is_poison else reason
        sweep_at_ms = kept_until_ms(job, now_ms, options.keep_dead_s)
        return [LeaseExpired(job.id, "dead", sweep_at_ms, why, crashed), *_dead_letter(job, options)]
    return [LeaseExpired(job.id, "pending", 0, reason, crashed)]


def lose_payload(job: Job, *, options: QueueOptions, now_ms: int, error: str) -> DeadLettered:
    """Make a job whose payload is lost, so that it can't run, a dead letter, without a claim."""
    if not may(job.state, DeadLettered):
        _refuse(job, "dead-lettered", "it is finished")
    sweep_at_ms = kept_until_ms(job, now_ms, options.keep_dead_s)
    return DeadLettered(job.id, sweep_at_ms, _OWN_ACTOR, clip(error, MAX_ERROR_CHARS))


def promote(job: Job | None, *, now_ms: int) -> list[JobEvent]:
    """Promote a scheduled job, which is pending once it is due; no event before."""
    if job is None or not may(job.state, Promoted) or job.due_ms > now_ms:
        return []
    return [Promoted(job.id)]


def sweep(job: Job | None, *, now_ms: int) -> list[JobEvent]:
    """Sweep a finished job, which is deleted once its retention is over; no event before."""
    if job is None or not may(job.state, Swept) or job.sweep_at_ms > now_ms:
        return []
    return [Swept(job.id)]


def cancel(job: Job, *, options: QueueOptions, now_ms: int, actor: str, reason: str) -> list[JobEvent]:
    """Cancel a waiting job at once; ask the worker of a claimed one to stop (a second request changes nothing)."""
    actor, reason = operator(actor, reason)
    if may(job.state, Cancelled):
        return [Cancelled(job.id, kept_until_ms(job, now_ms, options.keep_cancelled_s), actor, reason)]
    if not may(job.state, CancelRequested):
        _refuse(job, "cancelled", "only a job that is not finished can be")
    return [] if job.cancel_request is not None else [CancelRequested(job.id, actor, reason)]


def requeue(job: Job, *, now_ms: int, unique_holder: str | None, actor: str, reason: str) -> Requeued:
    """Give a dead job a new start; refused while another job holds its unique key (`unique_holder`: that job's id).

    And for one that would be too late.
    """
    actor, reason = operator(actor, reason)
    if not may(job.state, Requeued):
        _refuse(job, "requeued", "only a dead job can be")
    if is_too_late(job, now_ms):
        raise InvalidState(f"job {job.job_id} can't be requeued: it was to start before a time that is over")
    if unique_holder is not None:
        raise InvalidState(f"job {job.job_id} can't be requeued: job {unique_holder} holds its unique key now")
    return Requeued(job.id, actor, reason)


def in_bulk(
    what: BulkKind, job: Job, *, options: QueueOptions, now_ms: int, actor: str, reason: Text, to: str = ""
) -> JobEvent | None:
    """Change one of many jobs, whose operator and reason were checked; None for one that can't be changed so now."""
    late = is_too_late(job, now_ms)
    match what:
        case "requeue":
            return Requeued(job.id, actor, reason) if may(job.state, Requeued) and not late else None
        case "move":
            # Dead letters that are moved expire no more; one that waits will have expired at once.
            return (
                Moved(job.id, to, actor, reason)
                if may(job.state, Moved) and (job.state == "dead" or not late)
                else None
            )
        case "delete":
            return Deleted(job.id, actor, reason) if may(job.state, Deleted) else None
        case "cancel":
            if may(job.state, Cancelled):
                return Cancelled(job.id, kept_until_ms(job, now_ms, options.keep_cancelled_s), actor, reason)
            asks = may(job.state, CancelRequested) and job.cancel_request is None
            return CancelRequested(job.id, actor, reason) if asks else None
        case _:
            assert_never(what)


def kept_until_ms(job: Job, now_ms: int, keep_s: float) -> int:
    """When the record of a job that ends now is swept: not before the period of its unique key is over."""
    sweep_at_ms = now_ms + to_ms(keep_s)
    return max(sweep_at_ms, job.hold_ms) if job.unique_held else sweep_at_ms


def backoff_ms(attempt: int, options: QueueOptions, fraction: float, rule: RetryRule | None = None) -> int:
    """The delay of a retry, with full jitter: a random part of min(cap, base * 2^(attempt-1)), at least 1 ms.

    Source: Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """
    base_s = options.backoff_base_s if rule is None or rule.base is None else rule.base
    cap_s = options.backoff_cap_s if rule is None or rule.cap is None else rule.cap
    ceiling_s = min(cap_s, base_s * 2.0 ** min(attempt - 1, 60))
    return max(1, to_ms(ceiling_s * fraction)) if ceiling_s > 0 else 0


def current(job: Job | None, claim_offset: int) -> Job:
    """The job, when the claim made at `claim_offset` is its current one; else raises `ClaimLost`."""
    if job is None or job.state != "claimed" or job.claim_offset != claim_offset:
        raise ClaimLost(
            f"the claim made at offset {claim_offset} is no longer current: it was settled, its lease expired, or the "
            "job was claimed again; don't act on the job any more"
        )
    return job


def clip(text: str, max_chars: int) -> str:
    """Text that the log can hold: bounded, and without what UTF-8 can't encode; of a long text the end is kept."""
    if not isinstance(text, str):
        raise InvalidArgument(f"an error, a reason or a worker's name is text, not {type(text).__name__}: use str()")
    if len(text) > max_chars:
        text = "..." + text[3 - max_chars :]
    return text.encode("utf-8", "backslashreplace").decode()


def operator(actor: str, reason: str) -> tuple[str, str]:
    """Actor and reason, checked: both are there to be read later."""
    for name, text in (("actor", actor), ("reason", reason)):
        if not isinstance(text, str) or not text.strip() or len(text) > MAX_OPERATOR_CHARS:
            raise InvalidArgument(f"{name} must be text of 1 to {MAX_OPERATOR_CHARS} characters: the log keeps it")
    return clip(actor, MAX_OPERATOR_CHARS), clip(reason, MAX_OPERATOR_CHARS)


def _dead_letter(job: Job, options: QueueOptions) -> list[JobEvent]:
    """Move a job that dies now to the queue of its queue's dead letters, if there is one."""
    to = options.dead_letter_queue
    return [] if to is None or to == job.spec.queue else [Moved(job.id, to, _OWN_ACTOR, "")]


def _follow_request(job: Job, options: QueueOptions, now_ms: int) -> Cancelled:
    assert job.cancel_request is not None
    actor, reason = job.cancel_request
    return Cancelled(job.id, kept_until_ms(job, now_ms, options.keep_cancelled_s), actor, reason)


def _refuse(job: Job, action: str, why: str) -> NoReturn:
    state = f"{job.state} already" if job.state in FINISHED else job.state
    raise InvalidState(f"job {job.job_id} is {state} and can't be {action}: {why}")
