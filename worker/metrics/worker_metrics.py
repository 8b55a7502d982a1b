"""The metrics of a worker's own process: what it did since it began."""

from collections.abc import Callable, Sequence
from typing import Final

from ledgerq.eventlog.runtime.meters import Meter
from ledgerq.projections.metrics.collector import Families
from ledgerq.worker.claims import Claim
from ledgerq.worker.job_logging import Outcome

__all__ = ["WorkerMeters", "WorkerSource"]

_BOUNDS_S: Final = (
    *(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0),
)


class WorkerMeters:
    """The counts of one worker, made on the event loop and read from any thread."""

    def __init__(self) -> None:
        self.handlers: dict[tuple[str, str], Meter] = {}
        self.renewals = 0
        self.lost = 0

    def ended(self, claim: Claim, outcome: Outcome, seconds: float, *, timed_out: bool) -> None:
        """Count a try that ended; its handler ran for so many seconds."""
        key = claim.queue, "timeout" if timed_out and outcome in ("retry", "dead") else outcome
        (self.handlers.get(key) or self.handlers.setdefault(key, Meter(_BOUNDS_S))).add(seconds)
        if outcome == "lost":
            self.lost += 1


class WorkerSource:
    """The metrics of one worker. `running` gives the queue of each handler that runs now, `held` how many claims."""

    names = (
        "ledgerq_worker_handlers_running",
        "ledgerq_worker_handlers_limit",
        "ledgerq_worker_claims_held",
        "ledgerq_worker_handler_seconds",
        "ledgerq_worker_lease_renewals_total",
        "ledgerq_worker_claims_lost_total",
    )

    def __init__(
        self,
        meters: WorkerMeters,
        *,
        queues: Callable[[], Sequence[str]],
        running: Callable[[], Sequence[str]],
        held: Callable[[], int],
        limit: int,
    ) -> None:
        self._meters = meters
        self._queues = queues
        self._running = running
        self._held = held
        self._limit = limit

    def show(self, families: Families) -> None:
        """Show what this worker does now, and has done."""
        running = self._running()
        for queue in self._queues():
            families.add("ledgerq_worker_handlers_running", running.count(queue), queue=queue)
        families.add("ledgerq_worker_handlers_limit", self._limit)
        families.add("ledgerq_worker_claims_held", self._held())
        for (queue, outcome), meter in list(self._meters.handlers.items()):
            families.add_histogram(
                "ledgerq_worker_handler_seconds", meter.bounds, meter.counts, meter.sum, queue=queue, outcome=outcome
            )
        families.add("ledgerq_worker_lease_renewals_total", self._meters.renewals)
        families.add("ledgerq_worker_claims_lost_total", self._meters.lost)
