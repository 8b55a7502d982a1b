"""Every error that ledgerq raises, in one tree.

Each message states what happened, to what, and what to do about it. `permanent` is for retry loops: whether trying the
same call again can ever help: False means "later, perhaps", True means "not without changing something first".
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import ClassVar, Final

from ledgerq.eventlog.clock import time_text
from ledgerq.eventlog.error_root import InvalidArgument, LedgerError
from ledgerq.eventlog.job_errors import (
    ClaimLost,
    DuplicateJobId,
    EffectConflict,
    EffectsTooLarge,
    InvalidQueueName,
    InvalidState,
    JobCancelled,
    JobFailed,
    JobNotFound,
    PayloadMissing,
    PayloadTooLarge,
    ResultGone,
    ResultTooLarge,
    ScheduleNotFound,
    UniqueKeyHeld,
)
from ledgerq.eventlog.runtime.commands import rebuild_command, salvage_command

__all__ = [
    "ClaimLost",
    "ClockWentBack",
    "DuplicateJobId",
    "EffectConflict",
    "EffectsTooLarge",
    "Fenced",
    "FormatTooNew",
    "InvalidArgument",
    "InvalidQueueName",
    "InvalidState",
    "JobCancelled",
    "JobFailed",
    "JobNotFound",
    "LedgerError",
    "LogCorrupt",
    "LogPoisoned",
    "LogRolledBack",
    "NotPublished",
    "NotRebuilt",
    "OutcomeUnknown",
    "PayloadMissing",
    "PayloadTooLarge",
    "ProjectionDrift",
    "ProjectionFailed",
    "ProofRefused",
    "QueueClosed",
    "ResultGone",
    "ResultTooLarge",
    "RowUnreadable",
    "ShareFailed",
    "ScheduleNotFound",
    "StoreInUse",
    "StoreNotFound",
    "StoreUnavailable",
    "TreeForked",
    "UniqueKeyHeld",
    "UnknownEventType",
    "WrongLoop",
    "WrongProcess",
]


_MAX_SPAN_MS: Final = 10_000 * 365 * 24 * 3_600_000


class QueueClosed(LedgerError):
    """The queue (or its store) was closed; open it again."""


class Fenced(LedgerError):
    """Another process opened the store for writing. This one writes no more; stop it, or open again to take over."""


class StoreUnavailable(LedgerError):
    """The store can't be reached or refuses: the message holds the cause."""

    permanent: ClassVar[bool] = False


class OutcomeUnknown(StoreUnavailable):
    """A commit was not confirmed in time: it may or may not be in the log. Open the queue again to learn which."""


class StoreNotFound(LedgerError):
    """There is no ledgerq store at this location; check the URL, or open it for writing to create one."""


class StoreInUse(LedgerError):
    """Another writer has the store open: stop it, wait until it ends, or take the store over. Nothing was written.

    `host`, `pid` and `since_ms`: the writer and when it opened the store, where that is known. `until_ms`, for an
    object store: when the writer counts as gone unless it renews its lease. Times are in ms since the Unix epoch.
    `shares`: it serves the store to other processes of its machine, which open it with `share=True`.
    """

    permanent: ClassVar[bool] = False

    def __init__(
        self,
        location: str,
        *,
        host: str | None = None,
        pid: int | None = None,
        since_ms: int | None = None,
        until_ms: int | None = None,
        is_own: bool = False,
        shares: bool = False,
    ) -> None:
        since = "" if since_ms is None else f" since {time_text(since_ms)}"
        until = "" if until_ms is None else f" (until {time_text(until_ms)}, unless it renews its lease)"
        if is_own:
            text = f"{location} is in use by this very process{since}: use the queue that is open, or close it first"
        else:
            who = "another process" if pid is None else f"process {pid} on host {host}"
            text = f"{location} is in use: {who} writes it{since}{until}. Stop that process"
        if shares:
            text = f"{text}; or share it, as that process does, with share=True"
        elif not is_own and until_ms is None:
            text = f"{text}; or let it share the store (share=True, `ledgerq serve`)"
        super().__init__(
            f"{text}; or wait for its end with wait=SECONDS (--wait), or fence it with take_over=True (--take-over, or "
            "for a worker in its module)"
        )
        self.host, self.pid, self.since_ms, self.until_ms = host, pid, since_ms, until_ms
        self.shares = shares


class FormatTooNew(LedgerError):
    """The store was written by a newer ledgerq; upgrade this one to read it."""


class UnknownEventType(FormatTooNew):
    """The log holds an event type that this version doesn't know; upgrade ledgerq to read it."""


def _log_end(next_offset: int) -> str:
    return f"its last offset is {next_offset - 1}" if next_offset else "it is empty"


