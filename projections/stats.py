"""Counters: for each queue, how many jobs are in each state now, and how many transitions there ever were.

A row is the fold of the log like every other projection, so a counter that drifts is found by the audit.
"""

from functools import cache
from typing import Final, NamedTuple

from ledgerq.eventlog.codec import pack, unpack
from ledgerq.eventlog.errors import ProjectionDrift
from ledgerq.eventlog.events import (
    STATES,
    Acked,
    Cancelled,
    CancelRequested,
    Claimed,
    Enqueued,
    JobEvent,
    LeaseExpired,
    Nacked,
    Promoted,
    Requeued,
    State,
    Swept,
)
from ledgerq.projections.job import Job

__all__ = ["TOTALS", "QueueStats", "StatsDelta", "Tally", "stats_delta"]

# The order is part of the format: append only. `dead`: jobs that became dead; `released`: claims given back unused.
TOTALS: Final = (
    "enqueued",
    "promoted",
    "claimed",
    "acked",
    "nacked",
    "lease_expired",
    "cancel_requested",
    "cancelled",
    "requeued",
    "swept",
    "dead",
    "released",
)
_TOTAL_OF: Final[dict[type[JobEvent], int]] = {
    Enqueued: 0,
    Promoted: 1,
    Claimed: 2,
    Acked: 3,
    Nacked: 4,
    LeaseExpired: 5,
    CancelRequested: 6,
    Cancelled: 7,
    Requeued: 8,
    Swept: 9,
}
_DEAD: Final = 10
_RELEASED: Final = 11
_STATE_AT: Final[dict[State | None, int]] = {state: i for i, state in enumerate(STATES)}


class StatsDelta(NamedTuple):
    """What one event changes: the state left and the one entered (index into STATES, -1 for none), totals to raise."""

    left: int
    entered: int
    totals: tuple[int, ...]


def stats_delta(before: Job | None, event: JobEvent, after: Job | None) -> StatsDelta:
    """What `event` changes in its queue's counters, given the job before and after it."""
    left = None if before is None else before.state
    entered = None if after is None else after.state
    return _delta(left, entered, _TOTAL_OF[type(event)], type(event) is Nacked and event.released)


@cache
def _delta(left: State | None, entered: State | None, total: int, released: bool) -> StatsDelta:
    totals = (total, *([_DEAD] if entered == "dead" else []), *([_RELEASED] if released else []))
    return StatsDelta(_STATE_AT.get(left, -1), _STATE_AT.get(entered, -1), totals)


class QueueStats(NamedTuple):
    """A queue's counters as users see them."""

    queue: str
    scheduled: int
    pending: int
    claimed: int
    done: int
    dead: int
    cancelled: int
    paused: bool
    totals: dict[str, int]


class Tally:
    """A queue's counters while they are being counted."""

    __slots__ = ("now", "paused", "totals")

    def __init__(self) -> None:
        self.now = [0] * len(STATES)
        self.totals = [0] * len(TOTALS)
        self.paused = False

    def add(self, delta: StatsDelta) -> None:
        """Count one event."""
        if delta.left != delta.entered:
            if delta.left >= 0:
                self.now[delta.left] -= 1
            if delta.entered >= 0:
                self.now[delta.entered] += 1
        for total in delta.totals:
            self.totals[total] += 1

    def encode(self) -> bytes:
        """The value of the queue's stats row."""
        return pack((self.now, self.totals, self.paused))

    @classmethod
    def decode(cls, value: bytes) -> "Tally":
        """The counters in a stats row; raises `ProjectionDrift` when it is malformed."""
        tally = cls()
        try:
            now, totals, paused = unpack(value)
            if len(now) != len(STATES) or not all(type(count) is int for count in (*now, *totals)):
                raise ValueError("wrong shape")
        except (ValueError, TypeError) as error:
            raise ProjectionDrift(f"a stats row can't be decoded ({error}): run rebuild-projections") from error
        tally.now = list(now)
        # A row written before a total existed has fewer of them.
        tally.totals = [*totals, *[0] * (len(TOTALS) - len(totals))]
        tally.paused = bool(paused)
        return tally

    def view(self, queue: str) -> QueueStats:
        """The counters by name."""
        now = dict(zip(STATES, self.now, strict=True))
        # A row that a later version wrote has more of them; they are kept and not shown.
        totals = dict(zip(TOTALS, self.totals, strict=False))
        return QueueStats(queue, **now, paused=self.paused, totals=totals)
