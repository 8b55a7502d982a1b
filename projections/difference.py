"""The difference between two offsets of the log: jobs by their state, queues by their counters."""

from collections.abc import Iterator
from typing import NamedTuple

from ledgerq.eventlog.entropy import job_id_text
from ledgerq.eventlog.errors import InvalidArgument, LogCorrupt
from ledgerq.eventlog.events import State
from ledgerq.eventlog.log import LogReader, Progress
from ledgerq.projections.fold import Transition
from ledgerq.projections.replay import fold_to
from ledgerq.projections.stats import QueueCounters, QueueStats

__all__ = ["LogDifference", "JobChange", "QueueChange", "difference"]


class JobChange(NamedTuple):
    """A job's state and attempt before and after; None before it was enqueued, and after it was swept."""

    job_id: str
    queue: str
    before: State | None
    after: State | None
    attempt_before: int
    attempt_after: int
    events: int


class QueueChange(NamedTuple):
    """A queue's counters before and after; all zero before its first event."""

    before: QueueStats
    after: QueueStats


class LogDifference(NamedTuple):
    """The changes by the events from `start` up to, not including, `stop`; jobs in order of their first event."""

    start: int
    stop: int
    queues: list[QueueChange]
    jobs: list[JobChange]


class _Touched:
    __slots__ = ("after", "attempt_after", "attempt_before", "before", "events", "queue")

    def __init__(self, first: Transition) -> None:
        job = first.before or first.after
        self.queue = "" if job is None else job.queue
        self.before = None if first.before is None else first.before.state
        self.attempt_before = 0 if first.before is None else first.before.attempt
        self.after = self.before
        self.attempt_after = self.attempt_before
        self.events = 0

    def add(self, transition: Transition) -> None:
        self.events += 1
        self.after = None
        if transition.after is not None:
            self.after, self.attempt_after = transition.after.state, transition.after.attempt


async def difference(log: LogReader, start: int, stop: int, *, progress: Progress | None = None) -> LogDifference:
    """The changes by the events with `start <= offset < stop`. Memory goes with the jobs, as for any fold.

    Raises `InvalidArgument` for offsets that are not in the log or stand in the wrong order, `LogCorrupt` where a
    record batch is missing.
    """
    end = await log.end()
    for offset in (start, stop):
        if not 0 <= offset <= end:
            raise InvalidArgument(f"offset {offset} is not in the log, which has {end} events: give 0 to {end}")
    if start > stop:
        raise InvalidArgument(f"offset {start} comes after offset {stop}: give the earlier one first")
    fold = await fold_to(log, offset=start, progress=progress)
    before = {queue: counters.view(queue) for queue, counters in fold.counters.items()}
    touched: dict[bytes, _Touched] = {}
    async for batch in log.batches(start, stop):
        for offset, event, distance in batch.steps():
            if not start <= offset < stop:
                continue
            if offset != fold.next_offset:
                raise LogCorrupt(fold.next_offset, "a record batch is missing")
            transition = fold.apply(offset, batch.time_ms, event, distance)
            job = transition.before or transition.after
            if job is not None:
                touched.setdefault(job.id, _Touched(transition)).add(transition)
        if progress is not None:
            progress(fold.next_offset, stop)
    if fold.next_offset < stop:
        raise LogCorrupt(fold.next_offset, "a record batch is missing")
    after = sorted((queue, counters.view(queue)) for queue, counters in fold.counters.items())
    changes = [QueueChange(before.get(queue) or QueueCounters().view(queue), stats) for queue, stats in after]
    return LogDifference(start, stop, [one for one in changes if one.before != one.after], list(_job_changes(touched)))


def _job_changes(touched: dict[bytes, _Touched]) -> Iterator[JobChange]:
    for id, job in touched.items():
        change = JobChange(
            job_id_text(id), job.queue, job.before, job.after, job.attempt_before, job.attempt_after, job.events
        )
        # One that came and went within the stretch changed, too.
        if None in (job.before, job.after) or (job.before, job.attempt_before) != (job.after, job.attempt_after):
            yield change
