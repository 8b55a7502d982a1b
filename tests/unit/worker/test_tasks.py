"""Tasks: registered once, enqueued with their arguments, run by a worker, and waited for."""

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from ledgerq.eventlog.errors import (
    InvalidArgument,
    InvalidQueueName,
    JobCancelled,
    JobFailed,
    ResultGone,
)
from ledgerq.eventlog.events import Enqueued, Nacked
from ledgerq.eventlog.terms import Terms, encode_terms
from ledgerq.worker.execution import JobContext
from ledgerq.worker.options import NewJob, QueueOptions
from ledgerq.worker.outcomes import Dead, Retry, TaskMissing
from ledgerq.worker.queue import Queue
from ledgerq.worker.retry_rules import on
from ledgerq.worker.tasks.calling import CallNext
from ledgerq.worker.tasks.registry import Tasks
from ledgerq.worker.tasks.task_handlers import TaskHandlers
from ledgerq.worker.worker import Worker
from tests.support.loops import settle
from tests.support.rig import Rig
from tests.support.workers import LIMIT_S, handler_threads, working


async def run(rig: Rig, app: Tasks, awaited: Any) -> Any:
    """What is awaited, with a worker for the tasks at work; errors are returned."""
    async with working(Worker(rig.queue, tasks=app)), asyncio.timeout(LIMIT_S):
        try:
            return await awaited
        except Exception as error:
            return error


async def test_a_task_runs_with_its_arguments_and_its_result_comes_back() -> None:
    app = Tasks()

    @app.task(queue="mail")
    async def send(user_id: int, tenant: str = "none") -> list[str]:
        return [tenant, str(user_id)]

    async with Rig(tasks=app) as rig:
        handle = await send.enqueue(user_id=3, tenant="acme")
        assert handle.created
        assert await run(rig, app, handle.result(timeout=30)) == ["acme", "3"]
        job = await rig.queue.get(handle.job_id)
        assert (job.queue, job.task, job.state) == ("mail", "send", "done")
        assert (await rig.queue.payload(handle.job_id)).payload == b'{"user_id":3,"tenant":"acme"}'
        assert await rig.queue.result(handle.job_id) == b'["acme","3"]'


async def test_a_plain_function_runs_in_a_thread_and_may_take_the_job() -> None:
    app = Tasks()

    @app.task()
    def work(job: JobContext, x: int) -> str:
        assert threading.current_thread() is not threading.main_thread()
        return f"{job.task} {job.attempt} {x}"

    async with Rig(tasks=app) as rig:
        assert await run(rig, app, await work.enqueue(5)) == "work 1 5"
    assert not handler_threads()


