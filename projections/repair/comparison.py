"""The comparison of index and fold, row by row: the audit reports what differs, the rebuild writes it.

There is no other comparison. Memory goes with the live jobs, which are kept as their rows: the store's rows are
streamed, and what is missing is found by counting.
"""

from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing
from typing import Final, NamedTuple

from ledgerq.eventlog import keys
from ledgerq.eventlog.read_ahead import read_ahead
from ledgerq.eventlog.store import ReadStore, Row
from ledgerq.projections.fold import Fold
from ledgerq.projections.index_keys import (
    DEAD,
    INDEX_PREFIX,
    JOB,
    LIMIT,
    OF_NO_JOB,
    PENDING,
    SCHEDULE,
    STATS,
    TICK,
    ULID_BYTES,
    UNIQUE,
    job_of_row,
    pending_prefix,
    stats_key,
)
from ledgerq.projections.indexes import index_entries, index_rows, limit_rows, row_count, schedule_rows
from ledgerq.projections.job import Job
from ledgerq.projections.job_table import JobTable, decode_row

__all__ = [
    "Mismatch",
    "compare_hints",
    "compare_jobs",
    "compare_limits",
    "compare_projection",
    "compare_rows",
    "compare_schedules",
    "compare_stats",
    "note_place",
]

_STRAY_ROWS: Final = 50_000
_DOUBTFUL_ROWS: Final = 50_000
_LOOK_UP_ROWS: Final = 1000
_NO_QUEUE: Final = b"\0"
_LAST_PLACE: Final = b"\xff" * (keys.HINT_BYTES + 1)


class Mismatch(NamedTuple):
    """A key whose value should be `expected` (None: not there) and is `found` (None: not there)."""

    key: bytes
    expected: bytes | None
    found: bytes | None


FirstPlaces = dict[bytes, bytes]
"""Where the first pending job of each queue is, as a hint says it, by the prefix of the queue's pending range."""


def note_place(first: FirstPlaces, key: bytes) -> bytes:
    """Note in `first` that there should be this row; returns what it begins with, up to the place of a pending job."""
    prefix, place = key[: -keys.HINT_BYTES], key[-keys.HINT_BYTES :]
    if key.startswith(PENDING) and place < first.get(prefix, _LAST_PLACE):
        first[prefix] = place
    return prefix


async def compare_jobs(
    store: ReadStore, fold: Fold, first: FirstPlaces, format_version: int = keys.FORMAT_VERSION
) -> AsyncIterator[list[Mismatch]]:
    """Compare all job index ranges with the union of `index_entries` over the fold; fills `first` on the way."""
    fold.jobs.pack()
    comparison = _JobComparison(fold.jobs, first, format_version)
    pages = read_ahead(store.scan(INDEX_PREFIX, keys.after_prefix(INDEX_PREFIX)))
    async with aclosing(pages):
        async for rows in pages:
            yield [*comparison.add(rows)]
    yield [*comparison.place_strays()]
    for some, perhaps in comparison.missing():
        in_order = [*some]
        if perhaps:
            found = await store.get_many(in_order)
            in_order = [key for key, value in zip(in_order, found, strict=True) if value is None]
        for key in in_order:
            comparison.expect(key)
        yield [Mismatch(key, some[key], None) for key in in_order]


class _JobComparison:
    """The comparison of job index rows with a fold, while they are read in the order of their keys.

    A row that is right belongs to one job, and no key comes twice. So as many right rows as the jobs have are all of
    them. They are counted by the last byte of the job's id: only the jobs whose count is short are looked up one by
    one. Each job has a row of its own and one for its state, and when all of these were right, the jobs' further rows
    are known, too. `strays` are rows that no job was found to have, up to `_STRAY_ROWS` at a time: perhaps the row of
    another job than its value says.
    """

    def __init__(self, jobs: JobTable, first: FirstPlaces, format_version: int) -> None:
        self._jobs = jobs
        self._first = first
        self._format_version = format_version
        self._own = [0] * 256
        self._of_state = [0] * 256
        # More rows than those two: how many were right, less how many there should be.
        self._further = [0] * 256
        self._strays: dict[bytes, bytes] = {}

    def add(self, rows: list[Row]) -> Iterator[Mismatch]:
        """Compare the next rows."""
        packed, own, of_state = self._jobs.rows, self._own, self._of_state
        first_id, as_packed, queue = len(JOB), self._format_version > 2, _NO_QUEUE
        for key, value in rows:
            # Half of all rows, so they are not decoded.
            if as_packed and key.startswith(JOB) and packed.get(key[first_id:]) == value:
                own[key[-1]] += 1
                continue
            # Nearly all others: the only row that a job has beside its own, which names the job, or ends in its id.
            id = value or key[-ULID_BYTES:]
            row = packed.get(id)
            if row is None or index_rows(decode_row(row)) != {key: value}:
                yield from self._compare(key, value)
            else:
                of_state[id[-1]] += 1
                # Of one queue the first key is the least one.
                if key.startswith(PENDING) and not key.startswith(queue):
                    queue = self.expect(key)
        if len(self._strays) >= _STRAY_ROWS:
            yield from self.place_strays()

    def expect(self, key: bytes) -> bytes:
        """Note that there should be this row; returns what it begins with, up to the place of a pending job."""
        return note_place(self._first, key)

    def _compare(self, key: bytes, value: bytes) -> Iterator[Mismatch]:
        if key.startswith(OF_NO_JOB):
            return
        id = job_of_row(key, value)
        job = None if id is None else self._jobs.find(id)
        expected = None if job is None else self._entries(job, key).get(key)
        if job is None or expected is None:
            self._strays[key] = value
        else:
            self._count(key, job)
            if value != expected:
                yield Mismatch(key, expected, value)

    def _count(self, key: bytes, job: Job) -> None:
        self.expect(key)
        at = job.spec.id[-1]
        if key.startswith(JOB):
            self._own[at] += 1
        elif key.startswith((DEAD, UNIQUE)):
            self._further[at] += 1
        else:
            self._of_state[at] += 1
            self._further[at] -= row_count(job) - 2

    def _entries(self, job: Job, key: bytes) -> dict[bytes, bytes]:
        return index_entries(job, self._format_version) if key.startswith(JOB) else index_rows(job)

    def place_strays(self) -> Iterator[Mismatch]:
        """The rows so far that no job was found to have: each with the value that it should have, if any."""
        strays = self._strays
        if not strays:
            return
        for job in self._jobs.values():
            for key, expected in index_entries(job, self._format_version).items():
                if key in strays:
                    self._count(key, job)
                    yield Mismatch(key, expected, strays.pop(key))
        for key, value in strays.items():
            yield Mismatch(key, None, value)
        strays.clear()

    def missing(self) -> Iterator[tuple[dict[bytes, bytes], bool]]:
        """Rows that are missing, some at a time, or, marked so, that may be: all others of their jobs are right."""
        jobs = Counter(id[-1] for id in self._jobs)
        none, short = set[int](), set[int]()
        for at in jobs:
            counts = self._own[at], self._of_state[at], self._further[at]
            if counts == (0, 0, 0):
                none.add(at)
            elif counts != (jobs[at], jobs[at], 0):
                short.add(at)
        for wanted, perhaps in ((none, False), (short, True)):
            doubtful: dict[bytes, bytes] = {}
            for id in self._jobs if wanted else ():
                if id[-1] in wanted:
                    doubtful |= index_entries(self._jobs[id], self._format_version)
                    if len(doubtful) >= _DOUBTFUL_ROWS:
                        yield from _chunks(doubtful, perhaps)
                        doubtful = {}
            yield from _chunks(doubtful, perhaps)


