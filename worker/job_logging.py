"""Log records of jobs: how a handler's try ended, and claims that ended by themselves.

A try that is followed by another one is a warning with its traceback; a dead job is an error; what was asked for (a
retry, a cancellation, an orderly end) is information. Success is logged at DEBUG only.
"""

import asyncio
import logging
from collections import deque
from collections.abc import MutableMapping
from typing import Any, Final, Literal

from ledgerq.eventlog.events import Sealed
from ledgerq.eventlog.runtime.log_records import LogThrottle, about, about_job, logger
from ledgerq.eventlog.writer import EventLog
from ledgerq.projections.job import Job
from ledgerq.worker.claims import Claim
from ledgerq.worker.engine import decisions
from ledgerq.worker.outcomes import Dead, Retry, Snooze, TaskMissing, plain_text

__all__ = ["EndedClaims", "JobLogger", "Outcome", "say_interrupted", "say_outcome"]

Outcome = Literal["done", "retry", "dead", "cancelled", "released", "lost", "unknown"]
"""The outcome of a try; `unknown`: the queue failed, or the worker was cut off, before it was durable."""

_worker_log = logger("worker")
_queue_log = logger("queue")
_BURST_CLAIMS: Final = 20
_ENDED_EVENTS: Final = {decisions.LEASE_EXPIRED: "lease_expired", decisions.INTERRUPTED: "interrupted"}


def say_outcome(
    claim: Claim,
    outcome: Outcome,
    error: BaseException | None,
    timed_out_s: float | None,
    max_attempts: int | None = None,
) -> None:
    """Log the outcome of a handler's try, which is durable; `max_attempts`: those of the rule for its exception."""
    traceback: BaseException | None = None
    if outcome == "done":
        level, event, what = logging.DEBUG, "job_done", "done"
    elif outcome in ("cancelled", "released"):
        level, event = logging.INFO, f"job_{outcome}"
        what = "stopped, its cancellation was requested" if outcome == "cancelled" else "given back, the worker ends"
        if isinstance(error, Snooze):
            event, what = "job_snoozed", f"put off for {error.delay:g} s: {plain_text(error)}"
            level = logging.WARNING if isinstance(error, TaskMissing) else level
    elif outcome == "lost":
        level, event = logging.WARNING, "claim_lost"
        ending = "given up" if isinstance(error, asyncio.CancelledError) else "its result doesn't count"
        what = f"{ending}, its claim was lost"
    elif outcome == "unknown":
        level, event, what = logging.ERROR, "outcome_unknown", "what came of it is not known"
    else:
        dead = outcome == "dead"
        level, event = (logging.ERROR, "job_dead") if dead else (logging.WARNING, "job_retry")
        if timed_out_s is not None:
            why = f"its handler timed out after {timed_out_s:g} s"
        elif isinstance(error, Dead):
            why = f"its handler raised Dead: {plain_text(error)}"
        elif isinstance(error, Retry):
            level = level if dead else logging.INFO
            why = plain_text(error)
        else:
            traceback, why = error, f"its handler raised {type(error).__name__}"
        what = f"{'dead' if dead else 'will be tried again'}, {why}"
    if _worker_log.isEnabledFor(level):
        _worker_log.log(
            level,
            "job %s (%s): %s (%s)",
            claim.job_id,
            claim.queue,
            what,
            _attempts(claim.attempt, max_attempts or claim.max_attempts),
            exc_info=traceback,
            extra=about_job(event, claim.id, claim.queue, claim.attempt, claim.offset),
        )


class JobLogger(logging.LoggerAdapter[logging.Logger]):
    """A handler's own logger: its records have the attributes of those of the worker about the same try."""

    def __init__(self, claim: Claim) -> None:
        more = about_job("job_log", claim.id, claim.queue, claim.attempt, claim.offset)
        super().__init__(logger("job"), more)

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """Add the job's attributes to those that the caller gives."""
        kwargs["extra"] = {**(self.extra or {}), **(kwargs.get("extra") or {})}
        return msg, kwargs


class EndedClaims:
    """The log of claims that the queue itself ended, written when that is durable, a bounded number in a minute."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._staged: deque[tuple[int, Job, str]] = deque()
        self._throttle = LogThrottle(_BURST_CLAIMS)

    def record(self, job: Job | None, why: str) -> None:
        """Keep an ended claim until it is durable: the event that made it this `job` was staged."""
        if job is not None:
            self._staged.append((self._log.next_offset, job, why))

    def say(self) -> None:
        """Log what became durable: on the loop's next turn, so that a logging handler that raises harms no commit."""
        if self._staged:
            asyncio.get_running_loop().call_soon(self._say)

    def _say(self) -> None:
        while self._staged and self._staged[0][0] <= self._log.durable_head.next_offset:
            _, job, why = self._staged.popleft()
            if self._throttle.may(self._log.clock.now_ms()):
                _say_ended(job, why, self._throttle.take_left_out())


def say_interrupted(jobs: list[Job]) -> None:
    """Log the jobs that opening found claimed by a writer that is gone, in their states after that."""
    if not jobs:
        return
    for job in jobs[:_BURST_CLAIMS]:
        _say_ended(job, decisions.INTERRUPTED, "")
    dead = sum(job.state == "dead" for job in jobs)
    _queue_log.warning(
        "%d claims of the writer before were interrupted; dead by that: %d",
        len(jobs),
        dead,
        extra=about("writer_interrupted", claims=len(jobs), dead=dead),
    )


def _say_ended(job: Job, why: str, left_out: str) -> None:
    dead = job.state == "dead"
    event = "job_dead" if dead else _ENDED_EVENTS.get(why, "job_snoozed")
    _queue_log.log(
        logging.ERROR if dead else logging.WARNING,
        "job %s (%s): %s, it is %s now (%s)%s",
        job.job_id,
        job.queue,
        job.error if dead and not isinstance(job.last_error, Sealed) else why,
        job.state,
        _attempts(job.attempt, job.max_attempts),
        left_out,
        extra=about_job(event, job.id, job.queue, job.attempt, job.claim_offset),
    )


def _attempts(attempt: int, max_attempts: int) -> str:
    """Which try it was; of how many is not known here when a rule for an exception gave it more than its job has."""
    return f"attempt {attempt} of {max_attempts}" if attempt <= max_attempts else f"attempt {attempt}"
