"""Unique keys and job ids of the caller's own: nothing is added twice, also not at the same moment."""

import asyncio

import pytest

from ledgerq.eventlog.codec import digest_of
from ledgerq.eventlog.entropy import job_id_text
from ledgerq.eventlog.errors import DuplicateJobId, InvalidState
from ledgerq.eventlog.events import Enqueued
from ledgerq.eventlog.side_records import encode_payload
from ledgerq.worker.engine.writer_state import WriterState
from ledgerq.worker.options import NewJob
from tests.support.loops import settle
from tests.support.rig import Rig, payloads

ID_A = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
ID_B = "01BX5ZZKBKACTAV9WEVGEMMVRZ"


async def test_a_unique_key_adds_a_job_once_until_it_is_finished() -> None:
    async with Rig() as rig:
        first = await rig.queue.enqueue("q", b"1", unique_key="k")
        for _ in range(2):
            again = await rig.queue.enqueue("q", b"2", unique_key=b"k")
            assert (again.job_id, again.created) == (first.job_id, False)
        (claim,) = await rig.queue.claim("q")
        assert not (await rig.queue.enqueue("q", b"2", unique_key="k")).created
        await rig.queue.ack(claim)
        other = await rig.queue.enqueue("q", b"2", unique_key="k")
        assert other.created
        assert other.job_id != first.job_id


async def test_a_unique_key_is_its_queues_own() -> None:
    async with Rig() as rig:
        assert (await rig.queue.enqueue("q", b"", unique_key="k")).created
        assert (await rig.queue.enqueue("q2", b"", unique_key="k")).created
        assert (await rig.queue.enqueue("q", b"", unique_key="k2")).created
        assert (await rig.queue.enqueue("q", b"", unique_key="\0")).created


@pytest.mark.parametrize("end", ["acked", "dead", "expired", "cancelled", "cancelled while scheduled"])
async def test_a_unique_key_is_free_again_however_its_job_ends(end: str) -> None:
    async with Rig() as rig:
        delay = 60 if end == "cancelled while scheduled" else None
        first = await rig.queue.enqueue("q", b"", unique_key="k", max_attempts=1, delay=delay)
        if end.startswith("cancelled"):
            await rig.queue.cancel(first.job_id, actor="a", reason="r")
        else:
            (claim,) = await rig.queue.claim("q", lease=5)
            if end == "acked":
                await rig.queue.ack(claim)
            elif end == "dead":
                await rig.queue.nack(claim, "e")
            else:
                await rig.advance(5)
        assert (await rig.queue.enqueue("q", b"", unique_key="k")).created


async def test_a_unique_key_is_held_through_retries_releases_and_restarts() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("q", b"", unique_key="k", delay=1)
        assert not (await rig.queue.enqueue("q", b"", unique_key="k")).created
        await rig.advance(1)
        (claim,) = await rig.queue.claim("q")
        await rig.queue.nack(claim, "e", delay=5)
        assert not (await rig.queue.enqueue("q", b"", unique_key="k")).created
        await rig.advance(5)
        (claim,) = await rig.queue.claim("q")
        await rig.queue.release(claim)
        assert not (await rig.queue.enqueue("q", b"", unique_key="k")).created
        await rig.crash()
        assert not (await rig.queue.enqueue("q", b"", unique_key="k")).created
        await rig.reopen()
        assert not (await rig.queue.enqueue("q", b"", unique_key="k")).created


async def test_a_key_unique_until_claimed_is_free_once_its_job_was_claimed_and_stays_free() -> None:
    async with Rig() as rig:
        first = await rig.queue.enqueue("q", b"1", unique_key="k", unique_until="claimed")
        assert not (await rig.queue.enqueue("q", b"", unique_key="k", unique_until="claimed")).created
        (claim,) = await rig.queue.claim("q")
        second = await rig.queue.enqueue("q", b"2", unique_key="k", unique_until="claimed")
        assert second.created
        await rig.queue.release(claim)
        third = await rig.queue.enqueue("q", b"3", unique_key="k", unique_until="claimed")
        assert (third.job_id, third.created) == (second.job_id, False)
        assert [job.job_id for job in (await rig.queue.jobs("q", "pending")).jobs] == [first.job_id, second.job_id]


