"""Claims that wait: who is served first, what wakes them, when they give up."""

import asyncio

import pytest

from ledgerq.eventlog.events import Claimed, Enqueued
from ledgerq.worker.engine.refill import WindowRefill
from tests.support.loops import settle
from tests.support.operators import WHO
from tests.support.rig import Rig, payloads


async def test_without_a_wait_an_empty_queue_answers_at_once() -> None:
    async with Rig() as rig:
        assert await rig.queue.claim("q") == []
        assert await rig.queue.claim("q", wait=0) == []
        assert await rig.queue.claim(["q", "r"], wait=0) == []


async def test_a_waiting_claim_is_in_the_same_commit_as_the_enqueue_that_serves_it() -> None:
    async with Rig() as rig:
        waiting = asyncio.create_task(rig.queue.claim("q", wait=None))
        await settle()
        before = len(await rig.batches())
        added = await rig.queue.enqueue("q", b"x")
        (claim,) = await waiting
        (batch,) = (await rig.batches())[before:]
        assert [type(event) for event in batch.events] == [Enqueued, Claimed]
        assert claim.id == added.id
        assert claim.offset == batch.base_offset + 1


async def test_waiting_claims_are_served_first_come_first_served() -> None:
    async with Rig() as rig:
        waiting = [asyncio.create_task(rig.queue.claim("q", wait=None)) for _ in range(5)]
        await settle()
        for i in range(5):
            await rig.queue.enqueue("q", b"%d" % i)
        assert [payloads(await task) for task in waiting] == [[b"%d" % i] for i in range(5)]


async def test_a_newcomer_does_not_overtake_those_who_wait() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("q", b"1")
        (claim,) = await rig.queue.claim("q")
        waiting = asyncio.create_task(rig.queue.claim("q", wait=None))
        await settle()
        released = asyncio.create_task(rig.queue.release(claim))
        newcomer = asyncio.create_task(rig.queue.claim("q", wait=5))
        await released
        assert payloads(await waiting) == [b"1"]
        assert not newcomer.done()
        await rig.advance(5)
        assert await newcomer == []


async def test_a_bulk_enqueue_serves_several_who_wait_each_up_to_its_limit() -> None:
    async with Rig() as rig:
        waiting = [asyncio.create_task(rig.queue.claim("q", limit=n, wait=None)) for n in (2, 1, 5)]
        await settle()
        await rig.queue.enqueue_many("q", [b"%d" % i for i in range(4)])
        assert [payloads(await task) for task in waiting] == [[b"0", b"1"], [b"2"], [b"3"]]


async def test_a_wait_ends_exactly_when_its_time_is_over() -> None:
    async with Rig() as rig:
        waiting = asyncio.create_task(rig.queue.claim("q", wait=7.5))
        await settle()
        await rig.advance(7.499)
        assert not waiting.done()
        await rig.advance(0.001)
        assert await waiting == []
        await rig.queue.enqueue("q", b"x")
        assert (await rig.queue.stats("q")).pending == 1


async def test_one_who_gave_up_is_passed_over() -> None:
    async with Rig() as rig:
        impatient = asyncio.create_task(rig.queue.claim("q", wait=1))
        patient = asyncio.create_task(rig.queue.claim("q", wait=None))
        await settle()
        await rig.advance(1)
        assert await impatient == []
        await rig.queue.enqueue("q", b"x")
        assert payloads(await patient) == [b"x"]


@pytest.mark.parametrize("by", ["enqueue", "nack", "retry", "release", "expiry", "promotion", "requeue", "resume"])
async def test_a_waiting_claim_is_woken_by_whatever_makes_a_job_pending(by: str) -> None:
    async with Rig() as rig:
        queue = rig.queue
        added = await queue.enqueue("q", b"x", delay=5 if by == "promotion" else None)
        held = [] if by == "promotion" else await queue.claim("q", lease=5)
        if by == "requeue":
            await queue.nack(held[0], "e", dead=True)
        elif by == "resume":
            await queue.pause("q", **WHO)
            await queue.nack(held[0], "e", delay=0)
        waiting = asyncio.create_task(queue.claim("q", wait=None))
        await settle()
        assert not waiting.done()
        if by == "enqueue":
            await queue.enqueue("q", b"x")
        elif by == "nack":
            await queue.nack(held[0], "e", delay=0)
        elif by == "retry":
            await queue.nack(held[0], "e", delay=5)
            await rig.advance(5)
        elif by == "release":
            await queue.release(held[0])
        elif by in ("expiry", "promotion"):
            await rig.advance(5)
        elif by == "requeue":
            await queue.requeue(added.job_id, **WHO)
        else:
            await queue.resume("q", **WHO)
        await settle()
        assert waiting.done()
        assert payloads(await waiting) == [b"x"]


async def test_a_claim_that_waits_on_several_queues_is_served_once_by_whichever_comes_first() -> None:
    async with Rig() as rig:
        waiting = asyncio.create_task(rig.queue.claim(["a", "b", "c"], limit=9, wait=None))
        await settle()
        await asyncio.gather(rig.queue.enqueue("c", b"c"), rig.queue.enqueue("a", b"a"))
        assert payloads(await waiting) == [b"c"]
        assert (await rig.queue.stats("a")).pending == 1
        await rig.queue.enqueue("b", b"b")
        assert payloads(await rig.queue.claim(["a", "b", "c"])) == [b"a"]


async def test_waiting_on_several_queues_where_one_is_paused_takes_from_the_others() -> None:
    async with Rig() as rig:
        await rig.queue.pause("a", **WHO)
        waiting = asyncio.create_task(rig.queue.claim(["a", "b"], wait=None))
        await settle()
        await rig.queue.enqueue("a", b"a")
        await settle()
        assert not waiting.done()
        await rig.queue.enqueue("b", b"b")
        assert payloads(await waiting) == [b"b"]


