"""A log that doesn't verify is cut at the offset given: log, payloads, indexes and head all end there, at a commit."""

import asyncio
from typing import Any

import pytest

from ledgerq.eventlog import keys
from ledgerq.eventlog.clock import ManualClock
from ledgerq.eventlog.codec import decode_batch, decode_head
from ledgerq.eventlog.errors import LogCorrupt, LogRolledBack
from ledgerq.eventlog.events import KvDeleted, Rebuilt
from ledgerq.eventlog.log import LogReader
from ledgerq.eventlog.memory import MemoryDisk, MemoryReader, MemoryStore
from ledgerq.projections.audit import audit
from ledgerq.projections.rebuild import RebuildReport, rebuild
from ledgerq.projections.replay import fold_to
from ledgerq.worker.queue import Queue
from tests.support.damaged_rows import Ledger, copy_of, make_ledger, rows_in, with_projections
from tests.support.ledger_checks import check_ledger
from tests.support.operators import WHO
from tests.support.rig import Rig
from tests.support.texts import with_texts


@pytest.fixture(scope="module")
def pristine() -> Ledger:
    return asyncio.run(make_ledger(projections=with_projections()))


@pytest.fixture
def ledger(pristine: Ledger) -> Ledger:
    return pristine._replace(disk=copy_of(pristine.disk))


async def mend(ledger: Ledger, **arguments: Any) -> RebuildReport:
    """Rebuild what is durable."""
    given: dict[str, Any] = {"projections": with_projections(), **WHO, **arguments}
    return await rebuild(MemoryStore(ledger.disk), clock=ManualClock(ledger.clock_ms), **given)


def bases(disk: MemoryDisk) -> list[int]:
    """The base offsets of the batches that are there."""
    return [keys.offset_of(key) for key in rows_in(disk, keys.LOG_PREFIX)]


def next_offset(disk: MemoryDisk) -> int:
    """The end of the log by its head."""
    return decode_head(disk.rows[keys.HEAD_KEY]).next_offset


def spoil(ledger: Ledger, base: int) -> None:
    """Change an event of this batch."""
    key = keys.log_key(base)
    ledger.disk.rows[key] = ledger.disk.rows[key][:-1] + bytes((ledger.disk.rows[key][-1] ^ 1,))


async def test_everything_ends_at_the_offset_that_was_given(pristine: Ledger, ledger: Ledger) -> None:
    for until in bases(pristine.disk)[1:]:
        ledger = pristine._replace(disk=copy_of(pristine.disk))
        spoil(ledger, until)
        report = await mend(ledger, until=until)
        assert report.verified.events == until
        # The event of the rebuild, and one for each value that was overwritten behind the cut.
        assert next_offset(ledger.disk) == until + 1 + len(report.lost_keys)
        assert {k: v for k, v in rows_in(ledger.disk, b"l/").items() if keys.offset_of(k) < until} == {
            k: v for k, v in rows_in(pristine.disk, b"l/").items() if keys.offset_of(k) < until
        }
        last = decode_batch(until, ledger.disk.rows[keys.log_key(until)])
        if report.lost_keys:
            assert last.events == [KvDeleted(key, lost=True) for key in report.lost_keys]
            at = last.next_offset
            last = decode_batch(at, ledger.disk.rows[keys.log_key(at)])
        assert with_texts(ledger.disk.rows, last.events) == [
            Rebuilt("ann", "because", ("jobs", "stats", "kinds", "states"), report.rows_put, report.rows_deleted)
        ]
        assert not [key for key in rows_in(ledger.disk, b"p/") if keys.offset_of(key) >= until]
        fold = await fold_to(LogReader(MemoryReader(pristine.disk), clock=ManualClock()), offset=until)
        # Payloads of jobs that were swept after the cut are gone for good.
        swept = {job.id for job in fold.jobs.values() if job.queue == "quick"}
        mended = await check_ledger(ledger.disk, without_payload=swept)
        assert mended.jobs == fold.jobs
        audited = await audit(MemoryReader(ledger.disk), clock=ManualClock(), projections=with_projections())
        assert audited.clean
        assert not (await mend(ledger)).changed


