"""The view of a ledger for readers: jobs, histories, listings and counters, from any store opened for reading.

The queue uses it for its own readers, and so do the tools, which open the store read-only.
"""

from collections.abc import AsyncIterator
from typing import Final, NamedTuple

from ledgerq.eventlog import keys
from ledgerq.eventlog.blobs import BlobName, checked
from ledgerq.eventlog.entropy import job_id_ms, job_id_text
from ledgerq.eventlog.errors import InvalidArgument, JobNotFound, PayloadMissing, ProjectionDrift
from ledgerq.eventlog.events import STATES, Deleted, Enqueued, Record, State, Swept
from ledgerq.eventlog.log import LogReader
from ledgerq.eventlog.side_records import PayloadRecord, decode_payload
from ledgerq.projections.index_keys import (
    CLAIMED,
    FINISHED_PREFIX,
    JOB,
    LIMIT,
    SCHEDULE,
    SCHEDULED,
    STATS,
    dead_prefix,
    job_key,
    pending_prefix,
    stats_key,
)
from ledgerq.projections.indexes import decode_job, decode_limits, decode_schedule
from ledgerq.projections.job import MAX_OFFSETS, Job
from ledgerq.projections.limits import Limits
from ledgerq.projections.payloads import read_payload
from ledgerq.projections.progress import Progress, read_progress
from ledgerq.projections.schedule import Schedule
from ledgerq.projections.stats import QueueCounters, QueueStats
from ledgerq.projections.texts import jobs_with_texts, read_result, records_with_texts

__all__ = ["LedgerView", "Page", "listing_prefix"]

_MAX_PAGE_ROWS: Final = 10_000
# A job's id is made a little before its commit opens, or a little after; a stalled store can stretch that.
ID_SLACK_MS: Final = 10 * 60 * 1000


class Page(NamedTuple):
    """A page of a listing of jobs; `next` is what to give as `after` for more, None at the end."""

    jobs: list[Job]
    next: str | None


