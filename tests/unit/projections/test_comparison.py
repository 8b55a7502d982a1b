"""The comparison of index rows with a fold, at its edges: first and last rows, whole ranges, and its own bounds."""

import asyncio
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledgerq.eventlog.clock import ManualClock
from ledgerq.eventlog.log import LogReader
from ledgerq.eventlog.memory import MemoryDisk, MemoryReader
from ledgerq.projections import job_table
from ledgerq.projections.fold import Fold, Transition
from ledgerq.projections.index_keys import JOB, PENDING, job_key, pending_prefix
from ledgerq.projections.indexes import index_entries, row_count
from ledgerq.projections.job import Job
from ledgerq.projections.job_table import JobTable
from ledgerq.projections.repair import comparison
from ledgerq.projections.repair.comparison import Mismatch, compare_jobs
from ledgerq.projections.replay import fold_verified
from tests.support.damaged_rows import copy_of, rows_in
from tests.support.histories import histories, quick
from tests.support.rig import Rig

JOBS = 600
Rows = dict[bytes, bytes]


@pytest.fixture(scope="module")
def pristine() -> MemoryDisk:
    return asyncio.run(_made())


async def _made() -> MemoryDisk:
    async with Rig() as rig:
        await rig.queue.enqueue_many("q", [b""] * JOBS)
        claims = await rig.queue.claim("q", 50)
        await rig.queue.ack_many(claims[:25])
        await rig.queue.close()
        return copy_of(rig.disk)


@pytest.fixture(params=["as they are", "few at a time"])
def disk(pristine: MemoryDisk, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> MemoryDisk:
    """The store, compared with the usual bounds, and with ones so small that every step is taken many times."""
    if request.param == "few at a time":
        monkeypatch.setattr(comparison, "_STRAY_ROWS", 7)
        monkeypatch.setattr(comparison, "_DOUBTFUL_ROWS", 5)
        monkeypatch.setattr(comparison, "_LOOK_UP_ROWS", 3)
        monkeypatch.setattr(job_table, "_RECENT_JOBS", 10)
    return copy_of(pristine)


async def compared(disk: MemoryDisk) -> dict[bytes, Mismatch]:
    """What differs, by key; no key twice."""
    _, fold = await fold_verified(LogReader(MemoryReader(disk), clock=ManualClock()))
    found = [mismatch async for some in compare_jobs(MemoryReader(disk), fold, {}) for mismatch in some]
    assert len({mismatch.key for mismatch in found}) == len(found)
    return {mismatch.key: mismatch for mismatch in found}


def remove(*places: int) -> Callable[[Rows, list[bytes]], None]:
    """Remove the rows at these places of the range."""

    def do(rows: Rows, keys: list[bytes]) -> None:
        for place in places:
            del rows[keys[place]]

    return do


def _empty(rows: Rows, keys: list[bytes]) -> None:
    for key in keys:
        del rows[key]


def _shift(rows: Rows, keys: list[bytes]) -> None:
    """Give each row the value of the one after it."""
    values = [rows[key] for key in keys]
    rows.update(zip(keys, values[1:] + values[:1], strict=True))


def _around(rows: Rows, keys: list[bytes]) -> None:
    """Put a row before the first, after the last, and right after each tenth one."""
    rows |= {keys[0][:-1]: b"x", keys[-1] + b"\xff": rows[keys[-1]]}
    rows |= {key + b"\0": rows[key] for key in keys[::10]}


def _twice(rows: Rows, keys: list[bytes]) -> None:
    """Show finished jobs as pending, too: as many rows are too many in one range as are missing in the other."""
    done = [key[-16:] for key in rows if key.startswith(b"i/finished/")]
    for number, id in enumerate(done):
        rows[pending_prefix("q") + bytes(4) + (1_000_000 + number).to_bytes(8)] = id
        del rows[keys[number]]


DAMAGES: dict[str, Callable[[Rows, list[bytes]], None]] = {
    "the first is missing": remove(0),
    "the last is missing": remove(-1),
    "some between are missing": remove(1, 2, 7, 100, 101, 102, 103, -2),
    "all are missing": _empty,
    "each has the value of the next": _shift,
    "there are more": _around,
    "a job is in two ranges": _twice,
}


@pytest.mark.parametrize("prefix", [JOB, PENDING], ids=["job", "pending"])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
async def test_exactly_the_rows_that_differ_are_found(
    pristine: MemoryDisk, disk: MemoryDisk, damage: Callable[[Rows, list[bytes]], None], prefix: bytes
) -> None:
    rows = dict(rows_in(disk))
    damage(rows, sorted(key for key in rows if key.startswith(prefix)))
    for key in rows_in(disk):
        del disk.rows[key]
    disk.rows.update(rows)
    wanted = rows_in(pristine)
    differ = [key for key in wanted.keys() | rows.keys() if wanted.get(key) != rows.get(key)]
    assert differ
    assert await compared(disk) == {key: Mismatch(key, wanted.get(key), rows.get(key)) for key in differ}


async def test_nothing_is_found_where_nothing_is(disk: MemoryDisk) -> None:
    assert await compared(disk) == {}


async def test_a_job_with_as_many_rows_too_many_as_another_has_too_few_is_found(disk: MemoryDisk) -> None:
    """Both ids end in the same byte, so their counts are one."""
    jobs = sorted(rows_in(disk, JOB), key=lambda key: key[-1])
    one, other = next((a, b) for a, b in pairwise(jobs) if a[-1] == b[-1])
    row = disk.rows.pop(one)
    disk.rows[job_key(bytes(15) + one[-1:])] = disk.rows[other]
    found = await compared(disk)
    assert found[one] == Mismatch(one, row, None)
    assert len(found) == 2


@quick
@given(histories(), st.integers(1, 5))
def test_a_job_has_as_many_rows_as_are_counted_and_is_read_back_from_its_row(
    history: list[Transition], recent: int
) -> None:
    fold = Fold()
    fold.jobs = JobTable(recent)
    wanted: dict[bytes, Job] = {}
    for offset, time_ms, event, _, after in history:
        fold.apply(offset, time_ms, event)
        if after is not None:
            wanted[after.id] = after
            assert row_count(after) == len(index_entries(after))
        elif (id := getattr(event, "id", None)) is not None:
            del wanted[id]
        assert fold.jobs == wanted
        assert len(fold.jobs) == len(wanted)
        assert len(fold.jobs.recent) <= recent