def _chunks(rows: dict[bytes, bytes], perhaps: bool) -> Iterator[tuple[dict[bytes, bytes], bool]]:
    in_order = sorted(rows)
    for at in range(0, len(in_order), _LOOK_UP_ROWS):
        yield {key: rows[key] for key in in_order[at : at + _LOOK_UP_ROWS]}, perhaps


async def compare_stats(
    store: ReadStore, fold: Fold, format_version: int = keys.FORMAT_VERSION
) -> AsyncIterator[list[Mismatch]]:
    """Compare the stats range with the fold's counters."""
    expected = {stats_key(queue): counters.encode(format_version) for queue, counters in fold.counters.items()}
    async for some in compare_rows(store, STATS, expected):
        yield some


async def compare_schedules(store: ReadStore, fold: Fold) -> AsyncIterator[list[Mismatch]]:
    """Compare both ranges of schedules with those of the fold."""
    expected: dict[bytes, bytes] = {}
    for schedule in fold.schedules.values():
        expected |= schedule_rows(schedule)
    for prefix in (SCHEDULE, TICK):
        wanted = {key: value for key, value in expected.items() if key.startswith(prefix)}
        async for some in compare_rows(store, prefix, wanted):
            yield some


async def compare_limits(store: ReadStore, fold: Fold) -> AsyncIterator[list[Mismatch]]:
    """Compare the range of limits with those of the fold."""
    expected: dict[bytes, bytes] = {}
    for limits in fold.limits.by_queue.values():
        expected |= limit_rows(limits)
    async for some in compare_rows(store, LIMIT, expected):
        yield some


async def compare_rows(
    store: ReadStore, prefix: bytes, expected: Mapping[bytes, bytes]
) -> AsyncIterator[list[Mismatch]]:
    """Compare a whole range with the rows that it should hold."""
    left = dict(expected)
    async for rows in store.scan(prefix, keys.after_prefix(prefix)):
        pairs = [(key, left.pop(key, None), value) for key, value in rows]
        yield [Mismatch(key, should, value) for key, should, value in pairs if should != value]
    yield [Mismatch(key, should, None) for key, should in left.items()]


async def compare_projection(
    store: ReadStore, name: str, rows: Mapping[bytes, bytes | None]
) -> AsyncIterator[list[Mismatch]]:
    """Compare a user's projection, its rows and its offset, with what it makes of the whole log."""
    prefix, offset_key = keys.projection_rows_prefix(name), keys.projection_key(name)
    wanted = {key: value for key, value in rows.items() if value is not None and key.startswith(prefix)}
    async for some in compare_rows(store, prefix, wanted):
        yield some
    expected, found = rows.get(offset_key), await store.get(offset_key)
    if expected != found:
        yield [Mismatch(offset_key, expected, found)]


async def compare_hints(store: ReadStore, first: FirstPlaces) -> AsyncIterator[list[Mismatch]]:
    """Find hints that lead, whose scan would miss pending jobs. One that lags is right; one that leads is removed."""
    async for rows in store.scan(keys.HINT_PREFIX, keys.after_prefix(keys.HINT_PREFIX)):
        yield [Mismatch(key, None, value) for key, value in rows if not _is_hint(key, value, first)]


def _is_hint(key: bytes, value: bytes, first: FirstPlaces) -> bool:
    try:
        prefix = pending_prefix(keys.hint_queue(key))
    except UnicodeDecodeError:
        return False
    return len(value) == keys.HINT_BYTES and value <= first.get(prefix, value)
