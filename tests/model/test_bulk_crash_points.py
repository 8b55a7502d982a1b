"""Bulk changes, ended at every call of the store in every way that a process can end, and finished by the next one."""

import pytest

from ledgerq.eventlog.events import BulkBegan, BulkEnded, CancelRequested, Deleted, Moved, Requeued
from ledgerq.eventlog.memory import MemoryStore
from ledgerq.projections import selection
from ledgerq.projections.selection import Filter
from ledgerq.worker.bulk import BulkResult
from ledgerq.worker.engine import bulk_change
from ledgerq.worker.options import NewJob
from ledgerq.worker.queue import Queue
from tests.model.crash_points import CrashPoint, End, at_each_call, each_end, until_crash
from tests.support.loops import settle
from tests.support.operators import WHO
from tests.support.rig import Rig

JOBS = 5


@pytest.fixture(autouse=True)
def one_job_a_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each job in a commit of its own."""
    monkeypatch.setattr(bulk_change, "_PIECE_JOBS", 1)
    monkeypatch.setattr(bulk_change, "_COMMIT_JOBS", 1)
    monkeypatch.setattr(selection, "_PAGE_ROWS", 2)


async def operate(rig: Rig, point: CrashPoint, results: list[BulkResult]) -> None:
    """Jobs die, are requeued, moved, and cancelled while some are claimed; what is dead and cancelled is deleted."""
    point.store = store = MemoryStore(rig.disk, fault=point)
    queue = rig.queue = await Queue.open(store=store, clock=rig.clock, entropy=rig.entropy, commit_interval_ms=0.0)
    await queue.enqueue_many("q", [NewJob(b"", unique_key=f"key {number}") for number in range(JOBS)])
    for claim in await queue.claim("q", limit=JOBS):
        await queue.nack(claim, "boom", dead=True)
    changes = queue.bulk
    results.append(await changes.requeue(Filter(queue="q", error="boom"), **WHO, dry_run=False))
    results.append(await changes.move(Filter(queue="q", state="pending"), "r", **WHO, dry_run=False))
    claims = await queue.claim("r", limit=2)
    results.append(await changes.cancel(Filter(queue="r"), **WHO, dry_run=False))
    for claim in claims:
        await queue.nack(claim, "stopped")
    results.append(await changes.delete(Filter(queue="r", state="cancelled"), **WHO, dry_run=False))
    await queue.close()


async def run_until_it_ends(rig: Rig, at: int | None, end: End) -> tuple[CrashPoint, list[BulkResult]]:
    """Run the scenario up to its end or the crash."""
    point, results = CrashPoint(at, end), list[BulkResult]()
    await until_crash(rig, point, end, operate(rig, point, results))
    return point, results


async def check_promises(rig: Rig, results: list[BulkResult]) -> None:
    """Open again and finish what is open: each job was changed once by each bulk, and all were counted."""
    await rig.check()
    queue = await rig.open()
    await settle()
    finished = await queue.bulk.resume()
    await queue.close()
    await settle()
    await rig.check()
    events = await rig.events()
    began = [event for event in events if isinstance(event, BulkBegan)]
    ended = [event for event in events if isinstance(event, BulkEnded)]
    assert len(began) == len(ended) >= len(results) + len(finished)
    assert [result.count for result in results] == [JOBS] * len(results)
    assert [(event.changed, event.skipped) for event in ended] == [(JOBS, 0)] * len(ended)
    for kind, what in ((Requeued, "requeue"), (Moved, "move"), (Deleted, "delete")):
        ids = [event.id for event in events if isinstance(event, kind)]
        assert len(ids) == len(set(ids)) == JOBS * sum(event.what == what for event in began)
    asked = [event.id for event in events if isinstance(event, CancelRequested)]
    assert len(asked) == len(set(asked)) <= 2


async def test_the_scenario_itself_goes_well() -> None:
    rig = Rig()
    point, results = await run_until_it_ends(rig, None, "error")
    assert [result.what for result in results] == ["requeue", "move", "cancel", "delete"]
    assert len(point.calls) > 60
    await check_promises(rig, results)


@each_end("vanish", 5)
async def test_a_bulk_that_is_ended_at_any_call_of_its_store_is_finished_by_the_next_process(
    end: End, step: int
) -> None:
    await at_each_call(run_until_it_ends, check_promises, end, step)