async def test_of_concurrent_enqueues_with_one_key_one_is_added_and_all_name_it() -> None:
    async with Rig() as rig:
        results = await asyncio.gather(*(rig.queue.enqueue("q", b"%d" % i, unique_key="k") for i in range(50)))
        assert sum(result.created for result in results) == 1
        assert len({result.job_id for result in results}) == 1
        assert (await rig.queue.stats("q")).pending == 1


async def test_of_concurrent_enqueues_with_a_slow_store_one_is_added() -> None:
    async with Rig() as rig:
        rig.faults.hold("get")
        tasks = [asyncio.create_task(rig.queue.enqueue("q", b"", unique_key="k")) for _ in range(9)]
        await settle()
        tasks[0].cancel()
        await settle()
        rig.faults.let_go("get")
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(results[0], asyncio.CancelledError)
        created = [result.created for result in results[1:] if not isinstance(result, BaseException)]
        assert (len(created), sum(created)) == (8, 1)


async def test_a_key_is_added_once_within_one_bulk_call() -> None:
    async with Rig() as rig:
        jobs: list[bytes | NewJob]
        jobs = [NewJob(b"1", unique_key="k"), b"2", NewJob(b"3", unique_key="k"), NewJob(b"4", unique_key="l")]
        results = await rig.queue.enqueue_many("q", jobs)
        assert [result.created for result in results] == [True, True, False, True]
        assert results[2].job_id == results[0].job_id
        assert payloads(await rig.queue.claim("q", limit=9)) == [b"1", b"2", b"4"]


async def test_bulk_calls_with_the_same_keys_in_other_orders_do_not_block_each_other() -> None:
    async with Rig() as rig:
        names = [f"k{i}" for i in range(10)]
        orders = [names, names[::-1], names[5:] + names[:5], names[3:7]]
        results = await asyncio.gather(
            *(rig.queue.enqueue_many("q", [NewJob(b"", unique_key=name) for name in order]) for order in orders)
        )
        assert sum(result.created for group in results for result in group) == 10


async def test_a_key_freed_and_taken_again_in_one_commit_belongs_to_the_new_job() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("q", b"1", unique_key="k")
        (claim,) = await rig.queue.claim("q")
        rig.faults.hold("sync:before")
        blocker = asyncio.create_task(rig.queue.enqueue("q", b"blocker"))
        await settle()
        acked = asyncio.create_task(rig.queue.ack(claim))
        await settle()
        added = asyncio.create_task(rig.queue.enqueue("q", b"2", unique_key="k"))
        await settle()
        rig.faults.let_go("sync:before")
        await asyncio.gather(blocker, acked)
        assert (await added).created
        await rig.check()
        assert (await rig.queue.enqueue("q", b"3", unique_key="k")).job_id == (await added).job_id


async def test_a_dead_job_is_not_requeued_while_another_holds_its_key() -> None:
    async with Rig() as rig:
        first = await rig.queue.enqueue("q", b"1", unique_key="k", max_attempts=1)
        (claim,) = await rig.queue.claim("q")
        await rig.queue.nack(claim, "e")
        second = await rig.queue.enqueue("q", b"2", unique_key="k")
        with pytest.raises(InvalidState, match=second.job_id):
            await rig.queue.requeue(first.job_id, actor="a", reason="r")
        await rig.queue.cancel(second.job_id, actor="a", reason="r")
        await rig.queue.requeue(first.job_id, actor="a", reason="r")
        again = await rig.queue.enqueue("q", b"3", unique_key="k")
        assert (again.job_id, again.created) == (first.job_id, False)


