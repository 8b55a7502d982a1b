"""The audit of what came since the last one: it starts from the state that a clean, recorded audit has proven.

It verifies the chain from there on, folds the jobs that had an event since, and compares their rows, all counters, and
the values set since.
The log before is read again only for the earlier events of those jobs, and is not verified. Rows of other jobs,
payloads, hints, users' projections and the blocks of the files are for an audit that looks at everything.
"""

from collections.abc import AsyncIterator, Iterable
from typing import Final, TypeVar

from ledgerq.eventlog import keys
from ledgerq.eventlog.clock import Clock
from ledgerq.eventlog.entropy import job_id_ms
from ledgerq.eventlog.errors import InvalidArgument, LogCorrupt, ProjectionDrift
from ledgerq.eventlog.events import Enqueued, Event, ValueEvent
from ledgerq.eventlog.log import Chain, LogReader, Progress, Verified
from ledgerq.eventlog.recorded_audit import AuditStart, RecordedAudit
from ledgerq.eventlog.store import Anchor, ReadStore
from ledgerq.projections.audit import (
    INTERRUPTED_REBUILD,
    OTHER_ANCHOR,
    AuditReport,
    describe,
    gathered,
    limits_as_rows,
    schedules_as_rows,
)
from ledgerq.projections.deep_audit import Difference, missing_secret, value_difference
from ledgerq.projections.fold import Fold
from ledgerq.projections.index_keys import job_key, limit_key, schedule_key, unique_key
from ledgerq.projections.indexes import decode_job, decode_limits, decode_schedule, index_entries, index_rows
from ledgerq.projections.job import Job
from ledgerq.projections.limits import LimitTable
from ledgerq.projections.repair.comparison import Mismatch, compare_limits, compare_schedules, compare_stats
from ledgerq.projections.schedule import Schedule
from ledgerq.projections.stats import QueueCounters
from ledgerq.projections.values import StoredValue, value_fault
from ledgerq.projections.view import ID_SLACK_MS

__all__ = ["audit_since"]

T = TypeVar("T", bytes, str)

_FULL: Final = "run an audit of everything, with --record"
_REMEDY: Final = (
    "This is the commit that the last recorded audit ended with: a store that was put back to an earlier state, or "
    "whose log was written anew, lacks it. Run an audit of everything"
)
_ROWS: Final = 1000


async def audit_since(
    store: ReadStore,
    last: RecordedAudit | None,
    *,
    clock: Clock,
    anchor: Anchor | None = None,
    progress: Progress | None = None,
) -> AuditReport:
    """Audit what came since the audit `last`; `anchor` as for `audit`. Memory goes with what came since.

    Raises `InvalidArgument` when there is no such audit to start from, or it was not clean, and like `audit`:
    `LogRolledBack` also when the log lacks the commit that the last audit ended with.
    """
    log = LogReader(store, clock=clock)
    start, counters, schedules, limits = _start(last)
    remedy = "" if anchor is None else OTHER_ANCHOR
    anchor = anchor or await store.read_anchor()
    format_version = await log.require_format()
    if format_version < keys.FORMAT_VERSION:
        raise InvalidArgument(f"the format of {store.location} is an older one: {_FULL}")
    await log.check_anchor(anchor, remedy=remedy)
    head = start.head
    proven = Anchor(head.base_offset, head.next_offset, head.digest, head.epoch, head.time_ms)
    await log.check_anchor(proven, remedy=_REMEDY)
    verified, older = await _verify(log, start, progress)
    ends = start.head.next_offset, verified.head.next_offset
    touched = await _Touched.fold(log, ends, older, counters, schedules, limits)
    found, count = await gathered(_differences(store, touched))
    rows = {queue: counted.encode() for queue, counted in touched.state.counters.items()}
    report = AuditReport(store.location, verified, anchor, len(touched.keys), 0, found, count, format_version)
    report = report._replace(limits=limits_as_rows(touched.state.limits))
    return report._replace(counters=rows, schedules=schedules_as_rows(touched.state.schedules), since=last)


def _start(
    last: RecordedAudit | None,
) -> tuple[AuditStart, dict[str, QueueCounters], dict[str, Schedule], LimitTable]:
    if last is None:
        raise InvalidArgument(f"no audit of this store was recorded that one could start from: {_FULL}")
    if last.start is None:
        raise InvalidArgument(
            f"the last recorded audit was not clean, was made by an earlier version, or has too many queues: {_FULL}"
        )
    try:
        counters = {queue: QueueCounters.decode(row) for queue, row in last.start.counters.items()}
        schedules = {name: decode_schedule(schedule_key(name), row) for name, row in last.start.schedules.items()}
        limits = LimitTable()
        for queue, row in last.start.limits.items():
            limits.put(decode_limits(limit_key(queue), row))
        return last.start, counters, schedules, limits
    except ProjectionDrift as error:
        raise InvalidArgument(f"the rows that the last audit recorded can't be read: {_FULL}") from error


