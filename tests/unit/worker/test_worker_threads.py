"""Plain handlers: a thread can't be cancelled. It keeps its slot until it ends; its late result doesn't count."""

import asyncio
import gc
import threading
import weakref

import pytest

from ledgerq.eventlog.errors import Fenced
from ledgerq.eventlog.memory import MemoryStore
from ledgerq.eventlog.runtime.threads import DaemonThreads
from ledgerq.worker import worker as worker_module
from ledgerq.worker.execution import JobContext
from ledgerq.worker.worker import Worker
from tests.support.loops import settle
from tests.support.operators import WHO
from tests.support.rig import Rig
from tests.support.workers import LIMIT_S, ThreadStage, fetching_ahead, finish, handler_threads, state_of, working


@pytest.fixture(autouse=True)
def no_threads_left() -> object:
    yield
    assert not handler_threads()


async def test_a_thread_that_takes_too_long_keeps_its_slot_and_its_result_does_not_count() -> None:
    stage = ThreadStage()
    async with Rig() as rig:
        first = await rig.queue.enqueue("q", b"1")
        worker = Worker(rig.queue, concurrency=1, prefetch=0)
        worker.handler("q", timeout=3)(stage)
        async with working(worker):
            await stage.has_begun()
            assert not stage.jobs[0].stop_requested
            await rig.advance(3)
            assert stage.jobs[0].stop_requested
            assert state_of(await rig.queue.get(first.job_id)) == ("scheduled", 1, "timed out after 3 s")
            second = await rig.queue.enqueue("q", b"2", priority=0)
            await settle()
            assert (await rig.queue.get(second.job_id)).state == "pending", "the slot is taken"
            stage.cue.set()
            await stage.has_begun()
            while (await rig.queue.get(second.job_id)).state != "done":
                await asyncio.sleep(0.001)
            assert stage.ended == [b"1", b"2"]
            assert state_of(await rig.queue.get(first.job_id)) == ("scheduled", 1, "timed out after 3 s")


async def test_a_thread_whose_job_is_cancelled_is_told_and_the_job_is_cancelled_at_once() -> None:
    stage = ThreadStage()
    async with Rig() as rig:
        added = await rig.queue.enqueue("q", b"x")
        worker = Worker(rig.queue)
        worker.handler("q")(stage)
        async with working(worker):
            await stage.has_begun()
            await rig.queue.cancel(added.job_id, **WHO)
            await settle()
            assert stage.jobs[0].stop_requested
            assert (await rig.queue.get(added.job_id)).state == "cancelled"
            stage.cue.set()
        assert (await rig.queue.get(added.job_id)).state == "cancelled"


async def test_a_thread_whose_task_is_cancelled_from_outside_is_told_and_keeps_its_slot() -> None:
    stage = ThreadStage()
    async with Rig() as rig:
        await rig.queue.enqueue("q", b"x")
        worker = Worker(rig.queue, concurrency=1)
        worker.handler("q")(stage)
        async with working(worker):
            await stage.has_begun()
            next(task for task in asyncio.all_tasks() if task.get_name() == "ledgerq-q").cancel()
            await settle()
            assert stage.jobs[0].stop_requested
            assert stage.started == [b"x"]
            stage.cue.set()
            await stage.has_begun()
        assert stage.started == [b"x", b"x"]


async def test_what_a_thread_returned_is_not_kept_until_the_outcome_is_durable() -> None:
    returned: list[weakref.ref[threading.Event]] = []
    async with Rig() as rig:
        await rig.queue.enqueue_many("q", [b"1", b"2"])
        worker = Worker(rig.queue)

        @worker.handler("q")
        def handle(job: JobContext) -> threading.Event:
            result = threading.Event()
            returned.append(weakref.ref(result))
            return result

        task = asyncio.create_task(worker.run(until_empty=True, signals=False))
        while len(worker._slots.held) < 2:
            await asyncio.sleep(0)
        rig.faults.hold("sync:before")
        async with asyncio.timeout(LIMIT_S):
            while worker._slots.settling.jobs < 2 or any(result() for result in returned):
                await asyncio.sleep(0.001)
                gc.collect()
        rig.faults.let_go("sync:before")
        await finish(task)


async def test_a_thread_that_outlives_the_grace_time_is_left_and_its_job_given_back() -> None:
    stage = ThreadStage()
    async with Rig() as rig:
        added = await rig.queue.enqueue("q", b"x")
        worker = Worker(rig.queue, grace=5)
        worker.handler("q")(stage)
        task = asyncio.create_task(worker.run(signals=False))
        await stage.has_begun()
        worker.stop()
        await settle()
        await rig.advance(5)
        await finish(task)
        assert stage.jobs[0].stop_requested
        assert state_of(await rig.queue.get(added.job_id)) == ("pending", 0, "released: the worker ended")
        stage.cue.set()


