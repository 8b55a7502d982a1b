"""Metrics from a bounded inspection of the store: ages, the next due time, the lag of projections, the last audit.

An inspection takes time, so it is made before a scrape, not during one: `Inspector` runs at most one at a time, and a
scrape shows what the last one found, with ages as of now.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import CancelledError
from contextlib import suppress
from typing import Final

from ledgerq.eventlog.clock import Clock
from ledgerq.eventlog.errors import LedgerError, StoreUnavailable
from ledgerq.eventlog.events import STATES
from ledgerq.eventlog.locations import parse_location
from ledgerq.eventlog.recorded_audit import RecordedAudit, RecordedAuditReader
from ledgerq.eventlog.runtime.log_records import LogThrottle, about, logger
from ledgerq.eventlog.store import ReadStore
from ledgerq.projections.metrics.collector import Families
from ledgerq.projections.metrics.store_queries import (
    Position,
    hints,
    next_due_ms,
    oldest_pending_ms,
    projection_offsets,
)
from ledgerq.projections.runner import BUILT_IN
from ledgerq.projections.stats import QueueCounters

__all__ = ["InspectionSource", "Inspector", "StoreInspection"]

_log = logger("projections")
_INSPECTION_LIMIT_S: Final = 0.5
_AUDIT_EVERY_MS: Final = 30_000
_SCRAPE_WAIT_S: Final = 1.0
_PENDING: Final = STATES.index("pending")


class StoreInspection:
    """The findings of the last inspection of a store, and its next one. Reading them is safe in any thread."""

    def __init__(self, clock: Clock) -> None:
        self.time_ms: int | None = None
        self.oldest_ms: dict[str, int | None] = {}
        self.due_ms: int | None = None
        self.offsets: dict[str, int] = {}
        self.audit: RecordedAudit | None = None
        self.audit_ms: int | None = None
        self._clock = clock
        self._audit_due_ms = 0
        self._notes: RecordedAuditReader | None = None

    async def read(self, store: ReadStore, rows: Mapping[str, bytes]) -> None:
        """Inspect everything, for a process that only reads; `rows` are the stats rows of all queues.

        Raises what reading the store raises; what was found before stays.
        """
        pending = [queue for queue, row in rows.items() if QueueCounters.decode(row).now[_PENDING]]
        await self.pending(store, await hints(store, pending))
        with suppress(TimeoutError):
            async with asyncio.timeout(_INSPECTION_LIMIT_S):
                self.due_ms = await next_due_ms(store)
        self.offsets = await projection_offsets(store)
        await self.last_audit(store.location)
        self.done()

    async def pending(self, store: ReadStore, starts: Mapping[str, Position]) -> None:
        """Find how long jobs wait in these queues; each scan starts at the queue's hint.

        The queues inspected longest ago come first: those that the time limit leaves out keep their last answer.
        """
        for queue in [name for name in self.oldest_ms if name not in starts]:
            del self.oldest_ms[queue]
        new = [queue for queue in starts if queue not in self.oldest_ms]
        with suppress(TimeoutError):
            async with asyncio.timeout(_INSPECTION_LIMIT_S):
                for queue in [*new, *self.oldest_ms]:
                    found = await oldest_pending_ms(store, queue, starts[queue])
                    self.oldest_ms.pop(queue, None)  # to the end of the line
                    self.oldest_ms[queue] = found

    async def last_audit(self, location: str) -> None:
        """Read the record of the last audit, at most once in half a minute; a store in memory can have none."""
        if parse_location(location).is_memory:
            return
        now_ms = self._clock.now_ms()
        if self._audit_due_ms - _AUDIT_EVERY_MS <= now_ms < self._audit_due_ms:
            return
        self._audit_due_ms = now_ms + _AUDIT_EVERY_MS
        # The counters are worth more than that: where it can't be read the last answer stands.
        with suppress(StoreUnavailable, TimeoutError):
            if self._notes is None:
                self._notes = RecordedAuditReader(location)
            async with asyncio.timeout(_INSPECTION_LIMIT_S):
                self.audit = await self._notes.read()
            self.audit_ms = now_ms

    def done(self) -> None:
        """Mark the inspection as complete."""
        self.time_ms = self._clock.now_ms()


class InspectionSource:
    """A `StoreInspection` as metrics.

    `pending` gives how many durable pending jobs each queue has, `label_of` the label value under which a queue is
    shown, `end` the offset after the last durable event.
    """

    names = (
        "ledgerq_oldest_pending_age_seconds",
        "ledgerq_next_due_seconds",
        "ledgerq_projection_lag_events",
        "ledgerq_read_timestamp_seconds",
        "ledgerq_audit_timestamp_seconds",
        "ledgerq_audit_offset",
        "ledgerq_audit_differences",
        "ledgerq_audit_log_intact",
    )

    def __init__(
        self,
        inspection: StoreInspection,
        clock: Clock,
        *,
        pending: Callable[[], Mapping[str, int]],
        label_of: Callable[[str], str],
        end: Callable[[], int],
    ) -> None:
        self._inspection = inspection
        self._clock = clock
        self._pending = pending
        self._label_of = label_of
        self._end = end

    def show(self, families: Families) -> None:
        """Show what the last inspection found, as of now."""
        inspection, now_ms = self._inspection, self._clock.now_ms()
        oldest_ms = dict(inspection.oldest_ms)
        ages: dict[str, float] = {}
        for queue, count in self._pending().items():
            label, since_ms = self._label_of(queue), oldest_ms.get(queue)
            if count == 0 or since_ms is not None:
                age_s = 0.0 if count == 0 or since_ms is None else max(0, now_ms - since_ms) / 1000
                ages[label] = max(age_s, ages.get(label, 0.0))
        for label, age_s in ages.items():
            families.add("ledgerq_oldest_pending_age_seconds", age_s, queue=label)
        if inspection.due_ms is not None:
            families.add("ledgerq_next_due_seconds", (inspection.due_ms - now_ms) / 1000)
        for name in BUILT_IN:
            families.add("ledgerq_projection_lag_events", 0, projection=name)
        end = self._end()
        for name, offset in dict(inspection.offsets).items():
            families.add("ledgerq_projection_lag_events", max(0, end - offset), projection=name)
        if inspection.time_ms is not None:
            families.add("ledgerq_read_timestamp_seconds", inspection.time_ms / 1000)
        if inspection.audit_ms is not None:
            _show_audit(families, inspection.audit)


def _show_audit(families: Families, recorded: RecordedAudit | None) -> None:
    families.add("ledgerq_audit_timestamp_seconds", 0 if recorded is None else recorded.time_ms / 1000)
    if recorded is not None:
        families.add("ledgerq_audit_offset", recorded.offset)
        families.add("ledgerq_audit_differences", recorded.differences)
        families.add("ledgerq_audit_log_intact", int(recorded.log_intact))


class Inspector:
    """Runs inspections on the event loop that it was made on: one at a time, however many callers there are."""

    def __init__(self, inspect: Callable[[], Awaitable[None]]) -> None:
        self._inspect = inspect
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self._is_fresh = False
        self._throttle = LogThrottle()

    async def refresh(self) -> None:
        """Inspect now, or wait for the inspection under way, a second at most; what can't be read stays as it was."""
        if self._closed:
            return
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="ledgerq-inspection")
        await asyncio.wait({self._task}, timeout=_SCRAPE_WAIT_S)
        self._is_fresh = True

    async def _run(self) -> None:
        try:
            await self._inspect()
        except LedgerError as error:
            # That a store does not answer is seen by the age of the last inspection.
            _log.debug("inspecting the store for metrics failed: %s", error, extra=about("inspection_failed"))
        except Exception:
            if self._throttle.may(round(self._loop.time() * 1000)):
                left_out = self._throttle.take_left_out()
                _log.exception("inspecting the store for metrics failed%s", left_out, extra=about("inspection_failed"))

    def before_scrape(self) -> None:
        """Inspect, and wait for the result: in another thread a second at most, on the loop itself not at all.

        There the scrape shows the inspection before, and the next one this; after a `refresh` it needs no other.
        """
        if self._closed or not self._loop.is_running():
            return
        if threading.get_ident() == self._thread:
            if self._is_fresh:
                self._is_fresh = False
            elif self._task is None or self._task.done():
                self._task = self._loop.create_task(self._run(), name="ledgerq-inspection")
            return
        looking = asyncio.run_coroutine_threadsafe(self.refresh(), self._loop)
        with suppress(TimeoutError, CancelledError):  # the loop may end meanwhile
            looking.result(_SCRAPE_WAIT_S)
            self._is_fresh = False

    async def close(self) -> None:
        """End the inspections."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
