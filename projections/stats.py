"""The counters of a queue: its jobs by state, its transitions since the beginning, and how long they took.

A row is the fold of the log like every other projection, so a counter that drifts is found by the audit. It is a
msgpack array: jobs by state, totals, paused flag, offset of the queue's first event, and the histograms (see
histograms.py), each its sum followed by its buckets. Rows of format 1 end after the paused flag. While a bulk of the
queue is open the offset at which it began comes last.
"""

from functools import cache
from typing import Final, NamedTuple, assert_never

from ledgerq.eventlog.codec import pack, unpack
from ledgerq.eventlog.errors import ProjectionDrift
from ledgerq.eventlog.events import (
    STATES,
    Acked,
    BulkBegan,
    BulkEnded,
    Cancelled,
    CancelRequested,
    Claimed,
    DeadLettered,
    Deleted,
    Enqueued,
    Expired,
    JobEvent,
    LeaseExpired,
    Moved,
    Nacked,
    Promoted,
    QueueEvent,
    QueuePaused,
    QueueResumed,
    Replaced,
    Requeued,
    State,
    StepDone,
    Swept,
    UniqueReleased,
)
from ledgerq.eventlog.keys import FORMAT_VERSION
from ledgerq.projections.histograms import MEASURES, Histogram, HistogramView, new_histograms
from ledgerq.projections.job import Job

__all__ = ["TOTALS", "QueueStats", "StatsDelta", "QueueCounters", "stats_delta"]

# The order is part of the format: append only. `dead`: jobs that became dead, for whatever reason; `released`: claims
# given back unused; `dead_lettered`: jobs whose payload was lost; `deleted`: jobs deleted by an operator; `expired`:
# jobs that were not started in time; `moved_out` and `moved_in`: jobs that went to another queue, and came from one;
# `step_done`: steps that jobs have done; `replaced`: waiting jobs that got new arguments; `unique_released`: unique
# keys given up after their period.
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
    "dead_lettered",
    "deleted",
    "expired",
    "moved_out",
    "moved_in",
    "step_done",
    "replaced",
    "unique_released",
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
    DeadLettered: 12,
    Deleted: 13,
    Expired: 14,
    Moved: 15,
    StepDone: 17,
    Replaced: 18,
    UniqueReleased: 19,
}
_ENQUEUED_TOTAL: Final = 0
_CLAIMED_TOTAL: Final = 2
_ACKED_TOTAL: Final = 3
_DEAD: Final = 10
_RELEASED: Final = 11
_MOVED_IN: Final = 16
# Totals from here on came later: a row leaves out those at its end that are zero, as rows before them did.
_FIRST_TOTALS: Final = 12
_PENDING: Final = STATES.index("pending")
_CLAIMED: Final = STATES.index("claimed")
_DONE: Final = STATES.index("done")
_STATE_AT: Final[dict[State | None, int]] = {state: i for i, state in enumerate(STATES)}


class StatsDelta(NamedTuple):
    """The change by one event: the state left and the one entered (index into STATES, -1 for none), totals to raise."""

    left: int
    entered: int
    totals: tuple[int, ...]


def stats_delta(before: Job | None, event: JobEvent, after: Job | None) -> StatsDelta:
    """The change of its queue's counters by `event`, given the job before and after it.

    A job that is moved leaves its queue; the other one's counters have it by `QueueCounters.arrive`.
    """
    left = None if before is None else before.state
    entered = None if after is None or type(event) is Moved else after.state
    return _delta(left, entered, _TOTAL_OF[type(event)], type(event) is Nacked and event.released)


@cache
def _delta(left: State | None, entered: State | None, total: int, released: bool) -> StatsDelta:
    totals = (total, *([_DEAD] if entered == "dead" != left else []), *([_RELEASED] if released else []))
    return StatsDelta(_STATE_AT.get(left, -1), _STATE_AT.get(entered, -1), totals)


class QueueStats(NamedTuple):
    """A queue's counters: how many jobs are in each state, and how often each transition happened.

    `scheduled` to `cancelled` count the jobs that are there now; a job that was swept is counted in none of them.
    `paused`: whether claims are held back. `totals` counts events since the queue's first one and never goes down:
    the names are those of `TOTALS` (`enqueued`, `claimed`, `acked`, ...), among them `dead`, jobs that died, and
    `released`, claims given back without counting as an attempt. All are projections of the log, exact at any offset.
    """

    queue: str
    scheduled: int
    pending: int
    claimed: int
    done: int
    dead: int
    cancelled: int
    paused: bool
    totals: dict[str, int]


