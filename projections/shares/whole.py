"""The fold of a whole log by several processes, each of which folds a share of the jobs."""

from ledgerq.eventlog.errors import FormatTooNew, LogCorrupt, LogPoisoned
from ledgerq.eventlog.keys import FORMAT_VERSION
from ledgerq.eventlog.log import LogReader, Progress, Verified
from ledgerq.eventlog.runtime.waits import side_by_side
from ledgerq.projections.fold import Fold
from ledgerq.projections.replay import fold_verified
from ledgerq.projections.shares.processes import JobRows, share_elsewhere
from ledgerq.projections.shares.share import ShareFold, ShareTask, include_counters

__all__ = ["fold_whole"]


async def fold_whole(log: LogReader, jobs: int, *, progress: Progress | None = None) -> tuple[Verified, Fold]:
    """Like `fold_verified`, by so many processes, this one included; it may lack `texts`. Raises `ShareFailed`, too."""
    if jobs > 1 and (found := await _by_shares(log, jobs, progress)) is not None:
        return found
    # The error, if there is one, is that of the first event that is wrong, whosever share it is.
    return await fold_verified(log, progress=progress)


async def _by_shares(log: LogReader, jobs: int, progress: Progress | None) -> tuple[Verified, Fold] | None:
    fold = ShareFold(0, jobs)

    def take(rows: JobRows) -> None:
        for id, row in rows:
            fold.jobs.rows[id] = row

    try:
        head = await log.head()
        tasks = [ShareTask(log.store.location, number, jobs, head, FORMAT_VERSION) for number in range(1, jobs)]
        async with side_by_side(share_elsewhere(task, take) for task in tasks) as elsewhere:
            verified, _ = await fold_verified(log, fold=fold, progress=progress)
            if fold.limits.had_rates:
                return None  # what is used of a rate follows from the claims of all shares, in their order
            shares = await elsewhere
    except (LogCorrupt, LogPoisoned, FormatTooNew):
        return None
    for share in shares:
        if share is None:
            return None
        include_counters(fold, share)
        fold.without_payload.update(share.without_payload)
    return verified, fold
