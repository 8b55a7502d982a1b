"""The pace of commits: how long one waits for more events to join it, and whether two may overlap.

The wait. A flush costs a request on an object store and a sync on a disk; an event that waits for one costs somebody's
time. Both are balanced by a credit that grows with time, to two intervals at most: a commit of n events costs
interval / n. So a few events after a quiet time go at once, a hundred go almost at once, and single ones that follow
each other without end go once in each interval. A fixed interval replaces this by a plain pause between commits.

The overlap. With one commit at a time all callers wait together, stage together, and wait again: with N events a round
takes c + N s + F, where c + N s is the event loop's work and F the time of a flush. In two cohorts one is staged while
the other is flushed, and a round takes max(2 c + N s, 2 F), since a store flushes one commit at a time. That is less
when c < F < c + N s. A flush beside busy Python takes up to twice as long, though, so 2 F is to be less than the work:
so it is with bulk calls on a disk, and not on an object store, where all callers had better share each flush. Measured,
when forced: a third more jobs a second in `enqueue_many`, a twentieth fewer in bulk claims, a sixth fewer by a hundred
single callers.
"""

import time
from collections.abc import Callable
from typing import Final

from ledgerq.eventlog.runtime.meters import CommitTimes

__all__ = ["MAX_IN_FLIGHT", "CommitPace"]

MAX_IN_FLIGHT: Final = 2
NEVER: Final = float("inf")
# Fewer than this in a cohort would share no flush.
_COHORT_EVENTS: Final = 2
_BURST_INTERVALS: Final = 2
# The event loop's work that each commit costs however few events it has: measured, 0.2 to 0.3 ms.
_COMMIT_CPU_S: Final = 0.00025
_SMOOTHING: Final = 0.1


class CommitPace:
    """The pace of one log's commits; times are those of the event loop, in seconds."""

    def __init__(
        self,
        interval_s: float = 0.0,
        *,
        is_fixed: bool = False,
        overlap: bool | None = False,
        cpu_s: Callable[[], float] = time.thread_time,
    ) -> None:
        """`is_fixed`: a plain pause of `interval_s`. `overlap` None: as measured, by `cpu_s` of the loop's thread."""
        self._interval_s = interval_s
        self._is_fixed = is_fixed
        self._overlap = overlap
        self._cpu_s = cpu_s
        self._last_cpu_s = cpu_s() if overlap is None else 0.0
        self._free_s = float("-inf")
        self._event_s = 0.0
        self._flush_s = 0.0
        self.makes_cohorts = False
        # How many events the open commit must have to be closed at once, or while another one is in flight.
        self.enough_events: float = NEVER

    def wait_s(self, now_s: float, events: int) -> float:
        """How long a commit of so many events should wait for more; 0 or less: no longer."""
        if self._is_fixed:
            return self._free_s - now_s
        return self._free_s + self._interval_s / max(1, events) - _BURST_INTERVALS * self._interval_s - now_s

    def waits(self, now_s: float) -> None:
        """Count a commit that waits: more events may end that before its time."""
        credit_s = now_s + _BURST_INTERVALS * self._interval_s - self._free_s
        self.enough_events = self._interval_s / credit_s if credit_s > 0 and not self._is_fixed else NEVER

    def closed(self, now_s: float, events: int, *, in_flight: int) -> None:
        """Count a commit that waits no longer, with so many others in flight."""
        # The cohort behind this one is as large, if there may be one.
        may_follow = self.makes_cohorts and in_flight + 1 < MAX_IN_FLIGHT
        self.enough_events = max(_COHORT_EVENTS, events) if may_follow else NEVER
        cost_s = self._interval_s if self._is_fixed else self._interval_s / max(1, events)
        self._free_s = cost_s + (now_s if self._is_fixed else max(self._free_s, now_s))
        if self._overlap is None:
            cpu_s = self._cpu_s()
            work_s = max(0.0, cpu_s - self._last_cpu_s - _COMMIT_CPU_S) / max(1, events)
            self._event_s += _SMOOTHING * (work_s - self._event_s)
            self._last_cpu_s = cpu_s

    def landed(self, times: CommitTimes | None, events: int) -> None:
        """Count a commit that is durable; `events`: those of it and of all commits that are not."""
        if times is not None and times.flush_s:
            self._flush_s += _SMOOTHING * (times.flush_s + (times.sync_s or 0.0) - self._flush_s)
        # What its callers and those of the others may bring next, in two cohorts where that is better.
        self.makes_cohorts = self.overlaps(events)
        self.enough_events = max(_COHORT_EVENTS, (events + 1) // 2) if self.makes_cohorts else NEVER

    def overlaps(self, events: int) -> bool:
        """Whether so many events, all that callers have under way at a time, had better be two commits."""
        if self._overlap is not None:
            return self._overlap
        return _COMMIT_CPU_S < self._flush_s < (_COMMIT_CPU_S + events * self._event_s) / 2
