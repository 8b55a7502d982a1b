"""Rebuilding projections: what the log says is written over what the indexes say, in place or into a new store.

A marker goes in with the first change and out with the `Rebuilt` event that ends the work: between them no queue
opens, and running the rebuild again finishes it. Nothing is written when nothing differs.
"""

from collections.abc import AsyncIterator, Iterable
from typing import Final, NamedTuple

from ledgerq.eventlog import keys
from ledgerq.eventlog.clock import Clock
from ledgerq.eventlog.codec import EMPTY_HEAD, encode_head, pack, unpack
from ledgerq.eventlog.errors import InvalidArgument, LedgerError, LogCorrupt, LogRolledBack, NotRebuilt
from ledgerq.eventlog.events import Rebuilt
from ledgerq.eventlog.log import LogReader, Progress, Verified
from ledgerq.eventlog.store import Anchor, Batch, ReadStore, Store
from ledgerq.eventlog.writer import Commit, EventLog
from ledgerq.projections.compare import (
    BUILT_IN,
    Mismatch,
    compare_hints,
    compare_jobs,
    compare_projection,
    compare_stats,
)
from ledgerq.projections.fold import Fold, Transition
from ledgerq.projections.host import Projection, ProjectionHost
from ledgerq.projections.indexes import index_entries, stats_key
from ledgerq.projections.replay import fold_verified

__all__ = ["RebuildReport", "copy_into", "rebuild"]

