"""Salvage: a new store made from what can still be read of a damaged one, which is only read.

Every file that lies in the store is read block by block, whether a manifest names it or not. Record batches are taken
by the hash chain, payloads by their digests, so it does not matter where they are found, nor what else is there. What
can't be proven is named in the report and left out.
"""

import asyncio
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from ledgerq.eventlog import keys
from ledgerq.eventlog.clock import Clock
from ledgerq.eventlog.codec import decode_batch
from ledgerq.eventlog.entropy import job_id_text
from ledgerq.eventlog.errors import FormatTooNew, LogCorrupt, ProjectionDrift, StoreNotFound
from ledgerq.eventlog.events import Enqueued
from ledgerq.eventlog.log import Progress, Verified
from ledgerq.eventlog.recovery.batch_pool import BatchPool, Stretch
from ledgerq.eventlog.recovery.damaged_store import DamagedStore
from ledgerq.eventlog.recovery.sorted_files import SstRow
from ledgerq.eventlog.recovery.store_files import FileFault, may_have_held, read_rows, sorted_files
from ledgerq.eventlog.runtime.commands import rebuild_command
from ledgerq.eventlog.slate.stored_blobs import folder_blobs
from ledgerq.eventlog.store import Anchor, Store
from ledgerq.projections.fold import Fold
from ledgerq.projections.index_keys import JOB
from ledgerq.projections.indexes import decode_job
from ledgerq.projections.job import Job
from ledgerq.projections.payloads import MISSING, LostPayload, payload_fault
from ledgerq.projections.rebuild import RebuildReport
from ledgerq.projections.repair.copying import Lost, NewStore
from ledgerq.projections.texts import text_fault
from ledgerq.projections.values import value_fault

__all__ = ["LostJob", "SalvageReport", "salvage"]

_LOG_RANGES: Final = tuple((prefix, keys.after_prefix(prefix)) for prefix in (keys.LOG_PREFIX, keys.META_PREFIX))
_BESIDE: Final = (keys.PAYLOAD_PREFIX, keys.TEXT_PREFIX, keys.VALUE_PREFIX)
_OTHER_RANGES: Final = tuple((prefix, keys.after_prefix(prefix)) for prefix in _BESIDE)
_JOB_RANGES: Final = ((JOB, keys.after_prefix(JOB)),)
_OFFSET_KEY_BYTES: Final = len(keys.log_key(0))
_MAX_LOST_JOBS: Final = 100_000
_NOT_FOUND: Final = f"{MISSING} since the store was salvaged"


class LostJob(NamedTuple):
    """A job that was enqueued in the part of the log that is lost, as far as its name is still known."""

    job_id: str
    queue: str
    offset: int


class SalvageReport(NamedTuple):
    """The result of a salvage: what was recovered and what was not.

    `rebuilt`: the log that is proven, the jobs, and those whose payload is lost. `promised`: the newest commit known to
    have been made, by the `anchor` or (None there, or on an object store, whose anchor lags) by a head that was found;
    `is_end_known`: no later one was made, as far as the files that are there tell: False when only a head vouches for
    that, and what can't be read may have held a later head, or when the one slot of the anchor that can't be read may
    name a commit after that of the other, and none was found. `is_reached`: that is so, and the proven log holds it.
    `stretches`: record batches beyond the proven log that don't connect to it; `other_batches`: further ones inside
    it, of a history that was cut or altered. `why_ended`: what was wrong with the batch at which a log had to end
    that goes on. `manifest`: the newest one that can be read; nothing depends on it. `files`: how many sorted files
    and log files were read; `faults`: what was wrong with some, and which are missing. `kept`: how many jobs of
    each queue are in the new store. `lost_jobs`: those enqueued beyond the proven log.
    """

    location: str
    rebuilt: RebuildReport
    manifest: int | None
    anchor: Anchor | None
    promised: Anchor | None
    is_end_known: bool
    is_reached: bool
    stretches: list[Stretch]
    other_batches: int
    why_ended: str
    files: int
    faults: list[FileFault]
    kept: dict[str, int]
    lost_jobs: list[LostJob]

    @property
    def end(self) -> int:
        """The offset after the last event that was recovered."""
        return self.rebuilt.verified.head.next_offset

    @property
    def is_whole(self) -> bool:
        """Whether everything promised was recovered: the log up to the last commit, payloads, texts, values, secret."""
        rebuilt = self.rebuilt
        return self.is_reached and not (
            rebuilt.lost or rebuilt.lost_texts or rebuilt.lost_keys or rebuilt.is_secret_new
        )


