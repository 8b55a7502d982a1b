"""Jobs that go to another queue: dead letters by the rule of their queue, and what an operator moves."""

import asyncio
import logging
from typing import Any

import pytest

from ledgerq.eventlog.errors import InvalidArgument, InvalidQueueName, JobFailed
from ledgerq.eventlog.events import BulkBegan, LeaseExpired, Moved, Nacked
from ledgerq.projections.selection import Filter
from ledgerq.testing import memory_queue
from ledgerq.worker.options import QueueOptions
from ledgerq.worker.tasks.registry import Tasks
from tests.support.loops import settle
from tests.support.operators import WHO
from tests.support.rig import Rig, claim_all, payloads

TO_DLQ = {"mail": QueueOptions(max_attempts=1, dead_letter_queue="dlq")}


async def kinds(rig: Rig, job_id: str) -> list[type[Any]]:
    return [type(record.event) for record in await rig.queue.history(job_id)]


async def test_a_job_that_dies_goes_to_the_queue_of_the_dead_letters_in_the_same_commit() -> None:
    async with Rig(queues=TO_DLQ) as rig:
        job = await rig.queue.enqueue("mail", b"x", headers={"a": "b"}, unique_key="k", priority=3)
        (claim,) = await rig.queue.claim("mail")
        waiting = asyncio.create_task(rig.queue.claim("dlq", wait=None))
        await settle()
        await rig.queue.nack(claim, "boom", error_type="OSError")
        (batch,) = [batch for batch in await rig.batches() if any(isinstance(event, Moved) for event in batch.events)]
        assert [type(event) for event in batch.events[:2]] == [Nacked, Moved]
        (again,) = await waiting
        assert (again.id, again.queue, again.payload, again.headers) == (job.id, "dlq", b"x", {"a": "b"})
        assert (again.attempt, again.priority) == (1, 3)
        moved = await rig.queue.get(job.job_id)
        assert (moved.queue, moved.moved_from, moved.error, moved.error_type) == ("dlq", "mail", "boom", "OSError")
        # The key is free.
        assert (await rig.queue.enqueue("mail", b"y", unique_key="k")).created
        before, after = await rig.queue.stats("mail"), await rig.queue.stats("dlq")
        assert (before.dead, before.totals["dead"], before.totals["moved_out"]) == (0, 1, 1)
        assert (after.claimed, after.totals["moved_in"], after.totals["enqueued"]) == (1, 1, 0)


@pytest.mark.parametrize("times", [{"expires": 10.0}, {"deadline": 10.0}], ids=str)
async def test_a_dead_letter_does_not_expire_any_more(times: dict[str, Any]) -> None:
    async with Rig(queues=TO_DLQ) as rig:
        for seconds in (5, 15):  # it dies before its time is over, and after that
            job = await rig.queue.enqueue("mail", b"x", task="send", **times)
            (claim,) = await rig.queue.claim("mail")
            await rig.advance(seconds)
            await rig.queue.nack(claim, "boom")
            await rig.advance(15)
            moved = await rig.queue.get(job.job_id)
            assert (moved.queue, moved.state, moved.task, moved.starts_before_ms) == ("dlq", "pending", "send", 0)


async def test_it_stays_dead_in_a_queue_without_one_and_in_the_queue_of_dead_letters_itself() -> None:
    options = QueueOptions(max_attempts=1, dead_letter_queue="dlq")
    async with Rig(default=options, queues={"own": QueueOptions(max_attempts=1)}) as rig:
        for name in ("own", "dlq"):
            job = await rig.queue.enqueue(name, b"x")
            (claim,) = await rig.queue.claim(name)
            await rig.queue.nack(claim, "boom")
            assert (await rig.queue.get(job.job_id)).state == "dead"


