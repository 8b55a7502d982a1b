"""The proof that a store is clean, by several processes: each folds a share of the jobs, and the rows are added up.

The rows that all jobs should have and the rows that are there are the same when their sums are: see `RowSum`. The rows
are read by this process alone, from its one view of the store. The others read only the log, and prove that it is the
one which that view's head names. So nothing is mixed, even if a writer is at work.

Where anything is not as it should be there is no proof, and the audit looks at each row itself, in one process.
"""

from itertools import pairwise
from typing import NamedTuple

from ledgerq.eventlog import keys
from ledgerq.eventlog.entropy import SystemEntropy
from ledgerq.eventlog.errors import FormatTooNew, LogCorrupt, LogPoisoned
from ledgerq.eventlog.log import LogReader, Progress, Verified
from ledgerq.eventlog.runtime.waits import side_by_side
from ledgerq.eventlog.slate.row_sums import SECRET_BYTES, RowSum, can_sum, total
from ledgerq.eventlog.store import ReadStore
from ledgerq.projections.deep_audit import missing_secret, value_differences
from ledgerq.projections.fold import Fold
from ledgerq.projections.index_keys import INDEX_PREFIX, OF_NO_JOB
from ledgerq.projections.limits import LimitTable
from ledgerq.projections.repair.comparison import (
    FirstPlaces,
    compare_hints,
    compare_limits,
    compare_schedules,
    compare_stats,
)
from ledgerq.projections.replay import fold_verified
from ledgerq.projections.schedule import Schedule
from ledgerq.projections.shares.processes import share_elsewhere
from ledgerq.projections.shares.share import Share, ShareFold, ShareTask, finish_share, include_counters, sample_keys
from ledgerq.projections.stats import QueueCounters

__all__ = ["Proof", "prove_clean"]


class Proof(NamedTuple):
    """What was proven: the log, how many jobs it makes, and all counters; all index rows are right."""

    verified: Verified
    jobs: int
    lost_payloads: int
    counters: dict[str, QueueCounters]
    schedules: dict[str, Schedule]
    limits: LimitTable


async def prove_clean(
    log: LogReader, jobs: int, format_version: int, *, progress: Progress | None = None
) -> Proof | None:
    """Prove by so many processes, this one included, that log, index rows, counters and hints are right.

    None where they are not, or where that can't be proven in this way. Raises `ShareFailed`, and `StoreUnavailable`.
    """
    store = log.store
    # It decides nothing: whatever it is, only equal rows have equal sums.
    secret = SystemEntropy().take(SECRET_BYTES)
    try:
        if not can_sum() or await store.get(keys.REBUILD_KEY) is not None:
            return None
        if await missing_secret(store, format_version) is not None:
            return None
        head = await log.head()
        own, *others = [ShareTask(store.location, number, jobs, head, format_version, secret) for number in range(jobs)]
        async with side_by_side(map(share_elsewhere, others)) as elsewhere:
            fold = ShareFold(own.number, own.shares)
            verified, _ = await fold_verified(log, fold=fold, progress=progress)
            if fold.limits.had_rates:
                return None  # what is used of a rate follows from the claims of all shares, in their order
            ranges = _ranges(sample_keys(fold), jobs)
            async with side_by_side(store.sum_rows(*one, secret) for one in ranges) as sums:
                shares = [await finish_share(verified, fold, own), *await elsewhere]
                found = await sums
        return await _proof(store, fold, shares, found, format_version)
    except (LogCorrupt, LogPoisoned, FormatTooNew):
        return None


def _ranges(sample: list[bytes], count: int) -> list[tuple[bytes, bytes]]:
    """About `count` key ranges with about as many rows each: all index rows of jobs."""
    cuts = {sample[len(sample) * number // count] for number in range(1, count) if sample}
    others = {end for prefix in OF_NO_JOB for end in (prefix, keys.after_prefix(prefix))}
    ends = sorted(cuts | others | {INDEX_PREFIX, keys.after_prefix(INDEX_PREFIX)})
    return [(start, stop) for start, stop in pairwise(ends) if start not in OF_NO_JOB]


async def _proof(
    store: ReadStore,
    own: Fold,
    shares: list[Share | None],
    found: list[RowSum | None],
    format_version: int,
) -> Proof | None:
    """What the shares prove together; None unless all is right."""
    right, there = [share for share in shares if share is not None], [rows for rows in found if rows is not None]
    if len(right) < len(shares) or len(there) < len(found) or total(share.expected for share in right) != total(there):
        return None
    fold, first = Fold(), FirstPlaces()
    fold.schedules, fold.limits = own.schedules, own.limits
    for share in right:
        include_counters(fold, share)
        for prefix, place in share.first.items():
            first[prefix] = min(place, first.get(prefix, place))
    stats = compare_stats(store, fold, format_version)
    others = (compare_hints(store, first), compare_schedules(store, fold), compare_limits(store, fold))
    for mismatches in (stats, *others):
        async for some in mismatches:
            if some:
                return None
    async for _ in value_differences(store, own.values):
        return None
    jobs, lost = sum(share.jobs for share in right), sum(len(share.without_payload) for share in right)
    return Proof(right[0].verified, jobs, lost, fold.counters, own.schedules, own.limits)
