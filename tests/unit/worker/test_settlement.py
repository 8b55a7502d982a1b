"""Ack, nack, release, extend, lease expiry, retries and dead letters."""

import asyncio
from dataclasses import replace

import pytest

from ledgerq.eventlog.errors import ClaimLost, InvalidArgument
from ledgerq.eventlog.events import Acked, LeaseExpired, Nacked, Promoted
from ledgerq.worker.options import QueueOptions
from tests.support.loops import settle
from tests.support.rig import Rig, claim_all, payloads


async def test_an_acked_job_is_done_and_never_comes_back() -> None:
    async with Rig() as rig:
        added = await rig.queue.enqueue("q", b"x")
        (claim,) = await rig.queue.claim("q")
        await rig.queue.ack(claim)
        assert (await rig.queue.get(added.job_id)).state == "done"
        await rig.advance(3600)
        assert await rig.queue.claim("q") == []
        await rig.crash()
        assert await rig.queue.claim("q") == []


async def test_a_claim_can_be_settled_once() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("q", b"x")
        (claim,) = await rig.queue.claim("q")
        await rig.queue.ack(claim)
        offset = rig.queue.log.next_offset
        for call in (
            rig.queue.nack(claim, "e"),
            rig.queue.nack(claim, "e", dead=True),
            rig.queue.release(claim),
            rig.queue.extend(claim, 5),
        ):
            with pytest.raises(ClaimLost):
                await call
        assert rig.queue.log.next_offset == offset


async def test_an_ack_that_is_repeated_changes_nothing_while_the_record_is_kept() -> None:
    async with Rig(default=QueueOptions(keep_done_s=60.0)) as rig:
        await rig.queue.enqueue_many("q", [b"x", b"y"])
        claim, other = await rig.queue.claim("q", limit=2)
        first, again = asyncio.create_task(rig.queue.ack(claim)), asyncio.create_task(rig.queue.ack(claim))
        await asyncio.gather(first, again)  # in one commit
        offset = rig.queue.log.next_offset
        await rig.queue.ack(claim, b"late")
        await rig.queue.ack_many([claim, claim])
        with pytest.raises(ClaimLost):
            await rig.queue.ack(replace(claim, offset=other.offset))
        assert rig.queue.log.next_offset == offset
        assert await rig.queue.result(claim.job_id) is None
        await rig.queue.release(other)
        with pytest.raises(ClaimLost) as lost:
            await rig.queue.ack_many([claim, other])
        assert lost.value.offsets == {other.offset}
        await rig.advance(60)
        with pytest.raises(ClaimLost):
            await rig.queue.ack(claim)


async def test_an_older_claim_of_a_job_claimed_again_is_lost() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("q", b"x")
        (old,) = await rig.queue.claim("q")
        await rig.queue.nack(old, "e", delay=0)
        (new,) = await rig.queue.claim("q")
        for call in (rig.queue.ack(old), rig.queue.nack(old, "e"), rig.queue.release(old), rig.queue.extend(old, 5)):
            with pytest.raises(ClaimLost):
                await call
        await rig.queue.ack(new)


async def test_a_claim_from_before_a_restart_is_lost() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("q", b"x")
        (old,) = await rig.queue.claim("q")
        await rig.crash()
        (new,) = await rig.queue.claim("q")
        with pytest.raises(ClaimLost):
            await rig.queue.ack(old)
        await rig.queue.ack(new)


async def test_acking_many_is_one_commit_and_acks_all_but_the_lost_ones() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue_many("q", [b"%d" % i for i in range(5)])
        claims = await rig.queue.claim("q", limit=5)
        await rig.queue.release(claims[2])
        before = len(await rig.batches())
        with pytest.raises(ClaimLost) as caught:
            await rig.queue.ack_many([*claims, claims[0]])
        assert claims[2].job_id in str(caught.value)
        assert claims[1].job_id not in str(caught.value)
        (batch,) = (await rig.batches())[before:]
        assert [event.id for event in batch.events if isinstance(event, Acked)] == [claims[i].id for i in (0, 1, 3, 4)]
        await rig.queue.ack_many([])


async def test_a_nacked_job_is_tried_again_after_the_delay_asked_for_and_not_before() -> None:
    async with Rig() as rig:
        added = await rig.queue.enqueue("q", b"x")
        (claim,) = await rig.queue.claim("q")
        await rig.queue.nack(claim, "boom", delay=10)
        job = await rig.queue.get(added.job_id)
        assert (job.state, job.error, job.due_ms) == ("scheduled", "boom", rig.clock.now_ms() + 10_000)
        await rig.advance(9.999)
        assert await rig.queue.claim("q") == []
        await rig.advance(0.001)
        (again,) = await rig.queue.claim("q")
        assert (again.job_id, again.attempt) == (added.job_id, 2)


