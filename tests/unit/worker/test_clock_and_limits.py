"""A clock that is set back, and commits that grow large."""

import asyncio
from typing import Any

import pytest

from ledgerq.eventlog.errors import ClockWentBack, PayloadTooLarge
from ledgerq.worker.options import QueueOptions
from ledgerq.worker.worker import Worker
from tests.support.loops import settle, until
from tests.support.rig import Rig, payloads
from tests.support.workers import Stage, working

DAY_MS = 24 * 3600 * 1000


async def test_commit_times_never_decrease_when_the_clock_is_set_back() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("q", b"1")
        rig.clock.set(rig.clock.now_ms() - 3_600_000)
        added = await rig.queue.enqueue("q", b"2")
        times = [batch.time_ms for batch in await rig.batches()]
        assert times == sorted(times)
        assert (await rig.queue.history(added.job_id))[0].time_ms == times[-1]
        assert payloads(await rig.queue.claim("q", limit=2, lease=5)) == [b"1", b"2"]
        await rig.reopen()
        await rig.queue.enqueue("q", b"3", delay=5)
        await rig.advance(5)
        assert payloads(await rig.queue.claim("q", limit=5)) == [b"1", b"2", b"3"]


async def test_the_history_of_a_swept_job_is_found_though_the_clock_was_set_back() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("q", b"1")
        rig.clock.set(rig.clock.now_ms() - 3_600_000)
        added = await rig.queue.enqueue("q", b"2")
        await rig.queue.cancel(added.job_id, actor="ann", reason="because")
        await rig.advance(25 * 3600)
        assert [type(r.event).__name__ for r in await rig.queue.history(added.job_id)] == [
            "Enqueued",
            "Cancelled",
            "Swept",
        ]


async def test_a_store_that_refuses_a_small_step_back_is_asked_again_and_nothing_is_written_twice() -> None:
    async with Rig() as rig:
        now_ms = rig.clock.now_ms()
        rig.faults.spoil("write:before", ClockWentBack(now_ms, now_ms + 1), ClockWentBack(now_ms, now_ms + 1))
        added = await asyncio.gather(*(rig.queue.enqueue("q", b"x", unique_key=f"k{i}") for i in range(5)))
        assert all(job.created for job in added)
        await rig.check()
        assert (await rig.queue.stats("q")).pending == 5


async def test_a_store_that_refuses_a_large_step_back_stops_the_queue_and_says_why() -> None:
    async with Rig() as rig:
        now_ms = rig.clock.now_ms()
        rig.faults.spoil("write:before", ClockWentBack(now_ms, now_ms + 60_000))
        with pytest.raises(ClockWentBack):
            await rig.queue.enqueue("q", b"x")
        assert isinstance(rig.queue.failure, ClockWentBack)
        await rig.queue.close()
        await rig.open()
        assert await rig.queue.claim("q") == []


async def test_a_claim_that_nobody_settles_ends_in_its_time_though_the_clock_was_set_back() -> None:
    async with Rig(default=QueueOptions(lease_s=30)) as rig:
        await rig.queue.enqueue_many("q", [b"1", b"2"])
        assert payloads(await rig.queue.claim("q")) == [b"1"]
        rig.clock.set(rig.clock.now_ms() - 3 * DAY_MS)
        assert payloads(await rig.queue.claim("q")) == [b"2"]
        await rig.advance(29.9)
        assert await rig.queue.claim("q") == []
        await rig.advance(0.2)
        assert payloads(await rig.queue.claim("q", limit=2)) == [b"1", b"2"]


async def test_a_worker_renews_its_leases_though_the_clock_was_set_back() -> None:
    stage = Stage()
    async with Rig(default=QueueOptions(lease_s=30)) as rig:
        worker = Worker(rig.queue, concurrency=5)
        worker.handler("q")(stage)
        await rig.queue.enqueue("q", b"before")
        async with working(worker, until_empty=True):
            rig.clock.set(rig.clock.now_ms() - 3 * DAY_MS)
            await rig.queue.enqueue("q", b"after")
            for _ in range(60):
                await rig.advance(5)
            stage.cue.set()
        assert stage.started == [b"before", b"after"]
        assert (await rig.queue.stats("q")).totals["lease_expired"] == 0


async def test_no_wait_grows_longer_when_the_clock_is_set_back() -> None:
    async with Rig() as rig:
        waiting = asyncio.create_task(rig.queue.claim("q", wait=10))
        await settle()
        rig.clock.set(rig.clock.now_ms() - 3 * DAY_MS)
        await rig.advance(9.9)
        assert not waiting.done()
        await rig.advance(0.2)
        assert await waiting == []


@pytest.mark.proof
async def test_callers_wait_for_room_when_the_open_commit_is_full() -> None:
    async with Rig() as rig:
        rig.faults.hold("sync:before")
        first = asyncio.create_task(rig.queue.enqueue("q", b"first"))
        await settle()
        bulk = [asyncio.create_task(rig.queue.enqueue_many("q", [b"x"] * 4000)) for _ in range(6)]
        single = [asyncio.create_task(rig.queue.enqueue("q", b"y")) for _ in range(100)]
        await settle()
        rig.faults.let_go("sync:before")
        await asyncio.gather(first, *bulk, *single)
        sizes = [len(batch.events) for batch in await rig.batches()]
        assert max(sizes) <= 14_000
        assert (await rig.queue.stats("q")).pending == 24_101


async def test_callers_who_wait_for_room_can_go_away() -> None:
    async with Rig() as rig:
        rig.faults.hold("sync:before")
        first = asyncio.create_task(rig.queue.enqueue("q", b"first"))
        await settle()
        bulk = asyncio.create_task(rig.queue.enqueue_many("q", [b"x"] * 10_000))
        await until(lambda: rig.queue.log.next_offset > 10_000)
        late: list[asyncio.Task[Any]]
        late = [asyncio.create_task(rig.queue.enqueue("q", b"y")) for _ in range(10)]
        late += [asyncio.create_task(rig.queue.claim("q")) for _ in range(3)]
        await settle()
        for task in late:
            task.cancel()
        await settle()
        rig.faults.let_go("sync:before")
        await asyncio.gather(first, bulk)
        assert all(task.cancelled() for task in late)
        stats = await rig.queue.stats("q")
        assert (stats.pending, stats.claimed) == (10_001, 0)


async def test_a_bulk_call_too_large_for_one_commit_is_refused_as_a_whole() -> None:
    async with Rig(default=QueueOptions(max_payload_bytes=16 * 1024 * 1024)) as rig:
        with pytest.raises(PayloadTooLarge):
            await rig.queue.enqueue_many("q", [bytes(16 * 1024 * 1024 - 10)] * 5)
        assert await rig.queue.queues() == []
