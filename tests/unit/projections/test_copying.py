"""A copy into a new store: the same log to the byte, live payloads, fresh indexes; the old store is only read."""

import asyncio
from typing import Any

import pytest

from ledgerq.eventlog import keys
from ledgerq.eventlog.clock import ManualClock
from ledgerq.eventlog.codec import decode_batch
from ledgerq.eventlog.errors import InvalidArgument, LogCorrupt, LogRolledBack, NotRebuilt, StoreNotFound
from ledgerq.eventlog.events import Rebuilt
from ledgerq.eventlog.memory import MemoryDisk, MemoryReader, MemoryStore
from ledgerq.projections.audit import audit
from ledgerq.projections.rebuild import RebuildReport, rebuild
from ledgerq.projections.repair import row_writer
from ledgerq.projections.repair.copying import copy_into
from ledgerq.worker.queue import Queue
from tests.support.crashes import ENDS, Crash, End, crashed_run
from tests.support.damaged_rows import DAMAGES, Damage, Ledger, copy_of, make_ledger, rows_in, with_projections
from tests.support.ledger_checks import check_ledger
from tests.support.operators import WHO
from tests.support.rig import Rig, claim_all
from tests.support.texts import with_texts
from tests.tiers import sampled


@pytest.fixture(scope="module")
def pristine() -> Ledger:
    return asyncio.run(make_ledger(projections=with_projections()))


@pytest.fixture
def ledger(pristine: Ledger) -> Ledger:
    return pristine._replace(disk=copy_of(pristine.disk))


async def copy(ledger: Ledger, target: MemoryStore, **arguments: Any) -> RebuildReport:
    """Copy what is durable; nothing of it may change."""
    before, anchor = dict(ledger.disk.rows), ledger.disk.anchor
    clock = ManualClock(ledger.clock_ms)
    try:
        return await copy_into(MemoryReader(ledger.disk), target, clock=clock, **WHO, **arguments)
    finally:
        assert (dict(ledger.disk.rows), ledger.disk.anchor) == (before, anchor)


async def check_copy(ledger: Ledger, disk: MemoryDisk, pristine: Ledger) -> None:
    """Check that the copy holds what the original holds, and records where it came from."""
    log, old_log = rows_in(disk, b"l/"), rows_in(ledger.disk, b"l/")
    (more,) = log.keys() - old_log.keys()
    assert {key: value for key, value in log.items() if key != more} == old_log
    (event,) = with_texts(disk.rows, decode_batch(keys.offset_of(more), log[more]).events)
    assert isinstance(event, Rebuilt)
    assert (event.actor, event.reason, event.names) == ("ann", "because", ("jobs", "stats"))
    assert rows_in(disk) == rows_in(pristine.disk)
    assert rows_in(disk, b"p/") == rows_in(pristine.disk, b"p/")
    assert rows_in(disk, b"m/").keys() == {keys.FORMAT_KEY, keys.HEAD_KEY, keys.SECRET_KEY}
    assert disk.rows[keys.SECRET_KEY] == ledger.disk.rows[keys.SECRET_KEY]
    assert rows_in(disk, b"x/") == {}
    assert (await audit(MemoryReader(disk), clock=ManualClock(), deep=True)).clean
    await check_ledger(disk)


async def test_a_copy_has_the_same_log_payloads_and_indexes(ledger: Ledger, pristine: Ledger) -> None:
    disk = MemoryDisk()
    report = await copy(ledger, MemoryStore(disk))
    assert (report.names, report.jobs, report.changed) == (("jobs", "stats"), 16, True)
    assert report.rows_put == len(rows_in(pristine.disk))
    await check_copy(ledger, disk, pristine)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name)
async def test_a_copy_of_damaged_indexes_is_clean(ledger: Ledger, pristine: Ledger, damage: Damage) -> None:
    damage.do(ledger)
    disk = MemoryDisk()
    await copy(ledger, MemoryStore(disk))
    await check_copy(ledger, disk, pristine)


async def test_payloads_of_nobody_and_hints_are_left_behind(ledger: Ledger, pristine: Ledger) -> None:
    ledger.disk.rows[keys.payload_key(0)] = b"whose?"
    ledger.disk.rows[keys.hint_key("bulk")] = b"\xff" * 12
    ledger.disk.rows[keys.REBUILD_KEY] = b"\x91\xc0"
    disk = MemoryDisk()
    await copy(ledger, MemoryStore(disk))
    await check_copy(ledger, disk, pristine)


