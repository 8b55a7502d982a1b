"""The metrics of a queue that this process writes: durable counters, store inspections, and the process's gauges."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

from ledgerq.eventlog.clock import Clock
from ledgerq.eventlog.events import STATES
from ledgerq.eventlog.runtime.process import package_version
from ledgerq.eventlog.slate.slate_store import SlateStore
from ledgerq.projections.metrics.collector import Families, LedgerCollector, SlateSource
from ledgerq.projections.metrics.counters import CountersSource
from ledgerq.projections.metrics.store_inspection import InspectionSource, Inspector, StoreInspection
from ledgerq.worker.engine.core import Core

__all__ = ["QueueCollector", "QueueGauges"]

_PENDING: Final = STATES.index("pending")
_SCHEDULED: Final = STATES.index("scheduled")
_FIRST: Final = (0, 0)


class QueueCollector(LedgerCollector):
    """The collector that `Queue.collector` returns."""

    def __init__(self, gauges: "QueueGauges", limit: int) -> None:
        self._gauges = gauges
        self._counters = counters = gauges.counters(limit)
        super().__init__(
            counters,
            gauges.inspection_source(counters.label_of),
            WriterSource(gauges.core, counters.label_of),
            *gauges.store_sources(),
            before=gauges.inspector.before_scrape,
        )

    async def refresh(self) -> None:
        """Bring up to date what has to be read from the store (ages, the last audit); await it before a scrape.

        It is bounded in time, and what can't be read keeps its last answer. A scrape from another thread than the
        loop's does this by itself. Counters that changed are read as well, in steps that leave the loop to others.
        """
        await self._gauges.inspector.refresh()
        for _ in self._counters.take_in():
            await asyncio.sleep(0)


class QueueGauges:
    """The gauges of one queue object: all its collectors share the inspections of the store."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.clock: Clock = core.clock
        self.inspection = StoreInspection(core.clock)
        self.inspector = Inspector(self._inspect)
        core.on_close.append(self.inspector.close)

    def counters(self, limit: int) -> CountersSource:
        """The durable counters, with exemplars from memory."""
        writer_state, log = self.core.writer_state, self.core.log
        # Copies, for a scrape may come from another thread; a commit replaces its rows in one step.
        return CountersSource(
            lambda: writer_state.durable_counters.copy(),
            lambda: log.durable_head,
            live=lambda: writer_state.counters,
            limit=limit,
        )

    def inspection_source(self, label_of: Callable[[str], str]) -> InspectionSource:
        """The metrics of the store inspections."""
        writer_state, log = self.core.writer_state, self.core.log
        return InspectionSource(
            self.inspection,
            self.clock,
            pending=lambda: {
                queue: queue_counters.now[_PENDING] for queue, queue_counters in writer_state.counters.copy().items()
            },
            label_of=label_of,
            end=lambda: log.durable_head.next_offset,
        )

    def store_sources(self) -> list[SlateSource]:
        """The store's own numbers, if it has any."""
        store = self.core.log.store
        return [SlateSource(store.metrics.read)] if isinstance(store, SlateStore) else []

    async def _inspect(self) -> None:
        core, inspection = self.core, self.inspection
        if core.log.failure is None:
            writer_state = core.writer_state
            wanted = [queue for queue, queue_counters in writer_state.counters.items() if queue_counters.now[_PENDING]]
            await inspection.pending(core.log.store, {queue: writer_state.hints.get(queue, _FIRST) for queue in wanted})
            # From maintenance; while that works on what is due it has no answer, and the one before stands.
            if not any(queue_counters.now[_SCHEDULED] for queue_counters in writer_state.counters.values()):
                inspection.due_ms = None
            elif (due_ms := core.maintenance.next_due_ms) is not None:
                inspection.due_ms = due_ms
            inspection.offsets = dict(writer_state.host.offsets)
        await inspection.last_audit(core.log.store.location)
        inspection.done()


class WriterSource:
    """The gauges that only the process with the open queue has."""

    names = (
        "ledgerq_writer_up",
        "ledgerq_writer_failed",
        "ledgerq_ready_window_jobs",
        "ledgerq_claim_waiters",
        "ledgerq_queue_max_running",
        "ledgerq_queue_held_back",
        "ledgerq_claims_held",
        "ledgerq_commit_seconds",
        "ledgerq_commit_events",
        "ledgerq_commit_bytes",
        "ledgerq_log_written_bytes_total",
        "ledgerq_maintenance_failures_total",
        "ledgerq_build_info",
    )

    def __init__(self, core: Core, label_of: Callable[[str], str]) -> None:
        self._core = core
        self._label_of = label_of
        self._version = package_version()

    def show(self, families: Families) -> None:
        """Show the gauges as of now, and the commits of this process."""
        core = self._core
        log, writer_state, dispatcher = core.log, core.writer_state, core.dispatcher
        families.add("ledgerq_writer_up", int(log.failure is None))
        if log.failure is not None:
            families.add("ledgerq_writer_failed", 1, error=type(log.failure).__name__)
        windows = {queue: len(window.jobs) for queue, window in writer_state.windows.copy().items()}
        self._by_queue(families, "ledgerq_ready_window_jobs", windows)
        self._by_queue(families, "ledgerq_claim_waiters", dispatcher.waiters.counts())
        limits = writer_state.limits.by_queue.copy()
        most = {queue: one.setting.max_running for queue, one in limits.items() if one.setting is not None}
        self._by_queue(families, "ledgerq_queue_max_running", {queue: n for queue, n in most.items() if n})
        refused = dispatcher.limiting.refused.copy()
        self._by_queue(families, "ledgerq_queue_held_back", {queue: int(queue in refused) for queue in limits})
        families.add("ledgerq_claims_held", len(dispatcher.leases))
        for phase, meter in log.meters.phases().items():
            families.add_histogram("ledgerq_commit_seconds", meter.bounds, meter.counts, meter.sum, phase=phase)
        for name, meter in (("ledgerq_commit_events", log.meters.events), ("ledgerq_commit_bytes", log.meters.bytes)):
            families.add_histogram(name, meter.bounds, meter.counts, meter.sum)
        families.add("ledgerq_log_written_bytes_total", log.meters.log_bytes)
        families.add("ledgerq_maintenance_failures_total", core.maintenance.failures)
        families.add("ledgerq_build_info", 1, version=self._version)

    def _by_queue(self, families: Families, name: str, counts: Mapping[str, int]) -> None:
        sums: dict[str, int] = {}
        for queue, count in counts.items():
            label = self._label_of(queue)
            sums[label] = sums.get(label, 0) + count
        for label, count in sums.items():
            families.add(name, count, queue=label)