_BATCH_ROWS: Final = 2000
_BATCH_BYTES: Final = 4 * 1024 * 1024
_COPY_MARKER: Final = pack(("copy",))
_FORMAT: Final = str(keys.FORMAT_VERSION).encode()


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

    def __init__(self, store: Store, anchor: Anchor, marker: bytes) -> None:
        self.rows_put = 0
        self.rows_deleted = 0
        self._store = store
        self._anchor = anchor
        self._marker: bytes | None = marker
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
    """The projector of the commit that ends a rebuild: it takes the marker away, and lets projections follow it.

    All rows are of the present format by then, so that is said in the same commit.
    """

    def __init__(self, host: ProjectionHost) -> None:
        self._host = host
        self._filled: tuple[Commit, dict[bytes, bytes | None]] | None = None

    def fill(self, commit: Commit, batch: Batch) -> None:
        if self._filled is None or self._filled[0] is not commit:
            events = enumerate(commit.events, commit.base_offset)
            transitions = [Transition(offset, commit.time_ms, event, None, None) for offset, event in events]
            changes: dict[bytes, bytes | None] = {keys.REBUILD_KEY: None, keys.FORMAT_KEY: _FORMAT}
            self._host.project(transitions, commit.base_offset + len(commit.events), changes)
            self._filled = (commit, changes)
        batch.update(self._filled[1])

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
    A cut concerns everything, and so does finishing a rebuild that was interrupted, or bringing a store of an older
    format to the present one, which this does on the way: `only` is refused then.

    Raises `LogCorrupt`, `LogRolledBack` (unless `until` is given), `InvalidArgument` for an unknown name.
    """
    log = LogReader(store, clock=clock)
    outdated = await log.require_format() < keys.FORMAT_VERSION
    host = ProjectionHost(projections)
    names = _names(only, host)
    marker = await store.get(keys.REBUILD_KEY)
    if marker == _COPY_MARKER:
        raise NotRebuilt(f"a copy into {store.location} was interrupted: finish it, from the store that was copied")
    if only is not None and (until is not None or marker is not None or outdated):
        why = "an interrupted rebuild must be finished" if marker is not None else "the store's format is an older one"
        why = why if until is None else "the log is to be cut"
        raise InvalidArgument(f"{why}, which concerns all projections: leave out the choice of {only!r}")
    anchor = await store.read_anchor()
    until = _earlier(until, _interrupted_until(marker))
    rolled_back = await _rolled_back(log, anchor, accepted=until is not None)
    epoch = max((await log.head_if_readable()).epoch, 0 if anchor is None else anchor.epoch)
    rows: dict[bytes, bytes | None] = {}
    for projection in host.projections.values():
        projection.restore({})
    given = host if host.projections else None
    verified, fold = await fold_verified(log, until=until, host=given, rows=rows, progress=progress)
    host.require_sound(names)
    end = verified.head.next_offset
    writer = _RowWriter(store, _anchor(verified, epoch), pack((None if until is None else end,)))
    if until is not None:
        await _cut(log, writer, verified, host)
    async for mismatch in _mismatches(store, fold, host, rows, names):
        await writer.set(mismatch.key, mismatch.expected)
    await writer.flush()
    report = RebuildReport(names, verified, len(fold.jobs), writer.rows_put, writer.rows_deleted)
    if report.changed or marker is not None or rolled_back or outdated:
        follow = await _up_to_date(store, host, end)
        await _finish(store, clock, report, actor, reason, cut=until is not None, follow=follow)
    return report


def _earlier(until: int | None, interrupted: int | None) -> int | None:
    """A cut that was begun is finished, and may be followed by one that goes further."""
    given = [offset for offset in (until, interrupted) if offset is not None]
    return min(given) if given else None


async def _rolled_back(log: LogReader, anchor: Anchor | None, *, accepted: bool) -> bool:
    """Whether the log lacks what the anchor names; raises `LogRolledBack` unless that is accepted."""
    try:
        await log.check_anchor(anchor)
    except (LogRolledBack, LogCorrupt):
        if not accepted:
            raise
        return True
    return False


def _anchor(verified: Verified, epoch: int) -> Anchor:
    """The end of what is proven; no epoch that a writer ever had is given to another one."""
    head = verified.head
    return Anchor(head.base_offset, head.next_offset, head.digest, max(epoch, head.epoch), head.time_ms)


async def _up_to_date(store: ReadStore, host: ProjectionHost, end: int) -> ProjectionHost:
    """The projections that can follow the event which ends the rebuild: the others catch up when a queue opens."""
    names = [name for name in host.projections if await store.get(keys.projection_key(name)) == end.to_bytes(8)]
    return ProjectionHost(host.projections[name] for name in names if name not in host.failures)


def _names(only: str | None, host: ProjectionHost) -> tuple[str, ...]:
    names = (*BUILT_IN, *host.projections)
    if only is None:
        return names
    if only not in names:
        raise InvalidArgument(
            f"there is no projection {only!r}: choose one of {', '.join(names)}, or say where a user's own is defined"
        )
    return (only,)


def _interrupted_until(marker: bytes | None) -> int | None:
    if marker is None:
        return None
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
            async for mismatch in compare_projection(store, name, rows):
                yield mismatch


async def _cut(log: LogReader, writer: _RowWriter, verified: Verified, host: ProjectionHost) -> None:
    """Remove the log and the payloads from the end of what is proven on, and let the head say so.

    A user's projection that is not given here and has come further begins anew when a queue opens with it.
    """
    store, end = log.store, verified.head.next_offset
    value = encode_head(verified.head)
    if await store.get(keys.HEAD_KEY) != value:
        await writer.set(keys.HEAD_KEY, value)
    ranges = [
        (keys.log_key(end), keys.after_prefix(keys.LOG_PREFIX)),
        (keys.payload_key(end), keys.after_prefix(keys.PAYLOAD_PREFIX)),
    ]
    prefix = keys.PROJECTION_PREFIX
    async for page in store.scan(prefix, keys.after_prefix(prefix)):
        for key, value in page:
            name = key[len(prefix) :].decode("utf-8", "replace")
            if name not in host.projections and int.from_bytes(value) > end:
                rows = keys.projection_rows_prefix(name)
                ranges += [(rows, keys.after_prefix(rows)), (key, key + b"\0")]
    for start, stop in ranges:
        async for page in store.scan(start, stop):
            for key, _ in page:
                await writer.set(key, None)


async def _finish(
    store: Store,
    clock: Clock,
    report: RebuildReport,
    actor: str,
    reason: str,
    *,
    cut: bool,
    follow: ProjectionHost,
) -> None:
    log = EventLog(store, clock=clock, projector=_Finish(follow))
    await log.start(accept_rollback=cut)
    log.append(Rebuilt(actor, reason, report.names, report.rows_put, report.rows_deleted))
    try:
        await log.committed()
    finally:
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
    begun = await target.get(keys.REBUILD_KEY) == _COPY_MARKER
    if not begun and await LogReader(target, clock=clock).check_format():
        raise InvalidArgument(f"{target.location} holds a ledgerq store already: give a new location")
    # Nothing is anchored before the log is whole.
    writer = _RowWriter(target, _anchor(Verified(0, 0, EMPTY_HEAD), 0), _COPY_MARKER)
    async for page in target.scan(b"\0", b"\xff"):
        for key, _ in page:
            if key != keys.REBUILD_KEY:
                await writer.set(key, None, count=False)
    await writer.set(keys.FORMAT_KEY, _FORMAT, count=False)
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
    await _finish(target, clock, report, actor, reason, cut=True, follow=ProjectionHost())
    return report