async def test_a_queue_and_its_projections_go_on_from_the_copy(ledger: Ledger) -> None:
    rig = Rig(projections=with_projections())
    await copy(ledger, MemoryStore(rig.disk))
    rig.clock.set(ledger.clock_ms)
    async with rig:
        assert [c.payload for c in await claim_all(rig.queue, "mail")] == [b"0", b"1", b"2", b"claimed", b"u"]
        report = await audit(MemoryReader(rig.disk), clock=ManualClock(), projections=with_projections())
        assert report.clean


async def test_a_copy_has_an_epoch_after_all_of_the_originals(ledger: Ledger) -> None:
    disk = MemoryDisk()
    await copy(ledger, MemoryStore(disk))
    epochs = [decode_batch(keys.offset_of(key), value).epoch for key, value in rows_in(disk, b"l/").items()]
    assert epochs == sorted(epochs)
    assert epochs[-1] == epochs[-2] + 1


async def test_a_cut_copy_ends_where_it_is_told(ledger: Ledger) -> None:
    until = [keys.offset_of(key) for key in rows_in(ledger.disk, b"l/")][10]
    bad = keys.log_key(until)
    ledger.disk.rows[bad] = ledger.disk.rows[bad][:-1] + b"\x77"
    disk = MemoryDisk()
    with pytest.raises(LogCorrupt) as caught:
        await copy(ledger, MemoryStore(disk))
    assert caught.value.offset == until
    assert not disk.rows
    report = await copy(ledger, MemoryStore(disk), until=until)
    assert report.verified.events == until
    await check_ledger(disk)


async def test_a_rolled_back_original_is_refused_unless_it_is_cut(ledger: Ledger) -> None:
    assert ledger.disk.anchor is not None
    end = ledger.disk.anchor.next_offset
    ledger.disk.anchor = ledger.disk.anchor._replace(next_offset=end + 1)
    disk = MemoryDisk()
    with pytest.raises(LogRolledBack):
        await copy(ledger, MemoryStore(disk))
    assert not disk.rows
    await copy(ledger, MemoryStore(disk), until=end)
    await check_ledger(disk)


async def test_an_original_of_nothing_is_refused(ledger: Ledger) -> None:
    with pytest.raises(StoreNotFound):
        await copy(ledger._replace(disk=MemoryDisk()), MemoryStore(MemoryDisk()))


# ---------------------------------------------------------------------- targets


async def test_a_store_that_holds_anything_is_no_target(ledger: Ledger) -> None:
    full, foreign, half = copy_of(ledger.disk), MemoryDisk(), copy_of(ledger.disk)
    foreign.rows[b"somebody's"] = b"own"
    half.rows[keys.REBUILD_KEY] = b"\x91\xc0"  # a rebuild of its own was interrupted: it is still a ledger
    for disk in (full, foreign, half):
        before = dict(disk.rows)
        with pytest.raises(InvalidArgument, match="location"):
            await copy(ledger, MemoryStore(disk))
        assert dict(disk.rows) == before


@pytest.mark.parametrize("end", sampled(ENDS))
async def test_a_copy_that_is_interrupted_anywhere_is_finished_by_the_next(
    pristine: Ledger, end: End, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_writer, "_BATCH_ROWS", 12)
    count, whole = Crash(), MemoryDisk()
    assert await crashed_run(whole, lambda store: copy(pristine, store), count)
    halfway = 0
    for at in range(len(count.calls)):
        disk = MemoryDisk()
        await crashed_run(disk, lambda store: copy(pristine, store), Crash(at, end))
        if keys.REBUILD_KEY in disk.rows:
            halfway += 1
            before = dict(disk.rows)
            with pytest.raises(NotRebuilt):
                await Queue.open(store=MemoryStore(disk), clock=ManualClock(pristine.clock_ms))
            with pytest.raises(NotRebuilt, match="a copy into"):
                await rebuild(MemoryStore(disk), clock=ManualClock(pristine.clock_ms), **WHO)
            assert dict(disk.rows) == before
        elif disk.rows:
            assert dict(disk.rows) == dict(whole.rows), "it had come to its end"
            continue
        await copy(pristine, MemoryStore(disk))
        assert dict(disk.rows) == dict(whole.rows)
        await check_copy(pristine, disk, pristine)
    assert halfway > 10


async def test_a_copy_that_is_interrupted_and_resumed_from_another_original_holds_only_that_one(
    pristine: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_writer, "_BATCH_ROWS", 12)
    disk = MemoryDisk()
    await crashed_run(disk, lambda store: copy(pristine, store), Crash(20, "error"))
    assert keys.REBUILD_KEY in disk.rows
    async with Rig() as rig:
        await rig.queue.enqueue("q", b"x")
    other = Ledger(rig.disk, rig.clock.now_ms(), {}, {})
    await copy(other, MemoryStore(disk))
    assert (await check_ledger(disk)).counters.keys() == {"q"}
