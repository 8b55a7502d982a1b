"""Claims whose holders are in other processes: they outlive the writer, with a full lease from the next opening on."""

import pytest

from ledgerq.eventlog.errors import ClaimLost
from ledgerq.eventlog.events import Claimed, LeaseExpired
from ledgerq.worker.options import QueueOptions
from tests.support.operators import WHO
from tests.support.rig import Rig

MANY_TRIES = QueueOptions(max_attempts=100, max_crashes=3, lease_s=10.0)


async def expiries(rig: Rig) -> list[tuple[str, bool]]:
    """The reason of each claim that ended without a settlement, and whether it counts as a crash."""
    return [(event.reason, event.crashed) for event in await rig.events() if isinstance(event, LeaseExpired)]


@pytest.mark.parametrize("how", ["crash", "reopen"])
async def test_a_kept_claim_outlives_its_writer_and_is_settled_at_the_next_one(how: str) -> None:
    async with Rig(default=MANY_TRIES) as rig:
        await rig.queue.enqueue_many("q", [b"acked", b"nacked", b"released", b"embedded"])
        kept = await rig.queue.claim("q", limit=3, kept=True)
        (embedded,) = await rig.queue.claim("q")
        assert [event.kept for event in await rig.events() if isinstance(event, Claimed)] == [True, True, True, False]
        for _ in range(2):
            await (rig.crash() if how == "crash" else rig.reopen())
        assert await expiries(rig) == [("interrupted", how == "crash")]
        with pytest.raises(ClaimLost):
            await rig.queue.ack(embedded)
        renewed = await rig.queue.extend(kept[0], 30)
        assert renewed.lease_expires_ms == rig.clock.now_ms() + 30_000
        told: list[str] = []
        rig.queue.watch(kept[1], told.append)
        await rig.queue.ack(kept[0])
        await rig.queue.nack(kept[1], "boom", delay=0)
        await rig.queue.release(kept[2])
        assert [claim.payload for claim in await rig.queue.claim("q", limit=9)] == [b"nacked", b"released", b"embedded"]
        assert told == []
        assert (await rig.queue.get(kept[1].job_id)).kept is False


async def test_a_kept_claim_has_a_full_lease_from_the_opening_on_and_its_end_counts_as_a_crash() -> None:
    async with Rig(default=MANY_TRIES) as rig:
        await rig.queue.enqueue("q", b"x")
        (claim,) = await rig.queue.claim("q", lease=5.0, kept=True)
        await rig.queue.extend(claim, 1000.0)  # a renewal is not known to the next writer
        rig.clock.advance(seconds=4)
        await rig.crash()
        await rig.advance(4.999)
        assert await expiries(rig) == []
        await rig.advance(0.001)
        assert await expiries(rig) == [("lease expired", True)]
        with pytest.raises(ClaimLost):
            await rig.queue.ack(claim)


async def test_kept_claims_are_no_suspects_when_their_writer_crashes() -> None:
    async with Rig(default=MANY_TRIES) as rig:
        await rig.queue.enqueue_many("q", [b""] * 40)
        kept = await rig.queue.claim("q", limit=20, kept=True)
        await rig.queue.claim("q", limit=12)
        await rig.crash()
        assert await expiries(rig) == [("interrupted", True)] * 12  # with the kept ones there would be too many
        assert [job.crashes for job in (await rig.queue.jobs("q", state="claimed")).jobs] == [0] * 20
        await rig.queue.ack_many(kept)


async def test_a_kept_claim_that_is_to_stop_is_told_so_at_the_next_writer() -> None:
    async with Rig(default=MANY_TRIES) as rig:
        await rig.queue.enqueue("q", b"x")
        (claim,) = await rig.queue.claim("q", kept=True)
        await rig.queue.cancel(claim.job_id, **WHO)
        await rig.crash()
        told: list[str] = []
        rig.queue.watch(claim, told.append)
        await rig.advance(0)
        assert told == ["cancel"]
        await rig.queue.release(claim)
        assert (await rig.queue.get(claim.job_id)).state == "cancelled"