async def test_a_thread_past_its_time_does_not_keep_a_stopped_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "_STUBBORN_WAIT_S", 0.05)
    stage = ThreadStage()
    async with Rig() as rig:
        await rig.queue.enqueue_many("q", [b"1", b"2"])
        worker = fetching_ahead(Worker(rig.queue, concurrency=1, grace=5), 1)
        worker.handler("q", timeout=1)(stage)
        task = asyncio.create_task(worker.run(signals=False))
        await stage.has_begun()
        await rig.advance(1)
        worker.stop()
        await settle()
        await rig.advance(5)
        await finish(task)
        stage.cue.set()
        assert (await rig.queue.stats("q")).claimed == 0
        assert sorted(job.error for job in (await rig.queue.jobs("q")).jobs) == [
            "released: the worker ended",
            "timed out after 1 s",
        ]


async def test_a_fenced_worker_does_not_wait_for_its_threads_forever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "_STUBBORN_WAIT_S", 0.05)
    stage = ThreadStage()
    rig = Rig()
    queue = await rig.open()
    await queue.enqueue("q", b"x")
    worker = Worker(queue)
    worker.handler("q")(stage)
    task = asyncio.create_task(worker.run(signals=False))
    await stage.has_begun()
    MemoryStore(rig.disk)
    await rig.advance(1)
    with pytest.raises(Fenced):
        await finish(task)
    assert stage.jobs[0].stop_requested
    stage.cue.set()
    await queue.close()


async def test_threads_run_side_by_side_up_to_the_concurrency() -> None:
    together = threading.Barrier(3)
    async with Rig() as rig:
        await rig.queue.enqueue_many("q", [b""] * 9)
        worker = Worker(rig.queue, concurrency=3)

        @worker.handler("q")
        def meet(job: JobContext) -> None:
            together.wait(LIMIT_S)

        await worker.run(until_empty=True, signals=False)
        assert (await rig.queue.stats("q")).done == 9


async def test_a_thread_is_used_again_so_what_it_keeps_for_itself_stays() -> None:
    names: set[str] = set()
    async with Rig() as rig:
        await rig.queue.enqueue_many("q", [b""] * 50)
        worker = Worker(rig.queue, concurrency=2)

        @worker.handler("q")
        def note(job: JobContext) -> None:
            names.add(threading.current_thread().name)

        await worker.run(until_empty=True, signals=False)
        assert 1 <= len(names) <= 2


async def test_a_plain_handler_may_raise_what_no_future_takes() -> None:
    async with Rig() as rig:
        added = await rig.queue.enqueue("q", b"x", max_attempts=1)
        worker = Worker(rig.queue)

        @worker.handler("q")
        def first_of_nothing(job: JobContext) -> None:
            next(iter([]))

        async with asyncio.timeout(LIMIT_S):
            await worker.run(until_empty=True, signals=False)
        job = await rig.queue.get(added.job_id)
        assert job.state == "dead"
        assert "StopIteration" in job.error


def test_a_thread_does_not_keep_the_process_and_forgets_what_it_was_given() -> None:
    threads = DaemonThreads("ledgerq-handler")
    assert threads.submit(lambda: threading.current_thread().daemon).result(LIMIT_S)
    failing = threads.submit(int, "x")
    with pytest.raises(ValueError, match="invalid literal"):
        failing.result(LIMIT_S)
    threads.shutdown()


@pytest.mark.parametrize("fails", [False, True])
def test_a_thread_is_idle_when_the_end_of_its_call_is_known(fails: bool) -> None:
    """However soon the next call comes, it needs no thread more: here it comes from within the callback of the end."""
    threads = DaemonThreads("ledgerq-handler")
    names: list[str] = []
    ended = threading.Event()

    def call() -> None:
        names.append(threading.current_thread().name)
        if fails:
            raise ValueError("it was no good")

    def submit_next(_: object) -> None:
        if len(names) == 20:
            ended.set()
        else:
            threads.submit(call).add_done_callback(submit_next)

    submit_next(None)
    assert ended.wait(LIMIT_S)
    threads.shutdown()
    assert set(names) == {"ledgerq-handler-0"}


def test_calls_that_run_at_the_same_time_have_a_thread_each() -> None:
    threads = DaemonThreads("ledgerq-handler")
    together = threading.Barrier(5)
    calls = [threads.submit(together.wait, LIMIT_S) for _ in range(5)]
    assert sorted(call.result(LIMIT_S) for call in calls) == [0, 1, 2, 3, 4]
    threads.shutdown()


@pytest.mark.parametrize("late", [False, True])
async def test_a_thread_that_raises_is_told_once_whenever_it_does(late: bool) -> None:
    told: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["message"]))
    begun, cue = asyncio.Event(), threading.Event()
    async with Rig() as rig:
        await rig.queue.enqueue("q", b"x", max_attempts=1)
        worker = Worker(rig.queue)
        loop = asyncio.get_running_loop()

        @worker.handler("q", timeout=1)
        def fail(job: JobContext) -> None:
            loop.call_soon_threadsafe(begun.set)
            assert cue.wait(LIMIT_S)
            raise RuntimeError("boom")

        async with working(worker):
            await begun.wait()
            if late:
                await rig.advance(1)
            cue.set()
            async with asyncio.timeout(LIMIT_S):
                while (await rig.queue.stats("q")).dead == 0:
                    await asyncio.sleep(0.001)
    gc.collect()
    await settle()
    assert told == []
