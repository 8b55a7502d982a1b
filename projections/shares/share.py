"""One share of the jobs: their fold, and the sum of the index rows that they should have.

Jobs don't concern each other, so a share needs the events of its own jobs only. The whole hash chain is verified by each
process all the same: that proves that all of them fold one and the same log, up to one and the same head.
"""

import asyncio
from itertools import islice
from typing import Final

from msgspec import Struct

from ledgerq.eventlog.codec import Head, RecordBatch
from ledgerq.eventlog.log import LogReader, Progress, Verified
from ledgerq.eventlog.slate.row_sums import RowSum, sum_of, total
from ledgerq.projections.fold import Fold
from ledgerq.projections.indexes import index_entries
from ledgerq.projections.repair.comparison import FirstPlaces, note_place
from ledgerq.projections.replay import fold_verified

__all__ = ["Share", "ShareFold", "ShareTask", "finish_share", "fold_share", "sample_keys"]

_JOBS_AT_ONCE: Final = 1000
_SAMPLE_JOBS: Final = 500


class ShareTask(Struct, frozen=True, array_like=True):
    """What a process is to do: share `number` of `shares`, of the log that ends with `head`, in the store at `url`."""

    url: str
    number: int
    shares: int
    head: Head
    format_version: int
    secret: bytes


class Share(Struct, frozen=True, array_like=True):
    """The result of a share: how much of the log was proven, and what follows from it for the share's jobs.

    `expected`: the sum of their index rows. `counters`: the rows of the counters, as far as these jobs count.
    `first`: where their first pending job of each queue is.
    """

    verified: Verified
    jobs: int
    lost_payloads: int
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
        for offset, event in enumerate(batch.events, batch.base_offset):
            id = getattr(event, "id", None)
            if id is None or id[-1] % shares == number:
                apply(offset, time_ms, event)
        self.next_offset, self.time_ms = batch.next_offset, time_ms
        self.jobs.pack_some()


async def fold_share(log: LogReader, task: ShareTask) -> Share:
    """Do all that a task asks for. Raises like `fold_verified`."""
    fold = ShareFold(task.number, task.shares)
    verified, _ = await fold_verified(log, head=task.head, fold=fold)
    return await finish_share(verified, fold, task)


async def finish_share(verified: Verified, fold: ShareFold, task: ShareTask) -> Share:
    """The result of a share whose fold is done."""
    jobs, first, sums = fold.jobs, FirstPlaces(), list[RowSum]()
    ids = iter(jobs)
    while some := [*islice(ids, _JOBS_AT_ONCE)]:
        rows: dict[bytes, bytes] = {}
        for id in some:
            rows |= index_entries(jobs[id], task.format_version)
        for key in rows:
            note_place(first, key)
        sums.append(sum_of(rows, task.secret))
        await asyncio.sleep(0)
    counters = {queue: counted.encode() for queue, counted in fold.counters.items()}
    return Share(verified, len(jobs), len(fold.without_payload), total(sums), counters, first)


def sample_keys(fold: Fold) -> list[bytes]:
    """Keys of index rows of some hundred jobs, in order."""
    every = len(fold.jobs) // _SAMPLE_JOBS + 1
    return sorted(key for id in islice(fold.jobs, 0, None, every) for key in index_entries(fold.jobs[id]))
