"""Queries of how long pending jobs have waited, from a few rows; what is due next; the offsets of projections."""

from ledgerq import NewJob, QueueOptions
from ledgerq.eventlog.memory import MemoryReader
from ledgerq.projections.metrics import store_queries
from ledgerq.projections.metrics.store_queries import hints, next_due_ms, oldest_pending_ms, projection_offsets
from tests.support.damaged_rows import Kinds
from tests.support.rig import Rig, claim_all


async def oldest(rig: Rig, queue: str = "q") -> int | None:
    """As a reader beside the writer sees it."""
    store = MemoryReader(rig.disk)
    return await oldest_pending_ms(store, queue, (await hints(store, [queue]))[queue])


async def test_an_empty_queue_has_no_oldest_job() -> None:
    async with Rig() as rig:
        assert await oldest(rig) is None
        await rig.queue.enqueue("q", b"x", delay=60)
        await rig.queue.enqueue("q2", b"x")
        assert await oldest(rig) is None


async def test_the_oldest_job_is_found_behind_those_that_are_more_urgent() -> None:
    async with Rig() as rig:
        start_ms = rig.clock.now_ms()
        await rig.queue.enqueue("q", b"slow", priority=9)
        for number in range(5):
            rig.clock.advance(seconds=1)
            await rig.queue.enqueue_many("q", [NewJob(b"x", priority=number) for _ in range(20)])
        assert await oldest(rig) == start_ms


async def test_the_next_priority_is_not_passed_over() -> None:
    async with Rig() as rig:
        start_ms = rig.clock.now_ms()
        await rig.queue.enqueue("q", b"slow", priority=2)
        rig.clock.advance(seconds=1)
        await rig.queue.enqueue_many("q", [NewJob(b"x", priority=1) for _ in range(2 * store_queries._ROWS)])
        assert await oldest(rig) == start_ms


async def test_a_job_that_was_scheduled_waits_since_it_was_due() -> None:
    async with Rig() as rig:
        due_ms = rig.clock.now_ms() + 60_000
        await rig.queue.enqueue("q", b"x", delay=60)
        await rig.advance(100)
        assert await oldest(rig) == due_ms


async def test_a_retried_job_at_the_head_does_not_hide_those_behind_it() -> None:
    async with Rig(default=QueueOptions(backoff_base_s=0.0)) as rig:
        await rig.queue.enqueue_many("q", [b"%d" % number for number in range(store_queries._ROWS)])
        waiting_ms = rig.clock.now_ms()
        claims = await rig.queue.claim("q", limit=store_queries._ROWS - 1)
        await rig.advance(10)
        for claim in claims:
            await rig.queue.nack(claim, "boom")  # pending again at once, before the last one
        assert await oldest(rig) == waiting_ms


async def test_no_look_reads_more_than_its_share() -> None:
    async with Rig() as rig:
        for priority in range(2 * store_queries._PRIORITIES):
            await rig.queue.enqueue_many("q", [NewJob(b"x", priority=priority) for _ in range(3 * store_queries._ROWS)])
        rig.faults.calls.clear()
        assert await oldest_pending_ms(rig.store, "q", (0, 0)) == rig.clock.now_ms()
        # A call for the rows, and one for their jobs, for each priority that is read.
        assert rig.faults.calls.count("get") == store_queries._PRIORITIES
        assert rig.faults.calls.count("scan") <= 2 * store_queries._PRIORITIES


async def test_the_hint_leads_past_what_was_claimed() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue_many("q", [b"%d" % number for number in range(3000)])
        for _ in range(15):
            await rig.queue.ack_many(await rig.queue.claim("q", limit=100))
        store = MemoryReader(rig.disk)
        place = (await hints(store, ["q", "none"]))["q"]
        assert place > (1000, 1000)
        assert (await hints(store, ["q", "none"]))["none"] == (0, 0)
        assert await oldest_pending_ms(store, "q", place) == rig.clock.now_ms()
        await claim_all(rig.queue)
        assert await oldest(rig) is None


async def test_the_next_due_job_of_any_queue() -> None:
    async with Rig() as rig:
        store = MemoryReader(rig.disk)
        assert await next_due_ms(store) is None
        await rig.queue.enqueue("q", b"x", delay=60)
        await rig.queue.enqueue("p", b"x", delay=30)
        assert await next_due_ms(store) == rig.clock.now_ms() + 30_000
        await rig.advance(31)
        assert await next_due_ms(store) == rig.clock.now_ms() + 29_000


async def test_how_far_projections_have_come() -> None:
    async with Rig(projections=[Kinds()]) as rig:
        await rig.queue.enqueue("q", b"x")
        head = await rig.queue.log.head()
        assert await projection_offsets(MemoryReader(rig.disk)) == {"kinds": head.next_offset}
        await rig.reopen(projections=[])
        assert await projection_offsets(MemoryReader(rig.disk)) == {"kinds": head.next_offset + 1}