async def test_of_two_dead_jobs_with_one_key_only_one_is_requeued_at_the_same_moment() -> None:
    async with Rig() as rig:
        ids: list[str] = []
        for _ in range(2):
            ids.append((await rig.queue.enqueue("q", b"", unique_key="k", max_attempts=1)).job_id)
            (claim,) = await rig.queue.claim("q")
            await rig.queue.nack(claim, "e")
        calls = (rig.queue.requeue(job_id, actor="a", reason="r") for job_id in ids)
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert sorted(type(result).__name__ for result in results) == ["InvalidState", "Job"]


async def test_a_job_requeued_with_a_key_unique_until_claimed_does_not_hold_it() -> None:
    async with Rig() as rig:
        first = await rig.queue.enqueue("q", b"", unique_key="k", unique_until="claimed", max_attempts=1)
        (claim,) = await rig.queue.claim("q")
        await rig.queue.nack(claim, "e")
        second = await rig.queue.enqueue("q", b"", unique_key="k", unique_until="claimed")
        await rig.queue.requeue(first.job_id, actor="a", reason="r")
        assert second.created
        assert (await rig.queue.stats("q")).pending == 2


async def test_many_keys_are_remembered_also_when_memory_forgets_them() -> None:
    async with Rig() as rig:
        jobs = [NewJob(b"", unique_key=f"k{i}") for i in range(2500)]
        added = [job.job_id for job in await rig.queue.enqueue_many("q", jobs)]
        again = await rig.queue.enqueue_many("q", jobs)
        assert [job.job_id for job in again] == added
        assert not any(job.created for job in again)


async def test_a_large_commit_is_not_gone_through_for_each_of_its_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    looks, undurable = 0, WriterState.undurable

    def counted(writer_state: WriterState, id: bytes) -> bool:
        nonlocal looks
        looks += 1
        return undurable(writer_state, id)

    monkeypatch.setattr(WriterState, "undurable", counted)
    async with Rig() as rig:
        await rig.queue.enqueue_many("q", [NewJob(b"", unique_key=f"k{i}") for i in range(5000)])
        assert looks < 3 * 5000


async def test_the_keys_of_a_bulk_call_are_looked_up_together() -> None:
    async with Rig() as rig:
        jobs = [NewJob(b"", unique_key=f"k{i}") for i in range(500)]
        await rig.queue.enqueue_many("q", jobs[:250])
        await rig.reopen()
        rig.faults.calls.clear()
        added = await rig.queue.enqueue_many("q", [*jobs, *jobs])
        assert [job.created for job in added] == [False] * 250 + [True] * 250 + [False] * 500
        assert rig.faults.calls.count("get") <= 3


async def test_a_job_id_of_the_callers_own_is_kept_and_refused_the_second_time() -> None:
    async with Rig() as rig:
        assert (await rig.queue.enqueue("q", b"", job_id=ID_A)).job_id == ID_A
        with pytest.raises(DuplicateJobId, match=ID_A):
            await rig.queue.enqueue("other", b"", job_id=ID_A.lower())
        (claim,) = await rig.queue.claim("q")
        await rig.queue.ack(claim)
        await rig.reopen()
        with pytest.raises(DuplicateJobId):
            await rig.queue.enqueue("q", b"", job_id=ID_A)
        assert await rig.queue.queues() == ["q"]


async def test_of_concurrent_enqueues_with_one_job_id_one_is_added() -> None:
    async with Rig() as rig:
        calls = (rig.queue.enqueue("q", b"", job_id=ID_A) for _ in range(20))
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert sum(isinstance(result, DuplicateJobId) for result in results) == 19
        assert (await rig.queue.stats("q")).totals["enqueued"] == 1


