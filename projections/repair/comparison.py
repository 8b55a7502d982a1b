"""The comparison of index and fold, row by row: the audit reports what differs, the rebuild writes it.

There is no other comparison. Memory goes with the live jobs: rows are streamed, and what is missing is found by
counting each job's rows.
"""

from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Final, NamedTuple

from ledgerq.eventlog import keys
from ledgerq.eventlog.store import ReadStore
from ledgerq.projections.fold import Fold
from ledgerq.projections.indexes import (
    INDEX_PREFIX,
    STATS,
    index_entries,
    index_rows,
    parse_key,
    stats_key,
)

__all__ = [
    "Mismatch",
    "compare_hints",
    "compare_jobs",
    "compare_projection",
    "compare_rows",
    "compare_stats",
]

_HELD_BACK_ROWS: Final = 10_000
_LOOK_UP_ROWS: Final = 1000


class Mismatch(NamedTuple):
    """A key whose value should be `expected` (None: not there) and is `found` (None: not there)."""

    key: bytes
    expected: bytes | None
    found: bytes | None


async def compare_jobs(
    store: ReadStore, fold: Fold, format_version: int = keys.FORMAT_VERSION
) -> AsyncIterator[Mismatch]:
    """Compare all job index ranges with the union of `index_entries` over the fold."""
    seen: Counter[bytes] = Counter()
    extras: dict[bytes, bytes] = {}
    places: dict[bytes, bytes] | None = None
    async for rows in store.scan(INDEX_PREFIX, keys.after_prefix(INDEX_PREFIX)):
        for key, value in rows:
            if key.startswith(STATS):
                continue
            id = parse_key(key, value).id
            job = None if id is None else fold.jobs.get(id)
            expected = None if job is None else index_entries(job, format_version).get(key)
            if expected is not None and id is not None:
                seen[id] += 1
                if value != expected:
                    yield Mismatch(key, expected, value)
            elif len(extras) < _HELD_BACK_ROWS:
                extras[key] = value  # perhaps a row of another job with a wrong value: distinguished below
            else:
                if places is None:  # so many rows are wrong that it pays to know to which job each one belongs
                    places = {k: v for job in fold.jobs.values() for k, v in index_rows(job).items()}
                yield Mismatch(key, places.get(key), value)
    doubtful: dict[bytes, bytes] = {}
    for id, job in fold.jobs.items():
        entries = index_entries(job, format_version)
        if seen[id] != len(entries):
            for key, expected in entries.items():
                if key in extras:
                    yield Mismatch(key, expected, extras.pop(key))
                else:
                    doubtful[key] = expected
    for key, value in extras.items():
        yield Mismatch(key, None, value)
    # Of a job with too few rows, those that are there were compared above.
    for some in _chunks(sorted(doubtful), _LOOK_UP_ROWS):
        for key, found in zip(some, await store.get_many(some), strict=True):
            if found is None:
                yield Mismatch(key, doubtful[key], None)


def _chunks(keys_in_order: list[bytes], size_rows: int) -> Iterator[list[bytes]]:
    for at in range(0, len(keys_in_order), size_rows):
        yield keys_in_order[at : at + size_rows]


async def compare_stats(
    store: ReadStore, fold: Fold, format_version: int = keys.FORMAT_VERSION
) -> AsyncIterator[Mismatch]:
    """Compare the stats range with the fold's counters."""
    expected = {stats_key(queue): counters.encode(format_version) for queue, counters in fold.counters.items()}
    async for mismatch in compare_rows(store, STATS, expected):
        yield mismatch


async def compare_rows(store: ReadStore, prefix: bytes, expected: Mapping[bytes, bytes]) -> AsyncIterator[Mismatch]:
    """Compare a whole range with the rows that it should hold."""
    left = dict(expected)
    async for rows in store.scan(prefix, keys.after_prefix(prefix)):
        for key, value in rows:
            should = left.pop(key, None)
            if should != value:
                yield Mismatch(key, should, value)
    for key, should in left.items():
        yield Mismatch(key, should, None)


async def compare_projection(
    store: ReadStore, name: str, rows: Mapping[bytes, bytes | None]
) -> AsyncIterator[Mismatch]:
    """Compare a user's projection, its rows and its offset, with what it makes of the whole log."""
    prefix, offset_key = keys.projection_rows_prefix(name), keys.projection_key(name)
    wanted = {key: value for key, value in rows.items() if value is not None and key.startswith(prefix)}
    async for mismatch in compare_rows(store, prefix, wanted):
        yield mismatch
    expected, found = rows.get(offset_key), await store.get(offset_key)
    if expected != found:
        yield Mismatch(offset_key, expected, found)


async def compare_hints(store: ReadStore, fold: Fold) -> AsyncIterator[Mismatch]:
    """Find hints that lead, whose scan would miss pending jobs. One that lags is right; one that leads is removed."""
    first: dict[str, bytes] = {}
    for job in fold.jobs.values():
        if job.state == "pending":
            place = keys.hint_value((job.spec.priority, job.offset))
            known = first.get(job.spec.queue)
            if known is None or place < known:
                first[job.spec.queue] = place
    async for rows in store.scan(keys.HINT_PREFIX, keys.after_prefix(keys.HINT_PREFIX)):
        for key, value in rows:
            try:
                queue = keys.hint_queue(key)
            except UnicodeDecodeError:
                queue = None
            if queue is None or len(value) != keys.HINT_BYTES or value > first.get(queue, value):
                yield Mismatch(key, None, value)
