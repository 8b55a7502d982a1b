"""A job that is cancelled under its handler, a run that is cancelled, and a queue that ends before its worker."""

import asyncio

import pytest

from ledgerq.eventlog.errors import Fenced, QueueClosed
from ledgerq.eventlog.events import LeaseExpired
from ledgerq.eventlog.memory import MemoryStore
from ledgerq.worker.execution import JobContext
from ledgerq.worker.worker import Worker
from tests.support.loops import settle
from tests.support.operators import WHO
from tests.support.rig import Rig
from tests.support.workers import (
    LIMIT_S,
    Stage,
    ThreadStage,
    fetching_ahead,
    finish,
    handler_threads,
    state_of,
    working,
)


def start(worker: Worker) -> "asyncio.Task[None]":
    """Run the worker; its end is the test's business."""
    return asyncio.create_task(worker.run(signals=False), name="run")


# ---------------------------------------------------------------------- cancellation of a job


async def test_a_job_whose_cancellation_is_requested_is_stopped_and_cancelled() -> None:
    stage = Stage()
    async with Rig() as rig:
        added = await rig.queue.enqueue("q", b"x")
        worker = Worker(rig.queue)
        worker.handler("q")(stage)
        async with working(worker):
            job = await rig.queue.cancel(added.job_id, **WHO)
            assert (job.state, job.cancel_request) == ("claimed", ("ann", "because"))
            await settle()
            assert stage.cancelled == [b"x"]
            job = await rig.queue.get(added.job_id)
            assert state_of(job) == ("cancelled", 1, "stopped: its cancellation was requested")


async def test_a_handler_that_ignores_its_cancellation_and_returns_has_done_the_job() -> None:
    stage = Stage()
    async with Rig() as rig:
        added = await rig.queue.enqueue("q", b"x")
        worker = Worker(rig.queue)

        @worker.handler("q")
        async def finish_anyway(job: JobContext) -> None:
            try:
                await stage(job)
            except asyncio.CancelledError:
                assert job.stop_requested

        async with working(worker):
            await rig.queue.cancel(added.job_id, **WHO)
            await settle()
            assert (await rig.queue.get(added.job_id)).state == "done"


@pytest.mark.parametrize("kind", ["async def", "def"])
async def test_a_job_that_is_cancelled_while_it_waits_for_its_slot_is_never_begun(kind: str) -> None:
    first, second = Stage(), ThreadStage()
    second.cue.set()
    async with Rig() as rig:
        worker = fetching_ahead(Worker(rig.queue, concurrency=1), 1)
        worker.handler("first")(first)
        if kind == "def":
            worker.handler("second")(second)
        else:

            @worker.handler("second")
            async def handle(job: JobContext) -> None:
                second.started.append(job.payload)

        await rig.queue.enqueue("first", b"1")
        async with working(worker):
            added = await rig.queue.enqueue("second", b"2")
            await settle()
            await rig.queue.cancel(added.job_id, **WHO)
            first.cue.set()
            await settle()
            assert (await rig.queue.get(added.job_id)).state == "cancelled"
            assert second.started == []
    assert not handler_threads()


# ---------------------------------------------------------------------- cancelling run()


async def test_cancelling_the_run_gives_back_what_it_holds_and_claims_nothing_more() -> None:
    stage = Stage()
    async with Rig() as rig:
        await rig.queue.enqueue_many("q", [b"%d" % i for i in range(20)])
        worker = fetching_ahead(Worker(rig.queue, concurrency=2), 1)
        worker.handler("q")(stage)
        task = start(worker)
        await settle()
        assert (await rig.queue.stats("q")).claimed == 3
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await finish(task)
        stats = await rig.queue.stats("q")
        assert (stats.pending, stats.claimed, stats.totals["released"]) == (20, 0, 3)
        assert sorted(stage.cancelled) == [b"0", b"1"]
        assert len(stage.started) == 2


async def test_cancelling_the_run_during_its_grace_time_gives_back_at_once() -> None:
    stage = Stage()
    async with Rig() as rig:
        added = await rig.queue.enqueue("q", b"x")
        worker = Worker(rig.queue, grace=1000)
        worker.handler("q")(stage)
        task = start(worker)
        await settle()
        worker.stop()
        await settle()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await finish(task)
        assert (await rig.queue.get(added.job_id)).state == "pending"


async def test_a_run_inside_a_task_group_ends_with_its_group() -> None:
    stage = Stage()
    async with Rig() as rig:
        await rig.queue.enqueue("q", b"x")
        worker = Worker(rig.queue)
        worker.handler("q")(stage)
        with pytest.raises(ExceptionGroup):
            async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as group:
                group.create_task(worker.run(signals=False))
                await settle()
                raise ValueError("something else failed")
        assert (await rig.queue.stats("q")).pending == 1


# ---------------------------------------------------------------------- the queue ends first


@pytest.mark.parametrize("busy", [False, True])
async def test_a_fenced_worker_raises_fenced_cancels_its_handlers_and_settles_nothing(
    busy: bool, caplog: pytest.LogCaptureFixture
) -> None:
    stage = Stage()
    rig = Rig()
    queue = await rig.open()
    if busy:
        await queue.enqueue_many("q", [b"x", b"y"])
    worker = fetching_ahead(Worker(queue, concurrency=1, grace=1000), 1)
    worker.handler("q")(stage)
    task = start(worker)
    await settle()
    before = await rig.events()
    MemoryStore(rig.disk)
    await rig.advance(1)  # an idle writer polls once a second
    with pytest.raises(Fenced):
        await finish(task)
    assert stage.cancelled == ([b"x"] if busy else [])
    assert stage.started == stage.cancelled
    assert await rig.events() == before
    assert "the worker ends: " in caplog.text
    assert not queue.on_failure
    await queue.close()
    await settle()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    await rig.open()
    expired = [event.reason for event in await rig.events() if isinstance(event, LeaseExpired)]
    assert expired == ["interrupted"] * (2 if busy else 0)
    await rig.queue.close()


async def test_a_result_that_meets_a_fenced_store_ends_the_worker() -> None:
    stage = Stage()
    rig = Rig()
    queue = await rig.open()
    await queue.enqueue("q", b"x")
    worker = Worker(queue)
    worker.handler("q")(stage)
    task = start(worker)
    await settle()
    MemoryStore(rig.disk)
    stage.cue.set()
    with pytest.raises(Fenced):
        await finish(task)
    await queue.close()
    await rig.open()
    assert (await rig.queue.stats("q")).pending == 1
    await rig.queue.close()


@pytest.mark.parametrize("busy", [False, True])
async def test_a_worker_whose_queue_is_closed_says_so(busy: bool) -> None:
    stage = Stage()
    async with Rig() as rig:
        if busy:
            await rig.queue.enqueue("q", b"x")
        worker = Worker(rig.queue, concurrency=1)
        worker.handler("q")(stage)
        task = start(worker)
        await settle()
        await rig.queue.close()
        with pytest.raises(QueueClosed):
            await finish(task)
        assert stage.cancelled == ([b"x"] if busy else [])
