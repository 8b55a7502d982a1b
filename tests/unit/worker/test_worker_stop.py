"""The end of a worker: by a stop, by a second signal, or done; what it gives back, and that nothing of it is left."""

import asyncio
import gc
import warnings

import pytest

from ledgerq.eventlog.events import Nacked
from ledgerq.eventlog.runtime.threads import DaemonThreads
from ledgerq.worker import worker as worker_module
from ledgerq.worker.claims import Claim
from ledgerq.worker.execution import Handler, JobContext
from ledgerq.worker.running import Runner, Running
from ledgerq.worker.worker import Worker
from tests.support.loops import settle, until
from tests.support.operators import WHO
from tests.support.rig import Rig
from tests.support.workers import Stage, ThreadStage, fetching_ahead, finish, handler_threads, state_of, working


def start(worker: Worker) -> "asyncio.Task[None]":
    """Run the worker; its end is the test's business."""
    return asyncio.create_task(worker.run(signals=False), name="run")


# ---------------------------------------------------------------------- stop


async def test_a_stopped_worker_claims_no_more_and_lets_running_jobs_end() -> None:
    stage = Stage()
    async with Rig() as rig:
        await rig.queue.enqueue_many("q", [b"1", b"2"])
        worker = Worker(rig.queue, concurrency=2, grace=30)
        worker.handler("q")(stage)
        task = start(worker)
        await settle()
        worker.stop()
        await rig.queue.enqueue_many("q", [b"3", b"4"])
        await rig.advance(29)
        assert not task.done()
        assert not stage.cancelled
        stage.cue.set()
        await settle()
        assert task.done()
        await task
        stats = await rig.queue.stats("q")
        assert (stats.done, stats.pending, stats.totals["claimed"]) == (2, 2, 2)


async def test_what_still_runs_after_the_grace_time_is_given_back_and_its_try_is_not_counted() -> None:
    stage = Stage()
    async with Rig() as rig:
        added = await rig.queue.enqueue("q", b"x")
        worker = Worker(rig.queue, grace=7)
        worker.handler("q")(stage)
        task = start(worker)
        await settle()
        worker.stop()
        await settle()
        await rig.advance(6.9)
        assert not stage.cancelled
        await rig.advance(0.1)
        await finish(task)
        assert stage.cancelled == [b"x"]
        assert state_of(await rig.queue.get(added.job_id)) == ("pending", 0, "released: the worker ended")
        (claim,) = await rig.queue.claim("q")
        assert claim.attempt == 1


async def test_claims_that_wait_for_a_slot_are_given_back_at_once_when_the_worker_is_stopped() -> None:
    stage = Stage()
    async with Rig() as rig:
        await rig.queue.enqueue_many("q", [b"1", b"2", b"3"])
        worker = fetching_ahead(Worker(rig.queue, concurrency=1), 2)
        worker.handler("q")(stage)
        async with working(worker):
            assert (await rig.queue.stats("q")).claimed == 3
            worker.stop()
            await settle()
            stats = await rig.queue.stats("q")
            assert (stats.claimed, stats.pending, stats.totals["released"]) == (1, 2, 2)
            stage.cue.set()
        assert stage.started == stage.ended == [b"1"]
        assert [claim.attempt for claim in await rig.queue.claim("q", limit=5)] == [1, 1]


async def test_a_job_that_arrives_while_the_worker_is_being_stopped_is_not_lost() -> None:
    stage = Stage()
    async with Rig() as rig:
        for turns in range(12):
            worker = Worker(rig.queue, concurrency=1, grace=0)
            worker.handler("q")(stage)
            task = start(worker)
            await settle()
            adding = asyncio.create_task(rig.queue.enqueue("q", b"x"))
            await settle(turns)
            worker.stop()
            await settle()
            await finish(task)
            job = await rig.queue.get((await adding).job_id)
            assert (job.state, job.attempt) == ("pending", 0)
            await rig.queue.cancel(job.job_id, **WHO)


async def test_no_grace_time_gives_everything_back_at_once() -> None:
    stage = Stage()
    async with Rig() as rig:
        await rig.queue.enqueue_many("q", [b"1", b"2"])
        worker = fetching_ahead(Worker(rig.queue, concurrency=1, grace=0), 1)
        worker.handler("q")(stage)
        async with working(worker):
            pass
        assert stage.cancelled == [b"1"]
        assert [job.attempt for job in (await rig.queue.jobs("q", state="pending")).jobs] == [0, 0]


