"""Results beside the log: in the ack's own commit, and there for as long as the job's record is."""

import asyncio

import pytest

from ledgerq.eventlog.errors import (
    ClaimLost,
    InvalidArgument,
    JobNotFound,
    QueueClosed,
    ResultGone,
    ResultTooLarge,
)
from ledgerq.eventlog.events import Acked, Sealed
from ledgerq.eventlog.keys import TEXT_PREFIX, text_key
from ledgerq.eventlog.side_records import MAX_RESULT_BYTES
from ledgerq.worker.options import NewJob, QueueOptions
from tests.support.loops import settle
from tests.support.rig import Rig


async def acked(rig: Rig, result: bytes | None, task: str | None = None) -> str:
    """Enqueue a job, claim and ack it with a result; its id."""
    job = await rig.queue.enqueue("q", b"{}", task=task)
    (claim,) = await rig.queue.claim("q")
    assert claim.task == task
    await rig.queue.ack(claim, result)
    return job.job_id


async def test_a_result_is_read_back_and_stands_beside_the_log() -> None:
    async with Rig() as rig:
        job_id = await acked(rig, b"secret result", "send")
        assert await rig.queue.result(job_id) == b"secret result"
        job = await rig.queue.get(job_id)
        assert job.task == "send"
        event = (await rig.events())[-1]
        assert isinstance(event, Acked)
        assert isinstance(event.result, Sealed)
        assert event.result == job.result
        (place,) = (key for key, value in rig.disk.rows.items() if b"secret" in value)
        assert place == text_key(event.result.at)
        await rig.reopen()
        assert await rig.queue.result(job_id) == b"secret result"


@pytest.mark.parametrize("result", [None, b"", b"x"])
async def test_no_result_writes_nothing(result: bytes | None) -> None:
    async with Rig() as rig:
        job_id = await acked(rig, result)
        assert await rig.queue.result(job_id) == result
        assert any(key.startswith(TEXT_PREFIX) for key in rig.disk.rows) == (result is not None)


async def test_ack_and_result_are_one_commit() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("q", b"")
        (claim,) = await rig.queue.claim("q")
        rig.faults.hold("sync:before")
        acking = asyncio.create_task(rig.queue.ack(claim, b"result"))
        await settle()
        acking.cancel()
        await asyncio.gather(acking, return_exceptions=True)
        rig.faults.held.clear()
        await rig.crash()
        job = await rig.queue.get(claim.job_id)
        rows = [key for key in rig.disk.rows if key.startswith(TEXT_PREFIX)]
        assert (job.state, rows) == ("pending", [])


async def test_many_results_come_with_their_claims() -> None:
    async with Rig() as rig:
        added = await rig.queue.enqueue_many("q", [NewJob(b"", task=name) for name in ("a", "b", "c")])
        claims = await rig.queue.claim("q", limit=3)
        assert [claim.task for claim in claims] == ["a", "b", "c"]
        commits = len(await rig.batches())
        await rig.queue.ack_many(claims, [b"1", None, b"3"])
        assert len(await rig.batches()) == commits + 1
        assert [await rig.queue.result(job.job_id) for job in added] == [b"1", None, b"3"]


async def test_results_that_fill_a_commit_take_more_of_them() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue_many("q", [b""] * 20)
        claims = await rig.queue.claim("q", limit=20)
        commits = len(await rig.batches())
        await rig.queue.ack_many(claims, [bytes(MAX_RESULT_BYTES)] * 20)
        assert len(await rig.batches()) > commits + 1
        assert (await rig.queue.stats("q")).done == 20


async def test_a_claim_that_is_lost_leaves_no_result() -> None:
    async with Rig() as rig:
        added = await rig.queue.enqueue_many("q", [b"", b""])
        one, two = await rig.queue.claim("q", limit=2)
        await rig.queue.nack(one, "e", dead=True)
        with pytest.raises(ClaimLost):
            await rig.queue.ack(one, b"second")
        with pytest.raises(ClaimLost):
            await rig.queue.ack_many([one, two], [b"third", b"two"])
        assert [await rig.queue.result(job.job_id) for job in added] == [None, b"two"]
        await rig.queue.ack(two, b"repeated, which changes nothing")
        assert await rig.queue.result(two.job_id) == b"two"


