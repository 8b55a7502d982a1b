"""Times in the log: nothing ends before its time, and no end is reported that is not durable."""

import asyncio

import pytest

from ledgerq.eventlog.errors import ClaimLost, OutcomeUnknown
from ledgerq.eventlog.events import Claimed, LeaseExpired, Promoted, Swept
from ledgerq.worker.options import QueueOptions
from tests.support.loops import settle
from tests.support.rig import Rig


async def stalled(rig: Rig) -> list[asyncio.Task[object]]:
    """Two calls whose commits wait: one on its way to a disk that stalls, one open since now."""
    rig.faults.hold("sync:before")
    calls: list[asyncio.Task[object]] = []
    for _ in range(2):
        calls.append(asyncio.create_task(rig.queue.enqueue("other", b"")))
        await settle()
    return calls


async def let_go(rig: Rig, calls: list[asyncio.Task[object]]) -> None:
    """The disk goes on."""
    rig.faults.let_go("sync:before")
    await asyncio.gather(*calls)
    await settle()


async def test_a_lease_that_ends_while_the_disk_stalls_does_not_end_before_its_time_in_the_log() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("q", b"")
        await rig.queue.claim("q", lease=10)
        calls = await stalled(rig)
        await rig.advance(11)
        await let_go(rig, calls)
        records = [record async for record in rig.queue.log.read()]
        (claimed_ms,) = [record.time_ms for record in records if type(record.event) is Claimed]
        (ended_ms,) = [record.time_ms for record in records if type(record.event) is LeaseExpired]
        assert ended_ms >= claimed_ms + 10_000


async def test_a_lease_that_was_renewed_while_the_disk_stalls_holds_as_long_as_it_was_renewed_for() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("q", b"")
        (claim,) = await rig.queue.claim("q", lease=10)
        calls = await stalled(rig)
        await rig.advance(9)
        claim = await rig.queue.extend(claim, 10)
        await rig.advance(5)
        await let_go(rig, calls)
        await rig.queue.ack(claim)


@pytest.mark.parametrize("what", [Promoted, Swept])
async def test_nothing_is_promoted_or_swept_before_its_time_in_the_log(what: type[Promoted | Swept]) -> None:
    async with Rig(default=QueueOptions(keep_done_s=10)) as rig:
        due_ms = rig.clock.now_ms() + 10_000
        if what is Promoted:
            await rig.queue.enqueue("q", b"", delay=10)
        else:
            await rig.queue.enqueue("q", b"")
            await rig.queue.ack((await rig.queue.claim("q"))[0])
        calls = await stalled(rig)
        await rig.advance(11)
        await let_go(rig, calls)
        (at_ms,) = [record.time_ms async for record in rig.queue.log.read() if type(record.event) is what]
        assert at_ms >= due_ms


async def test_a_queue_that_failed_does_not_ring_for_what_is_due_for_ever() -> None:
    rig = Rig()
    queue = await rig.open()
    await queue.enqueue("q", b"")
    await queue.claim("q", lease=10)
    rig.faults.spoil("sync:before", OutcomeUnknown("the disk is gone"))
    with pytest.raises(OutcomeUnknown):
        await queue.enqueue("q", b"")
    await rig.advance(11)
    due_ms = rig.clock.next_due_ms()
    assert due_ms is None or due_ms > rig.clock.now_ms()
    await queue.close()


async def test_a_renewal_is_refused_only_once_the_end_of_the_claim_is_durable() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("q", b"")
        (claim,) = await rig.queue.claim("q", lease=10)
        rig.faults.hold("sync:before")
        await rig.advance(11)
        renewing = asyncio.create_task(rig.queue.extend(claim, 10))
        await settle()
        assert not renewing.done()
        rig.faults.let_go("sync:before")
        with pytest.raises(ClaimLost):
            await renewing
        assert LeaseExpired in {type(event) for event in await rig.events()}


@pytest.mark.parametrize("what", [Promoted, Swept])
async def test_a_clock_that_is_set_back_while_the_store_is_read_promotes_and_sweeps_nothing_too_early(
    what: type[Promoted | Swept],
) -> None:
    async with Rig(default=QueueOptions(keep_done_s=10)) as rig:
        due_ms = rig.clock.now_ms() + 10_000
        await rig.queue.enqueue("q", b"", delay=10 if what is Promoted else None)
        if what is Swept:
            await rig.queue.ack((await rig.queue.claim("q"))[0])
        rig.faults.hold("scan")
        await rig.advance(10)
        rig.clock.set(due_ms - 4000)
        rig.faults.let_go("scan")
        await settle()
        assert not [record async for record in rig.queue.log.read() if type(record.event) is what]
        await rig.advance(4)
        (found_ms,) = [record.time_ms async for record in rig.queue.log.read() if type(record.event) is what]
        assert found_ms == due_ms
