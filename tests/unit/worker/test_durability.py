"""Nothing is reported before it is durable, and nothing is lost when a caller goes away in the middle."""

import asyncio

import pytest

from ledgerq.eventlog.errors import LogPoisoned, OutcomeUnknown, StoreUnavailable
from ledgerq.eventlog.events import Claimed, Nacked
from tests.support.loops import settle
from tests.support.operators import WHO
from tests.support.rig import Rig, abandon, payloads


@pytest.mark.parametrize("at", ["write:before", "write:after", "sync:before"])
async def test_no_call_returns_before_its_commit_is_durable(at: str) -> None:
    async with Rig() as rig:
        queue = rig.queue
        await queue.enqueue_many("q", [b"%d" % i for i in range(6)])
        acked, nacked, released, cancelled, _ = await queue.claim("q", limit=5)
        dead = await queue.enqueue("dead", b"")
        await queue.nack((await queue.claim("dead"))[0], "e", dead=True)
        head = queue.log.durable_head.next_offset
        rig.faults.hold(at)
        calls = [
            queue.enqueue("q", b"", priority=9999),
            queue.enqueue("q", b"", unique_key="k", priority=9999),
            queue.enqueue_many("q", [b"", b""]),
            queue.claim("q"),
            queue.ack(acked),
            queue.ack_many([]),
            queue.nack(nacked, "e", delay=5),
            queue.release(released),
            queue.cancel(cancelled.job_id, **WHO),
            queue.requeue(dead.job_id, **WHO),
            queue.pause("other", **WHO),
            queue.get(acked.job_id),
            queue.stats("q"),
            queue.jobs("q"),
            queue.history(acked.job_id),
            queue.queues(),
        ]
        tasks = [asyncio.create_task(call) for call in calls]
        await settle()
        assert not [task.get_coro() for task in tasks if task.done()]
        assert queue.log.durable_head.next_offset == head
        rig.faults.let_go(at)
        await asyncio.gather(*tasks)


async def test_no_claim_is_handed_over_before_its_claimed_event_is_durable() -> None:
    async with Rig() as rig:
        waiting = asyncio.create_task(rig.queue.claim("q", wait=None))
        await settle()
        rig.faults.hold("sync:before")
        enqueuing = asyncio.create_task(rig.queue.enqueue("q", b"x"))
        await settle()
        assert not waiting.done()
        assert not any(isinstance(event, Claimed) for event in await rig.events())
        rig.faults.let_go("sync:before")
        (claim,) = await waiting
        await enqueuing
        assert any(isinstance(event, Claimed) for event in await rig.events())
        await rig.queue.ack(claim)


async def test_calls_that_come_while_a_commit_is_under_way_share_the_next_one() -> None:
    async with Rig() as rig:
        rig.faults.hold("sync:before")
        first = asyncio.create_task(rig.queue.enqueue("q", b"first"))
        await settle()
        before = len(await rig.batches())
        others = [asyncio.create_task(rig.queue.enqueue("q", b"%d" % i)) for i in range(20)]
        await settle()
        rig.faults.let_go("sync:before")
        await asyncio.gather(first, *others)
        assert [len(batch.events) for batch in (await rig.batches())[before:]] == [1, 20]


async def test_a_claim_cancelled_while_it_waits_takes_nothing() -> None:
    async with Rig() as rig:
        waiting = asyncio.create_task(rig.queue.claim("q", wait=None))
        await settle()
        waiting.cancel()
        await settle()
        assert waiting.cancelled()
        added = await rig.queue.enqueue("q", b"x")
        assert (await rig.queue.get(added.job_id)).state == "pending"


async def test_a_claim_cancelled_in_the_moment_of_its_hand_over_gives_the_job_back() -> None:
    async with Rig() as rig:
        waiting = asyncio.create_task(rig.queue.claim("q", wait=None))
        await settle()
        enqueuing = asyncio.create_task(rig.queue.enqueue("q", b"x"))
        await asyncio.sleep(0)  # the job is in the hands of the waiting task, which has not run yet
        waiting.cancel()
        added = await enqueuing
        await settle()
        assert waiting.cancelled()
        job = await rig.queue.get(added.job_id)
        assert (job.state, job.attempt) == ("pending", 0)
        assert payloads(await rig.queue.claim("q")) == [b"x"]


@pytest.mark.parametrize("waited", [False, True])
async def test_a_claim_cancelled_while_its_commit_is_in_flight_gives_the_job_back(waited: bool) -> None:
    async with Rig() as rig:
        if waited:
            claiming = asyncio.create_task(rig.queue.claim("q", wait=None))
            await settle()
            rig.faults.hold("sync:before")
            enqueuing = asyncio.create_task(rig.queue.enqueue("q", b"x", max_attempts=1))
        else:
            enqueuing = asyncio.create_task(rig.queue.enqueue("q", b"x", max_attempts=1))
            await enqueuing
            rig.faults.hold("sync:before")
            claiming = asyncio.create_task(rig.queue.claim("q"))
        await settle()
        claiming.cancel()
        await settle()
        assert claiming.cancelled()
        rig.faults.let_go("sync:before")
        added = await enqueuing
        await settle()
        job = await rig.queue.get(added.job_id)
        assert (job.state, job.attempt) == ("pending", 0)
        released = [event for event in await rig.events() if isinstance(event, Nacked)]
        assert [event.released for event in released] == [True]
        (claim,) = await rig.queue.claim("q")
        assert claim.attempt == 1


