"""The waits for the ends of jobs: futures in memory, there for as long as their callers wait."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from ledgerq.eventlog.clock import Clock
from ledgerq.eventlog.errors import LedgerError
from ledgerq.projections.job import Job

__all__ = ["EndWaits"]


class EndWaits:
    """The callers that wait until a job is finished, by the job's id."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._error: LedgerError | None = None
        self.waiters: dict[bytes, list[asyncio.Future[Job]]] = {}  # none are left where nobody waits

    @contextmanager
    def waiting(self, id: bytes) -> Iterator[asyncio.Future[Job]]:
        """A future of the job as it is when it is finished, durable or not, which is forgotten after the block."""
        if self._error is not None:
            raise self._error.with_traceback(None)
        waiter: asyncio.Future[Job] = asyncio.get_running_loop().create_future()
        self.waiters.setdefault(id, []).append(waiter)
        try:
            yield waiter
        finally:
            if not waiter.cancel() and not waiter.cancelled():
                waiter.exception()  # asyncio would report one that is never looked at
            left = [other for other in self.waiters.pop(id, ()) if other is not waiter]
            if left:
                self.waiters[id] = left

    async def within(self, waiter: asyncio.Future[Job], timeout_ms: int | None, job_id: str) -> Job:
        """Wait for it; raises `TimeoutError` after so long by the clock (None: never)."""
        if timeout_ms is None:
            return await waiter

        def end() -> None:
            if not waiter.done():
                waiter.set_exception(TimeoutError(f"job {job_id} is not finished yet: wait for it again, or longer"))

        timer = self._clock.call_at(self._clock.now_ms() + timeout_ms, end)
        try:
            return await waiter
        finally:
            timer.cancel()

    def finished(self, job: Job) -> None:
        """Wake those that wait for this job."""
        for waiter in self.waiters.get(job.spec.id, ()):
            if not waiter.done():
                waiter.set_result(job)

    def fail(self, error: LedgerError) -> None:
        """End all waits, and those to come, with the error for which no job is finished any more."""
        self._error = error
        for waiter in (one for ones in self.waiters.values() for one in ones):
            if not waiter.done():
                waiter.set_exception(error)
