"""`run(until_empty=True)`: a batch that ends by itself when nothing unfinished is left, however long that takes."""

import asyncio

import pytest

from ledgerq.eventlog.errors import LedgerError, StoreUnavailable
from ledgerq.worker.execution import JobContext
from ledgerq.worker.outcomes import Retry
from ledgerq.worker.worker import Worker
from tests.support.loops import settle, until
from tests.support.operators import WHO
from tests.support.rig import Rig
from tests.support.workers import Stage, ThreadStage, handler_threads, working


async def test_an_empty_queue_ends_the_run_at_once() -> None:
    async with Rig() as rig:
        worker = Worker(rig.queue)
        worker.handler("q")(Stage())
        task = asyncio.create_task(worker.run(until_empty=True, signals=False))
        await until(task.done)
        await task


async def test_finished_jobs_and_other_queues_do_not_keep_the_run() -> None:
    stage = Stage()
    stage.cue.set()
    async with Rig() as rig:
        await rig.queue.enqueue("other", b"waits")
        dead = await rig.queue.enqueue("q", b"dead")
        (claim,) = await rig.queue.claim("q")
        await rig.queue.nack(claim, "hopeless", dead=True)
        cancelled = await rig.queue.enqueue("q", b"cancelled")
        await rig.queue.cancel(cancelled.job_id, **WHO)
        await rig.queue.enqueue("q", b"x")
        worker = Worker(rig.queue)
        worker.handler("q")(stage)
        await worker.run(until_empty=True, signals=False)
        assert stage.ended == [b"x"]
        assert (await rig.queue.get(dead.job_id)).state == "dead"
        assert (await rig.queue.stats("other")).pending == 1


async def test_the_run_waits_for_scheduled_jobs_and_for_retries() -> None:
    tries: list[tuple[bytes, int, int]] = []
    async with Rig() as rig:
        start_ms = rig.clock.now_ms()
        await rig.queue.enqueue("q", b"now")
        await rig.queue.enqueue("q", b"later", delay=10)
        worker = Worker(rig.queue)

        @worker.handler("q")
        async def once_more(job: JobContext) -> None:
            tries.append((job.payload, job.attempt, (rig.clock.now_ms() - start_ms) // 1000))
            if job.attempt == 1:
                raise Retry(30)

        async with working(worker, until_empty=True) as task:
            for _ in range(39):
                await rig.advance(1)
                assert not task.done()
            await rig.advance(1)
            await until(task.done)
        assert tries == [(b"now", 1, 0), (b"later", 1, 10), (b"now", 2, 30), (b"later", 2, 40)]


async def test_the_run_takes_what_its_own_handlers_enqueue() -> None:
    seen: list[bytes] = []
    async with Rig() as rig:
        worker = Worker(rig.queue)

        @worker.handler("a")
        async def first(job: JobContext) -> None:
            seen.append(job.payload)
            await rig.queue.enqueue("b", job.payload + b"b")

        @worker.handler("b")
        async def second(job: JobContext) -> None:
            seen.append(job.payload)
            if len(job.payload) < 8:
                await rig.queue.enqueue("a", job.payload + b"a")

        await rig.queue.enqueue("a", b"")
        await worker.run(until_empty=True, signals=False)
        assert seen == [b"", b"b", b"ba", b"bab", b"baba", b"babab", b"bababa", b"bababab", b"babababa", b"babababab"]


async def test_two_workers_share_one_queue_object_and_both_end() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue_many("q", [b"%d" % i for i in range(100)])
        shares: list[list[bytes]] = [[], []]
        workers = [Worker(rig.queue, concurrency=2, name=f"w{i}") for i in range(2)]
        for worker, share in zip(workers, shares, strict=True):

            async def note(job: JobContext, share: list[bytes] = share) -> None:
                share.append(job.payload)

            worker.handler("q")(note)
        await asyncio.gather(*(worker.run(until_empty=True, signals=False) for worker in workers))
        assert sorted(shares[0] + shares[1], key=int) == [b"%d" % i for i in range(100)]
        assert shares[0]
        assert shares[1]


async def test_many_jobs_of_both_kinds_are_each_done_once() -> None:
    done: list[bytes] = []
    async with Rig() as rig:
        await rig.queue.enqueue_many("loop", [b"l%d" % i for i in range(300)])
        await rig.queue.enqueue_many("thread", [b"t%d" % i for i in range(300)])
        worker = Worker(rig.queue, concurrency=16)

        @worker.handler("loop")
        async def on_loop(job: JobContext) -> None:
            await asyncio.sleep(0)
            done.append(job.payload)

        @worker.handler("thread")
        def in_thread(job: JobContext) -> None:
            done.append(job.payload)

        await worker.run(until_empty=True, signals=False)
        assert len(done) == len(set(done)) == 600
        stats = [await rig.queue.stats(name) for name in ("loop", "thread")]
        assert [(s.done, s.totals["claimed"]) for s in stats] == [(300, 300)] * 2
    assert not handler_threads()


async def test_a_paused_queue_keeps_the_run_until_it_is_resumed() -> None:
    stage = Stage()
    stage.cue.set()
    async with Rig() as rig:
        await rig.queue.enqueue("q", b"x")
        await rig.queue.pause("q", **WHO)
        worker = Worker(rig.queue)
        worker.handler("q")(stage)
        async with working(worker, until_empty=True) as task:
            await rig.advance(3600)
            assert not task.done()
            await rig.queue.resume("q", **WHO)
        assert stage.ended == [b"x"]


async def test_stop_ends_a_batch_that_is_not_empty() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("q", b"x", delay=1000)
        worker = Worker(rig.queue)
        worker.handler("q")(Stage())
        async with working(worker, until_empty=True):
            worker.stop()


async def test_a_thread_that_outlives_its_time_does_not_begin_again_before_it_ended() -> None:
    stage = ThreadStage()
    async with Rig() as rig:
        await rig.queue.enqueue("q", b"x", max_attempts=1)
        worker = Worker(rig.queue, grace=60)
        worker.handler("q", timeout=1)(stage)
        async with working(worker, until_empty=True) as task:
            await stage.has_begun()
            await rig.advance(1)
            assert (await rig.queue.stats("q")).dead == 1
            assert not task.done(), "the thread has its grace time"
            stage.cue.set()
    assert not handler_threads()


@pytest.mark.parametrize("kind", [LedgerError, StoreUnavailable])
async def test_a_failing_store_ends_the_run_with_its_error(kind: type[LedgerError]) -> None:
    rig = Rig()
    queue = await rig.open()
    await queue.enqueue("q", b"x")
    worker = Worker(queue)
    stage = Stage()
    worker.handler("q")(stage)
    task = asyncio.create_task(worker.run(until_empty=True, signals=False))
    await settle()
    rig.faults.spoil("sync:before", kind("the disk is gone"))
    stage.cue.set()
    await until(task.done)
    with pytest.raises(kind, match="the disk is gone"):
        await task
    assert queue.failure is not None
    await queue.close()
