"""Stores of format 1: the same log, and rows of jobs and counters that were shorter."""

from ledgerq.eventlog import keys
from ledgerq.projections.fold import Fold
from ledgerq.projections.indexes import index_entries, stats_key

__all__ = ["format_1_rows"]


def format_1_rows(fold: Fold) -> dict[bytes, bytes]:
    """The rows that differ from those of today, for the log that was folded."""
    rows = {keys.FORMAT_KEY: b"1"}
    for job in fold.jobs.values():
        rows |= index_entries(job, 1)
    return rows | {stats_key(queue): counters.encode(1) for queue, counters in fold.counters.items()}