async def test_a_bulk_call_with_a_job_id_in_use_adds_nothing() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("q", b"", job_id=ID_A)
        with pytest.raises(DuplicateJobId):
            await rig.queue.enqueue_many("q", [b"", NewJob(b"", unique_key="k"), NewJob(b"", job_id=ID_A)])
        with pytest.raises(DuplicateJobId):
            await rig.queue.enqueue_many("q", [NewJob(b"", job_id=ID_B), NewJob(b"", job_id=ID_B)])
        assert (await rig.queue.stats("q")).totals["enqueued"] == 1
        assert (await rig.queue.enqueue("q", b"", unique_key="k")).created
        assert (await rig.queue.enqueue("q", b"", job_id=ID_B)).created


async def test_a_job_id_of_a_swept_job_can_be_used_again() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("q", b"old", job_id=ID_A)
        (claim,) = await rig.queue.claim("q")
        await rig.queue.ack(claim)
        await rig.advance(24 * 3600)
        await rig.queue.enqueue("q", b"new", job_id=ID_A)
        await rig.check()
        assert payloads(await rig.queue.claim("q")) == [b"new"]


async def test_a_job_id_used_again_in_the_commit_that_sweeps_its_old_job_leaves_no_payload_behind() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("q", b"old", job_id=ID_A)
        (claim,) = await rig.queue.claim("q")
        await rig.queue.ack(claim)
        await settle()  # the first scans of all ranges
        rig.clock.advance(seconds=24 * 3600 - 0.001)
        rig.faults.hold("sync:before")
        # While maintenance scans for what is due, a commit begins that stays under way until the new job is staged.
        rig.faults.hold("scan")
        await rig.advance(0.001)
        blocker = asyncio.create_task(rig.queue.enqueue("q", b"blocker"))
        await settle()
        rig.faults.let_go("scan")
        await settle()
        added = asyncio.create_task(rig.queue.enqueue("q", b"new", job_id=ID_A))
        await settle()
        rig.faults.let_go("sync:before")
        await asyncio.gather(blocker, added)
        await rig.check()
        assert payloads(await rig.queue.claim("q", limit=2)) == [b"blocker", b"new"]


async def enqueue_as_of_format_2(rig: Rig, key: bytes) -> str:
    """A job whose event and index row hold the key itself, as up to format 2."""
    log, id = rig.queue.log, rig.entropy.take(16)
    sealed = encode_payload(bytes(16), None, b"old")
    event = Enqueued(id, "q", 1000, 1, 0, key, "finished", len(sealed), digest_of(sealed))
    log.append_payload(log.next_offset, sealed)
    rig.queue._writer_state.apply(None, event)
    await log.committed()
    return job_id_text(id)


async def test_a_unique_key_of_format_2_is_recognised() -> None:
    async with Rig() as rig:
        old = await enqueue_as_of_format_2(rig, b"k")
        for _ in range(2):
            assert (await rig.queue.enqueue("q", b"", unique_key="k")).job_id == old
            (many,) = await rig.queue.enqueue_many("q", [NewJob(b"", unique_key="k")])
            assert many.job_id == old
            await rig.reopen()
        assert (await rig.queue.enqueue("q", b"", unique_key="l")).created


@pytest.mark.parametrize("is_older_first", [False, True])
async def test_jobs_with_a_key_of_format_2_and_with_a_digest_are_not_requeued_beside_each_other(
    is_older_first: bool,
) -> None:
    async with Rig() as rig:
        jobs = [await enqueue_as_of_format_2(rig, b"k")]
        (claim,) = await rig.queue.claim("q")
        await rig.queue.nack(claim, "boom", dead=True)
        jobs.append((await rig.queue.enqueue("q", b"new", unique_key="k")).job_id)
        (claim,) = await rig.queue.claim("q")
        await rig.queue.nack(claim, "boom", dead=True)
        first, second = jobs if is_older_first else reversed(jobs)
        await rig.queue.requeue(first, actor="a", reason="r")
        with pytest.raises(InvalidState, match=first):
            await rig.queue.requeue(second, actor="a", reason="r")