async def _verify(log: LogReader, start: AuditStart, progress: Progress | None) -> tuple[Verified, set[bytes]]:
    """Verify the chain from the last audit's end; returns the jobs from before that had an event since, too."""
    head = await log.head()
    chain: Chain | None = None
    born: set[bytes] = set()
    older: set[bytes] = set()
    async for batch in log.batches(start.head.base_offset):
        if chain is None:
            if batch.next_offset != start.head.next_offset or batch.digest != start.head.digest:
                raise LogCorrupt(batch.base_offset, "the record batch is not the one that the last audit ended with")
            chain = Chain(batch)
            continue
        chain.add(batch)
        for event in batch.events:
            id = _id(event)
            if type(event) is Enqueued:
                born.add(event.id)
            elif id is not None and id not in born:
                older.add(id)
        if progress is not None:
            progress(chain.next_offset - start.head.next_offset, head.next_offset - start.head.next_offset)
    if chain is None:
        raise LogCorrupt(start.head.base_offset, "a record batch is missing")
    chain.end(head)
    return chain.proven(), older


def _id(event: Event) -> bytes | None:
    id: bytes | None = getattr(event, "id", None)
    return id


class _Touched:
    """The jobs that had an event since the last audit: `state` is their fold, `keys` all keys that each had since.

    `set_keys`: the keys whose values were set or deleted since.
    """

    def __init__(self, counters: dict[str, QueueCounters], schedules: dict[str, Schedule], limits: LimitTable) -> None:
        self.state = Fold()
        self.state.values.is_whole = False
        self.keys: dict[bytes, set[bytes]] = {}
        self.set_keys: set[str] = set()
        self._counters = counters
        self._schedules = schedules
        self._limits = limits

    @classmethod
    async def fold(
        cls,
        log: LogReader,
        ends: tuple[int, int],
        older: set[bytes],
        counters: dict[str, QueueCounters],
        schedules: dict[str, Schedule],
        limits: LimitTable,
    ) -> "_Touched":
        """Fold the events between `ends`, after earlier ones of the jobs `older`; the others are as they were then."""
        first = await _first_offset(log, older)
        touched = cls(counters, schedules, limits)
        try:
            await touched._fold_earlier(log, older, first, ends[0])
        except LogCorrupt:
            if first == 0:
                raise
            # A job may be older than its id or its row says.
            touched = cls(counters, schedules, limits)
            await touched._fold_earlier(log, older, 0, ends[0])
        await touched._fold_since(log, *ends)
        return touched

    async def _fold_earlier(self, log: LogReader, older: set[bytes], first: int, stop: int) -> None:
        apply = self.state.apply
        if older:
            async for batch in log.batches(first, stop):
                for offset, event, distance in batch.steps():
                    if offset < stop and _id(event) in older:
                        apply(offset, batch.time_ms, event, distance)
        if older - self.state.jobs.keys():
            raise LogCorrupt(first, "the log has no event that made a job which has later ones")

    async def _fold_since(self, log: LogReader, begin: int, stop: int) -> None:
        self.state.counters, self.state.schedules, self.state.limits = self._counters, self._schedules, self._limits
        async for batch in log.batches(begin, stop):
            for offset, event, distance in batch.steps():
                if offset >= begin:
                    _, _, _, before, after = self.state.apply(offset, batch.time_ms, event, distance)
                    if isinstance(event, ValueEvent):
                        self.set_keys.add(event.key)
                    self._note(before)
                    self._note(after)

    def _note(self, job: Job | None) -> None:
        if job is not None:
            self.keys.setdefault(job.id, {job_key(job.id)}).update(index_rows(job))


async def _first_offset(log: LogReader, older: set[bytes]) -> int:
    """Where the events of these jobs begin, by their rows, and by the ids of those that are swept. Only a guess."""
    first, swept = await log.end(), list[bytes]()
    for ids in _pieces(sorted(older)):
        for id, row in zip(ids, await log.store.get_many([job_key(id) for id in ids]), strict=True):
            try:
                if row is None:
                    swept.append(id)
                else:
                    first = min(first, decode_job(row).offset)
            except ProjectionDrift:
                return 0
    if swept:
        first = min(first, await log.offset_at_time(max(0, min(map(job_id_ms, swept)) - ID_SLACK_MS)))
    return first


def _pieces(items: list[T]) -> Iterable[list[T]]:
    return (items[at : at + _ROWS] for at in range(0, len(items), _ROWS))


async def _differences(store: ReadStore, touched: _Touched) -> AsyncIterator[Difference]:
    if await store.get(keys.REBUILD_KEY) is not None:
        yield INTERRUPTED_REBUILD
    if (secret := await missing_secret(store, keys.FORMAT_VERSION)) is not None:
        yield secret
    # What one job gave up another may hold by now: a unique key.
    held = {unique_key(job.queue, job.spec.unique_key or b"") for job in touched.state.jobs.values() if job.unique_held}
    for ids in _pieces(sorted(touched.keys)):
        wanted: dict[bytes, bytes | None] = {}
        for id in ids:
            job = touched.state.jobs.find(id)
            wanted |= dict.fromkeys(touched.keys[id] - held) | ({} if job is None else index_entries(job))
        in_order = sorted(wanted)
        for key, found in zip(in_order, await store.get_many(in_order), strict=True):
            if found != wanted[key]:
                yield describe(Mismatch(key, wanted[key], found))
    for names in _pieces(sorted(touched.set_keys)):
        in_order = [keys.value_key(name) for name in names]
        for name, key, row in zip(names, in_order, await store.get_many(in_order), strict=True):
            value = touched.state.values.get(name)
            stored = StoredValue(key, value, row, "" if value is None else value_fault(value, row))
            if (difference := value_difference(stored)) is not None:
                yield difference
    state = touched.state
    for mismatches in (compare_stats(store, state), compare_schedules(store, state), compare_limits(store, state)):
        async for some in mismatches:
            for mismatch in some:
                yield describe(mismatch)