class LedgerView:
    """The readable content of a ledger."""

    def __init__(self, log: LogReader) -> None:
        self.log = log
        self.store = log.store

    async def job(self, id: bytes) -> Job:
        """A job that is not swept; raises `JobNotFound`."""
        value = await self.store.get(job_key(id))
        if value is None:
            raise JobNotFound(f"there is no job {job_id_text(id)}: it never was, or it was swept (see its history)")
        return await self.with_texts(decode_job(value))

    async def with_texts(self, job: Job) -> Job:
        """The job with its texts, which stand beside the log."""
        return (await jobs_with_texts(self.store, [job]))[0]

    async def payload(self, job: Job) -> PayloadRecord:
        """The headers and bytes of a job; raises `PayloadMissing` when they are gone or don't match their digest."""
        value, fault = await read_payload(self.store, job)
        if value is None:
            raise PayloadMissing(f"job {job.job_id}: {fault}")
        return decode_payload(value)

    async def open_payload(self, job: Job) -> AsyncIterator[bytes]:
        """The payload in pieces, also a large one; raises `PayloadMissing`, at its end when its bytes are others."""
        record, blob = await self.payload(job), job.blob
        if blob is None:
            yield record.payload
            return
        async for piece in checked(self.store.blobs, BlobName(blob.id, job.id), blob, record.salt):
            yield piece

    async def result(self, job: Job) -> bytes | None:
        """What the job's handler returned, None when there is nothing; raises `ResultGone` when that is lost."""
        return await read_result(self.store, job)

    async def progress(self, job: Job) -> Progress | None:
        """The last stored report of the job's current try; None without one."""
        return await read_progress(self.store, job)

    async def history(self, id: bytes) -> list[Record]:
        """All events of a job in order, also of one already swept; raises `JobNotFound`."""
        return await records_with_texts(self.store, await self._history(id))

    async def _history(self, id: bytes) -> list[Record]:
        value = await self.store.get(job_key(id))
        if value is not None:
            job = decode_job(value)
            if len(job.offsets) < MAX_OFFSETS:
                return [await self._record(offset) for offset in (job.offset, *job.offsets)]
            return await self._search(id, job.offset)
        start = await self.log.offset_at_time(max(0, job_id_ms(id) - ID_SLACK_MS))
        found = await self._search(id, start)
        if not found and start > 0:
            found = await self._search(id, 0)
        if not found:
            raise JobNotFound(f"no event of the log concerns a job {job_id_text(id)}")
        return found

    async def _record(self, offset: int) -> Record:
        batch = await self.log.batch_at(offset)
        if batch is None or offset >= batch.next_offset:
            raise JobNotFound(f"the log has no event at offset {offset}, which a job's index row names: run an audit")
        return Record(offset, batch.time_ms, batch.epoch, batch.events[offset - batch.base_offset])

    async def _search(self, id: bytes, start: int) -> list[Record]:
        found: list[Record] = []
        async for batch in self.log.batches(start, about=id):
            for record in batch.records():
                if record.offset >= start and getattr(record.event, "id", None) == id:
                    if not found and type(record.event) is not Enqueued:
                        return []  # its beginning lies before `start`
                    found.append(record)
                    if type(record.event) in (Swept, Deleted):
                        return found
        return found

    async def queues(self) -> list[str]:
        """The names of all queues that ever had an event, in order."""
        return [queue for queue, _ in await self.counters()]

    async def counters(self) -> list[tuple[str, QueueCounters]]:
        """The counters of all queues, in order of their names."""
        found: list[tuple[str, QueueCounters]] = []
        async for rows in self.store.scan(STATS, keys.after_prefix(STATS)):
            for key, value in rows:
                try:
                    name = key[len(STATS) :].decode()
                except UnicodeDecodeError as error:
                    raise ProjectionDrift(f"the key {key!r} names no queue: run rebuild-projections") from error
                found.append((name, QueueCounters.decode(value)))
        return found

    async def schedules(self) -> list[Schedule]:
        """All schedules, in order of their names."""
        found: list[Schedule] = []
        async for rows in self.store.scan(SCHEDULE, keys.after_prefix(SCHEDULE)):
            found += [decode_schedule(key, value) for key, value in rows]
        return found

    async def limits(self) -> list[Limits]:
        """All limits, and what is used of them, in order of their queues."""
        found: list[Limits] = []
        async for rows in self.store.scan(LIMIT, keys.after_prefix(LIMIT)):
            found += [decode_limits(key, value) for key, value in rows]
        return found

    async def stats(self, queue: str) -> QueueStats:
        """The counters of a queue; zero for one that never had an event."""
        keys.queue_name_bytes(queue)
        value = await self.store.get(stats_key(queue))
        return (QueueCounters() if value is None else QueueCounters.decode(value)).view(queue)

    async def jobs(self, queue: str, *, state: State | None = None, limit: int = 100, after: str | None = None) -> Page:
        """At most `limit` (1 to 10,000) jobs of a queue in index order, all states or one.

        `after` is the `next` of the page before. Pending and dead jobs have an index by queue; for other states the
        jobs of other queues are stepped over.
        """
        keys.queue_name_bytes(queue)
        if state is not None and state not in STATES:
            raise InvalidArgument(f"state {state!r} is none of {', '.join(STATES)}")
        if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= _MAX_PAGE_ROWS:
            raise InvalidArgument(f"limit is a whole number from 1 to {_MAX_PAGE_ROWS}, not {limit!r}")
        prefix = listing_prefix(queue, state)
        start = prefix
        if after is not None:
            try:
                start = bytes.fromhex(after) + b"\0"
            except (ValueError, TypeError):
                start = b""
            if not start.startswith(prefix):
                raise InvalidArgument(f"after={after!r} is not the `next` of a page of this listing")
        found: list[Job] = []
        async for key, job in self._listing(prefix, start):
            if job.spec.queue == queue and (state is None or job.state == state):
                found.append(job)
                if len(found) == limit:
                    return Page(await jobs_with_texts(self.store, found), key.hex())
        return Page(await jobs_with_texts(self.store, found), None)

    async def _listing(self, prefix: bytes, start: bytes) -> AsyncIterator[tuple[bytes, Job]]:
        async for rows in self.store.scan(start, keys.after_prefix(prefix), page_rows=500):
            if prefix == JOB:
                for key, value in rows:
                    yield key, decode_job(value)
                continue
            ids = [value or key[-16:] for key, value in rows]
            found = await self.store.get_many([job_key(id) for id in ids])
            for (key, _), row in zip(rows, found, strict=True):
                if row is not None:
                    yield key, decode_job(row)


def listing_prefix(queue: str, state: State | None) -> bytes:
    """What the keys of the rows begin with among which the jobs of a queue in this state are."""
    match state:
        case None:
            return JOB
        case "pending":
            return pending_prefix(queue)
        case "dead":
            return dead_prefix(queue)
        case "scheduled":
            return SCHEDULED
        case "claimed":
            return CLAIMED
        case "done" | "cancelled":
            return FINISHED_PREFIX
