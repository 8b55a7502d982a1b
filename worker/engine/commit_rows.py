"""The changes of index rows by a commit: from the states before and after it of the jobs that it touched."""

from collections.abc import Iterator
from typing import Final

from ledgerq.eventlog import keys
from ledgerq.eventlog.codec import pack
from ledgerq.eventlog.commit import pieces
from ledgerq.projections.index_keys import job_key
from ledgerq.projections.indexes import index_rows
from ledgerq.projections.job import Job

__all__ = ["PIECE_JOBS", "Changes", "Touched", "change_pieces", "index_changes"]

# Of a large commit the rows of so many jobs are made in one turn of the event loop.
PIECE_JOBS: Final = 250

Changes = dict[bytes, bytes | None]
Touched = dict[bytes, tuple[Job | None, Job | None]]


def change_pieces(touched: list[tuple[bytes, tuple[Job | None, Job | None]]]) -> Iterator[Changes]:
    """The index changes of many jobs. Nothing may be added before all are known: one job's key can be another's now."""
    changes: Changes = {}
    for at in range(0, len(touched), PIECE_JOBS):
        for key, value in index_changes(dict(touched[at : at + PIECE_JOBS])).items():
            if value is None:
                changes.setdefault(key, None)
            else:
                changes[key] = value
        yield {}
    yield from pieces(changes)


def index_changes(touched: Touched) -> Changes:
    """The changes of the index ranges for jobs with their states before and after. A put beats a delete."""
    changes: Changes = {}
    for id, (before, after) in touched.items():
        old = {} if before is None else index_rows(before)
        new = {} if after is None else index_rows(after)
        for key in old:
            if key not in new:
                changes.setdefault(key, None)
        for key, value in new.items():
            if key not in old:
                changes[key] = value
        if after is not None:
            changes[job_key(id)] = pack(after)
        elif before is not None:
            changes[job_key(id)] = None
        if before is not None and (after is None or after.payload_offset != before.payload_offset):
            # Replaced; or swept or deleted, and its id perhaps in use again already.
            changes[keys.payload_key(before.payload_offset)] = None
        if before is not None and after is None:
            changes |= {keys.text_key(at): None for at in before.beside}
        elif before is not None and after is not None and before.texts and after.texts != before.texts:
            changes |= {keys.text_key(at): None for at in before.texts if at not in after.texts}
    return changes