async def test_a_second_request_ends_the_grace_time() -> None:
    stage = Stage()
    async with Rig() as rig:
        added = await rig.queue.enqueue("q", b"x")
        worker = Worker(rig.queue, grace=1000)
        worker.handler("q")(stage)
        task = start(worker)
        await settle()
        worker._signalled()
        await settle()
        assert not stage.cancelled
        worker._signalled()
        await finish(task)
        assert stage.cancelled == [b"x"]
        assert state_of(await rig.queue.get(added.job_id)) == ("pending", 0, "released: the worker ended")


async def test_a_handler_that_does_not_end_does_not_keep_the_worker(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(worker_module, "_STUBBORN_WAIT_S", 0.05)
    may_end = asyncio.Event()
    stubborn: list[asyncio.Task[object]] = []

    async def never_mind(job: JobContext) -> None:
        task = asyncio.current_task()
        assert task is not None
        stubborn.append(task)
        while not may_end.is_set():
            try:
                await may_end.wait()
            except asyncio.CancelledError:
                continue

    async with Rig() as rig:
        await rig.queue.enqueue_many("q", [b"1", b"2"])
        worker = fetching_ahead(Worker(rig.queue, concurrency=1, grace=0), 1)
        worker.handler("q")(never_mind)
        task = start(worker)
        await settle()
        worker.stop()
        await finish(task)
        assert "its handler doesn't end" in caplog.text
        stats = await rig.queue.stats("q")
        assert (stats.claimed, stats.pending) == (1, 1), "the one that only waited for the slot was given back"
        may_end.set()
        await asyncio.gather(*stubborn, return_exceptions=True)
        await settle()


# ---------------------------------------------------------------------- nothing is left


async def test_nothing_of_a_worker_is_left_after_its_run() -> None:
    stage, thread_stage = Stage(), ThreadStage()
    stage.cue.set()
    thread_stage.cue.set()
    async with Rig() as rig:
        await settle()
        tasks = asyncio.all_tasks()
        timer = rig.clock.next_due_ms()
        worker = Worker(rig.queue, concurrency=4)
        worker.handler("q", timeout=0.5)(stage)
        worker.handler("threads", timeout=0.5)(thread_stage)
        await rig.queue.enqueue_many("q", [b"x"] * 20)
        await rig.queue.enqueue_many("threads", [b"x"] * 20)
        await worker.run(until_empty=True, signals=False)
        await settle()
        assert {task.get_name() for task in asyncio.all_tasks() - tasks} == set()
        assert not handler_threads()
        assert not rig.queue.on_failure
        assert not rig.queue._core.dispatcher.watchers
        assert rig.clock.next_due_ms() == timer
        assert not [event for event in await rig.events() if isinstance(event, Nacked)]


async def test_a_worker_ends_when_its_last_job_does_and_not_before() -> None:
    stage = Stage()
    async with Rig() as rig:
        await rig.queue.enqueue("q", b"x")
        worker = Worker(rig.queue)
        worker.handler("q")(stage)
        task = asyncio.create_task(worker.run(until_empty=True, signals=False))
        await settle()
        assert not task.done()
        stage.cue.set()
        await until(task.done)
        await task


async def test_a_handler_that_is_stopped_before_its_first_step_leaves_no_coroutine_that_nobody_awaited() -> None:
    begun: list[bytes] = []

    async def handle(job: JobContext) -> None:
        begun.append(job.payload)

    class Stopper:
        """A tracer, since it is called just before the handler's task is made."""

        def begin(self, claim: Claim) -> None:
            asyncio.get_running_loop().call_soon(running.stop, "released")

    threads = DaemonThreads("ledgerq-handler")
    async with Rig() as rig:
        added = await rig.queue.enqueue("q", b"x")
        (claim,) = await rig.queue.claim("q")
        handler = Handler.of("q", handle, None)
        ended: list[Running] = []
        running = Running(Runner(rig.queue, rig.clock, threads, ended.append, Stopper()), claim, handler, 0)
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            running.begin()
            await until(lambda: ended == [running])
            await running.settle()
            gc.collect()
        assert ([str(one.message) for one in warned], begun) == ([], [])
        assert (await rig.queue.get(added.job_id)).state == "pending"