async def test_a_nacked_job_keeps_its_place_before_younger_ones() -> None:
    async with Rig() as rig:
        for i in range(3):
            await rig.queue.enqueue("q", b"%d" % i)
        (claim,) = await rig.queue.claim("q")
        await rig.queue.nack(claim, "e", delay=0)
        assert payloads(await rig.queue.claim("q", limit=5)) == [b"0", b"1", b"2"]


async def test_without_a_delay_the_backoff_doubles_up_to_its_cap_with_full_jitter() -> None:
    options = QueueOptions(backoff_base_s=8.0, backoff_cap_s=20.0, max_attempts=50)
    async with Rig(default=options) as rig:
        added = await rig.queue.enqueue("q", b"x")
        waits_ms: list[int] = []
        for attempt in range(1, 30):
            (claim,) = await rig.queue.claim("q")
            assert claim.attempt == attempt
            await rig.queue.nack(claim, "e")
            job = await rig.queue.get(added.job_id)
            waits_ms.append(job.due_ms - rig.clock.now_ms())
            await rig.advance(waits_ms[-1] / 1000)
        assert all(1 <= wait_ms <= 20_000 for wait_ms in waits_ms)
        assert waits_ms[0] <= 8_000
        assert waits_ms[1] <= 16_000
        assert max(waits_ms) > 15_000
        assert min(waits_ms) < 5_000
        assert len(set(waits_ms)) > 25


async def test_after_its_last_attempt_a_failing_job_is_dead_with_its_last_error() -> None:
    async with Rig() as rig:
        added = await rig.queue.enqueue("q", b"x", max_attempts=2)
        for error in ("first", "second"):
            (claim,) = await rig.queue.claim("q")
            await rig.queue.nack(claim, error, delay=0)
        job = await rig.queue.get(added.job_id)
        assert (job.state, job.error, job.attempt) == ("dead", "second", 2)
        assert job.sweep_at_ms == rig.clock.now_ms() + 7 * 24 * 3600 * 1000
        assert [dead.job_id for dead in (await rig.queue.jobs("q", "dead")).jobs] == [added.job_id]
        stats = await rig.queue.stats("q")
        assert (stats.dead, stats.totals["dead"], stats.totals["nacked"]) == (1, 1, 2)


async def test_a_job_can_be_made_a_dead_letter_at_its_first_failure() -> None:
    async with Rig() as rig:
        added = await rig.queue.enqueue("q", b"x")
        (claim,) = await rig.queue.claim("q")
        await rig.queue.nack(claim, "hopeless", dead=True, delay=5)
        assert (await rig.queue.get(added.job_id)).state == "dead"


async def test_a_long_or_odd_error_is_kept_shortened_and_never_refused() -> None:
    async with Rig() as rig:
        added = await rig.queue.enqueue("q", b"x")
        (claim,) = await rig.queue.claim("q")
        await rig.queue.nack(claim, "\ud800" + "x" * 9000 + "the end", delay=0)
        error = (await rig.queue.get(added.job_id)).error
        assert error.endswith("the end")
        assert len(error) <= 4010


async def test_a_released_claim_is_pending_at_once_and_its_attempt_is_not_counted() -> None:
    async with Rig() as rig:
        added = await rig.queue.enqueue("q", b"x", max_attempts=1)
        for _ in range(3):
            (claim,) = await rig.queue.claim("q")
            assert claim.attempt == 1
            await rig.queue.release(claim, "shutting down")
        job = await rig.queue.get(added.job_id)
        assert (job.state, job.attempt, job.error) == ("pending", 0, "shutting down")
        assert (await rig.queue.stats("q")).totals["released"] == 3


async def test_a_lease_expires_exactly_when_due_and_the_job_is_pending_again() -> None:
    async with Rig() as rig:
        added = await rig.queue.enqueue("q", b"x")
        (claim,) = await rig.queue.claim("q", lease=10)
        await rig.advance(9.999)
        assert (await rig.queue.get(added.job_id)).state == "claimed"
        await rig.advance(0.001)
        job = await rig.queue.get(added.job_id)
        assert (job.state, job.attempt) == ("pending", 1)
        with pytest.raises(ClaimLost):
            await rig.queue.ack(claim)
        (again,) = await rig.queue.claim("q")
        assert (again.attempt, again.payload) == (2, b"x")


async def test_a_lease_that_expires_on_the_last_attempt_makes_a_dead_letter() -> None:
    async with Rig() as rig:
        added = await rig.queue.enqueue("q", b"x", max_attempts=1)
        await rig.queue.claim("q", lease=10)
        await rig.advance(10)
        job = await rig.queue.get(added.job_id)
        assert (job.state, job.error) == ("dead", "lease expired")
        (event,) = [event for event in await rig.events() if isinstance(event, LeaseExpired)]
        assert (event.to, event.reason, event.sweep_at_ms) == ("dead", "lease expired", job.sweep_at_ms)


