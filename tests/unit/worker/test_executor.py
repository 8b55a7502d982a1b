"""Plain handlers in an executor of the caller's: in threads of it, and in processes."""

import asyncio
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import pytest

from ledgerq import InvalidArgument, JobContext, QueueOptions, Worker
from tests.support import detached_jobs
from tests.support.rig import Rig

LIMIT_S = 60.0


@pytest.fixture(scope="module")
def threads() -> Iterator[Executor]:
    with ThreadPoolExecutor(2) as executor:
        yield executor


def processes() -> ProcessPoolExecutor:
    """A pool of processes that are no copies of this one, which has threads."""
    return ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn"))


async def run(rig: Rig, executor: Executor, function: Any, payloads: list[bytes]) -> list[tuple[str, str, str]]:
    """Work on these jobs until none is pending; the state, the error and its type of each."""
    jobs = await rig.queue.enqueue_many("q", payloads)
    worker = Worker(rig.queue, concurrency=4, executor=executor)
    worker.handler("q")(function)
    running = asyncio.create_task(worker.run(signals=False))
    while (await rig.queue.stats("q")).pending or (await rig.queue.stats("q")).claimed:
        await asyncio.sleep(0.001)
    worker.stop()
    await running
    found = [await rig.queue.get(job.job_id) for job in jobs]
    return [(job.state, str(job.last_error), job.error_type) for job in found]


async def test_what_a_handler_raises_there_counts_as_it_does_here(threads: Executor) -> None:
    async with asyncio.timeout(LIMIT_S), Rig() as rig:
        payloads = [b"retry", b"snooze", b"value", b"unsendable", b"exit"]
        retry, snooze, value, unsendable, ended = await run(rig, threads, detached_jobs.fail, payloads)
        assert retry == ("scheduled", "the server is busy", "Retry")
        assert snooze[0] == "scheduled"
        assert value[0::2] == ("scheduled", "ValueError")
        assert value[1].startswith("Traceback")
        assert value[1].endswith("ValueError: bad value")
        assert "in fail" in value[1]
        assert "detached.py" not in value[1]
        assert unsendable[0::2] == ("scheduled", "RuntimeError")
        assert unsendable[1].endswith("Unsendable: 1 and 2")
        assert ended[0] == "scheduled"
        assert sorted(job.snoozes for job in (await rig.queue.jobs("q", "scheduled")).jobs) == [0, 0, 0, 0, 1]


@pytest.mark.parametrize("name", ["stop_requested", "state", "enqueue", "kv", "step", "log"])
async def test_what_needs_the_worker_is_refused_there_by_name(threads: Executor, name: str) -> None:
    async with asyncio.timeout(LIMIT_S), Rig() as rig:
        ((state, error, kind),) = await run(rig, threads, detached_jobs.use, [name.encode()])
        assert (state, kind) == ("scheduled", "InvalidState")
        assert f"job.{name} is not there" in error


async def test_async_handlers_and_the_data_of_a_job_are_as_ever(threads: Executor) -> None:
    seen: list[Any] = []

    async def on_the_loop(job: JobContext) -> None:
        seen.append((job.stop_requested, asyncio.get_running_loop() is not None))

    def plain(job: JobContext) -> None:
        seen.append((job.payload, job.headers, job.job_id, job.attempt, job.queue, job.task, job.lease_expires_at))

    async with asyncio.timeout(LIMIT_S), Rig() as rig:
        assert (await run(rig, threads, on_the_loop, [b"x"]))[0][0] == "done"
        assert (await run(rig, threads, plain, [b"y"]))[0][0] == "done"
        job = (await rig.queue.jobs("q", "done")).jobs[-1]
    assert seen[0] == (False, True)
    assert seen[1][:6] == (b"y", {}, job.job_id, 1, "q", None)


async def test_an_executor_that_was_shut_down_ends_the_worker_and_costs_no_try() -> None:
    executor = ThreadPoolExecutor(1)
    executor.shutdown()
    async with asyncio.timeout(LIMIT_S), Rig() as rig:
        jobs = await rig.queue.enqueue_many("q", [b"1", b"2"])
        worker = Worker(rig.queue, executor=executor)
        worker.handler("q")(detached_jobs.fail)
        with pytest.raises(RuntimeError, match="after shutdown"):
            await worker.run(signals=False)
        found = [await rig.queue.get(job.job_id) for job in jobs]
        assert [(job.state, job.attempt) for job in found] == [("pending", 0)] * 2


@pytest.mark.proof
async def test_processes_run_tasks_and_handlers() -> None:
    with processes() as executor:
        async with asyncio.timeout(LIMIT_S), Rig(tasks=detached_jobs.app) as rig:
            worker = Worker(rig.queue, tasks=detached_jobs.app, concurrency=2, executor=executor)
            handles = [await detached_jobs.add.enqueue(first=number, second=1) for number in range(4)]
            await worker.run(until_empty=True, signals=False)
            results = [await handle.result() for handle in handles]
            assert [result[0] for result in results] == [1, 2, 3, 4]
            assert os.getpid() not in {result[1] for result in results}
            (own,) = await run(rig, executor, detached_jobs.process_id, [b""])
            assert own[0] == "dead"
            assert own[1] != str(os.getpid())


@pytest.mark.proof
async def test_a_pool_that_breaks_costs_those_that_ran_a_try_and_ends_the_worker() -> None:
    with processes() as executor:
        async with asyncio.timeout(LIMIT_S), Rig(default=QueueOptions(backoff_base_s=3600.0)) as rig:
            jobs = await rig.queue.enqueue_many("q", [b""] * 5)
            worker = Worker(rig.queue, concurrency=2, prefetch=1, executor=executor)
            worker.handler("q")(detached_jobs.break_pool)
            with pytest.raises(BrokenExecutor):
                await worker.run(signals=False)
            found = [await rig.queue.get(job.job_id) for job in jobs]
            assert {job.state for job in found} <= {"pending", "scheduled"}
            tried = [job for job in found if job.state == "scheduled"]
            assert 1 <= len(tried) <= 2
            assert {job.error_type for job in tried} == {"BrokenProcessPool"}


async def test_what_is_no_executor_or_can_not_be_sent_is_refused() -> None:
    async with Rig() as rig:
        with pytest.raises(InvalidArgument, match="executor is an Executor"):
            Worker(rig.queue, executor=3)  # type: ignore[arg-type]
        with processes() as executor:
            worker = Worker(rig.queue, executor=executor)
            with pytest.raises(InvalidArgument, match="top of a module"):
                worker.handler("q")(lambda job: None)
