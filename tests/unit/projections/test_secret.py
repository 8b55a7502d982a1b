"""The store's secret: what is refused, found, said and made anew when it is missing, and what another one costs."""

import pytest

from ledgerq.eventlog import keys
from ledgerq.eventlog.clock import ManualClock
from ledgerq.eventlog.errors import NotRebuilt
from ledgerq.eventlog.events import SECRET, Rebuilt
from ledgerq.eventlog.memory import MemoryDisk, MemoryReader, MemoryStore
from ledgerq.eventlog.recorded_audit import AuditStart, RecordedAudit
from ledgerq.projections.audit import AuditReport, audit
from ledgerq.projections.incremental_audit import audit_since
from ledgerq.projections.rebuild import rebuild
from ledgerq.projections.repair.copying import copy_into
from tests.support.damaged_rows import copy_of
from tests.support.operators import WHO
from tests.support.rig import Rig

OTHER = bytes(range(32))


async def audited(disk: MemoryDisk, *, deep: bool = False) -> AuditReport:
    return await audit(MemoryReader(disk, pinned=True), clock=ManualClock(), deep=deep)


async def keyed(rig: Rig) -> str:
    """A job that holds the key `k`, in a store that is closed then."""
    job = await rig.queue.enqueue("q", b"", unique_key="k")
    await rig.queue.enqueue("q", b"")
    await rig.queue.close()
    return job.job_id


async def test_a_store_has_one_secret_for_life() -> None:
    async with Rig() as rig:
        secret = rig.disk.rows[keys.SECRET_KEY]
        assert len(secret) == keys.SECRET_BYTES
        await rig.reopen()
        await rig.crash()
        assert rig.disk.rows[keys.SECRET_KEY] == secret


@pytest.mark.parametrize("found", [None, b"", bytes(31), bytes(33)])
async def test_a_store_whose_secret_is_missing_is_not_written(found: bytes | None) -> None:
    async with Rig() as rig:
        await keyed(rig)
        secret = rig.disk.rows.pop(keys.SECRET_KEY)
        if found is not None:
            rig.disk.rows[keys.SECRET_KEY] = found
        before = dict(rig.disk.rows)
        with pytest.raises(NotRebuilt, match=r"secret of memory:.* is missing: run rebuild-projections .*new one"):
            await rig.open()
        assert dict(rig.disk.rows) == before
        for deep in (False, True):
            (difference,) = (await audited(rig.disk, deep=deep)).differences
            assert (difference.range_name, difference.raw_key) == ("meta", keys.SECRET_KEY)
            assert difference.found == (None if found is None else f"{len(found)} bytes")
        rig.disk.rows[keys.SECRET_KEY] = secret
        await rig.open()


async def test_an_audit_of_what_came_since_finds_it_missing_too() -> None:
    async with Rig() as rig:
        await keyed(rig)
        report = await audited(rig.disk)
        assert report.counters is not None
        head = report.verified.head
        last = RecordedAudit(0, head.next_offset, 0, True, False, AuditStart(head, report.counters, 0))
        assert (await audit_since(MemoryReader(rig.disk), last, clock=ManualClock())).clean
        del rig.disk.rows[keys.SECRET_KEY]
        (difference,) = (await audit_since(MemoryReader(rig.disk), last, clock=ManualClock())).differences
        assert difference.raw_key == keys.SECRET_KEY
        await rebuild(MemoryStore(rig.disk), clock=rig.clock, **WHO)
        await rig.open()


@pytest.mark.parametrize("only", [None, "stats"])
async def test_a_rebuild_makes_a_new_secret_and_records_it(only: str | None) -> None:
    async with Rig() as rig:
        job_id = await keyed(rig)
        del rig.disk.rows[keys.SECRET_KEY]
        report = await rebuild(MemoryStore(rig.disk), clock=rig.clock, only=only, **WHO)
        assert (report.is_secret_new, report.is_recorded, report.rows_put + report.rows_deleted) == (True, True, 0)
        assert SECRET not in report.names
        (last,) = [event for event in await rig.events() if isinstance(event, Rebuilt)]
        assert last.names == (*report.names, SECRET)
        assert (await audited(rig.disk, deep=True)).clean
        assert not (await rebuild(MemoryStore(rig.disk), clock=rig.clock, **WHO)).changed
        # The price: the key of the unfinished job is not recognised.
        queue = await rig.open()
        again = await queue.enqueue("q", b"", unique_key="k")
        assert again.created
        assert again.job_id != job_id
        assert not (await queue.enqueue("q", b"", unique_key="k")).created


async def test_a_job_from_before_a_new_secret_is_not_requeued_beside_one_with_its_key() -> None:
    async with Rig() as rig:
        first = await rig.queue.enqueue("q", b"", unique_key="k")
        (claim,) = await rig.queue.claim("q")
        await rig.queue.nack(claim, "boom", dead=True)
        await rig.queue.close()
        del rig.disk.rows[keys.SECRET_KEY]
        await rebuild(MemoryStore(rig.disk), clock=rig.clock, **WHO)
        queue = await rig.open()
        await queue.enqueue("q", b"", unique_key="k")
        with pytest.raises(Exception, match="unique key"):
            await queue.requeue(first.job_id, **WHO)


async def test_a_deep_audit_names_each_unfinished_job_whose_key_the_secret_does_not_lead_to() -> None:
    async with Rig() as rig:
        job_id = await keyed(rig)
        secret, rig.disk.rows[keys.SECRET_KEY] = rig.disk.rows[keys.SECRET_KEY], OTHER
        assert (await audited(rig.disk)).clean
        (difference,) = (await audited(rig.disk, deep=True)).differences
        assert difference.range_name == "secret"
        assert job_id in difference.key
        queue = await rig.open()
        await queue.cancel(job_id, **WHO)
        assert (await audited(rig.disk, deep=True)).clean
        rig.disk.rows[keys.SECRET_KEY] = secret


@pytest.mark.parametrize("found", [None, b"short"])
async def test_a_copy_of_a_store_without_secret_has_a_new_one(found: bytes | None) -> None:
    async with Rig() as rig:
        await keyed(rig)
        source = copy_of(rig.disk)
        del source.rows[keys.SECRET_KEY]
        if found is not None:
            source.rows[keys.SECRET_KEY] = found
        target = MemoryDisk()
        report = await copy_into(MemoryReader(source), MemoryStore(target), clock=rig.clock, **WHO)
        assert report.is_secret_new
        assert len(target.rows[keys.SECRET_KEY]) == keys.SECRET_BYTES
        assert (await audited(target, deep=True)).clean
        same = MemoryDisk()
        report = await copy_into(MemoryReader(rig.disk), MemoryStore(same), clock=rig.clock, **WHO)
        assert not report.is_secret_new
        assert same.rows[keys.SECRET_KEY] == rig.disk.rows[keys.SECRET_KEY]
        await rig.open()