async def test_a_job_whose_lease_ended_goes_there_and_the_log_says_that_it_died(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with Rig(queues=TO_DLQ) as rig:
        job = await rig.queue.enqueue("mail", b"x")
        await rig.queue.claim("mail")
        await rig.advance(30)
        assert (await kinds(rig, job.job_id))[-2:] == [LeaseExpired, Moved]
        assert "it is dead now" in caplog.text
        caplog.clear()
        other = await rig.queue.enqueue("mail", b"y")
        await rig.queue.claim("mail")
        with caplog.at_level(logging.WARNING, "ledgerq"):
            await rig.crash()
        assert (await kinds(rig, other.job_id))[-2:] == [LeaseExpired, Moved]
        assert "dead by that: 1" in caplog.text
        assert payloads(await claim_all(rig.queue, "dlq")) == [b"x", b"y"]


async def test_who_waits_for_a_result_is_told_that_the_job_failed() -> None:
    app = Tasks()

    @app.task(queue="mail")
    async def send() -> None:
        raise ValueError("no")

    async with memory_queue(app, queues=TO_DLQ) as queue:
        handle = await send.enqueue()
        waiting = asyncio.create_task(handle.result())
        await settle()
        await queue.drain()
        with pytest.raises(JobFailed, match="no"):
            await waiting
        assert (await queue.get(handle.job_id)).queue == "dlq"


@pytest.mark.parametrize(
    ("queues", "says"),
    [
        ({"a": "b", "b": "a"}, "a -> b -> a"),
        ({"a": "b", "b": "c", "c": "b"}, "b -> c -> b"),
    ],
)
async def test_dead_letters_that_would_go_around_are_refused(queues: dict[str, str], says: str) -> None:
    options = {name: QueueOptions(dead_letter_queue=to) for name, to in queues.items()}
    with pytest.raises(InvalidArgument, match=says):
        await Rig(queues=options).open()
    with pytest.raises(InvalidQueueName):
        await Rig(default=QueueOptions(dead_letter_queue="a\0b")).open()


async def test_jobs_of_each_state_are_moved_and_keep_their_place_and_time() -> None:
    async with Rig() as rig:
        first = await rig.queue.enqueue("a", b"first", unique_key="k")
        dead = await rig.queue.enqueue("a", b"dead")
        late = await rig.queue.enqueue("a", b"late", delay=60)
        await rig.queue.enqueue("b", b"in between")
        (claim,) = await rig.queue.claim("a")
        (other,) = await rig.queue.claim("a")
        await rig.queue.release(claim)
        await rig.queue.nack(other, "boom", dead=True)
        for state in ("pending", "dead", "scheduled"):
            seen = await rig.queue.bulk.move(Filter(queue="a", state=state), "b", **WHO)
            assert (seen.count, seen.offset) == (1, None)
            done = await rig.queue.bulk.move(Filter(queue="a", state=state), "b", **WHO, dry_run=False)
            assert (done.what, done.count, done.skipped) == ("move", 1, 0)
        began = next(event for event in await rig.events() if isinstance(event, BulkBegan))
        assert (began.what, began.queue, began.to) == ("move", "a", "b")
        assert (await rig.queue.get(late.job_id)).state == "scheduled"
        claims = await claim_all(rig.queue, "b")
        assert payloads(claims) == [b"first", b"dead", b"in between"]
        await rig.queue.ack_many(claims)
        await rig.advance(60)
        assert payloads(await claim_all(rig.queue, "b")) == [b"late"]
        job = await rig.queue.get(dead.job_id)
        assert (job.queue, job.moved_from, job.attempt) == ("b", "a", 1)
        assert not (await rig.queue.get(first.job_id)).unique_held
        await rig.reopen()
        assert {(await rig.queue.get(one.job_id)).queue for one in (first, dead, late)} == {"b"}


async def test_a_queue_whose_window_is_full_gets_moved_jobs_in_their_order() -> None:
    async with Rig(ready_window=2) as rig:
        for number in range(6):
            await rig.queue.enqueue("a" if number % 2 else "b", b"%d" % number)
        await rig.queue.bulk.move(Filter(queue="a", state="pending"), "b", **WHO, dry_run=False)
        assert payloads(await claim_all(rig.queue, "b")) == [b"0", b"1", b"2", b"3", b"4", b"5"]
        assert await claim_all(rig.queue, "a") == []


@pytest.mark.parametrize(
    ("filter", "to", "says"),
    [
        (Filter(queue="a"), "b", "say which jobs to move"),
        (Filter(queue="a", state="done"), "b", "can't be changed so"),
        (Filter(queue="a", state="dead"), "a", "in queue 'a' already"),
    ],
)
async def test_a_move_that_makes_no_sense_is_refused(filter: Filter, to: str, says: str) -> None:
    async with Rig() as rig:
        with pytest.raises(InvalidArgument, match=says):
            await rig.queue.bulk.move(filter, to, **WHO)
        with pytest.raises(InvalidQueueName):
            await rig.queue.bulk.move(Filter(queue="a", state="dead"), "", **WHO)
