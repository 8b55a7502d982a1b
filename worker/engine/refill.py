"""The refill of ready windows from the store: one task per queue at a time, started when a window runs low.

The scan starts where the window ends, never at the front of the range, so it steps over no tombstones of claimed jobs.
What was staged while the store answered is newer than its answer: see `WriterState.watch`.
"""

import asyncio
from collections.abc import Callable
from itertools import accumulate
from typing import Final

from ledgerq.eventlog import keys
from ledgerq.eventlog.errors import LedgerError, LogPoisoned
from ledgerq.eventlog.runtime.log_records import LogThrottle, about, logger
from ledgerq.eventlog.side_records import PayloadRecord, decode_payload
from ledgerq.projections.index_keys import job_key, pending_key, pending_position, pending_prefix
from ledgerq.projections.indexes import decode_job
from ledgerq.projections.job import Job
from ledgerq.projections.payloads import payload_fault, read_payload
from ledgerq.worker.engine.ready_window import Position, ReadyJob, ReadyWindow
from ledgerq.worker.engine.writer_state import WriterState

__all__ = ["WindowRefill"]

_log = logger("queue")
_REFILL_ROWS: Final = 1000
_LOAD_ROWS: Final = 64
# So many are decoded in one turn of the event loop.
_TURN_ROWS: Final = 50
_LOAD_BYTES: Final = 8 * 1024 * 1024


