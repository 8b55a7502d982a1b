"""One share of the jobs: their fold, and the sum of the index rows that they should have.

Jobs don't concern each other, so a share needs the events of its own jobs only. The whole hash chain is verified by
each process all the same: that proves that all of them fold one and the same log, up to one and the same head.
"""

import asyncio
import os
from itertools import islice
from typing import Final

from msgspec import Struct

from ledgerq.eventlog import keys
from ledgerq.eventlog.codec import Head, RecordBatch
from ledgerq.eventlog.locations import parse_location
from ledgerq.eventlog.log import LogReader, Verified
from ledgerq.eventlog.slate.row_sums import RowSum, sum_of, total
from ledgerq.projections.fold import Fold
from ledgerq.projections.index_keys import PENDING, job_key
from ledgerq.projections.indexes import index_entries, index_rows
from ledgerq.projections.job_table import JobTable, decode_row
from ledgerq.projections.repair.comparison import FirstPlaces, note_place
from ledgerq.projections.replay import fold_verified
from ledgerq.projections.stats import QueueCounters

__all__ = [
    "Share",
    "ShareFold",
    "ShareTask",
    "finish_share",
    "fold_share",
    "include_counters",
    "sample_keys",
    "usable_jobs",
]

_JOBS_AT_ONCE: Final = 1000
_SAMPLE_JOBS: Final = 500
_MOST_JOBS: Final = 8
_LEAST_CORES: Final = 4
_WORTH_EVENTS: Final = 100_000


async def usable_jobs(log: LogReader, asked: int | None) -> int:
    """The number of processes for a log: as asked, or one for each core, up to 8, where there are 4 cores at least.

    Two processes take a fifth more CPU time and are hardly sooner, see docs/reference/measured.md. One for a store in
    memory, which no other process can read, and for a small one.
    """
    if asked == 1 or parse_location(log.store.location).is_memory:
        return 1
    if asked is not None:
        return asked
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _MOST_JOBS) if cores >= _LEAST_CORES and await log.end() >= _WORTH_EVENTS else 1


class ShareTask(Struct, frozen=True, array_like=True):
    """What a process is to do: share `number` of `shares`, of the log that ends with `head`, in the store at `url`.

    With a `secret` the index rows of its jobs are added up; without one the jobs themselves are wanted, as their rows.
    """

    url: str
    number: int
    shares: int
    head: Head
    format_version: int
    secret: bytes | None = None


class Share(Struct, frozen=True, array_like=True):
    """The result of a share: how much of the log was proven, and what follows from it for the share's jobs.

    `without_payload`: those whose payload the log records as lost. `expected`: the sum of their index rows.
    `counters`: the rows of the counters, as far as these jobs count.
    `first`: where their first pending job of each queue is.
    """

    verified: Verified
    jobs: int
    without_payload: list[bytes]
    expected: RowSum
    counters: dict[str, bytes]
    first: FirstPlaces


class ShareFold(Fold):
    """The fold of one share of the jobs, by the last byte of their ids, which is random; it counts only these."""

    def __init__(self, number: int, shares: int) -> None:
        super().__init__()
        self._number = number
        self._shares = shares

    def apply_batch(self, batch: RecordBatch) -> None:
        """Apply what a record batch has of this share, and what concerns no job."""
        number, shares, apply, time_ms = self._number, self._shares, self._apply, batch.time_ms
        for offset, event, distance in batch.steps():
            id = getattr(event, "id", None)
            if id is None or id[-1] % shares == number:  # as `has` answers
                apply(offset, time_ms, event, distance)
        self.next_offset, self.time_ms = batch.next_offset, time_ms
        self.jobs.pack_some()

    def has(self, id: bytes) -> bool:
        """Whether the job is one of this share."""
        return id[-1] % self._shares == self._number


async def fold_share(log: LogReader, task: ShareTask) -> tuple[Share, ShareFold]:
    """Do all that a task asks for. Raises like `fold_verified`."""
    fold = ShareFold(task.number, task.shares)
    verified, _ = await fold_verified(log, head=task.head, fold=fold)
    return await finish_share(verified, fold, task), fold


async def finish_share(verified: Verified, fold: ShareFold, task: ShareTask) -> Share:
    """The result of a share whose fold is done; its jobs are kept as rows."""
    fold.jobs.pack()
    first = FirstPlaces()
    expected = RowSum() if task.secret is None else await _expected(fold.jobs, task.format_version, task.secret, first)
    counters = {queue: counted.encode() for queue, counted in fold.counters.items()}
    return Share(verified, len(fold.jobs.rows), [*fold.without_payload], expected, counters, first)


async def _expected(jobs: JobTable, format_version: int, secret: bytes, first: FirstPlaces) -> RowSum:
    """The sum of the index rows of packed jobs; fills `first`."""
    is_as_packed, ids, sums = format_version == keys.FORMAT_VERSION, iter(jobs.rows), list[RowSum]()
    while some := [*islice(ids, _JOBS_AT_ONCE)]:
        rows: dict[bytes, bytes] = {}
        for id in some:
            row = jobs.rows.get(id)
            assert row is not None
            job = decode_row(row)
            if is_as_packed:
                rows[job_key(id)] = row
                rows |= index_rows(job)
            else:
                rows |= index_entries(job, format_version)
        for key in rows:
            if key.startswith(PENDING):
                note_place(first, key)
        sums.append(sum_of(rows, secret))
        await asyncio.sleep(0)
    return total(sums)


def sample_keys(fold: Fold) -> list[bytes]:
    """Keys of index rows of some hundred jobs, in order."""
    every = len(fold.jobs) // _SAMPLE_JOBS + 1
    return sorted(key for id in islice(fold.jobs, 0, None, every) for key in index_entries(fold.jobs[id]))


def include_counters(fold: Fold, share: Share) -> None:
    """Add the counters of a share to those of a fold."""
    for queue, row in share.counters.items():
        counted = QueueCounters.decode(row)
        if queue in fold.counters:
            fold.counters[queue].include(counted)
        else:
            fold.counters[queue] = counted