async def test_an_offset_within_a_commit_is_rounded_down_to_it() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue_many("q", [b"1", b"2"])
        await rig.queue.enqueue_many("q", [b"3", b"4", b"5"])
        await rig.queue.close()
        ledger = Ledger(rig.disk, rig.clock.now_ms(), {}, {})
        base = next_offset(rig.disk) - 4
        report = await mend(ledger, until=base + 2, projections=[])
        assert (report.verified.events, report.jobs) == (base, 2)
        await check_ledger(rig.disk)


@pytest.mark.parametrize("until", [0, 10_000])
async def test_everything_or_nothing_may_be_cut(ledger: Ledger, until: int) -> None:
    before = copy_of(ledger.disk)
    report = await mend(ledger, until=until)
    if until:
        assert dict(ledger.disk.rows) == dict(before.rows)
        assert not report.changed
    else:
        assert (report.verified.events, report.jobs) == (0, 0)
        assert bases(ledger.disk) == [0]
    await check_ledger(ledger.disk)


async def test_what_is_bad_before_the_cut_is_refused_with_its_offset(pristine: Ledger) -> None:
    places = bases(pristine.disk)
    for bad in places[:-1]:
        ledger = pristine._replace(disk=copy_of(pristine.disk))
        spoil(ledger, bad)
        before = copy_of(ledger.disk)
        for until in [base for base in places if base > bad] + [next_offset(pristine.disk)]:
            with pytest.raises(LogCorrupt) as caught:
                await mend(ledger, until=until)
            assert caught.value.offset == bad
            assert dict(ledger.disk.rows) == dict(before.rows)


async def test_the_last_batch_before_the_cut_is_vouched_for_by_the_one_that_goes(ledger: Ledger) -> None:
    *_, bad, beyond = bases(ledger.disk)
    spoil(ledger, bad)
    with pytest.raises(LogCorrupt) as caught:
        await mend(ledger, until=beyond)
    assert caught.value.offset == bad
    report = await mend(ledger, until=bad)
    assert report.verified.events == bad


async def test_a_cut_takes_the_place_of_a_rolled_back_log_that_was_accepted(ledger: Ledger) -> None:
    anchor = ledger.disk.anchor
    assert anchor is not None
    ledger.disk.anchor = anchor._replace(next_offset=anchor.next_offset + 5, epoch=anchor.epoch + 3)
    with pytest.raises(LogRolledBack):
        await mend(ledger)
    end = next_offset(ledger.disk)
    report = await mend(ledger, until=end)
    # No row differed, but what was accepted is in the log.
    assert (report.rows_put, report.rows_deleted, report.changed) == (0, 0, True)
    assert next_offset(ledger.disk) == end + 1
    assert ledger.disk.anchor.next_offset == end + 1
    assert ledger.disk.anchor.epoch == anchor.epoch + 4
    queue = await Queue.open(store=MemoryStore(ledger.disk), clock=ManualClock(ledger.clock_ms))
    await queue.close()
    await check_ledger(ledger.disk)


async def test_the_epochs_of_writers_that_were_cut_off_are_not_given_away_again(ledger: Ledger) -> None:
    rig = Rig(projections=with_projections())
    rig.disk = ledger.disk
    rig.clock.set(ledger.clock_ms)
    async with rig:
        for _ in range(3):
            await rig.reopen()
    last = decode_head(ledger.disk.rows[keys.HEAD_KEY]).epoch
    assert last >= 5
    await mend(ledger, until=bases(ledger.disk)[4])
    assert decode_head(ledger.disk.rows[keys.HEAD_KEY]).epoch == last + 1


async def test_a_projection_that_was_not_given_begins_anew_after_a_cut(ledger: Ledger) -> None:
    until = bases(ledger.disk)[8]
    ledger.disk.rows[keys.projection_key("kind")] = (3).to_bytes(8)
    ledger.disk.rows[b"x/kind\0a"] = b"1"
    await mend(ledger, until=until, projections=[])
    assert rows_in(ledger.disk, b"x/") == {b"x/kind\0a": b"1"}, "one that had not come that far stays as it is"
    assert rows_in(ledger.disk, keys.PROJECTION_PREFIX) == {keys.projection_key("kind"): (3).to_bytes(8)}
    queue = await Queue.open(
        store=MemoryStore(ledger.disk), clock=ManualClock(ledger.clock_ms), projections=with_projections()
    )
    await queue.close()
    report = await audit(MemoryReader(ledger.disk), clock=ManualClock(), projections=with_projections())
    assert report.clean
