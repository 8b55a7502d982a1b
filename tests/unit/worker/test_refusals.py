"""A refusal is an answer, too, so it waits until what it rests on is durable; and rows that stay small."""

import asyncio

import pytest

from ledgerq import ClaimLost, InvalidState
from ledgerq.eventlog.events import Enqueued
from ledgerq.projections.job import MAX_OFFSETS
from tests.support.loops import settle
from tests.support.operators import Who
from tests.support.rig import Rig

WHO: Who = {"actor": "ada", "reason": "test"}


async def test_a_refusal_waits_for_the_commit_that_it_rests_on() -> None:
    async with Rig() as rig:
        queue = rig.queue
        await queue.enqueue("q", b"1")
        (claim,) = await queue.claim("q")
        rig.faults.hold("write:before")
        acked = asyncio.create_task(queue.ack(claim))
        await settle()
        refused = [
            asyncio.create_task(queue.cancel(claim.job_id, **WHO)),
            asyncio.create_task(queue.extend(claim, 5)),
            asyncio.create_task(queue.nack(claim, "late")),
            asyncio.create_task(queue.release(claim)),
        ]
        repeated = asyncio.create_task(queue.ack(claim))
        await settle()
        assert not any(task.done() for task in [*refused, repeated])
        rig.faults.let_go("write:before")
        await acked
        await repeated
        with pytest.raises(InvalidState):
            await refused[0]
        for task in refused[1:]:
            with pytest.raises(ClaimLost):
                await task


async def test_a_job_given_back_without_end_keeps_a_small_row_and_its_whole_history() -> None:
    async with Rig() as rig:
        queue = rig.queue
        job = await queue.enqueue("q", b"1")
        for _ in range(MAX_OFFSETS):
            (claim,) = await queue.claim("q")
            await queue.release(claim)
        assert len((await queue.get(job.job_id)).offsets) == MAX_OFFSETS
        history = await queue.history(job.job_id)
        assert len(history) == 1 + 2 * MAX_OFFSETS
        assert [record.offset for record in history] == sorted(record.offset for record in history)


async def test_a_full_commit_takes_no_more_jobs_after_a_look_up_either() -> None:
    async with Rig() as rig:
        big = b"x" * 1_000_000
        keyed = [f"k{i}" for i in range(24)]
        rig.faults.hold("get")  # all of them look their keys up at the same time
        tasks = [asyncio.create_task(rig.queue.enqueue("q", big, unique_key=key)) for key in keyed]
        await settle()
        rig.faults.let_go("get")
        await asyncio.gather(*tasks)
        sizes = []
        for batch in (await rig.batches())[1:]:
            enqueued = [event for event in batch.events if isinstance(event, Enqueued)]
            assert len(enqueued) == len(batch.events)
            sizes.append(sum(event.payload_bytes for event in enqueued))
        assert max(sizes) <= 10_000_000
