"""Rebuilding projections: what the log says is written over what the indexes say, in place or into a new store.

A marker goes in with the first change and out with the `Rebuilt` event that ends the work: between them no queue
opens, and running the rebuild again finishes it. Nothing is written when nothing differs.
"""

from collections.abc import AsyncIterator, Iterable
from typing import Final, NamedTuple

from ledgerq.eventlog import keys
from ledgerq.eventlog.clock import Clock
from ledgerq.eventlog.codec import encode_head, pack, unpack
from ledgerq.eventlog.errors import InvalidArgument, LedgerError
from ledgerq.eventlog.events import Rebuilt
from ledgerq.eventlog.log import LogReader, Progress, Verified
from ledgerq.eventlog.store import Anchor, Batch, ReadStore, Store
from ledgerq.eventlog.writer import Commit, EventLog
from ledgerq.projections.compare import (
    BUILT_IN,
    Mismatch,
    compare_hints,
    compare_jobs,
    compare_rows,
    compare_stats,
)
from ledgerq.projections.fold import Fold
from ledgerq.projections.host import Projection, ProjectionHost
from ledgerq.projections.indexes import index_entries, stats_key
from ledgerq.projections.replay import fold_verified

__all__ = ["RebuildReport", "copy_into", "rebuild"]

_BATCH_ROWS: Final = 2000
_BATCH_BYTES: Final = 4 * 1024 * 1024


class RebuildReport(NamedTuple):
    """What a rebuild did: which projections, from which log, and how many rows it set and removed."""

    names: tuple[str, ...]
    verified: Verified
    jobs: int
    rows_put: int
    rows_deleted: int

    @property
    def changed(self) -> bool:
        """Whether anything was written."""
        return self.rows_put + self.rows_deleted > 0


class _RowWriter:
    """Writes rows in batches of bounded size, with the marker in the first one."""

    def __init__(self, store: Store, verified: Verified, until: int | None) -> None:
        head = verified.head
        self.rows_put = 0
        self.rows_deleted = 0
        self._store = store
        self._anchor = Anchor(head.base_offset, head.next_offset, head.digest, head.epoch, head.time_ms)
        self._marker: bytes | None = pack((until,))
        self._batch = store.batch()
        self._rows = 0
        self._bytes = 0

    async def set(self, key: bytes, value: bytes | None, *, count: bool = True) -> None:
        """Set one row, or remove it."""
        if self._marker is not None:
            self._batch.put(keys.REBUILD_KEY, self._marker)
            self._marker = None
        if value is None:
            self._batch.delete(key)
            self.rows_deleted += count
        else:
            self._batch.put(key, value)
            self.rows_put += count
        self._rows += 1
        self._bytes += len(key) + len(value or b"")
        if self._rows >= _BATCH_ROWS or self._bytes >= _BATCH_BYTES:
            await self.flush()

    async def flush(self) -> None:
        """Make the rows so far durable."""
        if self._rows:
            batch, self._batch = self._batch, self._store.batch()
            self._rows = self._bytes = 0
            await self._store.write(batch)
            await self._store.sync(self._anchor)


class _Finish:
    """The projector of the commit that ends a rebuild: it takes the marker away."""

    def fill(self, commit: Commit, batch: Batch) -> None:
        batch.delete(keys.REBUILD_KEY)

    def committed(self, commit: Commit) -> None:
        pass

    def failed(self, error: LedgerError) -> None:
        pass


async def rebuild(
    store: Store,
    *,
    clock: Clock,
    actor: str,
    reason: str,
    only: str | None = None,
    until: int | None = None,
    projections: Iterable[Projection] = (),
    progress: Progress | None = None,
) -> RebuildReport:
    """Make the projections (`jobs`, `stats` and the user's; or `only` one) what the log says, and record it.

    `until`: keep only the log before this offset (rounded down to a commit), for a log that doesn't verify beyond it.
    A cut concerns everything, and so does finishing a rebuild that was interrupted: `only` is refused then.

    Raises `LogCorrupt`, `LogRolledBack` (unless `until` is given), `InvalidArgument` for an unknown name.
    """
    log = LogReader(store, clock=clock)
    await log.require_format()
    host = ProjectionHost(projections)
    names = _names(only, host)
    marker = await store.get(keys.REBUILD_KEY)
    if only is not None and (until is not None or marker is not None):
        why = "an interrupted rebuild must be finished" if until is None else "the log is to be cut"
        raise InvalidArgument(f"{why}, which concerns all projections: leave out the choice of {only!r}")
    if until is None and marker is not None:
        until = _interrupted_until(marker)
    if until is None:
        await log.check_anchor(await store.read_anchor())
    rows: dict[bytes, bytes | None] = {}
    for projection in host.projections.values():
        projection.restore({})
    given = host if host.projections else None
    verified, fold = await fold_verified(log, until=until, host=given, rows=rows, progress=progress)
    writer = _RowWriter(store, verified, until)
    if until is not None:
        await _cut(log, writer, verified)
    async for mismatch in _mismatches(store, fold, host, rows, names):
        await writer.set(mismatch.key, mismatch.expected)
    await writer.flush()
    report = RebuildReport(names, verified, len(fold.jobs), writer.rows_put, writer.rows_deleted)
    if report.changed or marker is not None:
        await _finish(store, clock, report, actor, reason, cut=until is not None)
    return report


