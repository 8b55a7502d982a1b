"""The bounds of a worker: its slots, its claims, and the time that its handlers have."""

import asyncio

import pytest

from ledgerq.eventlog.events import Claimed
from ledgerq.worker.execution import JobContext
from ledgerq.worker.options import QueueOptions
from ledgerq.worker.worker import Worker
from tests.support.loops import settle
from tests.support.operators import WHO
from tests.support.rig import Rig
from tests.support.workers import Stage, fetching_ahead, state_of, working


async def test_no_more_handlers_run_than_the_concurrency_says() -> None:
    stage = Stage()
    async with Rig() as rig:
        await rig.queue.enqueue_many("q", [b"%d" % i for i in range(10)])
        worker = fetching_ahead(Worker(rig.queue, concurrency=3), 2)
        worker.handler("q")(stage)
        async with working(worker, until_empty=True):
            assert stage.started == [b"0", b"1", b"2"]
            stage.cue.set()
        assert stage.peak == 3
        assert stage.ended == [b"%d" % i for i in range(10)]


@pytest.mark.parametrize(("concurrency", "ahead"), [(1, 0), (3, 2), (8, 2), (1, 20)])
async def test_the_claims_held_never_exceed_the_concurrency_and_those_fetched_ahead(
    concurrency: int, ahead: int
) -> None:
    held: list[int] = []
    cues = [asyncio.Event() for _ in range(30)]
    async with Rig() as rig:
        worker = fetching_ahead(Worker(rig.queue, concurrency=concurrency), ahead)

        @worker.handler("q")
        async def wait(job: JobContext) -> None:
            held.append((await rig.queue.stats("q")).claimed)
            await cues[int(job.payload)].wait()
            held.append((await rig.queue.stats("q")).claimed)

        await rig.queue.enqueue_many("q", [b"%d" % i for i in range(30)])
        async with working(worker, until_empty=True):
            for cue in cues:
                await settle()
                held.append((await rig.queue.stats("q")).claimed)
                cue.set()
        assert max(held) == concurrency + ahead
        assert (await rig.queue.stats("q")).done == 30


async def test_a_worker_serves_several_queues_each_with_its_own_handler() -> None:
    served: list[tuple[str, str, bytes]] = []
    async with Rig() as rig:
        worker = Worker(rig.queue, concurrency=2)

        @worker.handler("a")
        async def first(job: JobContext) -> None:
            served.append(("first", job.queue, job.payload))

        @worker.handler("b")
        async def second(job: JobContext) -> None:
            served.append(("second", job.queue, job.payload))

        async with working(worker):
            for name in ("b", "a", "b", "unserved"):
                await rig.queue.enqueue(name, name.encode())
            await settle()
        assert served == [("second", "b", b"b"), ("first", "a", b"a"), ("second", "b", b"b")]
        assert (await rig.queue.stats("unserved")).pending == 1


async def test_the_log_says_which_worker_claimed() -> None:
    async with Rig() as rig:
        for name in (None, "the first", "x" * 1000):
            await rig.queue.enqueue("q", b"")
            worker = Worker(rig.queue, name=name, grace=0)
            worker.handler("q")(Stage())
            async with working(worker):
                pass
            (job,) = (await rig.queue.jobs("q")).jobs
            await rig.queue.cancel(job.job_id, **WHO)
            await rig.advance(24 * 3600)
        names = [event.worker for event in await rig.events() if isinstance(event, Claimed)]
        assert names[:2] == [None, "the first"]
        assert names[2] is not None
        assert len(names[2]) == 255


async def test_an_idle_worker_starts_a_job_as_soon_as_it_is_enqueued() -> None:
    stage = Stage()
    stage.cue.set()
    async with Rig() as rig:
        worker = Worker(rig.queue, concurrency=1)
        worker.handler("q")(stage)
        async with working(worker):
            await rig.queue.enqueue("q", b"now")
            await rig.queue.enqueue("q", b"later", delay=5)
            await settle()
            assert stage.ended == [b"now"]
            await rig.advance(4.9)
            assert stage.ended == [b"now"]
            await rig.advance(0.1)
            assert stage.ended == [b"now", b"later"]


async def test_no_handler_starts_before_its_claim_is_durable() -> None:
    stage = Stage()
    async with Rig() as rig:
        worker = Worker(rig.queue)
        worker.handler("q")(stage)
        async with working(worker):
            rig.faults.hold("sync:before")
            adding = asyncio.create_task(rig.queue.enqueue("q", b"x"))
            await settle()
            assert not stage.started
            rig.faults.let_go("sync:before")
            await adding
            await settle()
            assert stage.started == [b"x"]
            assert [event for event in await rig.events() if isinstance(event, Claimed)]
            stage.cue.set()
            await settle()


# ---------------------------------------------------------------------- time-outs


async def test_a_handler_that_takes_too_long_is_cancelled_and_the_try_has_failed() -> None:
    stage = Stage()
    async with Rig() as rig:
        added = await rig.queue.enqueue("q", b"slow")
        worker = Worker(rig.queue)
        worker.handler("q", timeout=2.5)(stage)
        async with working(worker):
            await rig.advance(2.4)
            assert not stage.cancelled
            await rig.advance(0.1)
            assert stage.cancelled == [b"slow"]
            assert state_of(await rig.queue.get(added.job_id)) == ("scheduled", 1, "timed out after 2.5 s")


async def test_the_time_counts_from_the_handlers_start_not_from_the_claim() -> None:
    stage = Stage()
    async with Rig(default=QueueOptions(max_attempts=1)) as rig:
        await rig.queue.enqueue_many("q", [b"1", b"2"])
        worker = fetching_ahead(Worker(rig.queue, concurrency=1), 1)
        worker.handler("q", timeout=4)(stage)
        async with working(worker):
            assert (await rig.queue.stats("q")).claimed == 2
            await rig.advance(4)
            assert (stage.cancelled, stage.started) == ([b"1"], [b"1", b"2"])
            await rig.advance(3)
            assert stage.cancelled == [b"1"]
            await rig.advance(1)
            assert stage.cancelled == [b"1", b"2"]


async def test_a_handler_in_time_leaves_no_timer_behind() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("q", b"")
        worker = Worker(rig.queue)
        stage = Stage()
        stage.cue.set()
        worker.handler("q", timeout=0.25)(stage)
        async with working(worker):
            before = await rig.queue.stats("q")
            await rig.advance(1)
            assert await rig.queue.stats("q") == before
            assert before.done == 1