async def salvage(
    damaged: DamagedStore,
    target: Store,
    *,
    clock: Clock,
    actor: str,
    reason: str,
    progress: Progress | None = None,
) -> SalvageReport:
    """Fill `target`, which must be empty, with what can be proven of the files of a damaged store.

    A salvage that was interrupted is run again. Raises `StoreNotFound` when no event can be read, `FormatTooNew`,
    `InvalidArgument` for a target that holds something.
    """
    with tempfile.TemporaryDirectory(prefix="ledgerq-salvage-") as scratch:
        pool = await asyncio.to_thread(BatchPool, Path(scratch) / "batches")
        try:
            return await _Salvage(damaged, pool, progress).run(target, clock, actor, reason)
        finally:
            await asyncio.to_thread(pool.close)


class _Salvage:
    """One salvage under way: the files, the pool of record batches, and what was found to be wrong."""

    def __init__(self, damaged: DamagedStore, pool: BatchPool, progress: Progress | None) -> None:
        self._damaged = damaged
        self._folder = damaged.folder
        self._location = damaged.location
        self._pool = pool
        self._progress = progress
        self._faults = {fault.path: fault for fault in damaged.faults}
        self._format: tuple[int, bytes] | None = None
        self._secret: tuple[int, bytes] | None = None
        self._files: set[Path] = set()
        self._head_log = 0  # the number of the last log file with a head that can be read

    async def run(self, target: Store, clock: Clock, actor: str, reason: str) -> SalvageReport:
        pool, anchor = self._pool, self._damaged.anchor
        await self._read(_LOG_RANGES, self._take_log_row)
        is_end_known = anchor is not None and not self._damaged.anchor_lags
        promised = anchor if is_end_known else pool.promised(anchor)
        is_end_known = is_end_known or await asyncio.to_thread(self._is_head_last)
        verified = await asyncio.to_thread(pool.choose, promised)
        self._check_format(verified)
        verified, fold, why_ended = await self._fold(verified)
        async with NewStore(target, clock) as new:
            for page in pool.pages():
                for base_offset, value in page:
                    await new.put(keys.log_key(base_offset), value)
            if self._secret is not None:
                await new.put(keys.SECRET_KEY, self._secret[1])
            kept = dict(sorted(Counter(job.queue for job in fold.jobs.values()).items()))
            payloads, texts, lost_keys = await self._copy_side_records(new, fold)
            is_secret_lost = self._secret is None and self._format_version() == keys.FORMAT_VERSION
            lost = Lost(payloads, texts, is_secret_lost, lost_keys)
            rebuilt = await new.finish(verified, fold, lost, actor=actor, reason=reason)
        end = verified.head.next_offset
        if anchor is not None and self._damaged.is_anchor_in_doubt and end <= anchor.next_offset:
            is_end_known = False
        is_reached = is_end_known and promised is not None and await asyncio.to_thread(pool.holds, promised)
        stretches, others = await asyncio.to_thread(pool.left_out, end)
        lost_jobs = [] if is_reached and not stretches else await self._lost_jobs(end)
        faults = sorted(self._faults.values())
        return SalvageReport(
            self._location,
            rebuilt,
            self._damaged.manifest,
            anchor,
            promised,
            is_end_known,
            is_reached,
            stretches,
            others,
            why_ended,
            len(self._files),
            faults,
            kept,
            lost_jobs,
        )

    # ------------------------------------------------------------------ reading the files

    async def _read(self, ranges: tuple[tuple[bytes, bytes], ...], take: Callable[[SstRow], object]) -> None:
        """Give every row in `ranges` to `take`, file by file; files that came meanwhile are read too."""
        done: set[Path] = set()
        while files := [path for path in await asyncio.to_thread(sorted_files, self._folder) if path not in done]:
            for number, path in enumerate(files):
                await asyncio.to_thread(self._read_file, path, ranges, take)
                done.add(path)
                if self._progress is not None:
                    self._progress(number + 1, len(files))
        self._files |= done

    def _read_file(self, path: Path, ranges: tuple[tuple[bytes, bytes], ...], take: Callable[[SstRow], object]) -> None:
        for rows in read_rows(self._folder, path, ranges, self._record_fault):
            for row in rows:
                if any(start <= row.key < stop for start, stop in ranges):
                    take(row)
                    if row.key == keys.HEAD_KEY:
                        number = _log_number(str(path.relative_to(self._folder)))
                        self._head_log = max(self._head_log, number or 0)

    def _record_fault(self, fault: FileFault) -> None:
        self._faults[fault.path] = fault

    def _is_head_last(self) -> bool:
        """Whether no later head than the newest one that was found may be in what is damaged or missing."""
        for fault in self._faults.values():
            number = _log_number(fault.path)
            if number is not None and number > self._head_log and not fault.has_all_rows:
                return False
        if self._damaged.replayed_from is None:
            return False  # later log files may have been removed, since a manifest that can't be read replaced them
        if self._head_log > self._damaged.replayed_from:
            return True
        faults = [fault for fault in self._faults.values() if fault.path.startswith("compacted/")]
        lossy = [self._folder / fault.path for fault in faults if not fault.has_all_rows]
        return not any(may_have_held(path, keys.HEAD_KEY) for path in lossy)

    def _take_log_row(self, row: SstRow) -> None:
        key, value, seq = row
        if key.startswith(keys.LOG_PREFIX):
            if len(key) != _OFFSET_KEY_BYTES:
                return
            if value is None:
                self._pool.add_removed(keys.offset_of(key), seq)
            else:
                self._pool.add(keys.offset_of(key), value, seq)
        elif key == keys.HEAD_KEY and value is not None:
            self._pool.add_head(value)
        elif key == keys.FORMAT_KEY and value is not None:
            self._format = max(self._format or (0, b""), (seq, value))
        elif key == keys.SECRET_KEY and value is not None and len(value) == keys.SECRET_BYTES:
            self._secret = max(self._secret or (0, b""), (seq, value))

    def _format_version(self) -> int:
        """The format of the store; the present one where that can't be read."""
        found = b"" if self._format is None else self._format[1]
        return int(found) if found.isdigit() else keys.FORMAT_VERSION

    def _check_format(self, verified: Verified) -> None:
        if (found := self._format_version()) > keys.FORMAT_VERSION:
            raise FormatTooNew(
                f"{self._location} has format {found}, newer than {keys.FORMAT_VERSION}: upgrade ledgerq"
            )
        if not verified.events:
            what = f"{len(self._files)} files of {self._location} were read, and none holds the log's first event"
            if any(fault.is_foreign for fault in self._faults.values()):
                remedy = f"{rebuild_command(self._location, '--into NEW')} (and --until OFFSET) reads through it"
                raise StoreNotFound(f"{what}, but some are written in a way that only SlateDB reads: {remedy}")
            raise StoreNotFound(f"{what}: check the URL, or restore the files from a copy")

    # ------------------------------------------------------------------ what follows from them

    async def _fold(self, verified: Verified) -> tuple[Verified, Fold, str]:
        """The fold of the chosen batches, which are cut before one that the fold refuses, and why."""
        why = ""
        while True:
            fold = Fold()
            try:
                for page in self._pool.pages():
                    for base_offset, value in page:
                        fold.apply_batch(decode_batch(base_offset, value))
                    await asyncio.sleep(0)
            except LogCorrupt as error:
                why = f"offset {error.offset}: {error.what}"
                verified = await asyncio.to_thread(self._pool.cut, error.offset)
                continue
            return verified, fold, why

    async def _copy_side_records(self, new: NewStore, fold: Fold) -> tuple[list[LostPayload], list[int], list[str]]:
        """Write payloads, texts and values found anywhere; returns jobs, offsets and keys of which they are not."""
        live = {job.offset: job for job in fold.jobs.values()}
        texts, values = dict(fold.texts), {keys.value_key(key): value for key, value in fold.values.items()}
        found: list[tuple[bytes, bytes]] = []
        changed, large = dict[int, str](), list[tuple[Job, bytes]]()

        def take(row: SstRow) -> None:
            key, value, _ = row
            if value is None:
                return
            if key.startswith(keys.VALUE_PREFIX):
                if key in values and not value_fault(values[key], value):
                    found.append((key, value))
                    del values[key]
                return
            if len(key) != _OFFSET_KEY_BYTES:
                return
            offset = keys.offset_of(key)
            if key.startswith(keys.TEXT_PREFIX):
                if offset in texts and not text_fault(texts[offset], value):
                    found.append((key, value))
                    del texts[offset]
                return
            job = live.get(offset)
            if job is not None and (fault := payload_fault(job, value)):
                changed[job.offset] = fault
            elif job is not None:
                found.append((key, value))
                large.extend([(job, value)] * (job.blob is not None))
                del live[job.offset]

        files = await asyncio.to_thread(sorted_files, self._folder)
        for number, path in enumerate(files):
            if not (live or texts or values):
                break
            await asyncio.to_thread(self._read_file, path, _OTHER_RANGES, take)
            for key, value in found:
                await new.put(key, value)
            found.clear()
            if self._progress is not None:
                self._progress(number + 1, len(files))
        lost = [job for _, job in sorted(live.items()) if job.id not in fold.without_payload]
        why = {job: await new.put_blob(folder_blobs(self._folder), job, value) for job, value in large}
        return (
            [LostPayload(job, changed.get(job.offset, _NOT_FOUND)) for job in lost]
            + [LostPayload(job, fault) for job, fault in why.items() if fault],
            sorted(texts),
            [key[len(keys.VALUE_PREFIX) :].decode() for key in sorted(values)],
        )

    async def _lost_jobs(self, end: int) -> list[LostJob]:
        """Jobs enqueued at `end` or later, by batches that don't connect, and by index rows that outlived the log."""
        found: dict[int, LostJob] = {}
        for page in self._pool.left_out_pages(end):
            for base_offset, value in page:
                for offset, event in enumerate(decode_batch(base_offset, value).events, base_offset):
                    if isinstance(event, Enqueued):
                        found[offset] = LostJob(job_id_text(event.id), event.queue, offset)

        def take(row: SstRow) -> None:
            try:
                job = None if row.value is None else decode_job(row.value)
            except ProjectionDrift:
                return
            if job is not None and job.offset >= end and len(found) < _MAX_LOST_JOBS:
                found.setdefault(job.offset, LostJob(job.job_id, job.queue, job.offset))

        await self._read(_JOB_RANGES, take)
        return [found[offset] for offset in sorted(found)]


def _log_number(path: str) -> int | None:
    """The number of a log file of the store's; a later one holds later commits. None for any other file."""
    folder, _, name = path.partition("/")
    stem, _, suffix = name.partition(".")
    return int(stem) if folder == "wal" and suffix == "sst" and stem.isdigit() else None