async def test_each_of_many_leases_expires_at_its_own_time() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue_many("q", [b"%d" % i for i in range(20)])
        for i in range(20):
            await rig.queue.claim("q", lease=20 - i)
        for passed in range(1, 21):
            await rig.advance(1)
            stats = await rig.queue.stats("q")
            assert (stats.pending, stats.claimed) == (passed, 20 - passed)
        await rig.check()


async def test_more_leases_than_one_step_takes_all_expire_at_once() -> None:
    async with Rig(default=QueueOptions(lease_s=5)) as rig:
        await rig.queue.enqueue_many("q", [b"%d" % i for i in range(1000)])
        assert len(await rig.queue.claim("q", limit=1000)) == 1000
        await rig.advance(5)
        assert (await rig.queue.stats("q")).pending == 1000
        assert payloads(await claim_all(rig.queue)) == [b"%d" % i for i in range(1000)]


async def test_an_extended_lease_ends_at_its_new_time() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("q", b"x")
        (claim,) = await rig.queue.claim("q", lease=10)
        await rig.advance(9)
        longer = await rig.queue.extend(claim, 10)
        assert longer.lease_expires_ms == rig.clock.now_ms() + 10_000
        await rig.advance(9.999)
        assert (await rig.queue.stats("q")).claimed == 1
        await rig.advance(0.001)
        assert (await rig.queue.stats("q")).pending == 1


async def test_a_lease_can_be_extended_to_a_shorter_time() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("q", b"x")
        (claim,) = await rig.queue.claim("q", lease=100)
        await rig.queue.extend(claim, 1)
        await rig.advance(1)
        assert (await rig.queue.stats("q")).pending == 1


async def test_extending_writes_nothing_and_either_claim_object_settles() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("q", b"x")
        (claim,) = await rig.queue.claim("q")
        offset = rig.queue.log.next_offset
        for _ in range(200):
            await rig.queue.extend(claim, 30)
        assert rig.queue.log.next_offset == offset
        with pytest.raises(InvalidArgument):
            await rig.queue.extend(claim, 0)
        await rig.queue.ack(claim)


async def test_a_delayed_job_is_promoted_exactly_when_due() -> None:
    async with Rig() as rig:
        added = await rig.queue.enqueue("q", b"x", delay=5)
        assert (await rig.queue.get(added.job_id)).state == "scheduled"
        await rig.advance(4.999)
        assert (await rig.queue.stats("q")).scheduled == 1
        await rig.advance(0.001)
        assert (await rig.queue.stats("q")).pending == 1
        assert payloads(await rig.queue.claim("q")) == [b"x"]


async def test_delayed_jobs_are_promoted_each_at_its_time_whatever_their_order() -> None:
    async with Rig() as rig:
        for delay in (30, 10, 20, 10.5, 10):
            await rig.queue.enqueue("q", b"%g" % delay, delay=delay)
        seen: list[bytes] = []
        for _ in range(60):
            await rig.advance(0.5)
            seen += payloads(await rig.queue.claim("q", limit=9))
        assert seen == [b"10", b"10", b"10.5", b"20", b"30"]


async def test_more_due_jobs_than_one_step_takes_are_all_promoted() -> None:
    async with Rig() as rig:
        for i in range(700):
            await rig.queue.enqueue("q", b"%d" % i, delay=5 + (i % 2))
        await rig.advance(5)
        assert (await rig.queue.stats("q")).pending == 350
        await rig.advance(1)
        assert payloads(await claim_all(rig.queue)) == [b"%d" % i for i in range(700)]
        assert sum(isinstance(event, Promoted) for event in await rig.events()) == 700


async def test_a_job_due_while_nobody_had_the_store_open_is_promoted_at_the_next_opening() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("q", b"x", delay=5)
        await rig.queue.enqueue("q", b"y", delay=50)
        await rig.queue.close()
        rig.clock.advance(seconds=10)
        await rig.open()
        await settle()
        assert payloads(await rig.queue.claim("q", limit=5, lease=100)) == [b"x"]
        await rig.advance(40)
        assert payloads(await rig.queue.claim("q", limit=5)) == [b"y"]


async def test_the_log_tells_every_try() -> None:
    async with Rig() as rig:
        added = await rig.queue.enqueue("q", b"x", max_attempts=3)
        (claim,) = await rig.queue.claim("q", worker="w")
        await rig.queue.nack(claim, "one", delay=0)
        await rig.queue.claim("q", lease=1)
        await rig.advance(1)
        (claim,) = await rig.queue.claim("q")
        await rig.queue.ack(claim)
        history = await rig.queue.history(added.job_id)
        names = [type(record.event).__name__ for record in history]
        assert names == ["Enqueued", "Claimed", "Nacked", "Claimed", "LeaseExpired", "Claimed", "Acked"]
        assert [record.offset for record in history] == sorted(record.offset for record in history)
        nacked = history[2].event
        assert isinstance(nacked, Nacked)
        assert (nacked.to, nacked.error) == ("pending", "one")