async def test_a_waiting_claim_survives_that_its_job_is_cancelled_before_it_is_due() -> None:
    async with Rig() as rig:
        added = await rig.queue.enqueue("q", b"x", delay=5)
        waiting = asyncio.create_task(rig.queue.claim("q", wait=10))
        await settle()
        await rig.queue.cancel(added.job_id, **WHO)
        await rig.advance(5)
        assert not waiting.done()
        await rig.advance(5)
        assert await waiting == []


async def test_after_reopening_a_claim_without_a_wait_finds_what_is_in_the_store() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue_many("q", [b"0", b"1"])
        await rig.reopen()
        assert payloads(await rig.queue.claim("q", wait=0)) == [b"0"]
        await rig.reopen()
        groups = await asyncio.gather(*(rig.queue.claim("q", wait=0) for _ in range(4)))
        assert payloads([claim for group in groups for claim in group]) == [b"0", b"1"]


async def test_after_reopening_a_claim_without_a_wait_on_queues_that_are_empty_answers() -> None:
    async with Rig() as rig:
        for name in ("a", "b"):
            await rig.queue.enqueue(name, b"")
            await rig.queue.ack((await rig.queue.claim(name))[0])
        await rig.reopen()
        async with asyncio.timeout(60):
            assert await rig.queue.claim(["a", "b", "never"], wait=0) == []


async def test_a_claim_without_a_wait_answers_when_the_queue_is_paused_while_it_looks() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("q", b"")
        await rig.reopen()
        rig.faults.hold("scan")
        looking = asyncio.create_task(rig.queue.claim("q", wait=0))
        await settle()
        await rig.queue.pause("q", **WHO)
        rig.faults.let_go("scan")
        await settle()
        assert looking.done()
        assert await looking == []


async def test_waiting_on_many_queues_costs_no_more_than_a_look_at_each(monkeypatch: pytest.MonkeyPatch) -> None:
    names, looks = [f"q{i}" for i in range(40)], 0
    needs = WindowRefill.needs

    def counted(refill: WindowRefill, queue: str) -> bool:
        nonlocal looks
        looks += 1
        assert looks < 10_000, "the cost doubles with each queue"
        return needs(refill, queue)

    monkeypatch.setattr(WindowRefill, "needs", counted)
    async with Rig() as rig:
        waiting = [asyncio.create_task(rig.queue.claim(names, wait=None)) for _ in range(2)]
        await settle()
        for name in (names[0], names[-1]):
            await rig.queue.enqueue(name, name.encode())
        assert payloads([claim for task in waiting for claim in await task]) == [b"q0", b"q39"]


@pytest.mark.parametrize("leaves", ["served", "cancelled", "its time is over"])
async def test_one_who_kept_others_from_a_queue_lets_them_in_when_it_leaves(leaves: str) -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("a", b"a")
        await rig.reopen()
        rig.faults.hold("scan")  # it is unknown now whether there is a job in "a"
        first = asyncio.create_task(rig.queue.claim(["a", "b"], wait=3))
        await settle()
        behind = asyncio.create_task(rig.queue.claim("b", wait=None))
        await settle()
        await rig.queue.enqueue("b", b"b")
        await settle()
        assert not first.done()
        assert not behind.done()
        if leaves == "served":
            rig.faults.let_go("scan")
        elif leaves == "cancelled":
            first.cancel()
        else:
            rig.clock.advance(seconds=3)
        await settle()
        assert behind.done()
        assert payloads(await behind) == [b"b"]
        if leaves == "served":
            assert payloads(await first) == [b"a"]
        else:
            rig.faults.let_go("scan")


async def test_a_claim_without_a_wait_is_not_sent_away_from_jobs_that_are_kept_for_another() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("a", b"a")
        await rig.reopen()
        rig.faults.hold("scan")
        first = asyncio.create_task(rig.queue.claim(["a", "b"], wait=None))
        await settle()
        await rig.queue.enqueue("b", b"b")
        looking = asyncio.create_task(rig.queue.claim("b", wait=0))
        await settle()
        rig.faults.let_go("scan")
        assert payloads(await first) == [b"a"]
        assert payloads(await looking) == [b"b"]


async def test_queues_that_nobody_ever_used_leave_nothing_in_memory() -> None:
    async with Rig() as rig:
        for i in range(50):
            assert await rig.queue.claim(f"reply-{i}", wait=0) == []
            waiting = asyncio.create_task(rig.queue.claim([f"reply-{i}", "other"], wait=None))
            await settle(5)
            waiting.cancel()
        await settle()
        assert not rig.queue._writer_state.windows
        assert not rig.queue._core.dispatcher.waiters._waiting
        waiting = asyncio.create_task(rig.queue.claim("reply-1", wait=None))
        await settle()
        await rig.queue.enqueue("reply-1", b"x")
        assert payloads(await waiting) == [b"x"]


async def test_a_lease_begins_when_the_claim_is_handed_over_however_long_its_commit_took() -> None:
    async with Rig() as rig:
        job = await rig.queue.enqueue("q", b"x", max_attempts=1)
        rig.faults.hold("sync:before")
        claiming = asyncio.create_task(rig.queue.claim("q", wait=None, lease=3))
        await settle()
        await rig.advance(10)
        rig.faults.let_go("sync:before")
        (claim,) = await claiming
        assert (claim.job_id, claim.lease_expires_ms) == (job.job_id, rig.clock.now_ms() + 3000)
        await rig.advance(2.999)
        await rig.queue.ack(claim)
