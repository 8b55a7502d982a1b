"""Jobs that end their process: counted when a claim ends without a settlement, and dead after a few in a row."""

import pytest

from ledgerq.eventlog.events import LeaseExpired
from ledgerq.worker.options import QueueOptions
from tests.support.operators import WHO
from tests.support.rig import Rig

MANY_TRIES = QueueOptions(max_attempts=100, max_crashes=3, lease_s=10.0)


async def expiries(rig: Rig) -> list[LeaseExpired]:
    return [event for event in await rig.events() if isinstance(event, LeaseExpired)]


async def test_a_job_that_ends_its_process_three_times_in_a_row_is_dead_whatever_tries_it_has_left() -> None:
    async with Rig(default=MANY_TRIES) as rig:
        added = await rig.queue.enqueue("q", b"poison")
        for crashes in (1, 2, 3):
            assert len(await rig.queue.claim("q")) == 1
            await rig.crash()
            assert (await rig.queue.get(added.job_id)).crashes == crashes
        job = await rig.queue.get(added.job_id)
        assert (job.state, job.error, job.attempt) == ("dead", "killed its worker 3 times", 3)
        assert [(event.to, event.crashed) for event in await expiries(rig)] == [
            ("pending", True),
            ("pending", True),
            ("dead", True),
        ]
        job = await rig.queue.requeue(added.job_id, **WHO)
        assert (job.state, job.crashes) == ("pending", 0)


async def test_any_number_of_crashes_is_borne_when_that_is_asked_for() -> None:
    async with Rig(default=QueueOptions(max_attempts=100, max_crashes=None)) as rig:
        added = await rig.queue.enqueue("q", b"")
        for _ in range(5):
            assert len(await rig.queue.claim("q")) == 1
            await rig.crash()
        job = await rig.queue.get(added.job_id)
        assert (job.state, job.crashes) == ("pending", 5)


@pytest.mark.parametrize("how", ["nack", "snooze"])
async def test_a_try_that_ends_by_itself_clears_the_count(how: str) -> None:
    async with Rig(default=MANY_TRIES) as rig:
        added = await rig.queue.enqueue("q", b"")
        for _ in range(2):
            assert len(await rig.queue.claim("q")) == 1
            await rig.crash()
        (claim,) = await rig.queue.claim("q")
        await (rig.queue.nack(claim, "boom", delay=0) if how == "nack" else rig.queue.release(claim, delay=5))
        assert (await rig.queue.get(added.job_id)).crashes == 0


async def test_a_claim_given_back_unused_leaves_the_count() -> None:
    async with Rig(default=MANY_TRIES) as rig:
        added = await rig.queue.enqueue("q", b"")
        assert len(await rig.queue.claim("q")) == 1
        await rig.crash()
        (claim,) = await rig.queue.claim("q")
        await rig.queue.release(claim)
        assert (await rig.queue.get(added.job_id)).crashes == 1


async def test_claims_of_a_writer_that_closed_in_good_order_are_no_crashes() -> None:
    async with Rig(default=MANY_TRIES) as rig:
        added = await rig.queue.enqueue("q", b"")
        for _ in range(4):
            assert len(await rig.queue.claim("q")) == 1
            await rig.reopen()
        job = await rig.queue.get(added.job_id)
        assert (job.state, job.crashes, job.attempt) == ("pending", 0, 4)


@pytest.mark.parametrize(("claims", "crashed"), [(12, True), (13, False)])
@pytest.mark.parametrize("how", ["crash", "leases"])
async def test_many_claims_that_end_together_are_no_crashes(claims: int, crashed: bool, how: str) -> None:
    async with Rig(default=MANY_TRIES) as rig:
        await rig.queue.enqueue_many("q", [b""] * claims)
        assert len(await rig.queue.claim("q", limit=claims)) == claims
        if how == "crash":
            await rig.crash()
        else:
            await rig.advance(10)
        assert [event.crashed for event in await expiries(rig)] == [crashed] * claims


async def test_a_lease_that_ends_counts_as_a_crash() -> None:
    async with Rig(default=MANY_TRIES) as rig:
        added = await rig.queue.enqueue("q", b"")
        for _ in range(3):
            assert len(await rig.queue.claim("q")) == 1
            await rig.advance(10)
        assert (await rig.queue.get(added.job_id)).error == "killed its worker 3 times"


async def test_a_job_that_is_to_stop_is_cancelled_however_often_it_crashed() -> None:
    async with Rig(default=QueueOptions(max_attempts=100, max_crashes=1)) as rig:
        added = await rig.queue.enqueue("q", b"")
        assert len(await rig.queue.claim("q")) == 1
        await rig.queue.cancel(added.job_id, **WHO)
        await rig.crash()
        assert (await rig.queue.get(added.job_id)).state == "cancelled"


async def test_one_crash_is_said_as_one() -> None:
    async with Rig(default=QueueOptions(max_attempts=100, max_crashes=1)) as rig:
        added = await rig.queue.enqueue("q", b"")
        assert len(await rig.queue.claim("q")) == 1
        await rig.crash()
        assert (await rig.queue.get(added.job_id)).error == "killed its worker 1 time"
