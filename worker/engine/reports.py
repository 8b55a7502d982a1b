"""What running tries report: the newest report of each in memory, and in a row at most once a second.

A report is no event: it would be most of the log. Its row comes with a commit that is made anyway, or by itself, and
goes in the commit that ends the claim.
"""

import asyncio
from typing import Final

from ledgerq.eventlog.clock import Timer
from ledgerq.eventlog.errors import InvalidArgument, LedgerError
from ledgerq.eventlog.keys import progress_key
from ledgerq.eventlog.writer import EventLog
from ledgerq.projections.job import Job
from ledgerq.projections.progress import Progress, encode_progress
from ledgerq.worker.claims import Claim, ClaimName
from ledgerq.worker.engine.decisions import clip

__all__ = ["Reports", "checked_report"]

_EVERY_MS: Final = 1000
_MAX_TEXT_CHARS: Final = 1000


def checked_report(fraction: float, text: str) -> tuple[float, str]:
    """A fraction from 0 to 1 and a text, checked; raises `InvalidArgument`."""
    if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 <= fraction <= 1:
        raise InvalidArgument(f"progress is a number from 0 to 1, not {fraction!r}")
    return float(fraction), clip(text, _MAX_TEXT_CHARS)


class Reports:
    """The reports of the tries of one queue object."""

    def __init__(self, log: EventLog) -> None:
        self.newest: dict[bytes, tuple[int, Progress]] = {}
        """By job, the offset of its claim and its last report."""
        self._log = log
        self._due: set[bytes] = set()
        self._written: set[bytes] = set()
        self._written_ms = 0
        self._timer: Timer | None = None
        self._task: asyncio.Task[None] | None = None

    def report(self, claim: Claim | ClaimName, fraction: float, text: str) -> None:
        """Take over a report of a try whose claim is current."""
        now_ms = self._log.clock.now_ms()
        self.newest[claim.id] = (claim.offset, Progress(fraction, text, now_ms))
        self._due.add(claim.id)
        self._arm()

    def _arm(self) -> None:
        if self._timer is None:
            now_ms = self._log.clock.now_ms()
            # After a clock that was set back, no later than a second from now.
            due_ms = min(max(now_ms, self._written_ms + _EVERY_MS), now_ms + _EVERY_MS)
            self._timer = self._log.clock.call_at(due_ms, self._begin)

    def ended(self, before: Job) -> None:
        """Drop the report of a claim that ends with the event that was just staged."""
        if self.newest.pop(before.id, None) is not None:
            self._due.discard(before.id)
            if before.id in self._written:
                self._written.remove(before.id)
                self._log.commit().payloads[progress_key(before.id)] = None

    def _begin(self) -> None:
        self._timer = None
        if self._task is None:
            self._task = asyncio.create_task(self._write(), name="ledgerq-reports")
            self._task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if self._due and self._log.failure is None:
            self._arm()
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, LedgerError):
            raise error

    async def _write(self) -> None:
        """Write what was reported since the last time; a store that fails is for the log to notice."""
        async with self._log.between_commits() as commit:
            self._written_ms = self._log.clock.now_ms()
            due, self._due = self._due, set()
            rows = {progress_key(id): encode_progress(*self.newest[id]) for id in due}
            self._written |= due
            await commit(rows)

    async def close(self) -> None:
        """Write no more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)
