"""The jobs that a claim finds at the head of a queue and that came too late: they are cancelled, a few at a time."""

import asyncio
from collections.abc import Callable
from typing import Final

from ledgerq.eventlog.clock import Clock
from ledgerq.projections.job import Job
from ledgerq.worker.engine import decisions
from ledgerq.worker.engine.writer_state import WriterState
from ledgerq.worker.options import QueueOptions

__all__ = ["LATE_AT_ONCE", "LateJobs"]

# So many are cancelled in one turn of the event loop, some 25 us each.
LATE_AT_ONCE: Final = 40


class LateJobs:
    """The late jobs of all queues; `dispatch` goes on with a queue that had too many of them for one turn."""

    def __init__(
        self,
        writer_state: WriterState,
        *,
        clock: Clock,
        options_of: Callable[[str], QueueOptions],
        dispatch: Callable[[str], None],
    ) -> None:
        self._writer_state = writer_state
        self._clock = clock
        self._options_of = options_of
        self._dispatch = dispatch
        self._waiting: set[str] = set()

    def __contains__(self, queue: str) -> bool:
        """Whether this queue is gone on with in the next turn, so that nothing may be taken from it now."""
        return queue in self._waiting

    def cancel(self, job: Job) -> bool:
        """Cancel a job that may not be started any more, by the time that its claim would have in the log."""
        if not job.starts_before_ms:
            return False
        options, by_ms = self._options_of(job.queue), self._writer_state.log.commit().time_ms
        events = decisions.not_started(job, options=options, now_ms=self._clock.now_ms(), by_ms=by_ms)
        for event in events:
            self._writer_state.apply(job, event)
        return bool(events)

    def go_on_later(self, queue: str) -> None:
        """Go on with the queue in the next turn."""
        self._waiting.add(queue)
        asyncio.get_running_loop().call_soon(self._go_on, queue)

    def _go_on(self, queue: str) -> None:
        self._waiting.discard(queue)
        self._dispatch(queue)