class QueueCounters:
    """A queue's counters while they are being counted. `first_offset` is that of its first event.

    `bulk` is the offset at which the queue's open bulk began, 0 without one.
    """

    __slots__ = ("attempts", "bulk", "first_offset", "life", "now", "paused", "running", "totals", "waiting")

    def __init__(self, first_offset: int = 0) -> None:
        self.now = [0] * len(STATES)
        self.totals = [0] * len(TOTALS)
        self.paused = False
        self.bulk = 0
        self.first_offset = first_offset
        self.waiting, self.running, self.life, self.attempts = new_histograms()

    def apply(self, before: Job | None, event: JobEvent, after: Job | None) -> None:
        """Count one event, given the job before and after it, with its times and attempts.

        Waiting ends with each claim. Running ends when the worker itself settles: a claim given back unused, or ended
        by an expired lease (perhaps found days later), is no measure of the work. Life ends with the ack.
        """
        kind = type(event)
        # What happens to every job is counted here in place: the same as `add`, which a test holds it against.
        if kind is Enqueued and before is None and after is not None:
            self.now[_STATE_AT[after.state]] += 1
            self.totals[_ENQUEUED_TOTAL] += 1
        elif before is None or after is None:
            self.add(stats_delta(before, event, after))
        elif kind is Claimed:
            self.now[_PENDING] -= 1
            self.now[_CLAIMED] += 1
            self.totals[_CLAIMED_TOTAL] += 1
            time_ms = after.changed_ms
            self.waiting.add(time_ms - before.since_ms, after.spec.id, time_ms)
        elif kind is Acked:
            self.now[_CLAIMED] -= 1
            self.now[_DONE] += 1
            self.totals[_ACKED_TOTAL] += 1
            id, time_ms = after.spec.id, after.changed_ms
            self.running.add(time_ms - before.since_ms, id, time_ms)
            self.life.add(time_ms - before.enqueued_ms, id, time_ms)
            self.attempts.count(before.attempt)
        else:
            self.add(stats_delta(before, event, after))
            if type(event) is Nacked and not event.released:
                self.running.add(after.changed_ms - before.since_ms, after.spec.id, after.changed_ms)

    def add(self, delta: StatsDelta) -> None:
        """Count the changes by an event."""
        if delta.left != delta.entered:
            if delta.left >= 0:
                self.now[delta.left] -= 1
            if delta.entered >= 0:
                self.now[delta.entered] += 1
        for total in delta.totals:
            self.totals[total] += 1

    def arrive(self, after: Job) -> None:
        """Count a job that was moved here from another queue."""
        self.add(StatsDelta(-1, _STATE_AT[after.state], (_MOVED_IN,)))

    def include(self, other: "QueueCounters") -> None:
        """Add the counts of the same queue's other jobs."""
        self.now = [ours + theirs for ours, theirs in zip(self.now, other.now, strict=True)]
        self.totals = [ours + theirs for ours, theirs in zip(self.totals, other.totals, strict=True)]
        # Of what concerns no job each share has seen all.
        self.paused |= other.paused
        self.bulk = max(self.bulk, other.bulk)
        self.first_offset = min(self.first_offset, other.first_offset)
        for ours, theirs in zip(self.histograms(), other.histograms(), strict=True):
            ours.include(theirs)

    def encode(self, format_version: int = FORMAT_VERSION) -> bytes:
        """The value of the queue's stats row."""
        if format_version == 1:
            return pack((self.now, self.totals[:_FIRST_TOTALS], self.paused))
        totals = self.totals.copy()
        while len(totals) > _FIRST_TOTALS and not totals[-1]:
            totals.pop()
        histograms = [histogram.encode() for histogram in self.histograms()]
        row = (self.now, totals, self.paused, self.first_offset, histograms)
        return pack((*row, self.bulk) if self.bulk else row)

    def follow(self, event: QueueEvent, offset: int) -> None:
        """Follow an event of the queue itself."""
        match event:
            case QueuePaused() | QueueResumed():
                self.paused = type(event) is QueuePaused
            case BulkBegan():
                self.bulk = offset
            case BulkEnded():
                self.bulk = 0
            case _:
                assert_never(event)

    def histograms(self) -> tuple[Histogram, ...]:
        """One histogram for each of `MEASURES`, in their order."""
        return self.waiting, self.running, self.life, self.attempts

    @classmethod
    def decode(cls, value: bytes) -> "QueueCounters":
        """The counters in a stats row; raises `ProjectionDrift` when it is malformed."""
        counters = cls()
        try:
            now, totals, paused, *later = unpack(value)
            if len(now) != len(STATES) or not all(type(count) is int for count in (*now, *totals)):
                raise ValueError("wrong shape")
            if later:
                counters._decode_later(*later)
        except (ValueError, TypeError) as error:
            raise ProjectionDrift(f"a stats row can't be decoded ({error}): run rebuild-projections") from error
        counters.now = list(now)
        # A row written before a total existed has fewer of them.
        counters.totals = [*totals, *[0] * (len(TOTALS) - len(totals))]
        counters.paused = bool(paused)
        return counters

    def _decode_later(self, first_offset: int, histograms: tuple[tuple[int, ...], ...], bulk: int = 0) -> None:
        """Decode the part that rows of format 1 don't have."""
        if type(first_offset) is not int or type(bulk) is not int:
            raise ValueError("wrong shape")
        self.first_offset, self.bulk = first_offset, bulk
        self.waiting, self.running, self.life, self.attempts = (
            Histogram.decode(empty.bounds, row) for empty, row in zip(self.histograms(), histograms, strict=True)
        )

    def view(self, queue: str) -> QueueStats:
        """The counters by name."""
        now = dict(zip(STATES, self.now, strict=True))
        # A row that a later version wrote has more of them; they are kept and not shown.
        totals = dict(zip(TOTALS, self.totals, strict=False))
        return QueueStats(queue, **now, paused=self.paused, totals=totals)

    def measures(self) -> dict[str, HistogramView]:
        """The histograms by name, as they are now."""
        return {name: histogram.view() for name, histogram in zip(MEASURES, self.histograms(), strict=True)}
