"""Results beside the log: an audit finds each that is lost, changed or too many; copy and salvage take them over."""

from pathlib import Path

import pytest

from ledgerq.eventlog import keys
from ledgerq.eventlog.clock import ManualClock
from ledgerq.eventlog.locations import parse_location
from ledgerq.eventlog.memory import MemoryDisk, MemoryReader, MemoryStore
from ledgerq.eventlog.recovery.damaged_store import damaged_store
from ledgerq.projections.audit import audit
from ledgerq.projections.rebuild import rebuild
from ledgerq.projections.repair.copying import copy_into
from ledgerq.projections.repair.salvage import salvage
from ledgerq.worker.queue import Queue
from tests.support.ledger_checks import check_ledger
from tests.support.operators import WHO
from tests.support.rig import Rig


async def acked(queue: Queue) -> tuple[str, int]:
    """A job that was acked with a result: its id, and the offset of that."""
    job = await queue.enqueue("q", b"{}", task="work")
    (claim,) = await queue.claim("q")
    await queue.ack(claim, b"the result")
    result = (await queue.get(job.job_id)).result
    assert result is not None
    return job.job_id, result.at


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda rows, key: rows.pop(key), None),
        (lambda rows, key: rows.update({key: rows[key][:-1] + b"!"}), "the text doesn't match its digest"),
        (lambda rows, key: rows.update({keys.text_key(1): rows[key]}), "that no event has"),
    ],
    ids=["lost", "changed", "too many"],
)
async def test_a_deep_audit_names_the_result_that_is_wrong(damage: object, found: str | None) -> None:
    async with Rig() as rig:
        job_id, at = await acked(rig.queue)
        await rig.queue.close()
        clean = dict(rig.disk.rows)
        assert (await audit(MemoryReader(rig.disk), deep=True, clock=rig.clock)).clean
        assert callable(damage)
        damage(rig.disk.rows, keys.text_key(at))
        assert (await audit(MemoryReader(rig.disk), clock=rig.clock)).clean  # it looks at no text
        (difference,) = (await audit(MemoryReader(rig.disk), deep=True, clock=rig.clock)).differences
        assert difference.range_name == "text"
        assert difference.found is None if found is None else found in str(difference.found)
        rig.disk.rows.clear()
        rig.disk.rows.update(clean)
        await rig.open()
        assert await rig.queue.result(job_id) == b"the result"


async def test_a_copy_has_the_results() -> None:
    async with Rig() as rig:
        job_id, _ = await acked(rig.queue)
        disk = MemoryDisk()
        await copy_into(MemoryReader(rig.disk), MemoryStore(disk), clock=rig.clock, **WHO)
        await check_ledger(disk)
        async with Queue.open(store=MemoryStore(disk), clock=rig.clock) as copied:
            assert await copied.result(job_id) == b"the result"


async def test_a_log_that_is_cut_before_the_ack_has_no_result() -> None:
    async with Rig() as rig:
        job_id, at = await acked(rig.queue)
        await rig.queue.close()
        await rebuild(MemoryStore(rig.disk), clock=rig.clock, until=at, **WHO)
        await rig.check()
        await rig.open()
        assert (await rig.queue.get(job_id)).state == "pending"
        assert await rig.queue.result(job_id) is None


async def test_a_salvage_saves_the_results(tmp_path: Path) -> None:
    async with Queue.open(str(tmp_path / "store")) as queue:
        job_id, _ = await acked(queue)
    disk = MemoryDisk()
    async with damaged_store(parse_location(str(tmp_path / "store"))) as damaged:
        await salvage(damaged, MemoryStore(disk), clock=ManualClock(queue.clock.now_ms()), **WHO)
    await check_ledger(disk)
    async with Queue.open(store=MemoryStore(disk), clock=ManualClock(queue.clock.now_ms())) as saved:
        assert await saved.result(job_id) == b"the result"