async def test_all_results_are_gathered_and_none_writes_nothing() -> None:
    app = Tasks()

    @app.task()
    async def half(x: int) -> int | None:
        return x // 2 if x % 2 == 0 else None

    async with Rig(tasks=app) as rig:
        handles = await half.enqueue_many([{"x": x} for x in range(200)])
        wanted = [x // 2 if x % 2 == 0 else None for x in range(200)]
        assert await run(rig, app, asyncio.gather(*handles)) == wanted
        assert len(rig.queue._core.end_waits.waiters) == 0
        assert (await rig.queue.get(handles[1].job_id)).result is None


async def test_a_restart_keeps_results_and_a_handle_finds_them() -> None:
    app = Tasks()

    @app.task()
    async def half(x: int) -> float:
        return x / 2

    async with Rig(tasks=app) as rig:
        handle = await half.enqueue(5)
        await run(rig, app, handle)
        await rig.reopen()
        assert await rig.queue.handle(handle.job_id).result() == 2.5
        assert await half.handle(handle.job_id) == 2.5
        await rig.reopen(tasks=None)
        assert await rig.queue.handle(handle.job_id) == b"2.5"


# How a wait ends when the job does not


async def test_a_dead_job_fails_its_handle_with_type_and_text() -> None:
    app = Tasks()

    @app.task(max_attempts=1)
    async def fail() -> None:
        raise ZeroDivisionError("by nothing")

    async with Rig(tasks=app) as rig:
        error = await run(rig, app, await fail.enqueue())
        assert isinstance(error, JobFailed)
        assert error.error_type == "ZeroDivisionError"
        assert error.text.endswith("ZeroDivisionError: by nothing")
        assert str(error) == f"job {error.job_id} is dead: ZeroDivisionError: by nothing"


async def test_cancelled_and_swept_jobs_are_told_apart() -> None:
    app = Tasks()

    @app.task()
    async def work() -> int:
        return 1

    async with Rig(tasks=app, default=QueueOptions(keep_done_s=60)) as rig:
        cancelled = await work.options(delay=60).enqueue()
        await rig.queue.cancel(cancelled.job_id, actor="ada", reason="test")
        with pytest.raises(JobCancelled, match="was cancelled"):
            await cancelled.result()
        done = await work.enqueue()
        assert await run(rig, app, done) == 1
        await rig.advance(61)
        with pytest.raises(ResultGone, match="it was swept"):
            await done.result()


async def test_a_wait_that_is_over_is_a_timeout_by_the_queues_clock() -> None:
    app = Tasks()

    @app.task()
    async def work() -> None: ...

    async with Rig(tasks=app) as rig:
        handle = await work.enqueue()
        waiting = asyncio.create_task(handle.result(timeout=30))
        await settle()
        await rig.advance(29.9)
        assert not waiting.done()
        await rig.advance(0.1)
        with pytest.raises(TimeoutError):
            await waiting


# Options


async def test_options_are_those_of_enqueue_and_the_task_has_its_own() -> None:
    app = Tasks()

    @app.task(queue="mail", name="mail.send", max_attempts=5)
    async def send(x: int) -> None: ...

    async with Rig(tasks=app) as rig:
        await send.enqueue(1)
        keyed = send.options(priority=7, unique_key="k", headers={"a": "b"}, max_attempts=9).options(delay=60)
        first, again = await keyed.enqueue(2), await keyed.enqueue(2)
        assert (again.job_id, first.created, again.created) == (first.job_id, True, False)
        one, two = [event for event in await rig.events() if isinstance(event, Enqueued)]
        assert (one.queue, one.max_attempts, one.priority, one.due_ms) == ("mail", 5, 1000, 0)
        assert (two.max_attempts, two.priority, two.due_ms - rig.clock.now_ms()) == (9, 7, 60_000)
        assert one.terms == encode_terms(Terms("mail.send"))
        assert (await rig.queue.payload(first.job_id)).headers == {"a": "b"}


async def test_bad_arguments_are_refused_before_anything_is_written() -> None:
    app = Tasks()

    @app.task()
    async def work(x: int) -> None: ...

    calls: list[Any] = [work.enqueue("x"), work.enqueue_many([{"x": 1}, {"y": 1}]), work.enqueue_many([3])]  # type: ignore
    async with Rig(tasks=app) as rig:
        for call in calls:
            with pytest.raises(InvalidArgument, match=r"don't fit|by their names"):
                await call
        assert await rig.queue.queues() == []


# Registering


def test_what_can_not_be_a_task_is_refused() -> None:
    app = Tasks()

    def work() -> None: ...

    def generator() -> Any:
        yield

    app.task()(work)
    with pytest.raises(InvalidArgument, match="a task 'work' already"):
        app.task()(work)
    app.task(name="other")(work)
    things: list[Any] = [generator, 3, None]
    for thing in things:
        with pytest.raises(InvalidArgument, match="a task is a function without yield"):
            app.task(name="new")(thing)
    with pytest.raises(InvalidArgument, match="with parentheses"):
        app.task(work)  # type: ignore[arg-type]
    with pytest.raises(InvalidQueueName):
        app.task(queue="")
    with pytest.raises(InvalidArgument, match="a task's name is text"):
        app.task(name="")(work)
    wrong: list[dict[str, Any]] = [{"timeout": -1}, {"max_attempts": 0}, {"retry": [ValueError]}]
    for options in wrong:
        with pytest.raises(InvalidArgument, match=next(iter(options))):
            app.task(**options)


async def test_the_queue_that_is_open_is_enqueued_to() -> None:
    app = Tasks()

    @app.task()
    async def work() -> None: ...

    with pytest.raises(InvalidArgument, match=r"open one with Queue.open\(url, tasks=app\)"):
        await work.enqueue()
    async with Rig(tasks=app) as one:
        await work.enqueue()
        async with Queue.open("memory:///", tasks=app) as two:
            with pytest.raises(InvalidArgument, match=r"several queues are open.*task.options\(queue=queue\)"):
                await work.enqueue()
            await work.options(queue=two).enqueue()
            app.bind(two)
            await work.enqueue()
            assert [(await queue.stats("default")).pending for queue in (one.queue, two)] == [1, 2]
        with pytest.raises(InvalidArgument, match="only a queue that is open"):
            app.bind(two)
        await work.enqueue()
        assert (await one.queue.stats("default")).pending == 2


async def test_a_queue_has_tasks_or_a_handler() -> None:
    app = Tasks()

    @app.task(queue="q")
    async def work() -> None: ...

    async with Rig(tasks=app) as rig:
        worker = Worker(rig.queue, tasks=app)
        worker.handler("q")(lambda job: None)
        with pytest.raises(InvalidArgument, match="has tasks and a handler"):
            await worker.run(signals=False)
        both = Worker(rig.queue, tasks=app)
        seen: list[bytes] = []
        both.handler("other")(lambda job: seen.append(job.payload))
        await rig.queue.enqueue("other", b"bytes")
        await work.enqueue()
        await both.run(until_empty=True, signals=False)
        assert seen == [b"bytes"]
        with pytest.raises(InvalidArgument, match="have no task"):
            await Worker(rig.queue, tasks=Tasks()).run(signals=False)


async def test_what_is_no_registry_of_tasks_is_refused_before_the_store_is_opened() -> None:
    wrong: Any = [print]
    with pytest.raises(InvalidArgument, match=r"tasks is what Tasks\(\) makes"):
        await Queue.open("memory:///", tasks=wrong)
    async with Rig() as rig:
        with pytest.raises(InvalidArgument, match=r"tasks is what Tasks\(\) makes"):
            Worker(rig.queue, tasks=wrong)


# Tries that do not succeed


async def test_unfit_arguments_are_dead_at_once() -> None:
    app = Tasks()

    @app.task()
    async def work(x: int) -> None: ...

    async with Rig(tasks=app) as rig:
        job = await rig.queue.enqueue("default", b'{"y":1}', task="work")
        error = await run(rig, app, rig.queue.handle(job.job_id))
        assert isinstance(error, JobFailed)
        assert (error.error_type, (await rig.queue.get(job.job_id)).attempt) == ("ArgumentsDontFit", 1)
        assert "x: Field required" in error.text


@pytest.mark.parametrize("task", ["gone", None])
async def test_a_job_that_no_task_is_for_waits_for_one_and_its_tries_do_not_count(task: str | None) -> None:
    old, new = Tasks(), Tasks()

    async def work() -> int:
        return 7

    old.task()(work)
    known = new.task(name="gone")(work)

    async with Rig(tasks=old) as rig:
        job = await rig.queue.enqueue("default", b"{}", task=task, max_attempts=1)
        async with working(Worker(rig.queue, tasks=old)):
            for minute in range(1, 4):
                while (await rig.queue.get(job.job_id)).state != "scheduled":
                    await asyncio.sleep(0)
                now = await rig.queue.get(job.job_id)
                assert (now.attempt, now.due_ms - rig.clock.now_ms()) == (0, 60_000)
                assert ("knows no task 'gone'" if task else "names no task") in now.error
                if minute < 3:
                    await rig.advance(60)
        nacked = [event for event in await rig.events() if isinstance(event, Nacked)]
        assert [(event.to, event.released) for event in nacked] == [("scheduled", True)] * 3
        if task:
            await rig.advance(60)
            assert await run(rig, new, known.options(queue=rig.queue).handle(job.job_id)) == 7


@pytest.mark.parametrize(
    "terms", [b"\x9f\xa4work" + bytes(13) + b"\x01", b"\x92\xa4work\x07", b""], ids=["more terms", "no JSON", "damaged"]
)
async def test_a_job_of_a_newer_version_waits_for_one_that_knows_its_terms(terms: bytes) -> None:
    app = Tasks()

    @app.task()
    async def work() -> None: ...

    async with Rig(tasks=app) as rig:
        await work.enqueue()
        (claim,) = await rig.queue.claim("default")
        choose = TaskHandlers(app).of_queues()["default"].choose
        assert choose is not None
        assert await choose(claim).function(JobContext(claim)) is None
        claim.terms = terms
        with pytest.raises(TaskMissing, match="due again in 60 s, the try not counted"):
            await choose(claim).function(JobContext(claim))


async def test_rules_by_exception_count_before_the_jobs_own() -> None:
    app = Tasks()
    raised: list[BaseException] = []

    @app.task(
        max_attempts=2,
        retry=[
            on(ConnectionResetError, attempts=1),
            on(ConnectionError, attempts=4, base=0),
            on(ValueError, dead=True),
        ],
    )
    async def work() -> None:
        raise raised[0]

    async def tries(error: BaseException) -> tuple[int, str]:
        raised[:] = [error]
        handle = await work.enqueue()
        failed = await run(rig, app, handle)
        assert isinstance(failed, JobFailed)
        return (await rig.queue.get(handle.job_id)).attempt, failed.error_type

    async with Rig(tasks=app, default=QueueOptions(backoff_base_s=0)) as rig:
        assert await tries(ConnectionRefusedError()) == (4, "ConnectionRefusedError")
        assert await tries(ConnectionResetError()) == (1, "ConnectionResetError")
        assert await tries(ValueError("never")) == (1, "ValueError")
        assert await tries(UnicodeError("derived")) == (1, "UnicodeError")
        assert await tries(KeyError("none")) == (2, "KeyError")
        assert await tries(Dead("asked for")) == (1, "Dead")
        assert await tries(Retry(0)) == (2, "Retry")


async def test_a_tasks_timeout_is_its_own_and_a_rule_may_be_for_it() -> None:
    app = Tasks()

    @app.task(timeout=5, retry=[on(TimeoutError, dead=True)])
    async def slow() -> None:
        await asyncio.Event().wait()

    @app.task()
    async def patient() -> None:
        await asyncio.Event().wait()

    async with Rig(tasks=app) as rig:
        one, two = await slow.enqueue(), await patient.enqueue()
        async with working(Worker(rig.queue, tasks=app, grace=0)):
            await settle()
            await rig.advance(5)
            with pytest.raises(JobFailed, match="timed out after 5 s") as caught:
                await one
            assert caught.value.error_type == "TimeoutError"
            assert (await rig.queue.get(two.job_id)).state == "claimed"


async def test_a_result_that_is_too_large_fails_its_job_at_once_and_no_other() -> None:
    app = Tasks()

    @app.task(max_attempts=5)
    async def work(size: int) -> str:
        return "x" * size

    async with Rig(tasks=app) as rig:
        large, small = await work.enqueue(1024 * 1024), await work.enqueue(5)
        assert await run(rig, app, small) == "xxxxx"
        error = await run(rig, app, large)
        assert isinstance(error, JobFailed)
        assert error.error_type == "ResultDoesntFit"
        assert "store it elsewhere and return a reference" in str(error)
        assert (await rig.queue.get(large.job_id)).attempt == 1


# Middleware, hooks, lifespan


async def test_middleware_is_around_each_try_the_first_one_outermost() -> None:
    app, seen = Tasks(), []

    @app.use
    async def outer(job: JobContext, call_next: CallNext) -> Any:
        seen.append(f"outer {job.task}")
        try:
            return await call_next(job)
        finally:
            seen.append("outer ends")

    @app.use
    async def inner(job: JobContext, call_next: CallNext) -> Any:
        seen.append("inner")
        return await call_next(job) + 1

    @app.task()
    def work(x: int) -> int:
        seen.append("work")
        return x

    async with Rig(tasks=app) as rig:
        assert await run(rig, app, await work.enqueue(5)) == 6
        assert seen == ["outer work", "inner", "work", "outer ends"]


async def test_an_error_shows_the_frames_of_the_task_and_its_middleware_alone() -> None:
    app = Tasks()

    @app.use
    async def around(job: JobContext, call_next: CallNext) -> Any:
        return await call_next(job)

    @app.task(max_attempts=1)
    async def fail() -> None:
        raise ZeroDivisionError("by nothing")

    async with Rig(tasks=app) as rig:
        error = await run(rig, app, await fail.enqueue())
        assert isinstance(error, JobFailed)
        frames = [line for line in error.text.splitlines() if line.startswith("  File ")]
        assert [line.split(", in ")[1] for line in frames] == ["around", "fail"]


async def test_what_is_enqueued_goes_through_the_hooks() -> None:
    app = Tasks()

    @app.on_enqueue
    def with_tenant(job: NewJob) -> NewJob:
        return job.model_copy(update={"headers": {**(job.headers or {}), "tenant": "acme"}})

    @app.on_enqueue
    def urgent(job: NewJob) -> NewJob:
        return job.model_copy(update={"priority": 1})

    @app.task()
    async def work(x: int) -> None: ...

    async with Rig(tasks=app) as rig:
        handles = [await work.options(headers={"a": "b"}).enqueue(1), *await work.enqueue_many([{"x": 2}])]
        jobs = [await rig.queue.get(handle.job_id) for handle in handles]
        assert [job.priority for job in jobs] == [1, 1]
        assert (await rig.queue.payload(handles[0].job_id)).headers == {"a": "b", "tenant": "acme"}
        app.on_enqueue(lambda job: None)  # type: ignore[type-var]
        with pytest.raises(InvalidArgument, match="is to return the NewJob"):
            await work.enqueue(1)


async def test_a_lifespan_is_around_each_workers_run_and_its_state_is_the_jobs() -> None:
    app, seen = Tasks(), []

    @app.lifespan
    async def resources() -> AsyncIterator[dict[str, int]]:
        seen.append("up")
        yield {"a": 1}
        seen.append("down")

    @app.task()
    async def work(job: JobContext) -> int:
        seen.append("work")
        return int(job.state["a"])

    with pytest.raises(InvalidArgument, match="have a lifespan already"):
        app.lifespan(resources)
    async with Rig(tasks=app) as rig:
        for _ in range(2):
            assert await run(rig, app, await work.enqueue()) == 1
        assert seen == ["up", "work", "down"] * 2


async def test_a_lifespan_that_fails_ends_the_worker_before_it_claims() -> None:
    app = Tasks()

    @app.lifespan
    async def resources() -> AsyncIterator[None]:
        raise ConnectionError("no database")
        yield

    @app.task()
    async def work() -> None: ...

    async with Rig(tasks=app) as rig:
        await work.enqueue()
        worker = Worker(rig.queue, tasks=app)
        for _ in range(2):  # it may be tried again
            with pytest.raises(ConnectionError, match="no database"):
                await worker.run(signals=False)
        assert (await rig.queue.stats("default")).totals["claimed"] == 0
