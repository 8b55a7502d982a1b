"""Jobs that expire, and deadlines: none is started too late; what waits is cancelled at its time."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ledgerq.eventlog.errors import InvalidArgument, InvalidState, JobCancelled
from ledgerq.eventlog.events import Expired, LeaseExpired, Nacked
from ledgerq.projections.selection import Filter
from ledgerq.testing import memory_queue
from ledgerq.worker.execution import JobContext
from ledgerq.worker.options import NewJob, QueueOptions
from ledgerq.worker.tasks.registry import Tasks
from ledgerq.worker.worker import Worker
from tests.support.loops import settle
from tests.support.operators import WHO
from tests.support.rig import Rig, payloads

TIMES = pytest.mark.parametrize("name", ["expires", "deadline"])


@TIMES
@pytest.mark.parametrize("delay", [None, 5.0], ids=["pending", "scheduled"])
async def test_a_job_that_still_waits_is_cancelled_at_its_time(name: str, delay: float | None) -> None:
    async with Rig() as rig:
        times: dict[str, Any] = {name: 10.0}
        job = await rig.queue.enqueue("q", b"x", delay=delay, **times)
        await rig.queue.pause("q", **WHO)
        await rig.advance(9.999)
        assert (await rig.queue.get(job.job_id)).state == "pending"
        await rig.advance(0.001)
        ended = await rig.queue.get(job.job_id)
        assert (ended.state, ended.sweep_at_ms) == ("cancelled", rig.clock.now_ms() + 24 * 3600 * 1000)
        stats = await rig.queue.stats("q")
        assert (stats.pending, stats.cancelled, stats.totals["expired"]) == (0, 1, 1)
        await rig.advance(24 * 3600)
        assert await rig.queue.jobs("q") == await rig.queue.jobs("empty")


async def test_one_that_was_claimed_in_time_goes_on_and_its_retry_does_not() -> None:
    async with Rig() as rig:
        job = await rig.queue.enqueue("q", b"x", expires=10.0)
        (claim,) = await rig.queue.claim("q", lease=60.0)
        await rig.advance(11)
        assert (await rig.queue.get(job.job_id)).state == "claimed"
        await rig.queue.nack(claim, "boom", delay=0)
        await settle()
        assert (await rig.queue.get(job.job_id)).state == "cancelled"
        other = await rig.queue.enqueue("q", b"y", expires=10.0)
        (claim,) = await rig.queue.claim("q", lease=60.0)
        await rig.advance(11)
        await rig.queue.ack(claim)
        assert (await rig.queue.get(other.job_id)).state == "done"


async def test_a_retry_that_would_come_too_late_is_not_waited_for() -> None:
    async with Rig() as rig:
        job = await rig.queue.enqueue("q", b"x", expires=10.0)
        (claim,) = await rig.queue.claim("q")
        await rig.queue.nack(claim, "boom", delay=3600)
        await rig.advance(10)
        assert (await rig.queue.get(job.job_id)).state == "cancelled"


async def test_a_lease_that_ends_too_late_ends_the_job() -> None:
    async with Rig() as rig:
        job = await rig.queue.enqueue("q", b"x", expires=10.0)
        await rig.queue.claim("q", lease=11.0)
        await rig.advance(11)
        kinds = [type(record.event) for record in await rig.queue.history(job.job_id)]
        assert kinds[-2:] == [LeaseExpired, Expired]


async def test_a_claim_comes_in_time_or_not_at_all_however_late_the_maintenance_is() -> None:
    async with Rig() as rig:
        late = await rig.queue.enqueue("q", b"late", expires=10.0)
        await rig.queue.enqueue("q", b"next")
        await settle()
        rig.faults.hold("scan")  # maintenance can't look
        rig.clock.advance(seconds=10)
        assert payloads(await rig.queue.claim("q", limit=2)) == [b"next"]
        assert (await rig.queue.get(late.job_id)).state == "cancelled"
        rig.faults.let_go("scan")
        await settle()


async def test_it_expires_also_when_it_was_due_while_nobody_had_the_store_open() -> None:
    async with Rig() as rig:
        job = await rig.queue.enqueue("q", b"x", expires=10.0)
        await rig.queue.close()
        rig.clock.advance(seconds=3600)
        await rig.open()
        await settle()
        assert (await rig.queue.get(job.job_id)).state == "cancelled"


async def test_times_may_be_given_as_such_and_for_each_of_many() -> None:
    async with Rig() as rig:
        at = datetime.fromtimestamp(rig.clock.now_ms() / 1000, UTC) + timedelta(seconds=10)
        many = await rig.queue.enqueue_many("q", [NewJob(b"x", expires=at), NewJob(b"y", deadline=20.0), b"z"])
        await rig.queue.pause("q", **WHO)
        past = await rig.queue.enqueue("q", b"w", expires=at - timedelta(days=1))
        await settle()
        states = [(await rig.queue.get(one.job_id)).state for one in (*many, past)]
        assert states == ["pending", "pending", "pending", "cancelled"]
        await rig.advance(10)
        assert [(await rig.queue.get(one.job_id)).state for one in many] == ["cancelled", "pending", "pending"]
        await rig.advance(10)
        assert [(await rig.queue.get(one.job_id)).state for one in many] == ["cancelled", "cancelled", "pending"]


@TIMES
@pytest.mark.parametrize("value", [-1, "soon", True, float("nan"), 1e18, datetime(2030, 1, 1)], ids=str)
async def test_what_is_no_time_is_refused_by_name(name: str, value: Any) -> None:
    times: dict[str, Any] = {name: 60.0}
    async with Rig() as rig:
        with pytest.raises(InvalidArgument, match=name):
            await rig.queue.enqueue("q", b"x", **{name: value})
        with pytest.raises(InvalidArgument, match="only when it has expired"):
            await rig.queue.enqueue("q", b"x", delay=60, **times)
        assert await rig.queue.queues() == []


async def test_a_dead_job_that_is_too_late_is_not_requeued_and_may_be_moved() -> None:
    async with Rig() as rig:
        job = await rig.queue.enqueue("q", b"x", expires=10.0)
        (claim,) = await rig.queue.claim("q")
        await rig.queue.nack(claim, "boom", dead=True)
        await rig.advance(10)
        assert (await rig.queue.get(job.job_id)).state == "dead"
        with pytest.raises(InvalidState, match="a time that is over"):
            await rig.queue.requeue(job.job_id, **WHO)
        dead = Filter(queue="q", state="dead")
        done = await rig.queue.bulk.requeue(dead, **WHO, dry_run=False)
        assert (done.count, done.skipped) == (0, 1)
        moved = await rig.queue.bulk.move(dead, "other", **WHO, dry_run=False)
        assert (moved.count, moved.skipped) == (1, 0)
        (claim,) = await rig.queue.claim("other")
        assert (claim.payload, claim.deadline_ms) == (b"x", 0)


Run = Callable[[JobContext], Awaitable[None]]


async def stopped_at(rig: Rig, timeout: float | None, **times: Any) -> tuple[str, float]:
    """How a handler that never ends is stopped: the error of its try, and after how many seconds."""
    begun_ms, ended_ms = rig.clock.now_ms(), list[int]()
    worker = Worker(rig.queue, grace=0)

    @worker.handler("q", timeout=timeout)
    async def handle(job: JobContext) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended_ms.append(rig.clock.now_ms())

    job = await rig.queue.enqueue("q", b"x", max_attempts=5, **times)
    running = asyncio.create_task(worker.run(signals=False))
    await settle()
    for _ in range(20):
        await rig.advance(1)
    worker.stop()
    await running
    history = [record.event for record in await rig.queue.history(job.job_id)]
    nacked = next(event for event in history if isinstance(event, Nacked))
    return str(nacked.error), (ended_ms[0] - begun_ms) / 1000


@pytest.mark.parametrize(
    ("timeout", "deadline", "error", "after"),
    [
        (None, 5, "stopped: the job's deadline is over", 5),
        (9, 5, "stopped: the job's deadline is over", 5),
        (3, 5, "timed out after 3 s", 3),
    ],
)
async def test_a_try_is_stopped_at_the_jobs_deadline(
    timeout: float | None, deadline: float, error: str, after: float
) -> None:
    async with Rig(default=QueueOptions(backoff_base_s=0, lease_s=1000)) as rig:
        assert await stopped_at(rig, timeout, deadline=deadline) == (error, after)


async def test_expiry_alone_stops_no_try() -> None:
    async with Rig(default=QueueOptions(backoff_base_s=0, lease_s=1000)) as rig:
        error, after = await stopped_at(rig, 15, expires=5)
        assert (error, after) == ("timed out after 15 s", 15)


async def test_a_task_that_expires_is_told_to_who_waits_for_it() -> None:
    app = Tasks()

    @app.task(queue="q")
    async def send() -> None: ...

    async with memory_queue(app) as queue:
        await queue.pause("q", **WHO)
        handle = await send.options(expires=60).enqueue()
        queue.clock.advance(seconds=60)
        with pytest.raises(JobCancelled, match="was cancelled"):
            await handle.result()


@pytest.mark.parametrize("wait", [0.0, None])
async def test_a_claim_passes_over_many_that_came_too_late_a_few_at_a_time(wait: float | None) -> None:
    """And takes the first one that is in time, of the first queue that has one; as does a claim behind it."""
    async with Rig() as rig:
        await rig.queue.enqueue_many("q", [NewJob(b"late", expires=10.0)] * 500)
        await rig.queue.enqueue_many("q", [b"1", b"2"])
        await rig.queue.enqueue("r", b"3")
        await rig.queue._core.maintenance.close()  # so that the claims alone find them
        await rig.advance(10)
        claims = [asyncio.create_task(rig.queue.claim(["q", "r"], wait=wait)) for _ in range(3)]
        before = 502
        while not claims[2].done():
            await asyncio.sleep(0)
            now = rig.queue._core.jobs_in(["q"], ["pending"])
            assert before - now <= 80
            before = now
        assert [payloads(await claim) for claim in claims] == [[b"1"], [b"2"], [b"3"]]
        assert await rig.queue.claim("q") == []
        await rig.queue.log.committed()
        assert (await rig.queue.stats("q")).totals["expired"] == 500


async def test_a_claim_ends_where_all_came_too_late() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue_many("q", [NewJob(b"late", expires=10.0)] * 200)
        await rig.queue._core.maintenance.close()
        await rig.advance(10)
        assert await rig.queue.claim("q") == []
        await rig.queue.log.committed()
        assert (await rig.queue.stats("q")).cancelled == 200