class LogCorrupt(LedgerError):
    """The hash chain is broken. `offset` is the first bad offset: everything before it is proven."""

    def __init__(self, offset: int, what: str) -> None:
        super().__init__()
        self.offset = offset
        self.what = what
        self.locate("URL")

    def locate(self, location: str) -> None:
        """Name the store in the commands of the message: a decoder of record batches has no location."""
        self.args = (
            f"the log is corrupt at offset {self.offset}: {self.what}. Everything before it is proven; restore a copy, "
            f"or keep what is proven with: {rebuild_command(location, f'--until {self.offset}')}, or save what more "
            f"the files hold with: {salvage_command(location)}",
        )

    @staticmethod
    @contextmanager
    def locating(location: str) -> Iterator[None]:
        """Have such an error that is raised in the block name the store at `location`."""
        try:
            yield
        except LogCorrupt as error:
            error.locate(location)
            raise


class LogRolledBack(LedgerError):
    """The log lacks a commit that was reported durable: it lost data, an older copy was put back, or it was altered.

    `first_offset`: the first that is known to be missing or to differ. An anchor names one commit only, so of a log
    that holds another commit in its place what differs may begin earlier.
    """

    def __init__(
        self,
        anchored_offset: int,
        head_offset: int,
        what: str,
        *,
        first_offset: int | None = None,
        remedy: str = "",
        location: str = "URL",
    ) -> None:
        remedy = remedy or (
            f"Restore the lost files, or save what more they hold with: {salvage_command(location)}, or accept the "
            f"loss with: {rebuild_command(location, f'--into NEW --until {head_offset}')} (or in place, if the store "
            "can still be opened: without --into, or Queue.open with accept_rollback=True)"
        )
        super().__init__(
            f"by the anchor, offset {anchored_offset} was durable, but {what} ({_log_end(head_offset)}). {remedy}"
        )
        self.anchored_offset = anchored_offset
        self.head_offset = head_offset
        self.first_offset = min(anchored_offset, head_offset) if first_offset is None else first_offset


class LogPoisoned(LedgerError):
    """A write failed earlier, so this writer no longer knows what the store holds; open the queue again."""


class RowUnreadable(LogPoisoned):
    """The block of a file that holds a row is damaged, and only that block: the row is lost, others are not.

    `where` names file and block. `found` is a value of the row that could still be read, perhaps not its newest: usable
    where a digest can prove it.
    """

    def __init__(self, message: str, where: str = "", found: bytes | None = None) -> None:
        super().__init__(message)
        self.where = where
        self.found = found


def _span(span_ms: int) -> str:
    # A damaged manifest can name any time at all.
    return str(timedelta(milliseconds=span_ms)) if abs(span_ms) < _MAX_SPAN_MS else f"{span_ms} ms"


class ClockWentBack(LedgerError):
    """The system clock is behind the time at which the store was last written; set it right, or copy the store.

    Nothing was written: SlateDB takes no time that is before the one in the store's files.
    """

    permanent: ClassVar[bool] = False

    def __init__(self, now_ms: int, last_ms: int) -> None:
        super().__init__(
            f"the clock shows {time_text(now_ms)}, but the store was last written at {time_text(last_ms)}, "
            f"{_span(last_ms - now_ms)} later. Set the clock right, or wait until it has caught up; "
            "if it is right now and was wrong then, copy the store: rebuild-projections URL --into NEW"
        )
        self.now_ms = now_ms
        self.last_ms = last_ms


class ShareFailed(LedgerError):
    """A process that did its share of the work ended early. Nothing was written: try again, or with fewer processes."""

    permanent: ClassVar[bool] = False


class ProjectionDrift(LedgerError):
    """An index row contradicts the log; run `rebuild-projections`."""


class ProjectionFailed(LedgerError):
    """A user's projection raised while the log was replayed; mend its code and run this again. Nothing was written."""


class NotRebuilt(LedgerError):
    """The indexes are incomplete (a rebuild was interrupted) or of an older format, or the store's secret is missing:
    run `rebuild-projections`.
    """


class TreeForked(LedgerError):
    """What is published as its tree doesn't follow from this log, or another key signed it; nothing was signed."""


class NotPublished(LedgerError):
    """An event is in no published tree yet; publish again, or wait for the one who does."""

    permanent: ClassVar[bool] = False


class ProofRefused(LedgerError):
    """A receipt or a checkpoint doesn't prove what it shows."""


class WrongProcess(LedgerError):
    """A store opened before a fork was used after it; open the store in the child, or start children with `spawn`."""


class WrongLoop(LedgerError):
    """A queue was used from another event loop than the one that opened it, or from none; use it from that loop."""
