"""What tests of programs with tasks use: a queue in memory that runs its jobs when asked, and tasks without a queue."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ledgerq.eventlog.errors import InvalidArgument, JobFailed, QueueClosed
from ledgerq.testing import memory_queue
from ledgerq.worker.execution import JobContext
from ledgerq.worker.options import QueueOptions
from ledgerq.worker.retry_rules import on
from ledgerq.worker.tasks.calling import CallNext
from ledgerq.worker.tasks.registry import Tasks

LIMIT_S = 30

app = Tasks()
tries: list[int] = []


@app.task(queue="mail", retry=[on(ConnectionError, attempts=5, base=100)])
async def send(user_id: int, text: str = "hello") -> str:
    tries.append(user_id)
    if tries.count(user_id) < user_id:
        raise ConnectionError("the server is down")
    return f"{text} {user_id}"


@app.task()
async def send_all(count: int) -> list[str]:
    handles = await send.enqueue_many([{"user_id": 1, "text": f"{at}"} for at in range(count)])
    return await asyncio.gather(*handles)


@pytest.fixture(autouse=True)
def anew() -> None:
    tries.clear()


async def test_drain_runs_jobs_and_their_retries_to_the_end_by_moving_the_clock() -> None:
    async with memory_queue(app) as queue, asyncio.timeout(LIMIT_S):
        began_ms = queue.clock.now_ms()
        handle = await send.enqueue(4)
        later = await send.options(delay=3600).enqueue(1)
        await queue.drain()
        assert (await handle, await later) == ("hello 4", "hello 1")
        assert tries == [4, 4, 4, 4, 1]
        assert queue.clock.now_ms() == began_ms + 3_600_000


async def test_drain_is_the_same_each_time() -> None:
    seen = []
    for _ in range(2):
        tries.clear()
        async with memory_queue(app) as queue, asyncio.timeout(LIMIT_S):
            await send.enqueue_many([{"user_id": at} for at in range(1, 5)])
            await queue.drain()
            seen.append(([(r.offset, r.time_ms, r.event) async for r in queue.log.read(1)], [*tries]))
    assert seen[0] == seen[1]


async def test_drain_runs_what_jobs_enqueue() -> None:
    async with memory_queue(app) as queue, asyncio.timeout(LIMIT_S):
        handle = await send_all.enqueue(5)
        await queue.drain()
        assert await handle == [f"{at} 1" for at in range(5)]


@pytest.mark.parametrize("delay", [0, 3600])
async def test_a_task_may_wait_for_one_that_is_due_later(delay: float) -> None:
    own = Tasks()

    @own.task()
    async def child(job: JobContext) -> int:
        if job.attempt == 1:
            raise ConnectionError("not yet")
        return job.attempt

    @own.task()
    async def parent() -> int:
        return await (await child.options(delay=delay).enqueue())

    async with memory_queue(own) as queue, asyncio.timeout(LIMIT_S):
        handle = await parent.enqueue()
        await queue.drain()
        assert await handle == 2


async def test_drain_goes_no_further_than_to_a_time() -> None:
    async with memory_queue(app) as queue, asyncio.timeout(LIMIT_S):
        began = datetime.fromtimestamp(queue.clock.now_ms() / 1000, UTC)
        handle = await send.options(run_at=began + timedelta(hours=1)).enqueue(1)
        await queue.drain(now=began + timedelta(minutes=59))
        assert (await queue.get(handle.job_id)).state == "scheduled"
        assert queue.clock.now_ms() == 59 * 60_000 + began.timestamp() * 1000
        await queue.drain(now=began + timedelta(hours=1))
        assert await handle == "hello 1"
        with pytest.raises(InvalidArgument, match="now is a datetime with a time zone"):
            await queue.drain(now=datetime(2026, 1, 1))
        await queue.drain()


async def test_a_job_that_dies_does_not_end_drain() -> None:
    async with memory_queue(app) as queue, asyncio.timeout(LIMIT_S):
        handle, other = await send.enqueue(9), await send.enqueue(1)
        await queue.drain()
        with pytest.raises(JobFailed) as caught:
            await handle
        assert (caught.value.error_type, tries.count(9), await other) == ("ConnectionError", 5, "hello 1")


async def test_paused_queues_wait() -> None:
    async with memory_queue(app) as queue, asyncio.timeout(LIMIT_S):
        handle = await send.enqueue(1)
        await queue.pause("mail", actor="ada", reason="test")
        await queue.drain()
        await queue.resume("mail", actor="ada", reason="test")
        await queue.drain()
        assert await handle == "hello 1"


async def test_a_job_for_no_task_does_not_hold_drain_for_ever() -> None:
    async with memory_queue(app) as queue, asyncio.timeout(LIMIT_S):
        await queue.enqueue("mail", b"{}", task="unknown")
        with pytest.raises(InvalidArgument, match="is for the task 'unknown', which these tasks don't have"):
            await queue.drain()


async def test_what_was_enqueued_is_found_by_some_of_its_arguments() -> None:
    async with memory_queue(app) as queue:
        first, second = await send.enqueue(3, text="a"), await send.enqueue(user_id=3, text="b")
        assert [handle.job_id for handle in queue.enqueued(send)] == [first.job_id, second.job_id]
        assert [handle.job_id for handle in queue.enqueued(send, user_id=3, text="b")] == [second.job_id]
        assert len(queue.enqueued(send, 3)) == 2
        assert not queue.enqueued(send, user_id=4)
        assert not queue.enqueued(send_all)
        with pytest.raises(InvalidArgument, match="unexpected keyword argument 'nobody'"):
            queue.enqueued(send, nobody=1)


async def test_a_failing_lifespan_is_what_drain_raises() -> None:
    broken = Tasks()
    broken.task()(send.function)

    @broken.lifespan
    async def resources() -> Any:
        raise RuntimeError("no database")
        yield

    async with memory_queue(broken) as queue, asyncio.timeout(LIMIT_S):
        with pytest.raises(RuntimeError, match="no database"):
            await queue.drain()


async def test_options_of_queues_are_those_of_open() -> None:
    options = QueueOptions(max_attempts=1)
    async with memory_queue(app, queues={"mail": options}) as queue:
        assert queue.options("mail") is options
    with pytest.raises(QueueClosed):
        await queue.drain()


# Without a queue


async def test_inline_tasks_run_in_the_call_that_enqueues_them() -> None:
    with app.inline():
        handle = await send.enqueue(1, text="now")
        assert tries == [1]
        assert await handle == "now 1"
        assert await handle.result(timeout=0) == "now 1"
        assert await (await send_all.enqueue(3)) == ["0 1", "1 1", "2 1"]
        failed = await send.enqueue(2)
        with pytest.raises(JobFailed, match="the server is down") as caught:
            await failed
        assert isinstance(caught.value.__cause__, ConnectionError)
        with pytest.raises(InvalidArgument):
            await send.enqueue("x")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="no queue is open"):
        await send.enqueue(1)


async def test_inline_tasks_have_middleware_options_and_a_state() -> None:
    own = Tasks()

    @own.use
    async def doubled(job: JobContext, call_next: CallNext) -> Any:
        return 2 * await call_next(job)

    @own.task(max_attempts=7)
    def work(job: JobContext, x: int) -> int:
        assert (job.task, job.queue, job.attempt, job.max_attempts) == ("work", "default", 1, 7)
        return x + int(job.state) + len(job.headers["a"])

    with own.inline(state=100):
        assert await (await work.options(headers={"a": "bcd"}).enqueue(5)) == 216
        assert [await handle for handle in await work.options(headers={"a": ""}).enqueue_many([{"x": 1}])] == [202]


pytest_plugins = ["ledgerq.pytest_plugin"]


@pytest.fixture
def ledgerq_tasks() -> Tasks:
    return app


async def test_the_plugin_has_a_queue(ledgerq_queue: Any) -> None:
    handle = await send.enqueue(1)
    await ledgerq_queue.drain()
    assert await handle == "hello 1"
