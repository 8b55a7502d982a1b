"""The read-only queue, `Queue.view(url)`: jobs, counters and events of a store, beside whoever writes it.

    async with Queue.view("jobs") as view:
        print(await view.stats("mail"))

It writes nothing, fences nobody and needs no server. What it shows is durable, and at most about half a second old, or
as of one commit when it is pinned.
"""

from collections.abc import AsyncGenerator, Sequence

from ledgerq.eventlog.clock import Clock, SystemClock
from ledgerq.eventlog.entropy import job_id_bytes
from ledgerq.eventlog.errors import InvalidArgument, JobNotFound, LogCorrupt
from ledgerq.eventlog.events import Record, State
from ledgerq.eventlog.log import LogReader
from ledgerq.eventlog.side_records import PayloadRecord
from ledgerq.eventlog.stores import open_log
from ledgerq.projections.fold import Fold
from ledgerq.projections.job import Job
from ledgerq.projections.replay import fold_to
from ledgerq.projections.schedule import Schedule
from ledgerq.projections.stats import QueueCounters, QueueStats
from ledgerq.projections.texts import jobs_with_texts, records_with_texts
from ledgerq.projections.value_view import ValueView
from ledgerq.projections.view import LedgerView, Page
from ledgerq.worker.engine.takeover import Opening

__all__ = ["PastView", "QueueView", "view_of"]


class QueueView:
    """A store that is only read. Its methods are those of `Queue` that read; made by `Queue.view`."""

    def __init__(self, log: LogReader) -> None:
        self.log = log
        """The event log: `read`, `tail`, `verify`, `head`. Texts that stand beside it are left out of its events."""
        self.kv = ValueView(log)
        """The values of keys: `get`, `keys`, `at`."""
        self._view = LedgerView(log)

    @property
    def location(self) -> str:
        """The URL it was opened by."""
        return self.log.store.location

    async def close(self) -> None:
        """Close the store; a second call does nothing."""
        await self.log.store.close()

    async def get(self, job_id: str) -> Job:
        """A job that is not swept yet. Raises `JobNotFound`."""
        return await self._view.job(job_id_bytes(job_id))

    async def payload(self, job_id: str) -> PayloadRecord:
        """The headers and the bytes of a job that is not swept yet. Raises `JobNotFound`, `PayloadMissing`."""
        return await self._view.payload(await self.get(job_id))

    async def result(self, job: str | Job) -> bytes | None:
        """What a job was acked with, None when that is nothing, or nothing yet. Raises `JobNotFound`, `ResultGone`."""
        return await self._view.result(job if isinstance(job, Job) else await self.get(job))

    async def history(self, job_id: str) -> list[Record]:
        """All events of a job in order, also of one that was swept. Raises `JobNotFound`."""
        return await self._view.history(job_id_bytes(job_id))

    async def jobs(self, queue: str, state: State | None = None, limit: int = 100, after: str | None = None) -> Page:
        """A page of a queue's jobs, all states or one; give `page.next` as `after` for the next one."""
        return await self._view.jobs(queue, state=state, limit=limit, after=after)

    async def stats(self, queue: str) -> QueueStats:
        """How many jobs are in each state, and how many transitions there were since the beginning."""
        return await self._view.stats(queue)

    async def queues(self) -> list[str]:
        """The names of all queues that ever had an event, in order."""
        return await self._view.queues()

    async def schedules(self) -> Sequence[Schedule]:
        """All schedules, in order of their names."""
        return await self._view.schedules()

    async def records(self, start: int = 0, limit: int = 100) -> list[Record]:
        """The events of the log from offset `start` on, at most `limit`, with their texts."""
        found = [record async for record in self.log.read(start, start + limit)]
        return await records_with_texts(self.log.store, found)

    async def follow(self, start: int | None = None) -> AsyncGenerator[Record, None]:
        """The events from offset `start` on (None: the log's end), then each new one as it comes, without an end."""
        begin = await self.log.end() if start is None else start
        async for record in self.log.tail(begin):
            for one in await records_with_texts(self.log.store, [record]):
                yield one

    async def as_of(self, *, offset: int | None = None, time_ms: int | None = None) -> "PastView":
        """The jobs and counters after the events below `offset`, or as of a time (ms since the Unix epoch).

        All events up to there are folded, so it takes time and memory with them. Raises `InvalidArgument`.
        """
        return PastView(await fold_to(self.log, offset=offset, time_ms=time_ms), self.log)


class PastView:
    """The jobs and counters of a store at one offset of its log. Made by `QueueView.as_of`."""

    def __init__(self, fold: Fold, log: LogReader) -> None:
        self.offset = fold.next_offset
        """The events below this offset are in it."""
        self.time_ms = fold.time_ms
        """When the last of them was committed, in ms since the Unix epoch; 0 where there is none."""
        self._fold = fold
        self._log = log

    async def get(self, job_id: str) -> Job:
        """A job as it was then. Raises `JobNotFound` for one that was not there yet, or not any more."""
        job = self._fold.jobs.get(job_id_bytes(job_id))
        if job is None:
            raise JobNotFound(f"there was no job {job_id} at offset {self.offset}: not yet, or not any more")
        return (await jobs_with_texts(self._log.store, [job]))[0]

    async def jobs(self, queue: str, state: State | None = None) -> list[Job]:
        """The jobs of a queue then, all states or one, in the order in which they were enqueued."""
        found = [job for job in self._fold.jobs.values() if job.spec.queue == queue and state in (None, job.state)]
        return await jobs_with_texts(self._log.store, sorted(found, key=lambda job: job.offset))

    def stats(self, queue: str) -> QueueStats:
        """The counters of a queue then."""
        return self._fold.counters.get(queue, QueueCounters()).view(queue)

    def queues(self) -> list[str]:
        """The names of the queues that had an event by then, in order."""
        return sorted(self._fold.counters)


def view_of(url: str, pinned: bool, clock: Clock | None) -> Opening[QueueView]:
    """The read-only queue of the store at `url`, as `Queue.view` has it."""
    if type(pinned) is not bool:
        raise InvalidArgument(f"pinned is True or False, not {pinned!r}")

    async def make() -> QueueView:
        with LogCorrupt.locating(url):
            return QueueView(await open_log(url, clock=clock or SystemClock(), pinned=pinned))

    return Opening(make)