class WindowRefill:
    """Keeps ready windows filled; `dispatch` is called after each step, `broken` with a job whose payload is lost."""

    def __init__(
        self,
        writer_state: WriterState,
        *,
        dispatch: Callable[[str], None],
        broken: Callable[[Job, str], None],
        failed: Callable[[str, LedgerError], None],
    ) -> None:
        self._writer_state = writer_state
        self._dispatch = dispatch
        self._broken = broken
        self._failed = failed
        self._throttle = LogThrottle()
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def refilling(self, queue: str) -> bool:
        """Whether the window of this queue is being filled."""
        return queue in self._tasks

    def needs(self, queue: str) -> bool:
        """Whether a refill would bring more than the window has."""
        window = self._writer_state.window(queue)
        if window.low:
            return True
        first = window.first()
        return first is not None and first.payload is None

    def start(self, queue: str) -> None:
        """Fill the window of this queue until it has what it needs, unless that is under way."""
        if queue not in self._tasks:
            task = asyncio.create_task(self._run(queue), name=f"ledgerq-feed-{queue}")
            self._tasks[queue] = task
            task.add_done_callback(lambda _: self._ended(queue))

    def _ended(self, queue: str) -> None:
        task = self._tasks.pop(queue)
        if not task.cancelled():
            error = task.exception()
            if isinstance(error, LedgerError):
                self._failed(queue, error)
            elif error is not None:
                if self._throttle.may(self._writer_state.log.clock.now_ms()):
                    left_out, more = self._throttle.take_left_out(), about("window_failed", queue=queue)
                    _log.error("filling queue %r's window failed%s", queue, left_out, exc_info=error, extra=more)
                self._failed(queue, LedgerError(f"the ready window of queue {queue!r} can't be filled: {error!r}"))
            else:
                self._dispatch(queue)

    async def close(self) -> None:
        """End all tasks."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, queue: str) -> None:
        while self.needs(queue):
            window = self._writer_state.window(queue)
            if window.low:
                await self._refill(queue, window)
            await self._load(window)
            self._dispatch(queue)

    async def _refill(self, queue: str, window: ReadyWindow) -> None:
        writer_state, store = self._writer_state, self._writer_state.log.store
        assert window.bound is not None
        old_bound = window.bound
        start = max(pending_key(queue, old_bound[0], old_bound[1] + 1), pending_key(queue, *window.scan_from))
        rows: list[tuple[Position, bytes]] = []
        with writer_state.watch() as newer:
            stop = keys.after_prefix(pending_prefix(queue))
            async for page in store.scan(start, stop, page_rows=_REFILL_ROWS):
                rows += [(pending_position(key), id) for key, id in page]
                if len(rows) >= _REFILL_ROWS:
                    break
            exhausted = len(rows) < _REFILL_ROWS
            rows = rows[:_REFILL_ROWS]
            wanted = [row for row in rows if row[1] not in newer]
            jobs = await self._stored_jobs(wanted)
            records = await self._first_records(jobs)
            if window.bound != old_bound:
                return  # the window shrank meanwhile: what it left out must be scanned again
            window.bound = new_bound = None if exhausted else rows[-1][0]
            if new_bound is not None:
                window.scan_from = new_bound
            for job in jobs:
                if job.spec.id not in newer:
                    window.insert(ReadyJob(job, records.get(job.payload_offset)))
            for changed in newer.values():
                if changed is not None and changed.state == "pending" and changed.spec.queue == queue:
                    position = (changed.spec.priority, changed.offset)
                    if position > old_bound and (new_bound is None or position <= new_bound):
                        if changed.spec.id not in window.jobs:
                            window.insert(ReadyJob(changed, None))
                    elif new_bound is not None and position > new_bound:
                        window.scan_from = min(window.scan_from, position)

    async def _stored_jobs(self, rows: list[tuple[Position, bytes]]) -> list[Job]:
        """The jobs behind rows of the pending range, as far as they are still at those positions."""
        values = await self._writer_state.log.store.get_many([job_key(id) for _, id in rows])
        found: list[Job] = []
        for at, ((position, _), value) in enumerate(zip(rows, values, strict=True)):
            if at % _TURN_ROWS == 0:
                await asyncio.sleep(0)
            job = None if value is None else decode_job(value)
            if job is not None and job.state == "pending" and (job.spec.priority, job.offset) == position:
                found.append(job)
        return found

    async def _first_records(self, jobs: list[Job]) -> dict[int, PayloadRecord]:
        """The payload records of the first of `jobs`, by their offsets: a few megabytes, the others come later."""
        sizes_bytes = accumulate(job.spec.payload_bytes for job in jobs)
        first = [job for job, size_bytes in zip(jobs, sizes_bytes, strict=True) if size_bytes <= _LOAD_BYTES]
        try:
            rows = await self._writer_state.log.store.get_many([keys.payload_key(job.payload_offset) for job in first])
        except LogPoisoned:
            return {}  # the damaged one is found when they are loaded one by one
        records: dict[int, PayloadRecord] = {}
        for at, (job, row) in enumerate(zip(first, rows, strict=True)):
            if at % _TURN_ROWS == 0:
                await asyncio.sleep(0)
            if row is not None and not payload_fault(job, row):
                records[job.payload_offset] = decode_payload(row)
        return records

    async def _records(self, jobs: list[Job]) -> list[tuple[bytes | None, str]]:
        """The payload record of each job, or why it is lost. One that can't be read costs none of the others."""
        store = self._writer_state.log.store
        try:
            rows = await store.get_many([keys.payload_key(job.payload_offset) for job in jobs])
        except LogPoisoned:
            return [await read_payload(store, job) for job in jobs]
        return [(row, payload_fault(job, row)) for job, row in zip(jobs, rows, strict=True)]

    async def _load(self, window: ReadyWindow) -> None:
        wanted = window.to_load(_LOAD_ROWS, _LOAD_BYTES)
        if not wanted:
            return
        # A payload is in the store once its enqueued event is; a job staged just now waits for its commit.
        if any(self._writer_state.undurable(ready.job.spec.id) for ready in wanted):
            await self._writer_state.log.committed()
        records = await self._records([ready.job for ready in wanted])
        for ready, (record, fault) in zip(wanted, records, strict=True):
            now = window.jobs.get(ready.job.spec.id)
            if now is None or now.payload is not None or now.job.payload_offset != ready.job.payload_offset:
                continue
            if fault or record is None:
                self._broken(now.job, fault)
            else:
                window.insert(ReadyJob(now.job, decode_payload(record)), urgent=True)
