"""The errors of single calls: a job, a claim, a key that is not as the call needs it."""

from collections.abc import Iterable

from ledgerq.eventlog.error_root import InvalidArgument, LedgerError

__all__ = [
    "ClaimLost",
    "DuplicateJobId",
    "EffectConflict",
    "EffectsTooLarge",
    "InvalidQueueName",
    "InvalidState",
    "JobCancelled",
    "JobFailed",
    "JobNotFound",
    "PayloadMissing",
    "PayloadTooLarge",
    "ResultGone",
    "ResultTooLarge",
    "ScheduleNotFound",
    "UniqueKeyHeld",
]


class InvalidQueueName(InvalidArgument):
    """A queue name is not 1 to 255 bytes of UTF-8 without NUL; nothing was written."""


class PayloadTooLarge(InvalidArgument):
    """A payload with its headers is above `max_payload_bytes`; store it elsewhere and enqueue a reference."""


class ResultTooLarge(InvalidArgument):
    """A job's result is above 1 MiB; store it elsewhere and return a reference. Nothing was written."""


class EffectsTooLarge(InvalidArgument):
    """A value is above 64 KiB, or a job or a transaction has too many effects; this one was not added."""


class ResultGone(LedgerError, LookupError):
    """A result is not in the store any more: its job was swept (the log has its history), or its row is lost."""


class JobFailed(LedgerError):
    """The job that was waited for is dead: `error_type` is the exception's class, by its name, `text` its error."""

    def __init__(self, job_id: str, error_type: str, text: str) -> None:
        last = text.strip().splitlines()[-1:] or ["no error was given"]
        super().__init__(f"job {job_id} is dead: {last[0]}")
        self.job_id, self.error_type, self.text = job_id, error_type, text


class JobCancelled(LedgerError):
    """The job that was waited for was cancelled; the log has by whom and why."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"job {job_id} was cancelled: its history has by whom and why")
        self.job_id = job_id


class JobNotFound(LedgerError, LookupError):
    """No job with this id is in the store: it never was, or it was swept (its history is still in the log)."""


class ScheduleNotFound(LedgerError, LookupError):
    """There is no schedule of this name: it never was, or it was removed."""


class DuplicateJobId(LedgerError):
    """A `job_id` given by the caller is in use already; nothing was written."""


class UniqueKeyHeld(LedgerError):
    """Another job holds the unique key, and `on_conflict="raise"` was asked for; nothing was written."""


class EffectConflict(LedgerError):
    """A key is not as an effect expected it to be; none of the effects was committed. Read it again, and try again."""

    permanent = False


class InvalidState(LedgerError):
    """The job's state does not allow this transition; nothing was written."""


class ClaimLost(LedgerError):
    """The claim is no longer current: it was settled, its lease ended, or another writer took over.

    `offsets`: of a call for many claims, those of the claims that are lost (their `Claim.offset`).
    """

    def __init__(self, message: str = "", offsets: Iterable[int] = ()) -> None:
        super().__init__(message)
        self.offsets = frozenset(offsets)


class PayloadMissing(LedgerError):
    """A live job's payload is not in the store or doesn't match its digest; the job can be cancelled, not run."""
