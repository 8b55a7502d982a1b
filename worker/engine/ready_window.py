"""The ready window of one queue: the first entries of its pending index, in memory, so that a claim reads nothing.

Invariant: every pending job whose position (priority, offset) is at or before `bound` is in the window; `bound` None
means that all of them are. Enqueues feed it directly; refill.py refills it from the store when it runs low. Its memory
is bounded by `limit_rows` entries (twice that for a moment) and by the shared budget for payloads.
"""

import heapq
from typing import Final, NamedTuple

from ledgerq.eventlog.side_records import PayloadRecord
from ledgerq.projections.job import Job

__all__ = ["Position", "PayloadBudget", "ReadyJob", "ReadyWindow"]

Position = tuple[int, int]
"""(priority, offset of the enqueued event): the order in which jobs are claimed."""

# The heap is made anew once it has this many entries of jobs that left.
_STALE_ROWS: Final = 64
FIRST_POSITION: Final[Position] = (0, 0)


class ReadyJob(NamedTuple):
    """A pending job that can be claimed; `payload` is None while it is only in the store."""

    job: Job
    payload: PayloadRecord | None

    @property
    def position(self) -> Position:
        """Its position in the pending range."""
        return (self.job.spec.priority, self.job.offset)


class PayloadBudget:
    """The budget for the bytes of payload that all windows together may hold."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0

    def admit(self, n_bytes: int, *, urgent: bool = False) -> bool:
        """Take `n_bytes` when they fit, or when the next claim waits for them."""
        if not urgent and self.used_bytes + n_bytes > self.limit_bytes:
            return False
        self.used_bytes += n_bytes
        return True


class ReadyWindow:
    """The ready window of one queue."""

    def __init__(self, limit_rows: int, budget: PayloadBudget) -> None:
        self.limit_rows = limit_rows
        self.bound: Position | None = FIRST_POSITION  # nothing is known yet: everything is beyond the bound
        self.scan_from: Position = FIRST_POSITION  # no pending job outside the window stands before this position
        self.jobs: dict[bytes, ReadyJob] = {}
        self._heap: list[tuple[int, int, bytes]] = []
        self._last: Position = FIRST_POSITION
        self._budget = budget

    def __len__(self) -> int:
        return len(self.jobs)

    @property
    def low(self) -> bool:
        """Whether it should be refilled."""
        return self.bound is not None and len(self.jobs) < max(1, self.limit_rows // 4)

    def offer(self, job: Job, payload: PayloadRecord | None) -> bool:
        """Offer a job that became pending; whether it is in the window now."""
        position = (job.spec.priority, job.offset)
        if self.bound is None and len(self.jobs) >= self.limit_rows:
            # Every pending job is in the window, so any bound is true; this one keeps a growing backlog out.
            self.bound, self.scan_from = self._last, max(self._last, position)
        if self.bound is not None and position > self.bound:
            if position < self.scan_from:
                self.scan_from = position
            return False
        self.insert(ReadyJob(job, payload))
        if len(self.jobs) > 2 * self.limit_rows:
            self._shrink()
        return True

    def insert(self, ready: ReadyJob, *, urgent: bool = False) -> None:
        """Insert a job, or replace it by its newer state; the payload is kept if it is urgent or the budget allows."""
        id = ready.job.spec.id
        known = self.jobs.get(id)
        if known is None:
            position = ready.position
            heapq.heappush(self._heap, (*position, id))
            if position > self._last:
                self._last = position
        elif known.payload is not None:
            self._budget.used_bytes -= known.job.spec.payload_bytes
        if ready.payload is not None and not self._budget.admit(ready.job.spec.payload_bytes, urgent=urgent):
            ready = ReadyJob(ready.job, None)
        self.jobs[id] = ready
        if len(self._heap) > 2 * len(self.jobs) + _STALE_ROWS:
            self._heap = self._entries()

    def drop(self, id: bytes) -> None:
        """Drop a job that is not pending any more (its heap entry is skipped later)."""
        ready = self.jobs.pop(id, None)
        if ready is not None and ready.payload is not None:
            self._budget.used_bytes -= ready.job.spec.payload_bytes

    def first(self) -> ReadyJob | None:
        """The job to claim next, if the window holds one."""
        heap, jobs = self._heap, self.jobs
        while heap:
            ready = jobs.get(heap[0][2])
            if ready is not None:
                return ready
            heapq.heappop(heap)
        return None

    def take(self) -> ReadyJob | None:
        """Take out the next job if its payload is in memory; None when there is none, or it must be loaded first."""
        ready = self.first()
        if ready is None or ready.payload is None:
            return None
        heapq.heappop(self._heap)
        self.drop(ready.job.spec.id)
        return ready

    def position_after(self) -> Position:
        """A position before which there is no pending job: where a later scan may start."""
        first = self.first()
        if self.bound is None:
            return first.position if first is not None else (self._last[0], self._last[1] + 1)
        outside = max(self.scan_from, self.bound)
        return outside if first is None else min(first.position, outside)

    def to_load(self, limit_rows: int, limit_bytes: int) -> list[ReadyJob]:
        """Those of the first `limit_rows` entries whose payloads are only in the store, at least one, then bounded."""
        head: list[tuple[int, int, bytes]] = []
        found: list[ReadyJob] = []
        size_bytes = 0
        while self._heap and len(head) < limit_rows:
            entry = heapq.heappop(self._heap)
            ready = self.jobs.get(entry[2])
            if ready is None:
                continue
            head.append(entry)
            if ready.payload is None:
                size_bytes += ready.job.spec.payload_bytes
                if found and size_bytes > limit_bytes:
                    break
                found.append(ready)
        for entry in head:
            heapq.heappush(self._heap, entry)
        return found

    def _entries(self) -> list[tuple[int, int, bytes]]:
        """The heap without entries of jobs that left, each job once."""
        return sorted((*ready.position, id) for id, ready in self.jobs.items())

    def _shrink(self) -> None:
        """Keep the first `limit_rows` entries; the others are in the store, beyond the new bound."""
        entries = self._entries()
        keep, leave = entries[: self.limit_rows], entries[self.limit_rows :]
        self._heap = keep
        self.scan_from = leave[0][:2] if self.bound is None else min(self.scan_from, leave[0][:2])
        self.bound = keep[-1][:2]
        for entry in leave:
            self.drop(entry[2])