def _names(only: str | None, host: ProjectionHost) -> tuple[str, ...]:
    names = (*BUILT_IN, *host.projections)
    if only is None:
        return names
    if only not in names:
        raise InvalidArgument(
            f"there is no projection {only!r}: choose one of {', '.join(names)}, or say where a user's own is defined"
        )
    return (only,)


def _interrupted_until(marker: bytes) -> int | None:
    try:
        (until,) = unpack(marker)
    except (ValueError, TypeError):
        return None
    return until if isinstance(until, int) else None


async def _mismatches(
    store: Store, fold: Fold, host: ProjectionHost, rows: dict[bytes, bytes | None], names: tuple[str, ...]
) -> AsyncIterator[Mismatch]:
    if "jobs" in names:
        async for mismatch in compare_jobs(store, fold):
            yield mismatch
        async for mismatch in compare_hints(store, fold):
            yield mismatch
    if "stats" in names:
        async for mismatch in compare_stats(store, fold):
            yield mismatch
    for name in names:
        if name in host.projections:
            prefix = keys.projection_rows_prefix(name)
            wanted = {key: value for key, value in rows.items() if value is not None and key.startswith(prefix)}
            async for mismatch in compare_rows(store, prefix, wanted):
                yield mismatch
            offset_key = keys.projection_key(name)
            expected, found = rows.get(offset_key), await store.get(offset_key)
            if expected != found:
                yield Mismatch(offset_key, expected, found)


async def _cut(log: LogReader, writer: _RowWriter, verified: Verified) -> None:
    """Remove the log and the payloads from the end of what is proven on, and let the head say so."""
    end = verified.head.next_offset
    value = encode_head(verified.head)
    if await log.store.get(keys.HEAD_KEY) != value:
        await writer.set(keys.HEAD_KEY, value)
    for prefix, start in ((keys.LOG_PREFIX, keys.log_key(end)), (keys.PAYLOAD_PREFIX, keys.payload_key(end))):
        async for page in log.store.scan(start, keys.after_prefix(prefix)):
            for key, _ in page:
                await writer.set(key, None)


async def _finish(store: Store, clock: Clock, report: RebuildReport, actor: str, reason: str, *, cut: bool) -> None:
    log = EventLog(store, clock=clock, projector=_Finish())
    await log.start(accept_rollback=cut)
    log.append(Rebuilt(actor, reason, report.names, report.rows_put, report.rows_deleted))
    await log.committed()
    await log.stop()


async def copy_into(
    source: ReadStore,
    target: Store,
    *,
    clock: Clock,
    actor: str,
    reason: str,
    until: int | None = None,
    progress: Progress | None = None,
) -> RebuildReport:
    """Write the log of `source`, its live payloads and fresh projections to `target`, which must be empty.

    For a store whose own files are damaged. A copy that was interrupted is begun anew. Rows of users' projections are
    not copied: they come up again when the queue is opened with them. Raises like `rebuild`.
    """
    log = LogReader(source, clock=clock)
    await log.require_format()
    if until is None:
        await log.check_anchor(await source.read_anchor())
    verified, fold = await fold_verified(log, until=until, progress=progress)
    if await target.get(keys.REBUILD_KEY) is None and await LogReader(target, clock=clock).check_format():
        raise InvalidArgument(f"{target.location} holds a ledgerq store already: give a new location")
    writer = _RowWriter(target, verified, None)
    async for page in target.scan(b"\0", b"\xff"):
        for key, _ in page:
            if key != keys.REBUILD_KEY:
                await writer.set(key, None, count=False)
    await writer.set(keys.FORMAT_KEY, str(keys.FORMAT_VERSION).encode(), count=False)
    async for page in source.scan(keys.LOG_PREFIX, keys.log_key(verified.head.next_offset)):
        for key, value in page:
            await writer.set(key, value, count=False)
    live = {job.offset for job in fold.jobs.values()}
    payloads = source.scan(keys.PAYLOAD_PREFIX, keys.after_prefix(keys.PAYLOAD_PREFIX), page_rows=100)
    async for page in payloads:
        for key, value in page:
            if keys.offset_of(key) in live:
                await writer.set(key, value, count=False)
    for job in fold.jobs.values():
        for key, value in index_entries(job).items():
            await writer.set(key, value)
    for queue, tally in fold.tallies.items():
        await writer.set(stats_key(queue), tally.encode())
    await writer.set(keys.HEAD_KEY, encode_head(verified.head), count=False)
    await writer.flush()
    report = RebuildReport(BUILT_IN, verified, len(fold.jobs), writer.rows_put, writer.rows_deleted)
    await _finish(target, clock, report, actor, reason, cut=True)
    return report
