"""A scripted run of a queue, ended at every single call of its store, in every way that a process can end.

After each end the queue is opened again on what was durable. Whatever an awaited call had reported must be there,
nothing acked comes back, and the ledger is clean.
"""

import asyncio

from ledgerq.eventlog.events import Claimed
from ledgerq.eventlog.memory import MemoryStore
from ledgerq.worker.claims import Claim
from ledgerq.worker.options import NewJob, QueueOptions
from ledgerq.worker.queue import Queue
from tests.model.crash_points import CrashPoint, End, at_each_call, each_end, until_crash
from tests.support.loops import settle
from tests.support.operators import WHO
from tests.support.rig import Rig


class Reported:
    """The reports of awaited calls: job id -> the state that its durable history must have passed through."""

    def __init__(self) -> None:
        self.enqueued: dict[str, bytes] = {}
        self.claimed: set[tuple[int, bytes]] = set()
        self.acked: set[str] = set()
        self.dead: set[str] = set()
        self.cancelled: set[str] = set()
        self.swept: set[str] = set()
        self.paused = False
        self.kept: Claim | None = None


async def a_day(rig: Rig, point: CrashPoint, reported: Reported) -> None:
    """The scenario; every report is noted right after the call that made it returned."""
    store = MemoryStore(rig.disk, fault=point)
    point.store = store
    options = QueueOptions(max_attempts=2, lease_s=10.0)
    queue = await Queue.open(
        store=store, clock=rig.clock, entropy=rig.entropy, default=options, ready_window=2, commit_interval_ms=0.0
    )
    rig.queue = queue

    async def enqueue(payload: bytes, **arguments: object) -> str:
        added = await queue.enqueue("q", payload, **arguments)  # type: ignore[arg-type]
        reported.enqueued[added.job_id] = payload
        return added.job_id

    first = await enqueue(b"first")
    waiting = asyncio.create_task(queue.claim("late", wait=None, kept=True))
    waiting.add_done_callback(lambda task: task.cancelled() or task.exception())  # when no task is left to await it
    for job, payload in zip(
        await queue.enqueue_many("q", [b"a", NewJob(b"b", priority=1), NewJob(b"c", unique_key="k")]),
        (b"a", b"b", b"c"),
        strict=True,
    ):
        reported.enqueued[job.job_id] = payload
    later = await enqueue(b"later", delay=20)
    claims = await queue.claim("q", limit=2)
    reported.claimed |= {(claim.offset, claim.id) for claim in claims}
    for claim in claims:
        await queue.ack(claim)
        reported.acked.add(claim.job_id)
    added = await queue.enqueue("late", b"late")
    reported.enqueued[added.job_id] = b"late"
    (claim,) = await waiting
    reported.claimed.add((claim.offset, claim.id))
    reported.kept = claim
    await enqueue(b"while it is held")
    reported.kept = None  # from here on the outcome is unknown
    await queue.nack(claim, "boom", delay=5)
    for _ in range(2):
        claims = await queue.claim("q")
        reported.claimed |= {(claim.offset, claim.id) for claim in claims}
        await rig.advance(10)
    await queue.pause("q", **WHO)
    reported.paused = True
    unwanted = await enqueue(b"unwanted")
    await queue.cancel(unwanted, **WHO)
    reported.cancelled.add(unwanted)
    reported.paused = False  # from here on the outcome is unknown, until it returns
    await queue.resume("q", **WHO)
    await rig.advance(20)
    while claims := await queue.claim("q", limit=5):
        reported.claimed |= {(claim.offset, claim.id) for claim in claims}
        for claim in claims:
            await queue.nack(claim, "hopeless", dead=True)
            reported.dead.add(claim.job_id)
    if later in reported.dead:
        await queue.requeue(later, **WHO)
        reported.dead.discard(later)
    await rig.advance(24 * 3600)
    if (await queue.stats("q")).totals["swept"]:
        reported.swept |= {job_id for job_id in (first, unwanted) if job_id in reported.acked | reported.cancelled}
    await queue.close()


async def run_until_it_ends(rig: Rig, at: int | None, end: End) -> tuple[CrashPoint, Reported]:
    """Run the scenario up to its end or the crash."""
    point, reported = CrashPoint(at, end), Reported()
    await until_crash(rig, point, end, a_day(rig, point, reported))
    return point, reported


async def check_promises(rig: Rig, reported: Reported) -> None:
    """Open again; see that every report holds, and that the queue works."""
    await rig.check()
    queue = await rig.open(default=QueueOptions(max_attempts=2))
    await settle()
    offsets = {
        (batch.base_offset + i, event.id)
        for batch in await rig.batches()
        for i, event in enumerate(batch.events)
        if isinstance(event, Claimed)
    }
    fold = await rig.check()
    jobs = {job.job_id: job for job in fold.jobs.values()}
    for job_id in reported.enqueued:
        history = await queue.history(job_id)
        assert history, f"{job_id} was reported and is not in the log"
        if job_id in reported.swept:
            assert job_id not in jobs
    assert reported.claimed <= offsets, "a claim that was handed over is not in the log"
    for job_id in reported.acked:
        assert job_id not in jobs or jobs[job_id].state == "done"
    for job_id in reported.cancelled:
        assert job_id not in jobs or jobs[job_id].state == "cancelled"
    for job_id in reported.dead & jobs.keys():
        assert jobs[job_id].state in ("dead", "pending")  # pending: requeued in the commit that was never reported
    if reported.kept is not None:
        await queue.ack(reported.kept)
        reported.acked.add(reported.kept.job_id)
    assert (await queue.stats("q")).paused >= reported.paused
    await queue.resume("q", **WHO)
    await rig.advance(30)
    for name in ("q", "late"):
        while claims := await queue.claim(name, limit=9):
            for claim in claims:
                assert claim.job_id not in reported.acked | reported.cancelled
                if claim.job_id in reported.enqueued:
                    assert claim.payload == reported.enqueued[claim.job_id]
            await queue.ack_many(claims)
    stats = await queue.stats("q")
    assert (stats.pending, stats.claimed, stats.scheduled) == (0, 0, 0)
    await queue.close()
    await settle()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    await rig.check()


async def test_the_scenario_itself_goes_well_and_reaches_everything() -> None:
    rig = Rig()
    point, reported = await run_until_it_ends(rig, None, "error")
    assert len(reported.enqueued) == 8
    assert len(point.calls) > 100
    assert {event.split(":")[0] for event in point.calls} == {"get", "scan", "write", "sync", "close"}
    names = {type(event).__name__ for event in await rig.events()}
    wanted = "Enqueued Promoted Claimed Acked Nacked LeaseExpired Cancelled Requeued Swept"
    assert names >= {*wanted.split(), "QueuePaused", "QueueResumed", "WriterOpened", "WriterClosed"}
    assert reported.acked
    assert reported.cancelled
    assert reported.dead
    assert reported.swept
    await check_promises(rig, reported)


@each_end("passing error", 8)
async def test_a_process_that_ends_at_any_call_of_its_store_breaks_no_promise(end: End, step: int) -> None:
    await at_each_call(run_until_it_ends, check_promises, end, step)
