"""Maintenance: leases end, jobs become due or expire, schedules tick, finished jobs are swept, each at its time.

Theory of operation.

State held. Four index ranges are ordered by time: scheduled jobs by when they are due, finished ones by when they are
swept, waiting ones by when they expire, schedules by when they tick (looked at only where there are some). Of each
range `_scan_from` is the key from which the next scan starts, and `next_ms` when its first row is due. Leases are in
memory only (leases.py), soonest first. One task sleeps until the earliest of them all.

Invariants. Between two steps no row of a range stands before `_scan_from`, so no scan steps over the tombstones of rows
that were worked off; no row is due before `next_ms`, which may be too early (then a scan finds nothing) but never too
late. Work is found at the head of a time-ordered index, and only what it changes is read. No event gets a commit time
before the time at which it was due (`EventLog.due_by_ms`), also when the clock was set back.

Order of steps. A round ends expired leases, then works off what is due in each range, a few hundred at a time, then
serves waiting claims and leaves the loop to others; rounds follow until nothing is due, then the timer is set. Within a
range `next_ms` and `_scan_from` are first set to the range's end, so that rows staged during the scan lower them again;
then the open commit is awaited, since a scan finds only what is in the store.

What may fail. A step that fails with a passing error is logged, counted and tried again a second later, from the front
of the range; it never ends the task. The task ends when the log has failed.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final

from ledgerq.eventlog.clock import Clock, Timer
from ledgerq.eventlog.errors import Fenced, LedgerError
from ledgerq.eventlog.events import JobEvent
from ledgerq.eventlog.keys import after_prefix
from ledgerq.eventlog.runtime.log_records import LogThrottle, about, logger
from ledgerq.eventlog.store import Row
from ledgerq.projections.index_keys import (
    EXPIRY,
    FINISHED_PREFIX,
    SCHEDULED,
    TICK,
    expiry_key,
    finished_key,
    leading_ms,
    scheduled_key,
    tick_key,
)
from ledgerq.projections.job import Job
from ledgerq.projections.schedule import Schedule
from ledgerq.worker.engine import decisions
from ledgerq.worker.engine.leases import Lease, Leases
from ledgerq.worker.engine.ticking import Ticking
from ledgerq.worker.engine.writer_state import WriterState
from ledgerq.worker.job_logging import EndedClaims
from ledgerq.worker.options import QueueOptions

__all__ = ["Maintenance"]

_log = logger("queue")
_STEP_ROWS: Final = 200
_STEP_TICKS: Final = 20
_RETRY_AFTER_MS: Final = 1000
_NEVER: Final = 1 << 62

Load = Callable[[Sequence[Row], int], Awaitable[list[Callable[[], object]]]]
"""Reads what is needed for rows that are due now, and returns for each what stages its events."""


class _TimedRange:
    """A time-ordered index range, and the key up to which it has been worked off."""

    def __init__(self, prefix: bytes, load: Load, *, step_rows: int = _STEP_ROWS, next_ms: int = 0) -> None:
        """`next_ms` 0: scan once at the start."""
        self.prefix = prefix
        self.next_ms = next_ms
        self._load = load
        self._step_rows = step_rows
        self._scan_from = prefix

    def schedule(self, key: bytes, due_ms: int) -> bool:
        """Follow a row that was staged; whether it is due before all that was known."""
        if key < self._scan_from:
            self._scan_from = key
        if due_ms >= self.next_ms:
            return False
        self.next_ms = due_ms
        return True

    async def step(self, writer_state: WriterState, now_ms: int) -> None:
        """Work off some of the rows that are due, and find out when the next one is."""
        # Whatever is staged from here on lowers both again; what was staged before must be in the store for the scan.
        self.next_ms = _NEVER
        scan_from, self._scan_from = self._scan_from, after_prefix(self.prefix)
        try:
            await writer_state.log.committed()
            due: list[Row] = []
            rows = self._step_rows
            next_ms, last_key = _NEVER, scan_from
            async for page in writer_state.log.store.scan(scan_from, after_prefix(self.prefix), page_rows=rows):
                ready = [row for row in page if leading_ms(row[0], self.prefix) <= now_ms]
                due += ready
                if len(ready) < len(page):
                    next_ms = leading_ms(page[len(ready)][0], self.prefix)
                if len(ready) < len(page) or len(due) >= rows:
                    break
            if len(due) >= rows:
                next_ms = min(next_ms, now_ms)
            staging = await self._load(due, now_ms)
            by_ms = min(now_ms, writer_state.log.due_by_ms())  # the clock may have been set back meanwhile
            for stage, (key, _) in zip(staging, due, strict=True):
                if (due_ms := leading_ms(key, self.prefix)) > by_ms:
                    next_ms = due_ms
                    break
                stage()
                last_key = key + b"\0"
            # What was staged during the awaits may stand before the key reached.
            self._scan_from = min(last_key, self._scan_from)
            self.next_ms = min(self.next_ms, next_ms)
        except BaseException:
            self._scan_from, self.next_ms = self.prefix, min(self.next_ms, now_ms + _RETRY_AFTER_MS)
            raise


class Maintenance:
    """The one background task of a queue that ends leases, promotes due jobs and sweeps finished ones."""

    def __init__(
        self,
        writer_state: WriterState,
        leases: Leases,
        *,
        clock: Clock,
        options_of: Callable[[str], QueueOptions],
        serve: Callable[[], None],
        ended: EndedClaims,
        ticking: Ticking,
    ) -> None:
        self.failures = 0
        self._throttle = LogThrottle()
        self._ended = ended
        self._writer_state = writer_state
        self._leases = leases
        leases.on_hold = self._arm_for
        self._clock = clock
        self._options_of = options_of
        self._serve = serve
        self._scheduled = _TimedRange(SCHEDULED, partial(self._load_jobs, decisions.promote))
        self._finished = _TimedRange(FINISHED_PREFIX, partial(self._load_jobs, decisions.sweep))
        self._ticks = _TimedRange(TICK, ticking.load, step_rows=_STEP_TICKS, next_ms=_NEVER)
        self._expiry = _TimedRange(EXPIRY, partial(self._load_jobs, self._not_started))
        self._ranges = (self._scheduled, self._finished, self._expiry, self._ticks)
        self._wake = asyncio.Event()
        self._timer: Timer | None = None
        self._armed_ms = _NEVER
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; the first scan of the indexes happens at once."""
        self._wake.set()
        self._task = asyncio.create_task(self._run(), name="ledgerq-maintenance")

    async def close(self) -> None:
        """End the task."""
        if self._timer is not None:
            self._timer.cancel()
        task, self._task = self._task, None  # a claim that begins from now on sets no timer
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    @property
    def next_due_ms(self) -> int | None:
        """When the next scheduled job is due, in ms since the Unix epoch; None when none is, or it is not known now."""
        due_ms = self._scheduled.next_ms
        return due_ms if 0 < due_ms < _NEVER else None

    def schedule(self, after: Job) -> None:
        """Follow a job that is scheduled or finished now: it may be due earlier than what is waited for."""
        if after.state == "scheduled":
            earlier = self._scheduled.schedule(scheduled_key(after.due_ms, after.offset), after.due_ms)
        else:
            earlier = self._finished.schedule(finished_key(after.sweep_at_ms, after.spec.id), after.sweep_at_ms)
        if earlier:
            self.arm()

    def schedule_expiry(self, waiting: Job) -> None:
        """Follow a waiting job with terms: it may expire."""
        expires_ms = waiting.starts_before_ms
        if expires_ms and self._expiry.schedule(expiry_key(expires_ms, waiting.offset), expires_ms):
            self.arm()

    def begin_ticks(self, schedules: Sequence[Schedule]) -> None:
        """Let schedules tick; those that are there when the queue opens, and those of its code, are these."""
        self._writer_state.schedules.on_change = self._schedule_tick
        for schedule in schedules:
            self._schedule_tick(schedule)

    def _schedule_tick(self, after: Schedule) -> None:
        due_ms = after.waits_until_ms
        if due_ms and self._ticks.schedule(tick_key(due_ms, after.name), due_ms):
            self.arm()

    def arm(self) -> None:
        """Set the timer to when the next row or lease is due."""
        self._arm_for(self._next_ms())

    def _next_ms(self) -> int:
        lease_ms = self._leases.next_ms()
        return min(*(timed.next_ms for timed in self._ranges), _NEVER if lease_ms is None else lease_ms)

    def _arm_for(self, next_ms: int) -> None:
        if next_ms < self._armed_ms and self._task is not None:
            if self._timer is not None:
                self._timer.cancel()
            self._armed_ms = next_ms
            self._timer = self._clock.call_at(next_ms, self._ring)

    def _ring(self) -> None:
        self._armed_ms = _NEVER
        self._wake.set()

    async def _run(self) -> None:
        while self._writer_state.log.failure is None:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self._step()
            except Fenced:
                # A read met the fence before the log did, which will tell all callers of it.
                self._clock.call_at(self._clock.now_ms() + _RETRY_AFTER_MS, self._wake.set)
            except LedgerError as error:
                if self._writer_state.log.failure is None:
                    self._trouble(error)
            except Exception as error:
                self._trouble(error)
            if self._writer_state.log.failure is None:  # what is due then is due for ever: it must not ring for ever
                self.arm()

    def _trouble(self, error: Exception) -> None:
        """Log and count a failed step: the loop goes on, since its end would leave jobs behind silently."""
        self.failures += 1
        now_ms = self._clock.now_ms()
        if self._throttle.may(now_ms):
            what, left_out = "a maintenance step failed and will be tried again: %s%s", self._throttle.take_left_out()
            extra = about("maintenance_failed", failures=self.failures)
            # On a later turn: a handler of the program's that raises must not end the loop either.
            say = partial(_log.warning, what, error, left_out, exc_info=error, extra=extra)
            asyncio.get_running_loop().call_soon(say)
        self._clock.call_at(now_ms + _RETRY_AFTER_MS, self._wake.set)

    async def _step(self) -> None:
        """Work off all that is due, a part of each kind in turn: sweeping a long backlog keeps no lease waiting."""
        log = self._writer_state.log
        while log.failure is None:
            if log.full:
                await log.until_not_full()
                continue
            by_ms, now_ms = log.due_by_ms(), self._clock.now_ms()
            expired = self._leases.expired(by_ms, _STEP_ROWS, now_ms)
            self._expire(expired, by_ms)
            due = [timed for timed in self._ranges if timed.next_ms <= by_ms]
            if not expired and not due:
                if self._next_ms() > now_ms:
                    return
                await log.committed()
                continue
            for timed in due:
                await timed.step(self._writer_state, by_ms)
            self._serve()
            await asyncio.sleep(0)

    async def _load_jobs(
        self, decide: Callable[..., Sequence[JobEvent]], rows: Sequence[Row], now_ms: int
    ) -> list[Callable[[], object]]:
        jobs = await self._writer_state.jobs([_job_id(row) for row in rows])
        return [partial(self._stage, job, decide, now_ms) for job in jobs]

    def _stage(self, job: Job | None, decide: Callable[..., Sequence[JobEvent]], now_ms: int) -> None:
        for event in decide(job, now_ms=now_ms):
            job = self._writer_state.apply(job, event)

    def _not_started(self, job: Job | None, *, now_ms: int) -> list[JobEvent]:
        if job is None:
            return []
        options = self._options_of(job.queue)
        return decisions.not_started(job, options=options, now_ms=self._clock.now_ms(), by_ms=now_ms)

    def _expire(self, leases: Sequence[Lease], now_ms: int) -> None:
        crashed = decisions.counts_as_crash(len(leases))
        for lease in leases:
            job = self._writer_state.claimed.get(lease.id)
            if job is None or job.claim_offset != lease.claim_offset:
                self._leases.drop(lease.id)
                continue
            options = self._options_of(job.spec.queue)
            events = decisions.expire(
                job, options=options, now_ms=now_ms, reason=decisions.LEASE_EXPIRED, crashed=crashed
            )
            self._ended.record(self._writer_state.apply_ending(job, events), decisions.LEASE_EXPIRED)


def _job_id(row: tuple[bytes, bytes]) -> bytes:
    """The ULID stands in the value of a scheduled row, and at the end of a finished row's key."""
    return row[1] or row[0][-16:]