async def test_a_claim_cancelled_in_the_moment_it_is_durable_gives_the_job_back() -> None:
    async with Rig() as rig:
        added = await rig.queue.enqueue("q", b"x")
        for turns in range(30):
            claiming = asyncio.create_task(rig.queue.claim("q"))
            for _ in range(turns):
                await asyncio.sleep(0)
            claiming.cancel()
            await settle()
            job = await rig.queue.get(added.job_id)
            if claiming.cancelled():
                assert (job.state, job.attempt) == ("pending", 0), f"after {turns} turns of the loop"
            else:
                assert job.state == "claimed"
                await rig.queue.release(claiming.result()[0])


async def test_what_a_cancelled_claim_gives_back_goes_to_the_next_who_waits() -> None:
    async with Rig() as rig:
        first = asyncio.create_task(rig.queue.claim("q", limit=2, wait=None))
        second = asyncio.create_task(rig.queue.claim("q", limit=2, wait=None))
        await settle()
        rig.faults.hold("sync:before")
        enqueuing = asyncio.create_task(rig.queue.enqueue_many("q", [b"0", b"1"]))
        await settle()
        first.cancel()
        await settle()
        rig.faults.let_go("sync:before")
        await enqueuing
        assert payloads(await second) == [b"0", b"1"]


async def test_an_enqueue_cancelled_in_flight_is_committed_all_the_same() -> None:
    async with Rig() as rig:
        rig.faults.hold("sync:before")
        enqueuing = asyncio.create_task(rig.queue.enqueue("q", b"x"))
        await settle()
        enqueuing.cancel()
        await settle()
        rig.faults.let_go("sync:before")
        await settle()
        assert payloads(await rig.queue.claim("q")) == [b"x"]


async def test_an_ack_cancelled_in_flight_is_committed_all_the_same() -> None:
    async with Rig() as rig:
        added = await rig.queue.enqueue("q", b"x")
        (claim,) = await rig.queue.claim("q")
        rig.faults.hold("sync:before")
        acking = asyncio.create_task(rig.queue.ack(claim))
        await settle()
        acking.cancel()
        await settle()
        rig.faults.let_go("sync:before")
        await settle()
        assert (await rig.queue.get(added.job_id)).state == "done"


@pytest.mark.parametrize("at", ["write:before", "write:after", "sync:before", "sync:after"])
async def test_after_a_failed_commit_every_caller_gets_the_error_and_nothing_more_is_written(at: str) -> None:
    rig = Rig()
    async with rig:
        queue = rig.queue
        await queue.enqueue("q", b"1")
        (claim,) = await queue.claim("q")
        heard: list[str] = []
        queue.watch(claim, heard.append)
        waiting = asyncio.create_task(queue.claim("q2", wait=None))
        await settle()
        rig.faults.spoil(at, OutcomeUnknown("the disk is away"))
        calls = [queue.enqueue("q", b"2"), queue.ack(claim)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(result) for result in results] == [OutcomeUnknown] * 2
        with pytest.raises(OutcomeUnknown):
            await waiting
        assert heard == []  # its own ack was the last word
        assert isinstance(queue.failure, OutcomeUnknown)
        for call in (queue.enqueue("q", b"3"), queue.claim("q"), queue.stats("q"), queue.get(claim.job_id)):
            with pytest.raises((OutcomeUnknown, LogPoisoned)):
                await call
        await queue.close()
        await abandon(queue)
        await rig.open()
        stats = await rig.queue.stats("q")
        done = at == "sync:after"
        assert (stats.done, stats.pending) == ((1, 1) if done else (0, 1))


async def test_a_claim_whose_payload_can_not_be_read_just_now_says_so_and_the_next_one_works() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("q", b"x")
        await rig.reopen()
        await settle()  # maintenance has done its first scan
        rig.faults.spoil("scan", StoreUnavailable("away"))
        with pytest.raises(StoreUnavailable):
            await rig.queue.claim("q", wait=None)
        assert payloads(await rig.queue.claim("q")) == [b"x"]


async def test_counters_are_given_out_only_when_all_that_they_count_is_durable() -> None:
    async with Rig() as rig:
        rig.faults.hold("sync:before")
        first = asyncio.create_task(rig.queue.enqueue("q", b"1"))
        await settle()
        answer = asyncio.create_task(rig.queue.stats("q"))
        second = asyncio.create_task(rig.queue.enqueue("q", b"2"))
        await settle()
        rig.faults.hold("write:after")  # the second commit is in the store then, but is not durable
        rig.faults.let_go("sync:before")
        await settle()
        assert (first.done(), second.done()) == (True, False)
        assert not answer.done() or answer.result().pending == 1
        rig.faults.let_go("write:after")
        assert (await answer).pending in (1, 2)
        await second
