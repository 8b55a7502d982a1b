"""Stores of the formats before: a whole one of format 2 as version 0.4.0 wrote it, and what format 1 had otherwise."""

from pathlib import Path

import msgpack

from ledgerq.eventlog import keys
from ledgerq.eventlog.memory import MemoryDisk
from ledgerq.eventlog.store import Anchor
from ledgerq.projections.fold import Fold
from ledgerq.projections.index_keys import stats_key
from ledgerq.projections.indexes import index_entries
from tests.support.damaged_rows import Ledger

__all__ = ["format_1_rows", "format_2_ledger"]

_FORMAT_2 = Path(__file__).with_name("format_2.msgpack")


def format_2_ledger() -> Ledger:
    """The ledger of `make_ledger`, written by version 0.4.0: [clock ms, anchor, writers so far, job ids, rows]."""
    clock_ms, anchor, writer_number, jobs, rows = msgpack.unpackb(_FORMAT_2.read_bytes())
    disk = MemoryDisk()
    disk.rows.update(rows)
    disk.anchor, disk.writer_number = Anchor(*anchor), writer_number
    return Ledger(disk, clock_ms, jobs, {})


def format_1_rows(fold: Fold) -> dict[bytes, bytes]:
    """The rows that differ from those of format 2, for the log that was folded: those of jobs and counters, shorter."""
    rows = {keys.FORMAT_KEY: b"1"}
    for job in fold.jobs.values():
        rows |= index_entries(job, 1)
    return rows | {stats_key(queue): counters.encode(1) for queue, counters in fold.counters.items()}