async def test_what_is_no_result_is_refused_before_anything_is_written() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("q", b"")
        (claim,) = await rig.queue.claim("q")
        with pytest.raises(ResultTooLarge, match="store it elsewhere and return a reference"):
            await rig.queue.ack(claim, bytes(MAX_RESULT_BYTES + 1))
        with pytest.raises(InvalidArgument, match="a result is bytes, not str"):
            await rig.queue.ack_many([claim], ["text"])  # type: ignore[list-item]
        with pytest.raises(InvalidArgument, match="2 results for 1 claims"):
            await rig.queue.ack_many([claim], [b"", b""])
        await rig.queue.ack(claim, bytes(MAX_RESULT_BYTES))


async def test_a_result_goes_with_its_jobs_record() -> None:
    async with Rig(default=QueueOptions(keep_done_s=5)) as rig:
        job_id = await acked(rig, b"result")
        await rig.advance(6)
        with pytest.raises(JobNotFound):
            await rig.queue.result(job_id)
        assert not [key for key in rig.disk.rows if key.startswith(TEXT_PREFIX)]


@pytest.mark.parametrize("is_changed", [True, False])
async def test_a_result_whose_row_is_lost_is_gone(is_changed: bool) -> None:
    async with Rig() as rig:
        job_id = await acked(rig, b"result")
        job = await rig.queue.get(job_id)
        assert job.result is not None
        rig.without_payload.add(job.id)
        if is_changed:
            rig.disk.rows[text_key(job.result.at)] += b"!"
        else:
            del rig.disk.rows[text_key(job.result.at)]
        with pytest.raises(ResultGone, match="its history is still in the log"):
            await rig.queue.result(job_id)


@pytest.mark.parametrize("task", ["", "a\0b", "x" * 256, 3, "\ud800"])
async def test_a_task_has_a_name(task: object) -> None:
    async with Rig() as rig:
        with pytest.raises(InvalidArgument, match="a task's name is text of 1 to 255 bytes"):
            await rig.queue.enqueue("q", b"", task=task)  # type: ignore[arg-type]


# Waiting for the end


async def test_the_wait_for_a_job_ends_when_that_is_durable() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("q", b"")
        (claim,) = await rig.queue.claim("q")
        waiting = asyncio.create_task(rig.queue.finished(claim.job_id))
        await settle()
        rig.faults.hold("sync:before")
        acking = asyncio.create_task(rig.queue.ack(claim))
        await settle()
        assert not waiting.done()
        rig.faults.let_go("sync:before")
        await acking
        assert (await waiting).state == "done"
        assert (await rig.queue.finished(claim.job_id)).state == "done"


async def test_waits_leave_nothing_behind() -> None:
    async with Rig() as rig:
        waits = rig.queue._core.end_waits.waiters
        job = await rig.queue.enqueue("q", b"")
        late = asyncio.create_task(rig.queue.finished(job.job_id, 10))
        others = [asyncio.create_task(rig.queue.finished(job.job_id)) for _ in range(3)]
        await settle()
        assert len(waits) == 1
        others[0].cancel()
        await rig.advance(10)
        with pytest.raises(TimeoutError, match="is not finished yet"):
            await late
        await rig.queue.cancel(job.job_id, actor="ada", reason="test")
        assert [(await other).state for other in others[1:]] == ["cancelled", "cancelled"]
        with pytest.raises(JobNotFound):
            await rig.queue.finished("0" * 26)
        assert len(waits) == 0


async def test_a_wait_ends_with_its_queue() -> None:
    async with Rig() as rig:
        job = await rig.queue.enqueue("q", b"")
        waiting = asyncio.create_task(rig.queue.finished(job.job_id))
        await settle()
        await rig.reopen()
        with pytest.raises(QueueClosed):
            await waiting


@pytest.mark.parametrize("turns", range(6))
async def test_a_wait_that_begins_while_the_queue_closes_ends_with_it(turns: int) -> None:
    async with Rig() as rig:
        job = await rig.queue.enqueue("q", b"")
        closing = asyncio.create_task(rig.queue.close())
        for _ in range(turns):
            await asyncio.sleep(0)
        with pytest.raises(QueueClosed):
            await asyncio.wait_for(rig.queue.finished(job.job_id), 10)
        await closing
