"""Rebuilding projections in place: rows that differ from the fold of the log are set or removed.

repair/copying.py makes a new store instead.

A marker goes in with the first change and out with the `Rebuilt` event that ends the work: between them no queue
opens, and running the rebuild again finishes it. Nothing is written when nothing differs.
"""

from collections.abc import AsyncIterator, Iterable
from typing import NamedTuple

from ledgerq.eventlog import keys
from ledgerq.eventlog.clock import Clock
from ledgerq.eventlog.codec import encode_head, pack, unpack
from ledgerq.eventlog.errors import InvalidArgument, LogCorrupt, LogRolledBack, NotRebuilt
from ledgerq.eventlog.events import SECRET, Rebuilt
from ledgerq.eventlog.log import LogReader, Progress, Verified
from ledgerq.eventlog.side_records import read_secret
from ledgerq.eventlog.store import Anchor, ReadStore, Store
from ledgerq.eventlog.writer import EventLog
from ledgerq.projections.fold import Fold
from ledgerq.projections.payloads import LostPayload
from ledgerq.projections.repair.comparison import (
    FirstPlaces,
    Mismatch,
    compare_hints,
    compare_jobs,
    compare_limits,
    compare_projection,
    compare_schedules,
    compare_stats,
)
from ledgerq.projections.repair.row_writer import COPY_MARKER, Finish, RowWriter, finish
from ledgerq.projections.replay import fold_verified
from ledgerq.projections.runner import BUILT_IN, JOBS, STATS, Projection, ProjectionHost
from ledgerq.projections.shares.share import usable_jobs
from ledgerq.projections.shares.whole import fold_whole
from ledgerq.projections.values import stored_values

__all__ = ["RebuildReport", "rebuild"]


class RebuildReport(NamedTuple):
    """The report of a rebuild: which projections, from which log, and how many rows it set and removed.

    `lost`: jobs whose payload could not be copied into a new store, and the offsets of texts that could not.
    `lost_keys`: keys whose values are gone, which the log records as deleted.
    `is_recorded`: the log has the event of it. `is_secret_new`: the store's secret was missing, and a new one was made.
    """

    names: tuple[str, ...]
    verified: Verified
    jobs: int
    rows_put: int
    rows_deleted: int
    lost: tuple[LostPayload, ...] = ()
    lost_texts: tuple[int, ...] = ()
    is_recorded: bool = False
    is_secret_new: bool = False
    lost_keys: tuple[str, ...] = ()

    @property
    def changed(self) -> bool:
        """Whether anything was written."""
        return self.is_recorded or self.rows_put + self.rows_deleted > 0


async def rebuild(
    store: Store,
    *,
    clock: Clock,
    actor: str,
    reason: str,
    only: str | None = None,
    until: int | None = None,
    projections: Iterable[Projection] = (),
    jobs: int | None = 1,
    progress: Progress | None = None,
) -> RebuildReport:
    """Make the projections (`jobs`, `stats` and the user's; or `only` one) the fold of the log, and record it.

    `until`: keep only the log before this offset (rounded down to a commit), for a log that doesn't verify beyond it. A
    cut concerns all projections, and so does finishing a rebuild that was interrupted, or bringing a store of an older
    format to the present one, which this does on the way: `only` is refused then. A secret that is missing is replaced.

    Raises `LogCorrupt`, `LogRolledBack` (unless `until` is given), `InvalidArgument` for an unknown name.
    """
    log = LogReader(store, clock=clock)
    outdated = await log.require_format() < keys.FORMAT_VERSION
    is_secret_new = not outdated and await read_secret(store) is None
    host = ProjectionHost(projections)
    names = _names(only, host)
    marker = await store.get(keys.REBUILD_KEY)
    if marker == COPY_MARKER:
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
    if until is None and not host.projections:
        verified, fold = await fold_whole(log, await usable_jobs(log, jobs), progress=progress)
    else:
        given = host if host.projections else None
        verified, fold = await fold_verified(log, until=until, host=given, rows=rows, progress=progress)
    host.require_sound(names)
    end = verified.head.next_offset
    async with RowWriter(store, _anchor(verified, epoch), pack((None if until is None else end,))) as writer:
        if until is not None:
            await _cut(log, writer, verified, host)
        async for some in _mismatches(store, fold, host, rows, names):
            await writer.set_many({mismatch.key: mismatch.expected for mismatch in some})
        lost_keys = await _remove_values(store, fold, writer) if JOBS in names else ()
        await writer.flush()
    report = RebuildReport(names, verified, len(fold.jobs), writer.rows_put, writer.rows_deleted)
    report = report._replace(is_secret_new=is_secret_new, lost_keys=lost_keys)
    if report.changed or lost_keys or marker is not None or rolled_back or outdated or is_secret_new:
        follow = await _up_to_date(store, host, end)
        log = EventLog(store, clock=clock, commit_hook=Finish(follow))
        made = (*names, SECRET) if is_secret_new else names
        last = Rebuilt(actor, reason, made, report.rows_put, report.rows_deleted)
        await finish(log, last, lost_keys=lost_keys, accept_rollback=until is not None)
        report = report._replace(is_recorded=True)
    return report


def _earlier(until: int | None, interrupted: int | None) -> int | None:
    """The cut that was begun: it is finished, and may be followed by one that goes further."""
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
) -> AsyncIterator[list[Mismatch]]:
    if JOBS in names:
        first: FirstPlaces = {}
        async for some in compare_jobs(store, fold, first):
            yield some
        async for some in compare_hints(store, first):
            yield some
        for others in (compare_schedules(store, fold), compare_limits(store, fold)):
            async for some in others:
                yield some
    if STATS in names:
        async for some in compare_stats(store, fold):
            yield some
    for name in names:
        if name in host.projections:
            async for some in compare_projection(store, name, rows):
                yield some


async def _remove_values(store: Store, fold: Fold, writer: RowWriter) -> tuple[str, ...]:
    """Remove the values that no event set or that are not what it set; returns the keys that have none then."""
    lost: list[str] = []
    async for stored in stored_values(store, fold.values):
        if stored.wanted is not None and stored.fault:
            lost.append(stored.key[len(keys.VALUE_PREFIX) :].decode())
        if stored.row is not None and (stored.wanted is None or stored.fault):
            await writer.set(stored.key, None)
    return tuple(lost)


async def _cut(log: LogReader, writer: RowWriter, verified: Verified, host: ProjectionHost) -> None:
    """Remove the log, payloads and texts from the end of what is proven on, and set the head to that end.

    A user's projection that is not given here and has come further begins anew when a queue opens with it.
    """
    store, end = log.store, verified.head.next_offset
    value = encode_head(verified.head)
    if await store.get(keys.HEAD_KEY) != value:
        await writer.set(keys.HEAD_KEY, value)
    ranges = [
        (keys.log_key(end), keys.after_prefix(keys.LOG_PREFIX)),
        (keys.payload_key(end), keys.after_prefix(keys.PAYLOAD_PREFIX)),
        (keys.text_key(end), keys.after_prefix(keys.TEXT_PREFIX)),
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
